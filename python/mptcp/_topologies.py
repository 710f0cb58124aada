"""The topologies of open labs, which mptcp.lab registers and recordings read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class _Source(NamedTuple):
    topologies: Callable[[], list[dict[str, Any]]]
    links: Callable[[], list[dict[str, Any]]]


_sources: list[_Source] = []


def register(topologies: Callable[[], list[dict[str, Any]]], links: Callable[[], list[dict[str, Any]]]) -> None:
    """Add functions that describe open labs in types of JSON: their hosts and links; what the links have done."""
    _sources.append(_Source(topologies, links))


def topologies() -> list[dict[str, Any]]:
    """Return a description of each open lab of this process."""
    return [topology for source in _sources for topology in source.topologies()]


def links() -> list[dict[str, Any]]:
    """Return what the links of this process's open labs have done so far: frames, drops, lateness."""
    return [link for source in _sources for link in source.links()]
