"""What policies over paths have in common."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._errors import UnsupportedError
from .._policy import LocalAddress, Opening
from ._base import Base, is_over_loopback
from ._path import Path, PathName

if TYPE_CHECKING:
    from .._connection import Connection
    from .._core import Event, Subflow


# Seconds before a path is tried again after a failure: the first time, and at most.
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0


class _Failures(NamedTuple):
    """How many subflows from an address of a connection failed in a row, and when to try again."""

    in_a_row: int
    try_again: float


class _Order(NamedTuple):
    """A standing order: what it waits for, and the arguments of Connection.when_lost()."""

    what: Subflow | str
    local: str
    remote: tuple[Any, ...]
    backup: bool
    interface: str | None


class PathPolicy(Base):
    """A policy that keeps subflows on certain paths of every connection that this side opened.

    A subclass says which, in wanted(), which is called again whenever something has changed. A subflow that failed is
    tried again: to another address of the peer at once, otherwise after 1 s, doubled each time up to 60 s. A subclass
    that defines a callback of Policy calls the inherited one too: they are where this class looks again.

    Paths in the attributes of the instance, also in lists and mappings, must exist when the policy starts (ValueError).

    ``exclude`` is a path or several that are never used: no policy that runs beside opens a subflow on them either.
    ``bind`` True binds every subflow to the interface that has its local address, False none; None binds those on a
    path that was named by an interface. Where the packets of a subflow that is not bound leave by another interface, a
    warning is logged.
    """

    def __init__(self, *, exclude: PathName | Iterable[PathName] = (), bind: bool | None = None) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self._failures: dict[tuple[int, LocalAddress], _Failures] = {}
        self._announced: dict[int, dict[int, tuple[Any, ...]]] = {}
        self._withdrawn: dict[int, set[tuple[Any, ...]]] = {}
        # The standing orders of each connection, by what they wait for; and those that wanted() asks for.
        self._orders: dict[int, dict[Any, _Order]] = {}
        self._asked_for: dict[Any, _Order] = {}

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        """Open and close subflows as the connection needs, by ensure() and conn.close_subflow().

        A subflow that was being opened when the snapshot began may be in both, or only in ``opening``. No other policy
        of this kind is called meanwhile, so that what two of them want is opened only once.
        """
        raise NotImplementedError

    def local_of(self, subflow: Subflow) -> LocalAddress:
        """Return a subflow's local address with its interface, "" if no interface is known to have had it."""
        return LocalAddress(subflow.local[0], self.interface_of(subflow.local[0]) or "")

    def on_path(self, path: Path, subflows: list[Subflow]) -> list[Subflow]:
        """Return those of the subflows that are on the path: by their local address, or a link's by either."""
        return [subflow for subflow in subflows if path.carries(subflow, self.local_of(subflow))]

    def is_up(self, subflow: Subflow) -> bool:
        """Return whether a subflow's local address is on an interface that is up."""
        return subflow.local[0] in {local.address for local in self.addresses()}

    def addresses_on(self, path: Path, conn: Connection) -> list[LocalAddress]:
        """Return the local addresses on a path that can reach the peer and did not fail recently."""
        return [
            local
            for local in self.addresses()
            if local in path and not self.is_excluded(local) and self.remotes(conn, local) and self.may_try(conn, local)
        ]

    def ensure(
        self,
        conn: Connection,
        subflows: list[Subflow],
        opening: Sequence[Opening],
        path: Path,
        *,
        backup: bool = False,
    ) -> bool:
        """Open a subflow on the path unless it has one; return whether it has a working one or one being opened."""
        if any(self.is_up(subflow) for subflow in self.on_path(path, subflows)):
            return True
        for local in self.addresses_on(path, conn):
            if not any(one.local[0] == local.address for one in opening):
                failures = self._failures.get((conn.token, local))
                remotes = self.remotes(conn, local)
                remote = remotes[(failures.in_a_row if failures else 0) % len(remotes)]
                self.open(conn, local, remote, backup=backup, path=path)
            return True
        return False

    def when_lost(
        self,
        conn: Connection,
        what: Subflow | str,
        local: LocalAddress,
        remote: tuple[Any, ...] | None = None,
        *,
        backup: bool = False,
        path: Path | None = None,
    ) -> None:
        """Have a subflow opened the moment that ``what`` is lost: see Connection.when_lost(). For use in wanted().

        Without ``remote`` to the first of remotes(). What is not asked for again by the next call of wanted() is taken
        back. Nothing is ordered that would not be tried now.
        """
        remotes = self.remotes(conn, local)
        remote = remote or next(iter(remotes), None)
        if remote in remotes and self.may_try(conn, local) and not self.is_excluded(local) and not self._cannot_open:
            interface = local.interface if self._is_bound(local, path) else None
            key = what if isinstance(what, str) else (what.local, what.remote)
            self._asked_for[key] = _Order(what, local.address, remote, backup, interface)

    def keep(self, conn: Connection, subflow: Subflow, *, backup: bool = False, path: Path | None = None) -> None:
        """Have a subflow opened again between its addresses the moment that it is lost. For use in wanted()."""
        if subflow.state == "ESTABLISHED" and self.is_up(subflow):
            self.when_lost(conn, subflow, self.local_of(subflow), subflow.remote[:2], backup=backup, path=path)

    def _leave_orders(self, conn: Connection) -> None:
        asked_for, self._asked_for = self._asked_for, {}
        before = self._orders.get(conn.token, {})
        for key, order in before.items():
            if key not in asked_for:
                conn.when_lost(order.what)
        for key, order in asked_for.items():
            if key not in before or before[key][1:] != order[1:]:
                # Where the kernel cannot bind, the callback has to do.
                with contextlib.suppress(UnsupportedError):
                    conn.when_lost(
                        order.what, order.local, order.remote, backup=order.backup, interface=order.interface
                    )
        if before or asked_for:
            self._orders[conn.token] = asked_for

    def may_try(self, conn: Connection, local: LocalAddress) -> bool:
        """Return whether a subflow from this address may be tried: none failed, or long enough ago."""
        failures = self._failures.get((conn.token, local))
        return failures is None or failures.try_again <= self.now()

    def remotes(self, conn: Connection, local: LocalAddress) -> list[tuple[Any, ...]]:
        """Return the remote ends for a subflow from this address: the connection's own, and those the peer announced.

        The one whose address shares the longest prefix with the local address comes first, as in RFC 6724 (rule 9): it
        is probably the peer's address on the same path. The connection's own is left out if the peer denies subflows to
        it (conn.deny_join_initial) or has withdrawn it.
        """
        own = conn.remote[:2]
        announced = [end for end in self._announced.get(conn.token, {}).values() if end != own]
        is_left_out = conn.deny_join_initial or own in self._withdrawn.get(conn.token, ())
        ends = announced if is_left_out else [own, *announced]
        reachable = [end for end in ends if (":" in end[0]) == (":" in local.address)]
        return sorted(reachable, key=lambda end: _difference(end[0], local.address))

    # When to look again

    def _look(self, conn: Connection) -> None:
        runtime = self._runtime
        if runtime is not None and conn.server_side is not True and not is_over_loopback(self, conn):
            with runtime.deciding:
                # In this order, a subflow that is accepted meanwhile is in both rather than in neither.
                opening = self.opening(conn)
                self._asked_for = {}
                self.wanted(conn, conn.subflows(), opening)
                self._leave_orders(conn)

    def _look_at_all(self) -> None:
        for conn in self.connections():
            try:
                self._look(conn)
            except OSError:
                continue  # it has ended

    def on_connection(self, conn: Connection) -> None:
        self._look(conn)

    def on_closed(self, conn: Connection) -> None:
        self._announced.pop(conn.token, None)
        self._withdrawn.pop(conn.token, None)
        self._orders.pop(conn.token, None)
        self._failures = {key: value for key, value in self._failures.items() if key[0] != conn.token}

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        self._failures.pop((conn.token, self.local_of(subflow)), None)
        self._leave_withdrawn(conn, subflow)
        self._look(conn)

    def on_subflow_failed(self, conn: Connection, event: Event) -> None:
        if event.local is not None:
            local = LocalAddress(event.local[0], self.interface_of(event.local[0]) or "")
            before = self._failures.get((conn.token, local))
            count = 1 if before is None else before.in_a_row + 1
            # Another address of the peer is tried at once.
            rounds = count // max(1, len(self.remotes(conn, local)))
            pause = min(_FIRST_RETRY * 2 ** (rounds - 1), _LAST_RETRY) if rounds else 0.0
            self._failures[conn.token, local] = _Failures(count, self.now() + pause)
        self._look(conn)

    def on_address_announced(self, conn: Connection, event: Event) -> None:
        if event.remote is not None and event.remote_id is not None:
            end = (event.remote[0], event.remote[1] or conn.remote[1])
            self._announced.setdefault(conn.token, {})[event.remote_id] = end
            self._withdrawn.get(conn.token, set()).discard(end)
            self._look(conn)

    def on_address_removed(self, conn: Connection, event: Event) -> None:
        if event.remote_id is None:
            return
        announced = self._announced.get(conn.token, {})
        end = announced.pop(event.remote_id, conn.remote[:2] if event.remote_id == 0 else None)
        if end is not None and end not in announced.values():
            self._withdrawn.setdefault(conn.token, set()).add(end)
            for subflow in conn.subflows():
                self._leave_withdrawn(conn, subflow)

    def _leave_withdrawn(self, conn: Connection, subflow: Subflow) -> None:
        """Close a subflow to an address that the peer withdrew while it was being opened: the kernel closes others."""
        withdrawn = self._withdrawn.get(conn.token, ())
        if subflow.remote[:2] in withdrawn and subflow.initial is False and subflow.state == "ESTABLISHED":
            with contextlib.suppress(OSError):
                conn.close_subflow(subflow)

    def on_subflow_lost(self, conn: Connection, event: Event) -> None:
        orders = self._orders.get(conn.token, {})
        for key in [key for key in orders if not isinstance(key, str) and key[0] == event.local]:
            del orders[key]  # it has been carried out
        self._look(conn)

    def on_link_up(self, event: Event) -> None:
        self._look_at_all()

    def on_link_down(self, event: Event) -> None:
        for orders in self._orders.values():
            orders.pop(event.interface, None)  # it has been carried out
        self._look_at_all()

    def on_address(self, event: Event) -> None:
        self._look_at_all()

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        # What failed is tried again.
        if any(token == conn.token for token, _ in self._failures):
            self._look(conn)


def _difference(first: str, second: str) -> int:
    """Return how many bits of two addresses of one family follow the prefix that they share."""
    first, second = (one.partition("%")[0] for one in (first, second))
    return (int(ipaddress.ip_address(first)) ^ int(ipaddress.ip_address(second))).bit_length()
