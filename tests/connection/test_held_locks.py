"""A connection whose lock is held, by a sender that waits for a page of its buffer, delays no other."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import mptcp
import pytest
from mptcp import EventKind
from mptcp.lab import Host, Link
from support import PATIENCE, PORT, ROOT, STUCK_MEMORY, eventually, exchange, has_userfaultfd

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

pytestmark = pytest.mark.skipif(not ROOT, reason="needs root: userfaultfd for system calls")


class Threads:
    """Calls that are still to come back."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[[], object]) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                call()

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def all_wait(self) -> bool:
        """Whether none has come back, and each waits in the kernel."""
        states = []
        for thread in self._threads:
            with open(f"/proc/self/task/{thread.native_id}/stat") as file:
                states.append(file.read().rpartition(")")[2].split()[0])
        return all(state in "DS" for state in states)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def held(sock: mptcp.Socket) -> Iterator[Threads]:
    """The lock of a connection is held; calls that wait for it come back at the end."""
    if not has_userfaultfd():
        pytest.skip("needs userfaultfd for system calls")
    names: dict[str, Any] = {}
    exec(STUCK_MEMORY, names)
    stuck = names["Stuck"]()
    threads = Threads()
    threads.start(lambda: sock.send(stuck.memory))
    stuck.wait()
    try:
        yield threads
    finally:
        stuck.release()
        threads.join()


def test_no_other_connection_waits(mptcp_two_paths: TwoPaths) -> None:
    client, server, links = mptcp_two_paths
    local, remote = links[1].address(client), links[1].address(server)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server(("", PORT)))
        made = []
        for _ in range(2):
            sock = stack.enter_context(client.create_connection((links[0].address(server), PORT), timeout=10))
            peer, _ = listener.accept()
            stack.enter_context(peer)
            exchange(sock, peer)
            made.append((sock, peer))
        (stuck, _), (other, _) = made
        events = stack.enter_context(client.events())
        by_token = {conn.token: conn for conn in client.connections()}
        assert stuck.token is not None
        assert other.token is not None
        stuck_connection, connection = by_token[stuck.token], by_token[other.token]
        with held(stuck) as threads:
            threads.start(stuck.info)
            threads.start(stuck_connection.info)
            threads.start(lambda: stuck_connection.open_subflow(local, remote, timeout=0))
            threads.start(lambda: stuck.open_subflow(local, remote, timeout=0))
            assert eventually(threads.all_wait)
            start = time.monotonic()
            assert connection.info().token == other.token
            subflow = other.open_subflow(local, remote)
            assert len(connection.subflows()) == 2
            other.close_subflow(subflow)
            assert {conn.token for conn in client.connections()} == set(by_token)
            kinds = []
            while EventKind.SUB_CLOSED not in kinds:
                event = events.get(5 * PATIENCE)
                assert event is not None
                kinds.append(event.kind)
            assert EventKind.SUB_ESTABLISHED in kinds
            assert time.monotonic() - start < 2 * PATIENCE
            assert threads.all_wait()


def test_a_plain_tcp_socket_holds_nobody_up(mptcp_two_paths: TwoPaths) -> None:
    """Neither the list of connections, nor who polls it, nor who reads a connection's subflows."""
    client, server, links = mptcp_two_paths
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server(("", PORT)))
        sock = stack.enter_context(client.create_connection((links[0].address(server), PORT), timeout=10))
        peer = stack.enter_context(listener.accept()[0])
        exchange(sock, peer)
        subflow = sock.open_subflow(links[1].address(client), links[1].address(server))
        plain = stack.enter_context(client.socket(proto=6))
        plain.connect((links[0].address(server), PORT))
        stack.enter_context(listener.accept()[0])
        with held(plain):
            start = time.monotonic()
            [connection] = client.connections()
            assert {each.cookie for each in connection.subflows()} == {each.cookie for each in sock.subflows()}
            sock.close_subflow(subflow)
            assert eventually(lambda: len(connection.subflows()) == 1)
            assert time.monotonic() - start < 2 * PATIENCE
