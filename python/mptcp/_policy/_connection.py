"""A connection as policies get it, and what the runtime knows of its subflows."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _core
from .._address import Address
from .._connection import Connection
from .._core import Subflow
from .._errors import SubflowError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import ReadableBuffer as Buffer

    from ._interface import Runtime
    from ._journal import Decision

Ends = tuple[tuple[Any, ...], tuple[Any, ...]]

_MAPPED = "::ffff:"


def plain_host(host: str) -> str:
    """Return an address, as IPv4 if it is IPv4-mapped: IPv6 sockets, Java's for instance, see IPv4 that way."""
    return host[len(_MAPPED) :] if ":" in host and "." in host and host.lower().startswith(_MAPPED) else host


def plain(end: tuple[Any, ...]) -> tuple[Any, ...]:
    """An end, as an IPv4 one if it is IPv4-mapped."""
    host = plain_host(end[0])
    return end if host is end[0] else (host, end[1])


@dataclass(eq=False, slots=True)
class Attempt:
    """A subflow that a policy requested and that the peer has not accepted yet."""

    local: tuple[Any, ...]
    """Any address where the host is "", any port where that is 0: the kernel's choice."""
    remote: tuple[Any, ...]
    backup: bool
    interface: str | None = None
    local_id: int | None = None
    force: bool = False
    number: int = 0
    """By which it is reported that it failed."""
    since: float = 0.0
    answered: Ends | None = None
    """Its ends, once the SYN/ACK has come."""
    due: float = 0.0
    """When it is given up, unless it has ended before."""
    timed_out: bool = False
    closed: Ends | None = None
    """The ends of the subflow that is closed for it, once it has timed out."""
    decision: Decision | None = None
    """Where decisions are noted."""

    def matches(self, local: tuple[Any, ...], remote: tuple[Any, ...]) -> bool:
        """Return whether an event is of this attempt; after a reset it may lack the remote port."""
        if self.answered is not None:
            return self.answered[0][:2] == local[:2]
        return (
            self.local[0] in ("", local[0])
            and self.local[1] in (0, local[1])
            and self.remote[0] == remote[0]
            and remote[1] in (0, self.remote[1])
        )


class PolicyConnection(Connection):
    """A Connection whose open_subflow() asks every policy, and returns at once. IPv4-mapped ends are IPv4 ones."""

    __slots__ = (
        "_runtime",
        "attempts",
        "changing",
        "closing",
        "ends",
        "established",
        "is_closed",
        "known",
        "orders",
        "waiting",
    )

    def __init__(self, native: _core.ByToken, runtime: Runtime) -> None:
        # Not by Connection's own, which takes those of the kernel alone: a bench has others.
        self._native = native
        self._runtime = runtime
        self.ends: Ends = (plain(native.local), plain(native.remote))
        # All below is the runtime's, under its lock.
        self.known: set[Ends] = set()
        """The existing subflows, by their ends: the accepted ones and the initial one."""
        self.attempts: list[Attempt] = []
        self.closing: set[Ends] = set()
        """Those that a policy closed, until their events arrive."""
        self.waiting: list[Attempt] = []
        """What will be opened when the connection is fully established."""
        self.established = 0.0
        """When it became fully established, if that was reported after the connection."""
        self.orders: dict[int, Attempt] = {}
        """What standing orders will open, by their numbers."""
        self.changing: dict[int, tuple[str, Ends]] = {}
        """The methods that change subflows and have not failed so far, by their numbers, and the subflows' ends."""
        self.is_closed = False

    @property
    def local(self) -> tuple[Any, ...]:
        """As Connection.local, an IPv4-mapped one as IPv4."""
        return self.ends[0]

    @property
    def remote(self) -> tuple[Any, ...]:
        """As Connection.remote, an IPv4-mapped one as IPv4."""
        return self.ends[1]

    # In a callback nothing waits, so there is never a Subflow to return.
    def open_subflow(  # type: ignore[override]
        self,
        local: Any = None,
        remote: Any = None,
        *,
        backup: bool = False,
        interface: str | None = None,
        local_id: int | None = None,
        timeout: float | None = 0,
        force: bool = False,
    ) -> None:
        """Open a subflow if every policy allows it, and return at once: the outcome is a callback.

        The arguments are those of Connection.open_subflow; ``timeout`` has no effect, see Policy.open_timeout. On Linux
        6.1, where SUBFLOW_CREATE ignores the backup flag, MP_PRIO follows once the peer has accepted the subflow.
        """
        self._runtime.open(self, local, remote, bool(backup), interface, local_id, bool(force))

    def close_subflow(self, subflow: Subflow | int | tuple[Address, Address], *, force: bool = False) -> None:
        """As Connection.close_subflow, but return at once; no policy's on_subflow_lost() is called for it.

        A subflow that cannot be closed is logged, unless it is closed already.
        """
        if isinstance(subflow, tuple):
            wanted = [plain(end)[:2] for end in subflow if isinstance(end, tuple) and end and isinstance(end[0], str)]
            subflow = next((one for one in self.subflows() if [one.local[:2], one.remote[:2]] == wanted), subflow)
        if not isinstance(subflow, Subflow):
            with self._runtime.noted("close", self, subflow=str(subflow)):
                super().close_subflow(subflow, force=force)
            return
        self._runtime.close_subflow(self, subflow, bool(force))

    def _set_backup(self, subflow: Subflow, backup: bool) -> None:
        self._runtime.set_backup(self, subflow, backup)

    def when_lost(
        self,
        what: Subflow | str,
        local: Any = None,
        remote: Any = None,
        *,
        backup: bool = False,
        interface: str | None = None,
    ) -> None:
        self._runtime.when_lost(self, what, local, remote, bool(backup), interface)

    # Of these the kernel tells at once how they end.

    def announce_address(
        self, address: str, port: int | None = None, *, address_id: int | None = None, listen: bool = True
    ) -> int:
        with self._runtime.noted("announce", self, local=(str(address), port or 0)) as more:
            id = super().announce_address(address, port, address_id=address_id, listen=listen)
            more.update(outcome="sent", address_id=id)
        return id

    def remove_address(self, address_id: int, *, force: bool = False) -> None:
        with self._runtime.noted("withdraw", self, address_id=address_id):
            super().remove_address(address_id, force=force)

    def set_subflow_options(self, options: Mapping[Subflow, Mapping[tuple[int, int], int | Buffer]], /) -> None:
        with self._runtime.noted("option", self, options=options) as more:
            super().set_subflow_options(options)
            more["outcome"] = "set"

    def subflows(self) -> list[Subflow]:
        """A snapshot of the accepted subflows, the initial one first: look-ups of these alone, without a dump."""
        with self._runtime.lock:
            self._runtime.write_down()
            ends = list(self.known)
        found = [one for one in self._runtime.look_up([(self, *pair) for pair in ends]) if one is not None]
        if len(found) < len(ends):
            # One that is bound to an interface is found by a dump only; or an event is about to tell of its end.
            found = self.accepted(super().subflows())
        return sorted(found, key=lambda subflow: (not subflow.initial, subflow.cookie))

    def accepted(self, subflows: list[Subflow]) -> list[Subflow]:
        """Those of a dump that the peer has accepted and that were not closed."""
        found = [subflow._unmapped() for subflow in subflows]
        with self._runtime.lock:
            self._runtime.write_down()
            return [subflow for subflow in found if (subflow.local, subflow.remote) in self.known]

    @property
    def pid(self) -> int | None:
        """As Connection.pid; looked up once for all connections."""
        return self._runtime.holder(self)

    @property
    def program(self) -> str | None:
        """As Connection.program, of that process."""
        return self._runtime.program(self)


class DirectConnection(PolicyConnection, _core.PolicyOpener):
    """The same where nobody else has a say in what is opened: without Python between the callback and the command."""

    __slots__ = ("_later", "_watcher")

    # It takes any object for `backup` and `force`, where the type of the other says bool.
    open_subflow = _core.PolicyOpener.open_subflow  # type: ignore[assignment]

    def __init__(self, native: _core.ByToken, runtime: Runtime, watcher: _core.Watcher, later: list[Any]) -> None:
        super().__init__(native, runtime)
        self._watcher = watcher
        self._later = later
        """What is opened, to be written down."""


def is_not_fully_established(error: Exception) -> bool:
    return isinstance(error, SubflowError) and error.errno == errno.ENOTCONN
