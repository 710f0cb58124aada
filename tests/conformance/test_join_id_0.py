"""The id 0 group of mptcp_join.sh: the initial subflow's address is withdrawn, comes back, or must not be joined to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from scenario import Network, announced, counted, delete_id_0, endpoint_of, in_kernel, joins, no_resets, removed

pytestmark = pytest.mark.conformance


def test_remove_the_id_0_subflow(network: Network) -> None:
    client, server = network.client, network.server
    in_kernel(server, subflows=1)
    in_kernel(client, subflows=1)
    client.add_endpoint(network.address(client, 2), subflow=True)
    with network.connection() as pair:
        joins(client, server, 1, 1, 1)
        pair.subflows(2)
        delete_id_0(client, network.address(client, 1))
        removed(client, server, 1, 1)
        pair.subflows(1)
        assert pair.here.subflow().local[0] == network.address(client, 2)
        no_resets(client, server)
        pair.exchange()


def test_remove_the_id_0_address(network: Network) -> None:
    client, server = network.client, network.server
    in_kernel(server, subflows=1)
    in_kernel(client, subflows=1, add_addr_accepted=1)
    server.add_endpoint(network.address(server, 2), signal=True)
    with network.connection() as pair:
        joins(client, server, 1, 1, 1)
        announced(server, client, 1, 1)
        pair.subflows(2)
        delete_id_0(server, network.address(server, 1))
        removed(server, client, 1, 1)
        pair.subflows(1)
        assert pair.here.subflow().remote[0] == network.address(server, 2)
        no_resets(client, server)
        pair.exchange()


def test_delete_and_add_the_endpoint_of_the_initial_subflow_again(network: Network) -> None:
    """Three times: the new subflow from that address has its endpoint's id, or 0 again."""
    client, server = network.client, network.server
    in_kernel(server, subflows=3)
    in_kernel(client, subflows=3)
    initial = network.address(client, 1)
    client.add_endpoint(initial, subflow=True, id=1)
    client.add_endpoint(network.address(client, 2), subflow=True, id=2)
    with network.connection() as pair:
        pair.subflows(2)
        for count in (1, 2, 3):
            client.remove_endpoint(endpoint_of(client, initial))
            pair.subflows(1)
            removed(client, server, count, count)
            client.add_endpoint(initial, subflow=True, id=1)
            pair.subflows(2)
            joins(client, server, 1 + count, 1 + count, 1 + count)
            pair.exchange()


def test_delete_and_announce_the_address_of_the_initial_subflow_again(network: Network) -> None:
    client, server = network.client, network.server
    in_kernel(server, subflows=3)
    in_kernel(client, subflows=3, add_addr_accepted=3)
    initial = network.address(server, 1)
    server.add_endpoint(network.address(server, 2), signal=True, id=1)
    server.add_endpoint(initial, signal=True, id=42)
    with network.connection() as pair:
        pair.subflows(2)
        for count, number in ((1, 99), (2, 88)):
            server.remove_endpoint(endpoint_of(server, initial))
            pair.subflows(1)
            counted(client, RmAddr=count)
            server.add_endpoint(initial, signal=True, id=number)
            pair.subflows(2)
            joins(client, server, 1 + count, 1 + count, 1 + count)
            pair.exchange()


@dataclass(frozen=True)
class Denied:
    """Whether each side lets joins to its initial address pass, who may open, and how many subflows come of it."""

    name: str
    server_allows: int
    client_allows: int
    client_opens: bool
    server_announces: bool
    expected: int


@pytest.mark.parametrize(
    "case",
    [
        Denied("subflow, client denies", 1, 0, True, False, 1),
        Denied("subflow, server denies", 0, 1, True, False, 0),
        Denied("address, client denies", 1, 0, False, True, 1),
        Denied("address, server denies", 0, 1, False, True, 1),
        Denied("both, client denies", 1, 0, True, True, 2),
        Denied("both, server denies", 0, 1, True, True, 1),
    ],
    ids=lambda case: case.name,
)
def test_deny_joins_to_the_initial_address(network: Network, case: Denied) -> None:
    """net.mptcp.allow_join_initial_addr_port: who denies says so in MP_CAPABLE, and announced addresses stay open."""
    client, server = network.client, network.server
    for host, allows in ((client, case.client_allows), (server, case.server_allows)):
        in_kernel(host, subflows=2, add_addr_accepted=2)
        host.sysctl("net.mptcp.allow_join_initial_addr_port", allows)
    if case.client_opens:
        client.add_endpoint(network.address(client, 2), subflow=True)
    if case.server_announces:
        server.add_endpoint(network.address(server, 3), signal=True)
    with network.connection() as pair:
        if case.server_announces:
            announced(server, client, 1, 1)
        pair.subflows(1 + case.expected)
        pair.exchange()
        joins(client, server, case.expected, case.expected, case.expected)
