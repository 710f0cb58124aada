"""docs/kernel-bugs.md: each program shows its bug. What a kernel does not show is skipped, with what it did instead."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import mptcp
import pytest
from mptcp.lab import Host, Link, two_paths
from support import PATIENCE, Connection, eventually, needs, subscribers

PAGE = Path(__file__).parents[2] / "docs" / "kernel-bugs.md"
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
_LINES = r"((?:(?!```).*\n)*)"
# The programs that end by printing what they saw; then what they printed once.
PROGRAM = re.compile(f"^```python\n{_LINES}```\n+```text\n{_LINES}```", re.MULTILINE)
# Of one program, in less time than pytest gives a test.
DEADLINE = 90.0 * PATIENCE

pytestmark = pytest.mark.mptcp_needs("in_lab", "links")


def program(section: str) -> tuple[str, str]:
    """The program of a section, and the last line of what it printed."""
    [title] = [title for title in SECTIONS if section in title]
    [(text, output)] = PROGRAM.findall(SECTIONS[title])
    return text, output.splitlines()[-1]


def run(text: str) -> list[str]:
    """Run a program, and return the lines that it prints."""
    # On a busy machine a lab warns that frames were late.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    command = [sys.executable, "-c", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=environment)
    except subprocess.TimeoutExpired:
        not_shown(f"it did not come to an end within {DEADLINE:.0f} s")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def same_form(said: str, printed: str) -> bool:
    """Whether a line is the page's, but for its numbers."""
    return re.sub(r"\d+", "0", said) == re.sub(r"\d+", "0", printed)


def not_shown(said: object) -> NoReturn:
    pytest.skip(f"needs a kernel that shows this bug; Linux {platform.release()} did not: {said}")


def test_data_that_follows_a_join() -> None:
    text, printed = program("Data that follows a join")
    said = run(text)[-1]
    assert same_form(said, printed), said
    transfers, corrupted, mismatches = map(int, re.findall(r"\d+", said))
    assert transfers > 0
    if not (corrupted or mismatches):
        not_shown(said)


def test_its_workaround(connection: Connection) -> None:
    [text] = [
        text for text in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S) if "set_backup" in text
    ]
    local, remote = connection.second
    names = {"sock": connection.sock, "local": local, "remote": remote}
    try:
        exec(text, names)
    except mptcp.UnsupportedError as error:
        pytest.skip(f"needs subflows that are opened as a backup: {error}")
    assert isinstance(names["subflow"], mptcp.Subflow)
    assert eventually(lambda: [subflow.backup for subflow in connection.sock.subflows()] == [False, False])


@needs("ip", "ss")
def test_a_full_receive_buffer() -> None:
    text, printed = program("full of out-of-order data")
    begin = time.monotonic()
    said = run(text)
    # As the page says, it may take several runs.
    while said == ["whole"] and time.monotonic() - begin < DEADLINE / 6:
        said = run(text)
    if said == ["whole"]:
        not_shown(said)
    assert same_form(said[0], printed), said
    assert sum(line.startswith("mptcp") for line in said) == 1


def test_an_overrun_window() -> None:
    text, printed = program("overruns the receiver's window")
    said = run(text)
    assert len(said) == 10
    form = re.sub(r"[\d.]+", r"[\\d.]+", re.escape(printed).replace(r"\.", "."))
    assert all(re.fullmatch(form, line) for line in said), said
    if said[-1].endswith("; 0 pieces dropped"):
        not_shown(said[-1])


@needs("ip")
def test_the_end_without_an_event() -> None:
    """The kernel's own monitor runs beside the program, as the page asks for."""
    text, printed = program("aborts ends without an event")
    monitored: list[str] = []

    @contextlib.contextmanager
    def monitored_paths() -> Iterator[tuple[Host, Host, tuple[Link, Link]]]:
        with (
            two_paths() as (client, server, paths),
            client.popen(["ip", "mptcp", "monitor"], stdout=subprocess.PIPE, text=True) as monitor,
        ):
            assert monitor.stdout is not None
            try:
                assert eventually(lambda: subscribers(client) > 0)
                yield client, server, paths
                # On a busy machine it prints what it has been told a moment later.
                while not any("ESTABLISHED" in line for line in monitored[-1:]):
                    monitored.append(monitor.stdout.readline())
                    assert monitored[-1], "the monitor did not see the connection"
            finally:
                monitor.terminate()
                monitored.append(monitor.stdout.read())

    printed_here: list[str] = []
    names: dict[str, Any] = {
        "lab": SimpleNamespace(two_paths=monitored_paths),
        "print": lambda *words: printed_here.append(" ".join(map(str, words))),
    }
    exec(text.replace("from mptcp import lab\n", ""), names)
    names["sock"].close()
    names["listener"].close()
    [said] = printed_here
    assert same_form(said, printed), said
    if any("CLOSED" in line for line in monitored):
        not_shown("ip mptcp monitor has the event")


@needs("nft")
def test_a_connection_that_is_closed_before_any_data() -> None:
    text, printed = program("closed before any data was sent")
    if subprocess.run([sys.executable, "-c", NFT], capture_output=True).returncode:
        pytest.skip("needs nftables in the kernel")
    said = run(text)
    if said != [printed]:
        assert said in (["read b''"], [printed.replace("uses TCP", "uses Multipath TCP")]), said
        not_shown(said)


# Whether a host of a lab can have a table with a rule that counts on flags.
NFT = """
from mptcp.lab import Lab
with Lab() as lab:
    lab.host("host").run(["nft", '''
add table inet lost
add chain inet lost input { type filter hook input priority 0; }
add rule inet lost input tcp dport 5000 tcp flags & syn == 0 drop
'''], check=True)
"""


def test_every_program_has_its_output() -> None:
    text = PAGE.read_text()
    assert len(PROGRAM.findall(text)) == text.count("```python\n") - 1  # the workaround prints nothing
