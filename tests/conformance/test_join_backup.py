"""The backup group of mptcp_join.sh: subflows that are backups from the start, or become so or cease to be by MP_PRIO.

By endpoints of the in-kernel path manager, as in the script, and by the package under the userspace one.
"""

from __future__ import annotations

import pytest
from mptcp.lab import Host
from scenario import (
    NEW_PORT,
    Network,
    Pair,
    announced,
    counted,
    endpoint_of,
    in_kernel,
    joins,
    priorities,
)
from support import KERNEL, eventually

pytestmark = pytest.mark.conformance


def joined_as_backup(joining: Host, accepting: Host, syn: int, syn_ack: int) -> None:
    """Waits until so many MP_JOIN had the backup flag, in the SYN and in the SYN/ACK."""
    if "MPJoinSynBackupRx" in accepting.counters():  # since 6.11
        counted(accepting, MPJoinSynBackupRx=syn)
        counted(joining, MPJoinSynAckBackupRx=syn_ack)


# By the in-kernel path manager: the client opens from its endpoints, and to those that the server announces.


def test_a_single_subflow(network: Network) -> None:
    client, server = network.client, network.server
    in_kernel(server, subflows=1)
    in_kernel(client, subflows=1)
    address = network.address(client, 2)
    client.add_endpoint(address, subflow=True, backup=True)
    with network.connection() as pair:
        joins(client, server, 1, 1, 1)
        pair.subflows(2)
        assert (pair.here.subflow().backup, pair.there.subflow().peer_backup) == (True, True)
        client.change_endpoint(endpoint_of(client, address), backup=False)
        priorities(server, sent=0, received=1)
        joined_as_backup(client, server, 1, 0)
        assert eventually(lambda: pair.there.subflow().peer_backup is False, 10)


ANNOUNCING = pytest.mark.parametrize(
    ("announcing", "port"),
    [("server", None), ("server", NEW_PORT), ("client", NEW_PORT)],
    ids=["server, same port", "server, new port", "client, new port"],
)
"""At a client's own port nobody listens for joins; at another one the kernel does, for an endpoint that has it."""


@ANNOUNCING
def test_a_single_address(network: Network, announcing: str, port: int | None) -> None:
    host = network.host(announcing)
    other = network.other(host)
    in_kernel(host, subflows=1)
    in_kernel(other, subflows=1, add_addr_accepted=1)
    address = network.address(host, 2)
    host.add_endpoint(address, signal=True, backup=True, port=port)
    with network.connection(announcing) as pair:
        joins(other, host, 1, 1, 1)
        announced(host, other, 1, 1, ports=1 if port else 0)
        pair.subflows(2)
        assert (pair.here.subflow().backup, pair.there.subflow().peer_backup) == (True, True)
        host.change_endpoint(endpoint_of(host, address), backup=False)
        priorities(host, sent=1, received=0)
        joined_as_backup(other, host, 0, 1)
        assert eventually(lambda: pair.there.subflow().peer_backup is False, 10)


@ANNOUNCING
def test_a_single_address_becomes_a_backup(network: Network, announcing: str, port: int | None) -> None:
    host = network.host(announcing)
    other = network.other(host)
    in_kernel(host, subflows=1)
    in_kernel(other, subflows=1, add_addr_accepted=1)
    address = network.address(host, 2)
    host.add_endpoint(address, signal=True, port=port)
    with network.connection(announcing) as pair:
        joins(other, host, 1, 1, 1)
        announced(host, other, 1, 1, ports=1 if port else 0)
        pair.subflows(2)
        host.change_endpoint(endpoint_of(host, address), backup=True)
        priorities(host, sent=1, received=0)
        priorities(other, sent=0, received=1)
        joined_as_backup(other, host, 0, 0)
        assert eventually(lambda: pair.there.subflow().peer_backup is True, 10)


def test_the_initial_subflow(network: Network, side: str) -> None:
    """An endpoint at the initial subflow's own address: the kernel asks for it once the connection stands."""
    host = network.host(side)
    for each in (network.client, network.server):
        in_kernel(each, subflows=2)
    host.add_endpoint(network.address(host, 1), subflow=True, backup=True)
    with network.connection(side) as pair:
        priorities(pair.there.host, sent=0, received=1)
        priorities(host, sent=1, received=0)
        joins(network.client, network.server, 0, 0, 0)
        joined_as_backup(network.client, network.server, 0, 0)
        [subflow] = pair.here.sock.subflows()
        assert (subflow.backup, subflow.peer_backup) == (True, False)


def test_the_initial_subflow_of_both_sides(network: Network) -> None:
    """Joins from and to the addresses of the initial subflow are backups too, by the flags of their id, 0."""
    client, server = network.client, network.server
    in_kernel(server, subflows=2)
    in_kernel(client, subflows=2, add_addr_accepted=1)
    server.add_endpoint(network.address(server, 1), signal=True, backup=True)
    client.add_endpoint(network.address(client, 1), subflow=True, backup=True)
    # From an address that is no backup to the server's that is one.
    client.add_endpoint(network.address(client, 2), subflow=True)
    # From the client's that is a backup to one that is none.
    server.add_endpoint(network.address(server, 3), signal=True)
    server_third = network.address(server, 3)
    length = 128 if ":" in server_third else 32
    way = ["via", network.address(server, 1), "dev", network.lab.links[0].interface(client), "metric", "1"]
    client.run(["ip", "route", "add", f"{server_third}/{length}", *way], check=True)
    with network.connection():
        joins(client, server, 2, 2, 2)
        priorities(server, sent=1, received=1)
        joined_as_backup(client, server, 1, 1)


def test_the_initial_subflow_becomes_a_backup(network: Network, side: str) -> None:
    host = network.host(side)
    address = network.address(host, 1)
    for each in (network.client, network.server):
        in_kernel(each, subflows=2)
    host.add_endpoint(address, subflow=True)
    with network.connection(side) as pair:
        priorities(host, 0, 0)
        host.change_endpoint(endpoint_of(host, address), backup=True)
        priorities(host, sent=1, received=0)
        priorities(pair.there.host, sent=0, received=1)
        joins(network.client, network.server, 0, 0, 0)


def test_the_initial_subflow_becomes_a_backup_of_both_sides(network: Network) -> None:
    hosts = (network.client, network.server)
    for host in hosts:
        in_kernel(host, subflows=2)
        host.add_endpoint(network.address(host, 1), subflow=True)
    with network.connection():
        for host in hosts:
            host.change_endpoint(endpoint_of(host, network.address(host, 1)), backup=True)
        for host in hosts:
            priorities(host, sent=1, received=1)
        joins(network.client, network.server, 0, 0, 0)


# By the package.


def test_opened_as_a_backup_by_command(network: Network, pair: Pair) -> None:
    local, remote = (network.address(end.host, 2) for end in (pair.here, pair.there))
    pair.there.sock.announce_address(remote)
    subflow = pair.here.sock.open_subflow(local, (remote, pair.here.sock.getpeername()[1]), backup=True)
    assert (subflow.backup, subflow.peer_backup) == (True, False)
    joins(pair.here.host, pair.there.host, 1, 1, 1)
    # 6.1 drops the flag of SUBFLOW_CREATE, so that an MP_PRIO has to follow the join.
    in_join = KERNEL > (6, 1)
    joined_as_backup(pair.here.host, pair.there.host, int(in_join), 0)
    priorities(pair.here.host, sent=int(not in_join), received=0)
    subflow.set_backup(False)
    priorities(pair.here.host, sent=1 + (not in_join), received=0)
    priorities(pair.there.host, sent=0, received=1 + (not in_join))
    assert eventually(lambda: pair.there.subflow().peer_backup is False, 10)


def test_the_initial_subflow_of_both_sides_by_command(pair: Pair) -> None:
    for end in (pair.here, pair.there):
        end.sock.subflows()[0].set_backup(True)
    for end in (pair.here, pair.there):
        priorities(end.host, sent=1, received=1)
        assert [(subflow.backup, subflow.peer_backup) for subflow in end.sock.subflows()] == [(True, True)]
    pair.exchange()
