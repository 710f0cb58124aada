"""``mptcp events`` and ``mptcp watch``: what they print is what happens and what there is."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from mptcp import cli
from mptcp.lab import Host
from support import ROOT, Connection, eventually

COMMAND = [sys.executable, "-W", "error", "-m", "mptcp"]


@contextlib.contextmanager
def started(host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = host.popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def subscribed(host: Host) -> bool:
    """The program is subscribed to links, which our own sockets are not."""
    rows = host.run(["cat", "/proc/net/netlink"], capture_output=True, text=True, check=True).stdout.splitlines()
    return any(row.split()[1] == "0" and int(row.split()[3], 16) != 0 for row in rows[1:])


def test_events_for_programs(connection: Connection) -> None:
    with started(connection.client, "events", "--json", "--count", "2") as program:
        assert eventually(lambda: subscribed(connection.client), 30)
        subflow = connection.sock.open_subflow(*connection.second)
        subflow.close()
        output, errors = program.communicate(timeout=60)
        assert (program.returncode, errors) == (0, "")
    joined, left = map(json.loads, output.splitlines())
    assert (joined["kind"], left["kind"]) == ("SUB_ESTABLISHED", "SUB_CLOSED")
    assert (joined["token"], joined["local"], joined["interface"]) == (
        connection.sock.token,
        list(subflow.local),
        None,
    )
    assert joined["time_ns"] <= left["time_ns"]


def test_events_for_people(connection: Connection) -> None:
    local, remote = connection.second
    with started(connection.client, "events", "--count", "2") as program:
        assert eventually(lambda: subscribed(connection.client), 30)
        connection.sock.open_subflow(local, (remote, 5001), timeout=0)
        connection.client.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], check=True)
        output, errors = program.communicate(timeout=60)
        assert (program.returncode, errors) == (0, "")
    # They come by two sockets of the kernel's: a program that was late finds both ready, and no order between them.
    added, refused = sorted(output.splitlines(), key=lambda line: line.split()[1])
    token = connection.sock.token
    assert re.fullmatch(
        rf"[\d.]+  SUB_CLOSED +{token}  {local}:\d+ -> {remote}:5001  ids \d+/\d+  Connection refused", refused
    )
    assert re.fullmatch(r"[\d.]+  ADDRESS_ADDED +192\.0\.2\.1:0  on lo", added)


def test_events_of_one_connection_end_with_it(connection: Connection) -> None:
    with started(connection.client, "events", "--json", "--token", str(connection.sock.token)) as program:
        subflow = None
        # Its stream begins at some moment: until the first line is there, give it something to tell.
        reader: list[str] = []
        assert program.stdout is not None
        thread = threading.Thread(target=lambda out: reader.append(out.readline()), args=(program.stdout,))
        thread.start()

        def told() -> bool:
            nonlocal subflow
            subflow = connection.sock.open_subflow(*connection.second)
            subflow.close()
            return bool(reader)

        assert eventually(told, 60)
        thread.join()
        connection.sock.close()
        output, _ = program.communicate(timeout=60)
        assert json.loads(output.splitlines()[-1])["kind"] == "CLOSED"
        assert program.returncode == 0


def test_events_end_in_time(connection: Connection) -> None:
    done = connection.client.run([*COMMAND, "events", "--duration", "0.1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_token_that_no_connection_has(connection: Connection) -> None:
    done = connection.client.run([*COMMAND, "events", "--token", "0"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "mptcp events: there is no connection with token 0\n"


def readings(host: Host, *arguments: str) -> list[dict[str, Any]]:
    done = host.run([*COMMAND, "watch", "--json", *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_watch_for_programs(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    ends = threading.Event()

    def send() -> None:
        while not ends.is_set():
            connection.sock.sendall(b"x" * 1000)
            connection.peer.recv(1000)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        first, *_, last = readings(connection.client, "--count", "4", "--interval", "0.1")
    finally:
        ends.set()
        sender.join()
    [before], [after] = first["connections"], last["connections"]
    assert before["token"] == after["token"] == connection.sock.token
    assert [each["sent_bps"] for each in before["subflows"]] == [None, None]
    assert sum(each["sent_bps"] for each in after["subflows"]) > 0
    assert len(after["subflows"]) == 2
    assert first["time_ns"] < last["time_ns"]


def test_watch_for_people(connection: Connection) -> None:
    done = connection.client.run(
        [*COMMAND, "watch", "--count", "2", "--interval", "0.01"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, rest = done.stdout.split("\n\n")
    assert rest == ""
    assert first.splitlines()[0].startswith(f"{connection.sock.token}  10.0.1.1:")
    assert re.search(r"sent -  received -$", first)
    assert re.search(r"sent [\d.]+ Mbit/s  received [\d.]+ Mbit/s$", second)


def on_a_terminal(host: Host, *command: str) -> bytes:
    """Return what the program writes to a terminal of 200 columns."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        program = host.popen([*command], stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"})
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while data := terminal.read(65536):
                shown += data
        assert program.wait(60) == 0
    return shown


def test_watch_on_a_terminal_draws_in_place(connection: Connection) -> None:
    # As without rich, even if it is installed.
    program = (
        "import sys; from mptcp.cli import _live, main; _live.fits = lambda stream: False; "
        "sys.exit(main(['watch', '--count', '3', '--interval', '0.01']))"
    )
    shown = on_a_terminal(connection.client, sys.executable, "-W", "error", "-c", program)
    assert shown.count(b"\x1b[2A\x1b[J") == 2


def test_watch_on_a_terminal_is_a_table_by_rich(connection: Connection) -> None:
    pytest.importorskip("rich", reason="needs rich: pip install 'mptcp[live]'")
    connection.sock.open_subflow(*connection.second)
    shown = on_a_terminal(connection.client, *COMMAND, "watch", "--count", "3", "--interval", "0.01").decode()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown).replace("\r", "\n")
    last = text[text.rindex("connections and subflows") :].split("\n")
    titles, title, *subflows = (line for line in last if line.strip())
    assert titles.split() == ["connections", "and", "subflows", "state", "rtt", "cwnd", "sent", "received"]
    assert title.startswith(f"{connection.sock.token}  10.0.1.1:")
    # A command in an ordinary user's host cannot read processes outside.
    assert (f"client, pid {os.getpid()} (" in title) is ROOT
    assert "client" in title
    assert [line.startswith("  10.0.") for line in subflows] == [True, True]
    assert {"initial", "joined"} == {
        word for line in subflows for word in line.split() if word in ("initial", "joined")
    }
    assert all(re.search(r"[\d.]+ ms +\d+ +[\d.]+ Mbit/s +[\d.]+ Mbit/s *$", line) for line in subflows)
    # In place: the cursor goes up by the lines of the table.
    assert "\x1b[1A" in shown


def test_nothing_to_watch(mptcp_lab: Any) -> None:
    [reading] = readings(mptcp_lab.host("a"), "--count", "1")
    assert reading["connections"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("events", "--count", "0"),
        ("events", "--duration", "0"),
        ("events", "--duration", "nan"),
        ("events", "--token", "-1"),
        ("watch", "--interval", "inf"),
        ("watch", "--count", "x"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: mptcp {arguments[0]}")
