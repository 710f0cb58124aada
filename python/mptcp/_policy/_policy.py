"""The base class of policies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ._interface import LocalAddress, Opening

if TYPE_CHECKING:
    from .._connection import Connection
    from .._core import Event, Subflow
    from ._interface import Runtime
    from ._progress import Progress


class Policy:
    """Decides which subflows the connections of a network namespace have. Derive from it, and give it to run_policy().

    The runtime calls the methods below. A method that is not overridden does nothing, and costs nothing. The callbacks
    of one policy are called one at a time, in the order of the events, from a thread of its own, which may be another
    one the next time: they need no locks, and one that blocks delays only this policy. An exception in a callback is
    logged by the logger "mptcp.policy", and the next callback is called.

    ``conn`` is a Connection. In a callback its open_subflow() returns None at once, and the outcome is another
    callback; it does not raise SubflowError, but PathManagerError for a connection under the in-kernel path manager,
    whose subflows can only be closed. A subflow that is requested before the connection is fully established is opened
    once it is. A subflow is opened if all policies allow it, and closed if one of them asks.
    """

    tick: float = 1.0
    """Seconds from one on_tick() to the next."""

    open_timeout: ClassVar[float] = 5.0
    """Seconds after which a subflow that the peer has not accepted is closed and on_subflow_failed() is called."""

    rto_threshold: float = 1.0
    """Seconds: on_rto() is called when a subflow's retransmission timeout exceeds this."""

    _runtime: Runtime | None = None  # while it runs

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        """Return whether any policy may open a subflow from ``local`` to ``remote``.

        Called from the thread of the policy that wants to open it, so it must not block. True unless overridden.
        """
        return True

    def on_connection(self, conn: Connection) -> None:
        """Called when a connection is fully established, and for those that exist when the policy starts.

        on_closed() follows exactly once, unless the policy ends before. For a connection that has ended by the time
        that it is looked up, such as one that its peer aborts within milliseconds, no callback is called at all.
        """

    def on_closed(self, conn: Connection) -> None:
        """Called when a connection has ended or fallen back to TCP."""

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        """Called when the peer accepted a subflow, by the fourth ACK, or joined one itself, whoever requested it."""

    def on_subflow_failed(self, conn: Connection, event: Event) -> None:
        """Called when a subflow that a policy opened was not accepted: ``event`` has its ends and the ``error``.

        ``error`` is ETIMEDOUT after ``open_timeout``, ECONNREFUSED if a reset answered, EADDRNOTAVAIL for an address
        that is not local, and None if the peer answered and refused, or is not a listener of this connection.
        """

    def on_subflow_lost(self, conn: Connection, event: Event) -> None:
        """Called when a subflow was closed by the peer or by a failure, but not by a policy or with the connection."""

    def on_address_announced(self, conn: Connection, event: Event) -> None:
        """Called when the peer announced the address ``event.remote`` with the id ``event.remote_id``, by ADD_ADDR."""

    def on_address_removed(self, conn: Connection, event: Event) -> None:
        """Called when the peer withdrew the address with the id ``event.remote_id``, by REMOVE_ADDR."""

    def on_link_up(self, event: Event) -> None:
        """Called when the interface ``event.interface`` is up and has a carrier."""

    def on_link_down(self, event: Event) -> None:
        """Called when ``event.interface`` went down or lost its carrier. Subflows on it stay until they are closed."""

    def on_address(self, event: Event) -> None:
        """Called when a local address appeared or disappeared: ``event.kind`` is ADDRESS_ADDED or ADDRESS_REMOVED."""

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        """Called every ``tick`` seconds for every connection, with a snapshot of the subflows that the peer accepted.

        All connections are read by one dump of inet_diag, without any connection's lock. A round is skipped while this
        policy has not finished the previous one.
        """

    def on_rto(self, conn: Connection, subflow: Subflow) -> None:
        """Called when a subflow's retransmission timeout has come to exceed ``rto_threshold``: it is stuck, or slow.

        The timeout doubles while nothing is acknowledged. Called once, and again only after it was below. Looked for
        every ``tick`` seconds, in the reading that on_tick() gets.
        """

    def on_progress(self, conn: Connection, subflows: list[Subflow]) -> None:
        """Called when a Progress is decided: when its bytes are through, or its time is over. See expect_progress().

        Called once for each, with a snapshot of the accepted subflows; ``is_met`` of the Progress says which it is.
        Looked for every ``tick`` seconds, in the reading that on_tick() gets.
        """

    def _check_place(self, runtime: Runtime) -> None:
        """Raise ValueError if the network namespace lacks what the policy needs; called when it starts."""

    def _ended(self) -> None:
        """Put back what the policy changed; called when it ends, after its last callback."""

    # For use by policies

    def now(self) -> float:
        """Return the time in seconds, of a clock that never goes back: time.monotonic(), or that of a test's bench."""
        return time.monotonic() if self._runtime is None else self._runtime.now()

    def expect_progress(self, conn: Connection, size: float, seconds: float) -> Progress:
        """Have on_progress() called when ``size`` bytes are through, or when they are not within ``seconds``.

        Bytes count from now on: those sent and acknowledged plus those received, by the subflows' counters. Nothing is
        called if the connection ends before. No privilege beyond that of running policies.

        Raises TypeError for a policy without on_progress() and for what is not a number, ValueError for numbers that
        are not above 0 and for a policy that does not run; OSError (ENOTCONN) if the connection has ended.
        """
        for name, value in (("size", size), ("seconds", seconds)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
            if not value > 0:
                raise ValueError(f"{name} must be a number above 0, not {value}")
        if self._runtime is None:
            raise ValueError(f"{self!r} does not run")
        progress: Progress = self._runtime.expect_progress(self, conn, size, seconds)
        return progress

    def connections(self) -> Sequence[Connection]:
        """Return the connections that on_connection() was called for and that have not ended."""
        return () if self._runtime is None else self._runtime.connections()

    def addresses(self) -> Sequence[LocalAddress]:
        """Return the addresses that subflows can be opened from: those of interfaces that are up and have a carrier.

        In the order of the interfaces, without loopback and link-local addresses.
        """
        return () if self._runtime is None else self._runtime.addresses()

    def opening(self, conn: Connection) -> Sequence[Opening]:
        """Return the subflows of a connection that were requested and that the peer has not accepted yet.

        Call it before conn.subflows(): a subflow that is accepted in between is then in both rather than in neither.
        """
        return () if self._runtime is None else self._runtime.opening(conn)

    def interface_of(self, address: str) -> str | None:
        """Return the name of the interface that has or had a local address, None if it is not known."""
        return None if self._runtime is None else self._runtime.interface_of(address)
