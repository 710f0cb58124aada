"""``mptcp lab``: a program in a lab in one line."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Not with warnings as errors: on a busy machine a lab warns that frames were late.
LAB = [sys.executable, "-m", "mptcp", "lab"]
# It answers one connection, in capitals.
SERVER = f"""{sys.executable} -c 'import socket
with socket.create_server(("", 5000)) as listener, listener.accept()[0] as peer:
    peer.sendall(peer.recv(100).upper())'"""
CLIENT = """
import os, socket, sys
with socket.create_connection((os.environ["MPTCP_LAB_SERVER"], 5000), 30) as sock:
    sock.sendall(b"hello")
    print(sock.recv(100))
"""

pytestmark = [pytest.mark.usefixtures("mptcp_lab"), pytest.mark.mptcp_needs("in_lab")]


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAB, *arguments], capture_output=True, text=True, timeout=timeout)


def test_a_program_has_the_links_and_its_exit_status_is_kept() -> None:
    done = run("--link", "a,rate=5mbit/1mbit", "--link", "mtu=1300,delay=2ms", "--", "sh", "-c", "ip -o addr; exit 7")
    assert done.returncode == 7, done.stderr
    assert all(address in done.stdout for address in ("10.0.1.1/24", "10.0.2.1/24"))


def test_a_server_is_there_when_the_program_begins() -> None:
    done = run("--server", SERVER, "--", sys.executable, "-c", CLIENT)
    assert (done.stdout, done.returncode) == ("b'HELLO'\n", 0), done.stderr


@pytest.mark.mptcp_needs("user_notification")
def test_multipath_opens_a_subflow_over_each_link() -> None:
    program = (
        CLIENT
        + "    import mptcp, time\n    deadline = time.monotonic() + 30\n"
        + (
            "    while len(mptcp.wrap(sock).subflows()) < 2 and time.monotonic() < deadline: time.sleep(0.05)\n"
            "    print(len(mptcp.wrap(sock).subflows()))\n"
        )
    )
    # The server keeps its end open until the client has counted.
    server = SERVER.replace("upper())'", "upper())\n    peer.recv(100)'")
    done = run("--multipath", "--server", server, "--", sys.executable, "-c", program, timeout=90)
    assert done.stdout == "b'HELLO'\n2\n", done.stderr


def test_the_meter_is_text_where_there_is_no_terminal() -> None:
    done = run("--link", "wifi,rate=5mbit", "--meter", "0.2", "--", "sleep", "2")
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert re.search(r"^link wifi  sent \d+\.\d\d Mbit/s", done.stderr, re.MULTILINE)


def test_the_meter_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [*LAB, "--meter", "0.2", "--", "sleep", "2"], stderr=follower, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(follower)
        shown = b""
        deadline = time.monotonic() + 60
        while b"wifi" not in shown and time.monotonic() < deadline:
            shown += os.read(leader, 4096)
        assert process.wait(60) == 0
    os.close(leader)
    assert b"Mbit/s" in shown or b"wifi" in shown


def test_a_program_that_is_not_there() -> None:
    done = run("--", "/nonexistent/program")
    assert (done.returncode, done.stdout) == (127, "")
    assert "mptcp lab: /nonexistent/program: there is no such program\n" in done.stderr


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("a,rat=3", "'rat=3' must be a name, as the first, or one of rate"),
        ("a,mtu=x", "'mtu=x' must be"),
        ("a,rate=fast", "rate"),
        ("", "'' must be"),
    ],
)
def test_a_wrong_link_is_refused(link: str, words: str) -> None:
    done = run("--link", link, "--", "true")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", ["--help", "list --help", "list", "doctor --json", "man"])
def test_closed_standard_output_ends_quietly(words: str) -> None:
    """Its reader is gone before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    # Without a buffer argparse itself ignores the error.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [*LAB[:-1], *words.split()]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
    finally:
        os.close(writer)
    said = [line for line in done.stderr.splitlines() if "argparse-manpage" not in line]
    assert said == []


def test_a_policy_file_that_fails_shows_its_own_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import mptcp\n\n\nclass Mine(mptcp.Policy):\n    def __init__(self):\n        self.tick = nothing\n"
    )
    done = subprocess.run([*LAB[:-1], "policy", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == f"mptcp policy: {file} cannot be run:"
    assert f'  File "{file}", line 6, in __init__' in lines
    assert lines[-1] == "NameError: name 'nothing' is not defined"
    assert len(re.findall("^  File", done.stderr, re.MULTILINE)) == 1
