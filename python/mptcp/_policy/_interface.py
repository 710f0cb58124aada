"""What policies and their connections know of the runtime that calls them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from .._connection import Connection
from .._docs import document


class LocalAddress(NamedTuple):
    """A local address that a subflow can be opened from, and the interface that has it."""

    address: str
    interface: str


class Opening(NamedTuple):
    """A subflow that was requested and that the peer has not accepted yet."""

    local: tuple[Any, ...]
    remote: tuple[Any, ...]
    backup: bool


document(
    LocalAddress,
    address="The IPv4 or IPv6 address, as text.",
    interface="The name of the interface that has the address.",
)
document(
    Opening,
    local='The local end, (host, port): "" and 0 where the kernel chooses and no event has reported its choice yet.',
    remote="The remote end, (host, port).",
    backup="Whether the subflow was requested with the backup flag.",
)


class Runtime(Protocol):
    """What runs the policies of a network namespace."""

    @property
    def lock(self) -> threading.RLock:
        """Held briefly while what is known of connections and their subflows is read or changed."""

    @property
    def deciding(self) -> threading.RLock:
        """Held by a policy of paths from when it reads a connection until it has opened what is missing."""

    # For policies: the methods of Policy with these names

    def connections(self) -> Sequence[Connection]: ...
    def addresses(self) -> Sequence[LocalAddress]: ...
    def opening(self, conn: Connection) -> Sequence[Opening]: ...
    def interface_of(self, address: str) -> str | None: ...
    def now(self) -> float: ...

    def interface_of_route(self, local: str, remote: str) -> str | None:
        """Return the interface by which packets from a local to a remote address leave; None without a route."""

    # For a policy of paths, when it starts

    def has_interface(self, name: str) -> bool:
        """Return whether the network namespace has an interface of this name, up or down."""

    def known_addresses(self) -> Sequence[LocalAddress]:
        """Return every address of the network namespace, including those of interfaces that are down."""

    def check_subflow_options(self) -> None:
        """Raise PermissionError or UnsupportedError where options cannot be set on one subflow."""

    def expect_progress(self, policy: Any, conn: Connection, size: float, seconds: float) -> Any:
        """Call the policy's on_progress() when so many bytes are through, or are not within so many seconds."""

    # For the connections that policies get

    def write_down(self) -> None:
        """Bring what is known of connections and their subflows up to date."""

    def open(
        self,
        conn: Any,
        local: Any,
        remote: Any,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
    ) -> None:
        """Open a subflow if every policy allows it."""

    def close_subflow(self, conn: Any, subflow: Any, force: bool) -> None:
        """Close a subflow, and return at once."""

    def set_backup(self, conn: Any, subflow: Any, backup: bool) -> None:
        """Change the priority of a subflow, and return at once."""

    def when_lost(self, conn: Any, what: Any, local: Any, remote: Any, backup: bool, interface: str | None) -> None:
        """Leave a standing order, or take one back."""

    def noted(self, decision: str, conn: Any, **details: Any) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Note a decision, and how the block ends, where decisions are noted."""

    def look_up(self, asked: Iterable[tuple[Any, Any, Any]]) -> list[Any]:
        """Return the subflows with these connections and ends, None for each that does not exist."""

    def holder(self, conn: Any) -> int | None:
        """Return the process that holds a connection."""

    def program(self, conn: Any) -> str | None:
        """Return the name of that process."""
