"""The shell's lines, files of rules and the C of pages that explain commands: each does what the page says."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import connected, eventually, needs

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

DOCS = Path(__file__).parents[2] / "docs"
BODY = 10_000_000


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def environment() -> dict[str, str]:
    """With the mptcp and the python of this interpreter first, as in an activated environment."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore::RuntimeWarning"}


class Receiving(http.server.BaseHTTPRequestHandler):
    """Takes one file; knows how many subflows it came over."""

    protocol_version = "HTTP/1.1"
    connection: mptcp.Socket  # type: ignore[assignment]  # any socket, in the types of the standard library
    subflows = 0
    received = 0

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            part = self.rfile.read1(min(left, 1 << 16))
            assert part
            left -= len(part)
            Receiving.received += len(part)
            Receiving.subflows = max(Receiving.subflows, len(self.connection.subflows()))
        self.do_GET()

    def do_GET(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        Receiving.multipath = self.connection.is_mptcp

    multipath: bool | None = None

    def log_message(self, format: str, *args: object) -> None:
        """Not to standard error."""


@contextlib.contextmanager
def web_server(host: Host) -> Iterator[None]:
    """A server for one request on port 80 of a host."""
    Receiving.subflows, Receiving.received, Receiving.multipath = 0, 0, None
    with host.create_server(("", 80)) as listener:
        listener.settimeout(60)

        def serve() -> None:
            with listener.accept()[0] as peer:
                peer.settimeout(60)
                Receiving(peer, peer.getpeername(), None)  # type: ignore[arg-type]  # the server, which it does not use

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def policies_run(host: Host, line: str, folder: Path) -> Iterator[None]:
    """A line of a shell that runs policies until Ctrl+C."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with host.popen(["bash", "-c", f"exec {line}"], cwd=folder, env=environment(), **pipes) as process:
        try:
            assert process.stderr is not None
            assert "running" in process.stderr.readline()
            yield
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


@needs("curl")
@pytest.mark.mptcp_needs("user_notification")
def test_policies(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    client, server, paths = mptcp_two_paths
    builtin, own, run = blocks("policies.md", "sh")[0].splitlines()
    [greedy] = [program for program in blocks("policies.md", "python") if program.startswith("class Greedy")]
    (tmp_path / "my_policy.py").write_text(f"import mptcp\n\n\n{greedy}")
    (tmp_path / "file").write_bytes(bytes(BODY))

    names = [path.interface(client) for path in paths]
    prefer = re.sub(r"eth1,wlan0$", ",".join(names), builtin)
    with policies_run(client, prefer, tmp_path), connected(client, server, paths) as made:
        paths[0].down()
        assert eventually(lambda: made.second[0] in [subflow.local[0] for subflow in made.sock.subflows()])
        paths[0].up()
    with policies_run(client, own, tmp_path), connected(client, server, paths) as made:
        made.peer.settimeout(60)
        sender = threading.Thread(target=made.sock.sendall, args=[bytes(BODY)])
        sender.start()
        left = BODY
        while left:
            left -= len(made.peer.recv(left))
        sender.join()
        assert eventually(lambda: len(made.sock.subflows()) == 2)

    with web_server(server):
        line = run.replace("https://example.org/", f"http://{paths[0].address(server)}/")
        done = client.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100
        )
    assert (done.returncode, done.stdout) == (0, "ok"), done.stderr
    assert (Receiving.received, Receiving.subflows) == (BODY, 2)


@pytest.mark.mptcp_needs("user_notification")
def test_run(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    """The third line is for another user: supervisor/test_run_user.py."""
    client, server, paths = mptcp_two_paths
    curl, iperf3, other_user = blocks("run.md", "sh")[0].splitlines()
    assert "--user" in other_user
    address = paths[0].address(server)
    options = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 100}
    tried = []
    if shutil.which("curl"):
        with web_server(server):
            done = client.run(["bash", "-c", curl.replace("https://example.org/", f"http://{address}/")], **options)
        assert (done.returncode, done.stdout) == (0, "ok"), done.stderr
        assert Receiving.multipath
        tried.append("curl")
    if shutil.which("iperf3"):
        command = [sys.executable, "-m", "mptcp", "run", "iperf3", "-s", "-1"]
        with server.popen(command, stdout=subprocess.DEVNULL) as serving:
            try:
                assert eventually(lambda: "5201" in server.run(["ss", "-Hltn"], capture_output=True, text=True).stdout)
                line = iperf3.replace("-c server", f"-c {address} --time 1")
                done = client.run(["bash", "-c", line], **options)
                assert done.returncode == 0, done.stdout + done.stderr
                assert serving.wait(60) == 0
            finally:
                serving.kill()
        assert client.counters().get("MPCapableSYNACKRX", 0) > 0
        tried.append("iperf3")
    if len(tried) < 2:
        pytest.skip(f"needs curl and iperf3; passed with {tried}")


def test_the_file_of_the_service(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    client, _, paths = mptcp_two_paths
    [text] = blocks("policies.md", "toml")
    [greedy] = [program for program in blocks("policies.md", "python") if program.startswith("class Greedy")]
    (tmp_path / "my_policy.py").write_text(f"import mptcp\n\n\n{greedy}")
    (tmp_path / "policy.toml").write_text(text)
    there = {path.interface(client) for path in paths}
    for number, name in enumerate(sorted({*re.findall(r'"((?:eth|wlan|wwan|docker)\d)"', text)} - there)):
        client.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"peer{number}"], check=True)
    client.set_path_manager("kernel")
    with policies_run(client, f"mptcp policy --config {tmp_path}/policy.toml", tmp_path):
        assert client.get_path_manager() == "userspace"
    assert client.get_path_manager() == "kernel"


def test_the_files_of_rules(tmp_path: Path) -> None:
    """With users and groups of this host."""
    texts = blocks("broker.md", "toml")
    assert len(texts) == 2
    for text in texts:
        for name, here in (("alice", "nobody"), ("www-data", "nobody"), ("students", "nogroup")):
            text = text.replace(f'"{name}"', f'"{here}"')
        (tmp_path / "broker.toml").write_text(text)
        done = subprocess.run(
            ["mptcp", "broker", "--check", tmp_path / "broker.toml"],
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


@needs("cc")
def test_the_head_of_the_brokers_messages(tmp_path: Path) -> None:
    """As tests/broker/raw.py packs it: "=HHIII"."""
    [text] = blocks("broker.md", "c")
    offsets = {"version": 0, "kind": 2, "sequence": 4, "errnum": 8, "flags": 12}
    checks = [
        f'_Static_assert(offsetof(struct mptcp_broker_head, {name}) == {offset}, "{name}");'
        for name, offset in offsets.items()
    ]
    program = ["#include <stddef.h>", "#include <stdint.h>", text, *checks]
    program.append('_Static_assert(sizeof(struct mptcp_broker_head) == 16, "size");')
    (tmp_path / "head.c").write_text("\n".join(program))
    subprocess.run(["cc", "-Wall", "-Werror", "-c", "head.c", "-o", "head.o"], cwd=tmp_path, check=True)


@needs("cc")
def test_the_line_that_compiles_a_program_of_2016(tmp_path: Path) -> None:
    [line] = blocks("enhanced-api.md", "sh")
    programs = DOCS.parent / "tests" / "enhanced_api"
    shutil.copy(programs / "slides.c", tmp_path / "program.c")
    shutil.copy(programs / "connect.h", tmp_path)
    subprocess.run(["bash", "-ec", line], cwd=tmp_path, env=environment(), check=True)
    assert (tmp_path / "a.out").exists()
