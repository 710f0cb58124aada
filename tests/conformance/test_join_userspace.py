"""The userspace group of mptcp_join.sh: what that path manager keeps from happening, and what it does by command."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mptcp
import pytest
from mptcp import _abilities
from mptcp.lab import Host
from scenario import (
    REMOVE,
    SIGNAL,
    SUBFLOW,
    SUBFLOW_CREATE,
    End,
    Network,
    Pair,
    address_of,
    announced,
    command,
    counted,
    endpoint_of,
    extra_subflows,
    in_kernel,
    joins,
    no_resets,
    priorities,
    removed,
    total_subflows,
)
from support import PORT, eventually, exchange

pytestmark = pytest.mark.conformance


def keeps_addresses() -> bool:
    """Whether this kernel tells the addresses of a connection under the userspace path manager (6.10)."""
    return _abilities.lack("is_mptcp") is None


def check_address(end: End, number: int, expected: tuple[str, int] | None) -> None:
    if keeps_addresses():
        assert address_of(end.host, end.sock.token, number) == expected


# What it keeps from happening.


def test_it_prevents_add_addr(network: Network, side: str) -> None:
    """Endpoints are the in-kernel path manager's alone."""
    host = network.host(side)
    in_kernel(network.other(host), subflows=2, add_addr_accepted=2)
    host.add_endpoint(network.address(host, 2), signal=True)
    with network.connection(side) as pair:
        pair.exchange()
        announced(host, pair.there.host, 0, 0)
        joins(pair.there.host, host, 0, 0, 0)


def test_it_does_not_send_a_join(network: Network, side: str) -> None:
    host = network.host(side)
    in_kernel(network.other(host), subflows=1, add_addr_accepted=1)
    host.add_endpoint(network.address(host, 2), subflow=True)
    with network.connection(side) as pair:
        pair.exchange()
        joins(host, pair.there.host, 0, 0, 0)


def test_it_prevents_mp_prio(network: Network, side: str) -> None:
    """A change of the endpoint that the connection uses is not for it."""
    host = network.host(side)
    address = network.address(host, 1)
    host.add_endpoint(address, subflow=True)
    with network.connection(side) as pair:
        host.change_endpoint(endpoint_of(host, address), backup=True)
        pair.exchange()
        priorities(host, 0, 0)
        priorities(pair.there.host, 0, 0)


def test_it_prevents_rm_addr(network: Network, side: str) -> None:
    host = network.host(side)
    address = network.address(host, 2)
    host.add_endpoint(address, subflow=True)
    with network.connection(side) as pair:
        host.remove_endpoint(endpoint_of(host, address))
        pair.exchange()
        removed(host, pair.there.host, 0, 0)
        joins(host, pair.there.host, 0, 0, 0)


# With nobody subscribed to its events, and with somebody. One subscriber serves the whole host.


def subscribers_of_the_machine() -> int:
    """Sockets that are subscribed to a generic netlink group, in every namespace that a process is in."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            namespace = (process / "ns/net").stat().st_ino
            rows = (process / "net/netlink").read_text().splitlines()[1:]
        except OSError:
            continue
        found[namespace] = sum(row.split()[1] == "16" and int(row.split()[3], 16) != 0 for row in rows)
    return sum(found.values())


@contextmanager
def without_subscribers() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to see whether a process on this machine is subscribed to path manager events")
    if subscribers_of_the_machine():
        pytest.skip("needs a machine on which no process is subscribed to path manager events")
    failure = None
    try:
        yield
    except AssertionError as error:
        failure = error
    if subscribers_of_the_machine():
        pytest.skip("needs a machine on which no process subscribes to path manager events meanwhile")
    if failure is not None:
        raise failure


@contextmanager
def plain_connection(network: Network) -> Iterator[None]:
    """One of plain sockets, by which nobody subscribes."""

    def plain(host: Host) -> socket.socket:
        sock = socket.socket(fileno=host.socket(network.family).detach())
        sock.settimeout(10)
        return sock

    with plain(network.server) as listener, plain(network.client) as sock:
        listener.bind(("", PORT) if network.family == socket.AF_INET else ("::", PORT))
        listener.listen()
        sock.connect((network.address(network.server, 1), PORT))
        # socket.socket's own: the bare descriptor, which typeshed does not list.
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        with socket.socket(fileno=fd) as peer:
            peer.settimeout(10)
            exchange(sock, peer)
            exchange(sock, peer)
            yield


def test_no_echo_without_a_subscriber(network: Network, side: str) -> None:
    host = network.host(side)
    told = network.other(host)
    in_kernel(host, subflows=2)
    host.add_endpoint(network.address(host, 2), signal=True)
    with without_subscribers(), plain_connection(network):
        announced(host, told, 1, 0)


def test_an_echo_with_a_subscriber(network: Network, side: str) -> None:
    host = network.host(side)
    in_kernel(host, subflows=2)
    host.add_endpoint(network.address(host, 2), signal=True)
    with network.connection(side) as pair:
        announced(host, pair.there.host, 1, 1)
        joins(pair.there.host, host, 0, 0, 0)


def test_it_rejects_a_join_without_a_subscriber(network: Network) -> None:
    """By the client only: from a server's endpoints the in-kernel path manager reaches nobody."""
    in_kernel(network.client, subflows=1)
    network.client.add_endpoint(network.address(network.client, 2), subflow=True)
    with without_subscribers(), plain_connection(network):
        joins(network.client, network.server, 1, 1, 0)


def test_from_a_servers_endpoints_nobody_is_reached(network: Network) -> None:
    """It tries once, before the connection is fully established or to a client's port, where nobody listens."""
    in_kernel(network.server, subflows=1)
    network.server.add_endpoint(network.address(network.server, 2), subflow=True)
    with network.connection("server") as pair:

        def attempts() -> int:
            counters = network.server.counters()
            return counters["MPJoinSynTx"] + counters["MPJoinSynTxCreatSkErr"]

        if "MPJoinSynTxCreatSkErr" in network.server.counters():  # since 6.12
            assert eventually(lambda: attempts() == 1, 10)
        pair.subflows(1)
        pair.exchange()
        counted(network.client, MPJoinSynRx=0)


def test_it_accepts_a_join_with_a_subscriber(network: Network) -> None:
    in_kernel(network.client, subflows=1)
    network.client.add_endpoint(network.address(network.client, 2), subflow=True)
    with network.connection() as pair:
        joins(network.client, network.server, 1, 1, 1)
        pair.subflows(2)


# What it does by command.


def test_add_and_remove_addresses(network: Network, side: str) -> None:
    """The other end's in-kernel path manager opens subflows to them, a server's as a client's."""
    told = network.other(network.host(side))
    in_kernel(told, subflows=2, add_addr_accepted=2)
    with network.connection(side) as pair:
        total_subflows(pair, 1)
        addresses = [network.address(pair.here.host, path) for path in (2, 3)]
        numbers = []
        for count, address in enumerate(addresses, 2):
            numbers.append(pair.here.sock.announce_address(address))
            # The in-kernel path manager drops an ADD_ADDR that comes while it answers another.
            pair.subflows(count)
        joins(told, pair.here.host, 2, 2, 2)
        announced(pair.here.host, told, 2, 2)
        extra_subflows(pair, 2)
        total_subflows(pair, 3)
        assert pair.here.sock.info().add_addr_signal == 2
        assert pair.there.sock.info().add_addr_accepted == 2
        for count, (address, number) in enumerate(zip(addresses, numbers, strict=True), 1):
            check_address(pair.here, number, (address, SIGNAL))
            pair.here.sock.remove_address(number, force=True)
            check_address(pair.here, number, None)
            removed(pair.here.host, told, count, 0)
            pair.subflows(3 - count)
        extra_subflows(pair, 0)
        total_subflows(pair, 1)
        pair.exchange()


@contextmanager
def to_a_listener(network: Network, side: str) -> Iterator[tuple[Pair, str, tuple[str, int]]]:
    """A connection whose other end listens for joins on the second path, and the ends of a subflow over it.

    Where the client acts the server is under the in-kernel path manager. A client listens by announce_address(), for
    which it is under the userspace one.
    """
    if side == "client":
        in_kernel(network.server, subflows=1)
    with network.connection(side) as pair:
        local, remote = (network.address(end.host, 2) for end in (pair.here, pair.there))
        port = pair.here.sock.getpeername()[1]
        if side == "server":
            pair.there.sock.announce_address(remote)
        yield pair, local, (remote, port)


def test_create_and_destroy_a_subflow_over_another_path(network: Network, side: str) -> None:
    with to_a_listener(network, side) as (pair, local, remote):
        subflow = pair.here.sock.open_subflow(local, remote)
        joins(pair.here.host, pair.there.host, 1, 1, 1)
        extra_subflows(pair, 1)
        total_subflows(pair, 2)
        assert subflow.local_id is not None
        check_address(pair.here, subflow.local_id, (local, SUBFLOW))
        # As it is, since the package refuses it for an id in use.
        command(pair.here.host, REMOVE, pair.here.sock.token, local_id=subflow.local_id)
        removed(pair.here.host, pair.there.host, 1, 0)
        with contextlib.suppress(mptcp.SubflowError):  # the other end closes what is withdrawn, sooner or later
            subflow.close()
        check_address(pair.here, subflow.local_id, None)
        pair.subflows(1)
        extra_subflows(pair, 0)
        total_subflows(pair, 1)
        pair.exchange()


def test_create_a_subflow_with_id_0(network: Network, side: str) -> None:
    """From another address than the initial subflow's: the package gives every address an id of its own."""
    with to_a_listener(network, side) as (pair, local, remote):
        extra_subflows(pair, 0)
        total_subflows(pair, 1)
        token = pair.here.sock.token
        command(pair.here.host, SUBFLOW_CREATE, token, local=(local, 0), local_id=0, remote=remote)
        joins(pair.here.host, pair.there.host, 1, 1, 1)
        pair.subflows(2)
        extra_subflows(pair, 1)
        total_subflows(pair, 2)
        assert [subflow.local_id for subflow in pair.here.sock.subflows()] == [0, 0]
        assert [subflow.remote_id for subflow in pair.there.sock.subflows()] == [0, 0]
        check_address(pair.here, 0, (local, SUBFLOW))
        pair.exchange()


def test_remove_the_initial_subflow(network: Network, side: str) -> None:
    with to_a_listener(network, side) as (pair, local, remote):
        opened = pair.here.sock.open_subflow(local, remote)
        joins(pair.here.host, pair.there.host, 1, 1, 1)
        extra_subflows(pair, 1)
        total_subflows(pair, 2)
        pair.here.sock.close_subflow(pair.here.sock.subflows()[0])
        pair.subflows(1)
        assert pair.here.sock.subflows()[0] == opened
        removed(pair.here.host, pair.there.host, 0, 1)
        no_resets(pair.here.host, pair.there.host)
        # The kernel leaves the initial subflow out here, whether it lives or not.
        extra_subflows(pair, 1)
        total_subflows(pair, 1)
        pair.exchange()


def test_rm_addr_for_id_0(network: Network, side: str) -> None:
    """The other end's in-kernel path manager closes the initial subflow, and the connection goes on."""
    host = network.host(side)
    told = network.other(host)
    in_kernel(told, subflows=1, add_addr_accepted=1)
    with network.connection(side) as pair:
        address = network.address(host, 2)
        pair.here.sock.announce_address(address)
        joins(told, host, 1, 1, 1)
        announced(host, told, 1, 1)
        extra_subflows(pair, 1)
        total_subflows(pair, 2)
        assert pair.here.sock.info().add_addr_signal == 1
        assert pair.there.sock.info().add_addr_accepted == 1
        with pytest.raises(mptcp.SubflowError, match="in use"):
            pair.here.sock.remove_address(0)
        pair.here.sock.remove_address(0, force=True)
        removed(host, told, 1, 0)
        pair.subflows(1)
        assert pair.there.subflow().remote[0] == address
        no_resets(host, told)
        extra_subflows(pair, 1)
        total_subflows(pair, 1)
        pair.exchange()
