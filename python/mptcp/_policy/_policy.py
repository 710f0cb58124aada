"""What a policy is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ._interface import LocalAddress, Opening

if TYPE_CHECKING:
    from .._connection import Connection
    from .._core import Event, Subflow
    from ._interface import Runtime


class Policy:
    """Decides which subflows the connections of a network namespace have. Derive from it, and give it to run_policy().

    The runtime calls the methods below. Whatever is not overridden does nothing, and costs nothing. The callbacks of
    one policy are called one after the other, in the order of what they tell of, by a thread of its own: they need
    no locks, and one that blocks holds up this policy alone. An exception in one is reported by the logger
    "mptcp.policy" and the next is called.

    ``conn`` is a Connection. In a callback its open_subflow() returns None at once and the outcome is another
    callback; it raises no SubflowError, and PathManagerError for a connection of the in-kernel path manager, whose
    subflows can be closed only. One that is asked for before the connection is fully established is opened when it
    is. Of several policies all have to allow an open, and one is enough to close.
    """

    tick: float = 1.0
    """Seconds from one on_tick() to the next."""

    open_timeout: ClassVar[float] = 5.0
    """Seconds after which a subflow that the peer has not accepted is closed, and on_subflow_failed() called."""

    _runtime: Runtime | None = None  # while it runs

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        """Whether any policy may open a subflow from ``local`` to ``remote``, None for the connection's own.

        Called by the thread of the policy that wants to open it, so it must not block. True unless overridden.
        """
        return True

    def on_connection(self, conn: Connection) -> None:
        """A connection is fully established, or was there when the policy started."""

    def on_closed(self, conn: Connection) -> None:
        """A connection has ended, or fell back to TCP."""

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        """The peer accepted a joined subflow, by its fourth ACK, or joined one itself, whoever asked for it."""

    def on_subflow_failed(self, conn: Connection, event: Event) -> None:
        """A subflow that a policy opened was not accepted: ``event`` has its ends and the cause in ``error``.

        ETIMEDOUT after ``open_timeout``, ECONNREFUSED where nobody listens, EADDRNOTAVAIL for an address that is
        not local. None: the peer answered and refused, or is no listener of this connection.
        """

    def on_subflow_lost(self, conn: Connection, event: Event) -> None:
        """A subflow was closed by the peer or by a failure; not by a policy, and not since the connection ends."""

    def on_address_announced(self, conn: Connection, event: Event) -> None:
        """The peer announced an address by ADD_ADDR: ``event.remote`` with the id ``event.remote_id``."""

    def on_address_removed(self, conn: Connection, event: Event) -> None:
        """The peer took an address back by REMOVE_ADDR: ``event.remote_id``."""

    def on_link_up(self, event: Event) -> None:
        """The interface ``event.interface`` is up and has a carrier."""

    def on_link_down(self, event: Event) -> None:
        """The interface ``event.interface`` is down or lost its carrier. Subflows on it stay until they are closed."""

    def on_address(self, event: Event) -> None:
        """A local address appeared or went away: ``event.kind`` is ADDRESS_ADDED or ADDRESS_REMOVED."""

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        """Every ``tick`` seconds for every connection, with a snapshot of the subflows that the peer has accepted.

        One dump of inet_diag for all connections, without any connection's lock. Left out for a connection as long
        as this policy has not come to the end of the last round.
        """

    def _check_place(self, runtime: Runtime) -> None:
        """Raise ValueError for what the network namespace lacks; called when the policy starts."""

    # What a policy may ask for

    def connections(self) -> Sequence[Connection]:
        """The connections that the policy has been told of and that have not ended."""
        return () if self._runtime is None else self._runtime.connections()

    def addresses(self) -> Sequence[LocalAddress]:
        """The addresses that subflows can be opened from: of every interface that is up and has a carrier.

        In the order of the interfaces, without loopback and link-local ones.
        """
        return () if self._runtime is None else self._runtime.addresses()

    def opening(self, conn: Connection) -> Sequence[Opening]:
        """The subflows of a connection that were asked for and that the peer has not accepted yet.

        Ask before conn.subflows(): one that is accepted in between is in both, and not in neither.
        """
        return () if self._runtime is None else self._runtime.opening(conn)

    def interface_of(self, address: str) -> str | None:
        """The interface that has or had a local address."""
        return None if self._runtime is None else self._runtime.interface_of(address)
