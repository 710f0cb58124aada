"""The scenarios of userspace_pm.sh: addresses, subflows, priorities and listeners by the userspace path manager."""

from __future__ import annotations

import errno
import socket

import mptcp
import pytest
from mptcp import EventKind
from mptcp.lab import Lab
from scenario import (
    ANNOUNCE,
    NEW_PORT,
    REMOVE,
    SIGNAL,
    Network,
    Pair,
    announced,
    command,
    counted,
    joins,
    priorities,
    removed,
    told,
)
from support import KERNEL, eventually

pytestmark = pytest.mark.conformance

PORTS = pytest.mark.parametrize("port", [None, NEW_PORT], ids=["same port", "new port"])


def second(network: Network, pair: Pair) -> tuple[str, str]:
    """The addresses of the second path, that of ``here`` first."""
    return network.address(pair.here.host, 2), network.address(pair.there.host, 2)


@PORTS
def test_announce(network: Network, pair: Pair, port: int | None) -> None:
    local = second(network, pair)[0]
    with pair.there.sock.events() as events:
        number = pair.here.sock.announce_address(local, port)
        event = told(events, EventKind.ANNOUNCED)
    assert event.token == pair.there.sock.token
    assert event.remote is not None
    assert (*event.remote[:2], event.remote_id) == (local, port or pair.there.sock.getpeername()[1], number)
    announced(pair.here.host, pair.there.host, 1, 1, ports=1 if port else 0)
    # The peer's path manager is userspace too: nobody opens a subflow by himself.
    pair.exchange()
    joins(pair.there.host, pair.here.host, 0, 0, 0)


def test_announce_an_ipv6_address_with_a_port_beside_timestamps(mptcp_lab: Lab, side: str) -> None:
    """The option has no room: kernels drop it and count that, or leave the timestamps out."""
    network = Network(mptcp_lab, socket.AF_INET6)
    if "AddAddrTxDrop" not in network.client.counters():
        pytest.skip("needs the kernel's counter MPTcpExtAddAddrTxDrop")
    for host in (network.client, network.server):
        host.sysctl("net.ipv4.tcp_timestamps", 1)
    with network.connection(side) as pair:
        pair.here.sock.announce_address(second(network, pair)[0], NEW_PORT)

        def came_or_was_dropped() -> bool:
            sent, told = pair.here.host.counters(), pair.there.host.counters()
            return sent["AddAddrTxDrop"] + told["AddAddr"] == 1

        assert eventually(came_or_was_dropped, 10)


def test_announce_with_an_unknown_token(network: Network, pair: Pair) -> None:
    local = second(network, pair)[0]
    with pair.there.host.events() as events:
        with pytest.raises(OSError, match=r".") as caught:
            command(pair.here.host, ANNOUNCE, pair.here.sock.token - 1, local=(local, 0), local_id=99, flags=SIGNAL)
        assert caught.value.errno == errno.EINVAL
        # The first that the other side hears of is the next, which is for a connection.
        number = pair.here.sock.announce_address(local)
        event = told(events, EventKind.ANNOUNCED)
        assert (event.token, event.remote_id) == (pair.there.sock.token, number)
    announced(pair.here.host, pair.there.host, 1, 1)


def test_announce_for_a_connection_that_has_ended(network: Network, side: str) -> None:
    """What comes of a token that is no more, by the package's own handle."""
    with network.connection(side) as pair:
        [handle] = pair.here.host.connections(token=pair.here.sock.token)
        local, token = second(network, pair)[0], handle.token
    assert eventually(lambda: pair.here.host.connections(token=token) == [], 10)
    with pytest.raises(OSError, match=r".") as caught:
        handle.announce_address(local)
    assert caught.value.errno == errno.ENOTCONN
    announced(pair.here.host, pair.there.host, 0, 0)


def test_remove(network: Network, pair: Pair) -> None:
    local = second(network, pair)[0]
    numbers = []
    for count, port in enumerate((None, NEW_PORT), 1):
        numbers.append(pair.here.sock.announce_address(local, port))
        # The kernel has room for one echo: that of the second would take the place of one that is not sent yet.
        announced(pair.here.host, pair.there.host, count, count, ports=count - 1)
    assert len(set(numbers)) == 2
    for count, number in enumerate(reversed(numbers), 1):
        with pair.there.sock.events() as events:
            pair.here.sock.remove_address(number)
            assert told(events, EventKind.REMOVED).remote_id == number
        removed(pair.here.host, pair.there.host, count, 0)


def test_remove_with_an_unknown_token(network: Network, pair: Pair) -> None:
    number = pair.here.sock.announce_address(second(network, pair)[0])
    with pytest.raises(OSError, match=r".") as caught:
        command(pair.here.host, REMOVE, pair.here.sock.token - 1, local_id=number)
    assert caught.value.errno == errno.EINVAL
    pair.exchange()
    removed(pair.here.host, pair.there.host, 0, 0)


def test_remove_with_an_unknown_id(network: Network, pair: Pair) -> None:
    number = pair.here.sock.announce_address(second(network, pair)[0])
    with pytest.raises(mptcp.SubflowError) as caught:
        pair.here.sock.remove_address(number + 1)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    pair.exchange()
    removed(pair.here.host, pair.there.host, 0, 0)


@PORTS
def test_create_and_destroy_a_subflow(network: Network, pair: Pair, port: int | None) -> None:
    """To an address that the peer has announced, at the connection's port or another."""
    local, remote = second(network, pair)
    number = pair.there.sock.announce_address(remote, port)
    announced(pair.there.host, pair.here.host, 1, 1, ports=1 if port else 0)
    target = (remote, port or pair.here.sock.getpeername()[1])
    with pair.here.sock.events() as events:
        subflow = pair.here.sock.open_subflow(local, target)
        established = told(events, EventKind.SUB_ESTABLISHED)
    assert (established.local, established.remote) == (subflow.local, subflow.remote)
    assert (established.local_id, established.remote_id) == (subflow.local_id, number)
    assert (subflow.local[0], subflow.remote[:2], subflow.remote_id) == (local, target, number)
    joined = pair.there.subflow()
    assert (joined.local, joined.remote, joined.local_id) == (subflow.remote, subflow.local, number)
    assert joined.remote_id == subflow.local_id
    joins(pair.here.host, pair.there.host, 1, 1, 1)
    with_port = 1 if port else 0
    counted(pair.there.host, MPJoinPortSynRx=with_port, MPJoinPortAckRx=with_port, MismatchPortSynRx=0)
    counted(pair.here.host, MPJoinPortSynAckRx=with_port)

    with pair.here.sock.events() as events:
        subflow.close()
        closed = told(events, EventKind.SUB_CLOSED)
    assert (closed.local, closed.remote) == (subflow.local, subflow.remote)
    assert (closed.local_id, closed.remote_id) == (subflow.local_id, number)
    pair.subflows(1)
    removed(pair.here.host, pair.there.host, 0, 1)
    pair.there.sock.remove_address(number)
    removed(pair.there.host, pair.here.host, 1, 0)
    pair.exchange()


def test_an_ipv4_subflow_of_an_ipv6_connection(mptcp_lab: Lab, side: str) -> None:
    network = Network(mptcp_lab, socket.AF_INET6)
    with network.connection(side) as pair:
        local, remote = (network.address(end.host, 2, socket.AF_INET) for end in (pair.here, pair.there))
        number = pair.there.sock.announce_address(remote)
        announced(pair.there.host, pair.here.host, 1, 1)
        subflow = pair.here.sock.open_subflow(local, remote)
        assert (subflow.remote_id, subflow.local[0]) in ((number, local), (number, f"::ffff:{local}"))
        joins(pair.here.host, pair.there.host, 1, 1, 1)
        assert pair.there.subflow().tcp_info.state == 1
        subflow.close()
        pair.subflows(1)
        pair.there.sock.remove_address(number)
        removed(pair.there.host, pair.here.host, 1, 0)


def test_priority(pair: Pair) -> None:
    [subflow] = pair.here.sock.subflows()
    with pair.there.sock.events() as events:
        subflow.set_backup(True)
        event = told(events, EventKind.SUB_PRIORITY)
    assert (event.local, event.remote, event.backup) == (subflow.remote, subflow.local, True)
    priorities(pair.here.host, sent=1, received=0)
    priorities(pair.there.host, sent=0, received=1)
    assert [subflow.backup for subflow in pair.here.sock.subflows()] == [True]
    assert [subflow.peer_backup for subflow in pair.there.sock.subflows()] == [True]


@pytest.mark.skipif(KERNEL < (6, 2), reason="needs events of listeners (Linux 6.2)")
def test_listener(network: Network, pair: Pair) -> None:
    """One at an announced address, closed while a subflow that came by it lives on."""
    local, remote = second(network, pair)

    with pair.there.host.events() as events:
        with pair.there.host.create_server((remote, NEW_PORT), family=network.family):
            created = told(events, EventKind.LISTENER_CREATED)
            pair.there.sock.announce_address(remote, NEW_PORT)
            pair.here.sock.open_subflow(local, (remote, NEW_PORT))
        closed = told(events, EventKind.LISTENER_CLOSED)
    for event in (created, closed):
        assert event.local is not None
        assert event.local[:2] == (remote, NEW_PORT)
    joins(pair.here.host, pair.there.host, 1, 1, 1)
    pair.subflows(2)
    pair.exchange()
