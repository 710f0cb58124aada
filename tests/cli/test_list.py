"""``mptcp list``: what it lists is what there is, in this network namespace and in a host."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp import cli
from mptcp.lab import Host
from support import ROOT, Connection

LIST = [sys.executable, "-W", "error", "-m", "mptcp", "list"]


def listed(host: Host, *options: str) -> list[dict[str, Any]]:
    done = host.run([*LIST, "--json", *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    connections: list[dict[str, Any]] = json.loads(done.stdout)["connections"]
    return connections


def test_a_connection_with_two_subflows(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second, backup=True)
    [client], [server] = listed(connection.client), listed(connection.server)
    for found, sock, server_side in ((client, connection.sock, False), (server, connection.peer, True)):
        assert found["token"] == sock.token
        assert (found["state"], found["server_side"]) == ("ESTABLISHED", server_side)
        assert (found["local"], found["remote"]) == (list(sock.getsockname()), list(sock.getpeername()))
        assert found["inode"] == os.stat(sock.fileno()).st_ino
        assert found["age_s"] >= 0
        for shown, subflow in zip(found["subflows"], sock.subflows(), strict=True):
            for name in ("cookie", "local_id", "remote_id", "initial", "backup", "peer_backup", "state"):
                assert shown[name] == getattr(subflow, name), name
            assert (shown["local"], shown["remote"]) == (list(subflow.local), list(subflow.remote))
            assert shown["tcp_info"]["state"] == 1
    assert [subflow["backup"] for subflow in client["subflows"]] == [False, True]
    assert [subflow["peer_backup"] for subflow in server["subflows"]] == [False, True]


def test_the_text(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second, backup=True)
    done = connection.client.run(LIST, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    title, first, second = done.stdout.splitlines()
    assert title.startswith(f"{connection.sock.token}  10.0.1.1:")
    assert "-> 10.0.1.2:5000  ESTABLISHED  client  uid " in title
    assert re.fullmatch(
        r"  10\.0\.1\.1:\d+ -> 10\.0\.1\.2:5000 +ESTABLISHED  ids 0/0  initial +rtt +[\d.]+ ms +cwnd +\d+ +"
        r"sent [\d.]+ MiB +received [\d.]+ MiB",
        first,
    )
    assert re.match(r"  10\.0\.2\.1:\d+ -> 10\.0\.2\.2:5000 +ESTABLISHED  ids \d+/\d+  joined,backup ", second)


@pytest.fixture
def comm() -> Iterator[Path]:
    """The name of this process, which a test may change."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes().removesuffix(b"\n")
    yield comm
    comm.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (b"caf\xc3\xa9", "caf\u00e9"),
        (b"caf\xe9", r"caf\xe9"),
        (b"\xff\xfe\n\t", "\\xff\\xfe\n\t"),
        (b"\x1b[2J\x07\xc2\x9b", "\x1b[2J\x07\x9b"),
        (b"\xe2\x80\xaegnp", "\u202egnp"),
    ],
)
def test_a_program_whose_name_is_any_bytes(connection: Connection, comm: Path, name: bytes, read: str) -> None:
    comm.write_bytes(name)
    client = connection.client
    [found] = client.connections()
    assert (found.pid, found.program) == (os.getpid(), read)
    if not ROOT:
        pytest.skip("needs root: a command in a host's user namespace cannot read processes outside")
    [reported] = listed(client)
    assert (reported["pid"], reported["program"]) == (os.getpid(), read)
    for command in ("list", "watch"):
        for encoding in ("utf-8", "ascii"):
            words = [sys.executable, "-W", "error", "-m", "mptcp", command, *(["--count", "1"] * (command == "watch"))]
            environment = {**os.environ, "PYTHONIOENCODING": encoding}
            done = client.run(words, capture_output=True, timeout=60, env=environment)
            assert (done.returncode, done.stderr) == (0, b"")
            title = done.stdout.decode(encoding).splitlines()[0]
            escaped = "".join(each if each.isprintable() else repr(each)[1:-1] for each in read)
            shown = escaped.encode(encoding, "backslashreplace").decode(encoding)
            assert title.endswith(f"pid {os.getpid()} ({shown})")


def test_filters(connection: Connection) -> None:
    token, port = connection.sock.token, connection.sock.getsockname()[1]
    with connection.client.create_connection(connection.sock.getpeername(), timeout=10) as other:
        assert {found["token"] for found in listed(connection.client)} == {token, other.token}
        for options in (["--token", str(token)], ["--token", hex(token)], ["--port", str(port)]):
            assert [found["token"] for found in listed(connection.client, *options)] == [token]
        assert len(listed(connection.client, "--port", "5000")) == 2
        assert listed(connection.client, "--port", "1") == []
        assert listed(connection.client, "--token", str(token), "--port", "1") == []


def test_whose_they_are(pair: tuple[mptcp.Socket, mptcp.Socket], capsys: pytest.CaptureFixture[str]) -> None:
    sock, peer = pair
    assert cli.main(["list", "--json", "--pid", str(os.getpid()), "--port", str(sock.getsockname()[1])]) == 0
    found = json.loads(capsys.readouterr().out)["connections"]
    assert {each["token"] for each in found} == {sock.token, peer.token}
    program = Path("/proc/self/comm").read_text().strip()
    for each in found:
        assert (each["uid"], each["pid"], each["program"]) == (os.geteuid(), os.getpid(), program)
    assert cli.main(["list", "--token", str(sock.token)]) == 0
    assert f"pid {os.getpid()} ({program})\n" in capsys.readouterr().out


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mptcp.create_server(("::1", 0), family=socket.AF_INET6) as listener,
        mptcp.create_connection(listener.getsockname()[:2]) as sock,
    ):
        assert cli.main(["list", "--token", str(sock.token)]) == 0
        port = listener.getsockname()[1]
        assert f"[::1]:{sock.getsockname()[1]} -> [::1]:{port}  ESTABLISHED  client" in capsys.readouterr().out


def test_nothing_to_list(mptcp_two_paths: tuple[Host, Host, Any]) -> None:
    client = mptcp_two_paths[0]
    assert listed(client) == []
    done = client.run(LIST, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "no Multipath TCP connections\n")


def test_a_process_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert cli.main(["list", "--pid", str(ended.pid)]) == 1
    assert capsys.readouterr() == ("", f"mptcp list: there is no process {ended.pid}\n")


@pytest.mark.parametrize(
    "arguments",
    [["--port", "65536"], ["--port", "http"], ["--token", "-1"], ["--token", "0x100000000"], ["--pid", "0"]],
)
def test_wrong_numbers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["list", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: mptcp list ")
