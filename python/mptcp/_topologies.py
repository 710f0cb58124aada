"""The topologies of open labs: a lab's package registers its own, recordings read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_sources: list[Callable[[], list[dict[str, Any]]]] = []


def register(source: Callable[[], list[dict[str, Any]]]) -> None:
    """Add a function that describes open labs: their hosts and links, as JSON can carry them."""
    _sources.append(source)


def topologies() -> list[dict[str, Any]]:
    """Return a description of each open lab of this process."""
    return [topology for source in _sources for topology in source()]
