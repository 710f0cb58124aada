"""`mptcp policy --verbose` and `--json`: each decision, why it was taken and how it ended; and the logger."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Link
from mptcp.policies import Announce, FullMesh, OnlyFor
from support import PORT, connected, eventually, has_bpf

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

COMMAND = [sys.executable, "-W", "error", "-m", "mptcp", "policy"]


@contextlib.contextmanager
def running(host: Host, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it runs; it ends with the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with host.popen([*COMMAND, *words], text=True, **pipes) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stderr is not None
        assert "running" in process.stderr.readline()
        yield process


def ended(process: subprocess.Popen[str]) -> str:
    """What it still prints until SIGTERM has ended it."""
    process.send_signal(signal.SIGTERM)
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return told


class Listening(logging.Handler):
    """The decisions that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[dict[str, Any]] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "decision"):
            self.decisions.append(record.decision)
            self.lines.append(record.getMessage())

    def of(self, decision: str) -> list[dict[str, Any]]:
        return [one for one in self.decisions if one["decision"] == decision]

    def one(self, decision: str) -> dict[str, Any]:
        assert eventually(lambda: bool(self.of(decision))), self.decisions
        [found] = self.of(decision)
        return found


@pytest.fixture
def listening() -> Iterator[Listening]:
    logger, handler = logging.getLogger("mptcp.policy"), Listening()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_a_line_for_each_decision(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    second = paths[1].address(client)
    with running(client, "--builtin", f"prefer:{second}", "--verbose") as process:
        assert process.stdout is not None
        with connected(client, server, paths) as made:
            token, local = made.sock.token, made.sock.getsockname()
            told = ""
            while " close " not in told:
                told += process.stdout.readline()
        told += ended(process)
    remote = f"{paths[0].address(server)}:{PORT}"
    ms = r"in \d+\.\d ms"
    for line in (
        rf"Prefer\.on_connection\(\): {token} open {second}:\d+ -> {remote}: established {ms}",
        rf"Prefer\.on_subflow_established\(\): {token} close {local[0]}:{local[1]} -> {remote}: closed {ms}",
        rf"Prefer\.\w+\(\): {token} order when {second}:\d+ -> {remote} is lost: open {second} -> {remote}: left {ms}",
    ):
        assert re.search(f"^{line}$", told, re.MULTILINE), (line, told)


def test_decisions_as_json(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    second = paths[1].address(client)
    with running(client, "--builtin", "fullmesh", "--json") as process:
        assert process.stdout is not None
        with connected(client, server, paths) as made:
            decision = json.loads(process.stdout.readline())
            while decision["decision"] != "open":
                decision = json.loads(process.stdout.readline())
            assert decision["token"] == made.sock.token
        rest = ended(process)
    assert all(json.loads(line)["decision"] for line in rest.splitlines())
    assert {name: decision[name] for name in ("policy", "because", "event", "outcome", "errno", "error")} == {
        "policy": "FullMesh",
        "because": "on_connection",
        "event": None,
        "outcome": "established",
        "errno": None,
        "error": None,
    }
    assert decision["local"][0] == second
    assert decision["remote"] == [paths[0].address(server), PORT]
    assert 0 < decision["seconds"] < 60
    assert decision["time_ns"] > 0


def test_without_verbose_nothing_is_printed(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with running(client, "--builtin", "fullmesh") as process, connected(client, server, paths) as made:
        assert eventually(lambda: len(made.sock.subflows()) == 2)
        assert ended(process) == ""


def test_a_reader_that_is_gone_ends_no_policy(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with running(client, "--builtin", "fullmesh", "-v") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        for _ in range(2):
            with connected(client, server, paths) as made:
                assert eventually(lambda made=made: len(made.sock.subflows()) == 2)  # type: ignore[misc]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_reader_that_does_not_read_holds_nothing_up(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    """More decisions than a pipe holds: the policies act on new connections all the same."""
    client, server, paths = mptcp_two_paths
    policy = tmp_path / "busy.py"
    policy.write_text(
        "import mptcp\n"
        "class Busy(mptcp.Policy):\n"
        "    def on_connection(self, conn):\n"
        "        for _ in range(1000):\n"
        "            conn.when_lost('eth9')\n"
        f"        conn.open_subflow({paths[1].address(client)!r})\n"
    )
    with running(client, str(policy), "--json") as process:
        with connected(client, server, paths) as made:
            assert eventually(lambda: len(made.sock.subflows()) == 2)
            assert process.stdout is not None
            decisions = []
            while not decisions or decisions[-1]["decision"] != "open":
                decisions.append(json.loads(process.stdout.readline()))
        ended(process)
    assert [one["decision"] for one in decisions] == ["take order back"] * 1000 + ["open"]
    assert decisions[-1]["outcome"] == "established"


def test_what_fails(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    client, server, paths = mptcp_two_paths

    class ToNobody(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            conn.open_subflow(paths[1].address(client), (paths[1].address(server), PORT + 1))

    with client.run_policy(ToNobody()), connected(client, server, paths):
        decision = listening.one("open")
    assert (decision["outcome"], decision["because"]) == ("failed", "on_connection")
    assert decision["errno"] or decision["error"]
    assert decision["seconds"] < 60
    assert "failed in " in listening.lines[0]


def test_what_another_policy_does_not_allow(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    client, server, paths = mptcp_two_paths
    second = paths[1].address(client)
    with client.run_policy(FullMesh(), OnlyFor(second, ports=[1])), connected(client, server, paths):
        decision = listening.one("open")
    assert (decision["policy"], decision["outcome"]) == ("FullMesh", "not allowed by OnlyFor")
    assert decision["local"][0] == second


def test_backup_announcement_and_withdrawal(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    client, server, paths = mptcp_two_paths

    class Back(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            conn.subflows()[0].set_backup(True)
            conn.remove_address(conn.announce_address(paths[1].address(client)))
            with contextlib.suppress(OSError):
                conn.announce_address("10.99.99.99")

    with client.run_policy(Back()), connected(client, server, paths) as made:
        backup = listening.one("backup")
        assert eventually(lambda: len(listening.of("announce")) == 2)
        assert backup["local"] == made.sock.getsockname()
    assert (backup["backup"], backup["outcome"]) == (True, "sent")
    sent, failed = listening.of("announce")
    assert (sent["outcome"], sent["local"]) == ("sent", (paths[1].address(client), 0))
    assert (failed["outcome"], failed["errno"]) == ("failed", 99), failed
    assert listening.one("withdraw")["address_id"] == sent["address_id"]
    assert " backup " in listening.lines[[one["decision"] for one in listening.decisions].index("backup")]


def test_announce_says_why(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    client, server, paths = mptcp_two_paths
    with server.run_policy(Announce()), connected(client, server, paths):
        decision = listening.one("announce")
    assert decision["policy"] == "Announce"
    assert decision["local"][0] == paths[1].address(server)


def test_a_standing_order(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    client, server, paths = mptcp_two_paths
    second, first = paths[1].address(client), paths[0].interface(client)

    class Order(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            conn.when_lost(first, second)

    with client.run_policy(Order()), connected(client, server, paths):
        order = listening.one("order")
        assert (order["lost"], order["outcome"], order["policy"]) == (first, "left", "Order")
        paths[0].down()
        opened = listening.one("open")
    assert (opened["policy"], opened["because"]) == (None, "standing order")
    assert (
        f"Order.on_connection(): {opened['token']} order when {first} is lost: open {second} -> " in listening.lines[0]
    )


@pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")
def test_an_option(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    client, server, paths = mptcp_two_paths

    class Mark(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            [subflow] = conn.subflows()
            subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)

    with client.run_policy(Mark()), connected(client, server, paths):
        decision = listening.one("option")
    assert [(one["option"], one["value"]) for one in decision["options"]] == [("TCP_KEEPCNT", 9)]
    assert decision["outcome"] == "set"


def test_a_policy_that_was_called_for_a_loss(mptcp_two_paths: TwoPaths, listening: Listening) -> None:
    """The event is there, and a try that is under way when the policies end is said to be so."""
    client, server, paths = mptcp_two_paths

    established, lost = threading.Event(), threading.Event()

    class Again(mptcp.Policy):
        open_timeout = 1000.0  # type: ignore[misc]

        def on_subflow_established(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
            established.set()

        def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
            paths[1].set(loss="100%")
            conn.open_subflow(paths[1].address(client))
            lost.set()

    with connected(client, server, paths) as made, client.run_policy(Again()):
        made.sock.open_subflow(*made.second)
        assert established.wait(60)
        assert eventually(lambda: len(made.peer.subflows()) == 2)
        made.peer.close_subflow(made.peer.subflows()[1])
        assert lost.wait(60)
    decision = listening.one("open")
    assert decision["outcome"] == "not known: the policies have ended"
    assert decision["because"] == "on_subflow_lost"
    assert decision["event"]["kind"] == "SUB_CLOSED"
    assert decision["event"]["local"][0] == paths[1].address(client)


def test_own_connections_only(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    """Those of the user who runs the command: another user's has one subflow, beside ours with two."""
    client, server, paths = mptcp_two_paths
    if os.geteuid() != 0:
        pytest.skip("needs root, to have connections of two users")
    command = ["setpriv", "--reuid=nobody", "--clear-groups", "/usr/bin/python3", "-c", _CLIENT]
    with (
        running(client, "--builtin", "fullmesh", "--own") as process,
        connected(client, server, paths) as made,
        client.popen([*command, paths[0].address(server), str(PORT)], stdin=subprocess.PIPE) as other,
    ):
        peer, _ = made.listener.accept()
        with peer:
            peer.sendall(b"x")
            assert peer.recv(1) == b"x"
            assert eventually(lambda: len(made.sock.subflows()) == 2)
            # The policy has met the other connection before this one, which begins after it.
            with connected_again(client, made.listener, paths[0].address(server)) as sock:
                assert eventually(lambda: len(sock.subflows()) == 2)
            assert len(peer.subflows()) == 1
        other.kill()
        ended(process)


_CLIENT = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.sendall(sock.recv(1))
sys.stdin.read()
"""


@contextlib.contextmanager
def connected_again(client: Host, listener: mptcp.Socket, remote: str) -> Iterator[mptcp.Socket]:
    with client.create_connection((remote, PORT), timeout=10) as sock, listener.accept()[0] as peer:
        sock.sendall(b"x")
        assert peer.recv(1) == b"x"
        peer.sendall(b"x")
        assert sock.recv(1) == b"x"
        yield sock
