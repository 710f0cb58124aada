"""The C bit: a peer that wants no further subflow to its initial address and port (RFC 8684, section 3.1)."""

from __future__ import annotations

import asyncio
import errno
import queue
from collections.abc import Iterator

import mptcp
import pytest
from mptcp import EventKind
from mptcp.lab import Host, Link
from mptcp.policies import FullMesh, NDiffPorts
from support import KERNEL, PORT, Connection, computing, connected, events_are_read_late, eventually, exchange

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

SYSCTL = "net.mptcp.allow_join_initial_addr_port"

pytestmark = pytest.mark.skipif(KERNEL < (6, 17), reason="this kernel does not tell of the C bit")


@pytest.fixture
def denied(mptcp_two_paths: TwoPaths) -> Iterator[Connection]:
    mptcp_two_paths[1].sysctl(SYSCTL, 0)
    with connected(*mptcp_two_paths) as made:
        yield made


def test_each_side_is_told_of_the_other_s(mptcp_two_paths: TwoPaths) -> None:
    client, server, _ = mptcp_two_paths
    with client.events() as here, server.events() as there:
        server.sysctl(SYSCTL, 0)
        with connected(*mptcp_two_paths) as made:
            for events, expected, sock in ((here, True, made.sock), (there, False, made.peer)):
                for kind in (EventKind.CREATED, EventKind.ESTABLISHED):
                    while (event := events.get(10)) is not None and event.kind != kind:
                        assert event.deny_join_initial is None
                    assert event is not None
                    assert (event.deny_join_initial, event.server_side) == (expected, sock is made.peer)
                assert sock.deny_join_initial is expected
                assert mptcp.Event(**event.asdict()) == event


def test_without_the_bit(connection: Connection) -> None:
    assert connection.sock.deny_join_initial is False
    assert connection.peer.deny_join_initial is False


def test_where_nobody_heard_the_connection_begin(mptcp_two_paths: TwoPaths) -> None:
    """Another process's connection, of which this one knows from a list only: nothing is refused."""
    client, server, _ = mptcp_two_paths
    client.set_path_manager("kernel")
    server.sysctl(SYSCTL, 0)
    with connected(*mptcp_two_paths) as made:
        [handle] = client.connections()
        assert made.sock.deny_join_initial is None
        assert handle.deny_join_initial is None
    with mptcp.Socket() as sock:
        assert sock.deny_join_initial is None


def test_an_open_is_refused_unless_forced(denied: Connection) -> None:
    second, first = denied.second[0], denied.paths[0].address(denied.server)
    [handle] = denied.client.connections()

    async def from_asyncio() -> None:
        await mptcp.aio.open_subflow(denied.sock, second)

    for call in (
        lambda: denied.sock.open_subflow(second),
        lambda: denied.sock.open_subflow(second, (first, PORT)),
        lambda: denied.sock.open_subflow(second, timeout=0),
        lambda: handle.open_subflow(second),
        lambda: asyncio.run(from_asyncio()),
    ):
        with pytest.raises(mptcp.SubflowError, match="C bit") as caught:
            call()
        assert caught.value.errno == errno.EACCES
        assert isinstance(caught.value, PermissionError)
    assert len(denied.sock.subflows()) == 1
    # To another address it is welcome.
    denied.sock.open_subflow(*denied.second).close()
    denied.sock.open_subflow(second, force=True)
    exchange(denied.sock, denied.peer)
    assert len(denied.sock.subflows()) == 2


def test_an_open_is_refused_before_the_event_has_been_read(mptcp_two_paths: TwoPaths) -> None:
    """Another program keeps the thread that reads it from running."""
    client, server, paths = mptcp_two_paths
    server.sysctl(SYSCTL, 0)
    with client.events(), events_are_read_late(), computing(), connected(*mptcp_two_paths) as made:
        with pytest.raises(mptcp.SubflowError, match="C bit"):
            made.sock.open_subflow(paths[1].address(client))
        assert len(made.sock.subflows()) == 1


def test_policies_obey(denied: Connection) -> None:
    failed: queue.Queue[mptcp.Event] = queue.Queue()

    class Asks(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            assert conn.deny_join_initial is True
            conn.open_subflow(denied.second[0])

        def on_subflow_failed(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
            failed.put(event)

    with denied.client.run_policy(Asks(), FullMesh(), NDiffPorts(3)):
        event = failed.get(timeout=10)
        assert event.error == errno.EACCES
        # FullMesh has the announced address, and that alone.
        denied.peer.announce_address(denied.second[1])
        assert eventually(lambda: len(denied.sock.subflows()) == 3)
        exchange(denied.sock, denied.peer)
    assert failed.empty()
    initial = denied.sock.getpeername()
    assert [one.remote for one in denied.sock.subflows()].count(initial) == 1
    assert denied.server.counters().get("MPJoinSynRx") == 2
