"""Half-closed connections: the kernel lets no subflow join them, and waiting does not help."""

from __future__ import annotations

import asyncio
import errno
import queue
import socket
import time
from collections.abc import Callable

import mptcp
import pytest
from support import Connection, eventually


def by_us(made: Connection) -> None:
    made.sock.shutdown(socket.SHUT_WR)
    assert made.peer.recv(1) == b""


def by_the_peer(made: Connection) -> None:
    made.peer.shutdown(socket.SHUT_WR)
    assert made.sock.recv(1) == b""


def by_both(made: Connection) -> None:
    by_us(made)
    by_the_peer(made)


WAYS: dict[str, tuple[Callable[[Connection], None], str]] = {
    "by us": (by_us, "this end has shut down sending"),
    "by the peer": (by_the_peer, "the peer has shut down sending"),
    "by both": (by_both, "both ends have shut down sending|has ended"),
}

every_way = pytest.mark.parametrize(
    ("shut_down", "words"), [pytest.param(*way, id=name.replace(" ", "-")) for name, way in WAYS.items()]
)


@every_way
def test_an_open_fails_at_once(connection: Connection, shut_down: Callable[[Connection], None], words: str) -> None:
    """From a Socket, a Connection and asyncio, whatever the timeout."""
    [handle] = connection.client.connections()
    shut_down(connection)

    async def from_asyncio() -> None:
        await mptcp.aio.open_subflow(connection.sock, *connection.second, timeout=60)

    began = time.monotonic()
    for call in (
        lambda: connection.sock.open_subflow(*connection.second, timeout=60),
        lambda: connection.sock.open_subflow(*connection.second, timeout=None),
        lambda: connection.sock.open_subflow(*connection.second, timeout=0),
        lambda: handle.open_subflow(*connection.second, timeout=60),
        lambda: handle.open_subflow(*connection.second, timeout=0),
        lambda: asyncio.run(from_asyncio()),
    ):
        with pytest.raises(OSError, match=words) as caught:
            call()
        assert caught.value.errno == errno.ENOTCONN
        if words == WAYS["by us"][1] or words == WAYS["by the peer"][1]:
            assert isinstance(caught.value, mptcp.SubflowError)
        assert "byte" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_shutdown_while_an_open_waits(connection: Connection) -> None:
    """It waits for full establishment, which cannot come any more."""
    client, server, paths = connection.client, connection.server, connection.paths
    with (
        server.create_server(("", 5050)) as listener,
        client.create_connection((paths[0].address(server), 5050)) as sock,
        listener.accept()[0] as peer,
    ):
        peer.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        with pytest.raises(mptcp.SubflowError, match="shut down"):
            sock.open_subflow(*connection.second, timeout=60)


@pytest.mark.parametrize("shut_down", [by_us, by_the_peer])
def test_a_policy_is_told_of_the_failure(connection: Connection, shut_down: Callable[[Connection], None]) -> None:
    failed: queue.Queue[mptcp.Event] = queue.Queue()

    class Policy(mptcp.Policy):
        def on_subflow_failed(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
            failed.put(event)

    policy = Policy()
    with connection.client.run_policy(policy):
        assert eventually(lambda: len(policy.connections()) == 1)
        shut_down(connection)
        [conn] = policy.connections()
        conn.open_subflow(connection.second[0])
        assert failed.get(timeout=10).error == errno.ENOTCONN
        assert list(policy.opening(conn)) == []
