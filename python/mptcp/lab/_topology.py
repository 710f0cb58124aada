"""Routes from a host to addresses that are not on its own links: shortest paths through routers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Edge:
    """A link: its interface's name, and the addresses that each host has on it."""

    interface: str
    addresses: dict[str, list[str]]

    def other(self, host: str) -> str:
        (other,) = self.addresses.keys() - {host}
        return other


def remote_addresses(host: str, edges: Iterable[Edge], routers: set[str]) -> dict[str, list[str]]:
    """Return, by interface of ``host``, the addresses that are reached that way over another host.

    The way to an address arrives over the very link that the address is of, wherever one does; else it is any
    shortest way to the address's host.
    """
    edges = list(edges)
    first = _first_interfaces(host, edges, routers)
    own = {edge.interface for edge in edges if host in edge.addresses}
    result: dict[str, list[str]] = {}
    for edge in edges:
        if edge.interface in own:
            continue
        for target, addresses in edge.addresses.items():
            before = edge.other(target)
            towards = before if before in routers and before in first else target
            if towards in first:
                result.setdefault(first[towards], []).extend(addresses)
    return result


def _first_interfaces(host: str, edges: list[Edge], routers: set[str]) -> dict[str, str]:
    """Return, for every host that can be reached, the interface where the shortest path begins."""
    first: dict[str, str] = {}
    waiting = deque([host])
    while waiting:
        here = waiting.popleft()
        if here != host and here not in routers:
            continue
        for edge in edges:
            if here not in edge.addresses:
                continue
            there = edge.other(here)
            if there != host and there not in first:
                first[there] = first.get(here, edge.interface)
                waiting.append(there)
    return first
