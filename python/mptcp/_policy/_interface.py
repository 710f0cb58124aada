"""What policies and their connections know of the runtime that calls them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from .._connection import Connection


class LocalAddress(NamedTuple):
    """An address of the network namespace that a subflow can be opened from."""

    address: str
    """The address, IPv4 or IPv6."""
    interface: str
    """The name of the interface that has it."""


class Opening(NamedTuple):
    """A subflow on its way."""

    local: tuple[Any, ...]
    """Its local end: host and port, "" and 0 where the kernel chooses and has not been heard of."""
    remote: tuple[Any, ...]
    """Its remote end."""
    backup: bool
    """Whether it was asked for with the backup flag."""


class Runtime(Protocol):
    """What runs the policies of a network namespace."""

    @property
    def lock(self) -> threading.RLock:
        """Held for a moment, round what is known of connections and their subflows."""

    @property
    def deciding(self) -> threading.RLock:
        """Held by a policy of paths from its look at a connection until it has opened what was missing."""

    # For policies: the methods of Policy with these names

    def connections(self) -> Sequence[Connection]: ...
    def addresses(self) -> Sequence[LocalAddress]: ...
    def opening(self, conn: Connection) -> Sequence[Opening]: ...
    def interface_of(self, address: str) -> str | None: ...

    # For a policy of paths, when it starts

    def has_interface(self, name: str) -> bool:
        """Whether the network namespace has an interface of this name, up or down."""

    def known_addresses(self) -> Sequence[LocalAddress]:
        """Every address of the network namespace, of interfaces that are down too."""

    # For the connections that policies get

    def open(self, conn: Any, local: Any, remote: Any, backup: bool, interface: str | None) -> None:
        """Open a subflow if every policy allows it."""

    def look_up(self, asked: Iterable[tuple[Any, Any, Any]]) -> list[Any]:
        """Subflows by their connections and ends, None for one that is not there."""

    def holder(self, conn: Any) -> int | None:
        """The process that holds a connection."""
