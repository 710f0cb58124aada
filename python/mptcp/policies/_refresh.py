from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._policy import LocalAddress
from ._arguments import positive
from ._base import Base, is_over_loopback
from ._path import PathName

if TYPE_CHECKING:
    from .._connection import Connection
    from .._core import Event, Subflow


class Refresh(Base):
    """Replace a subflow that is stuck, behind a NAT or on a bad ECMP path, by a new one between the same addresses.

    A subflow is stuck if it has data in flight and no acknowledgement for ``after`` seconds. With ``every``, the
    slowest subflow, that with the lowest pacing rate, is replaced as well every so many seconds, in connections that
    have two or more: over equal-cost paths, between which a router chooses by the ports, they come to use all of them.
    What is replaced is closed once the peer has accepted the new one, which has another local port.

    Raises TypeError and ValueError if ``after`` or ``every`` is not a number above 0.
    """

    tick: float = 0.2

    def __init__(
        self,
        after: float = 2.0,
        *,
        every: float | None = None,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.after: float = positive("after", after)
        self.every: float | None = None if every is None else positive("every", every)
        # What is being replaced, by the connection and the two addresses.
        self._replaced: dict[tuple[int, str, str], Subflow] = {}
        # When the slowest of a connection is replaced next.
        self._due: dict[int, float] = {}

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        if is_over_loopback(self, conn):
            return
        for subflow in subflows:
            info = subflow.tcp_info
            if info.unacked and (info.last_ack_recv or 0) > self.after * 1000:
                self._replace(conn, subflow)
        if self.every is not None and self.now() >= self._due.setdefault(conn.token, self.now() + self.every):
            self._due[conn.token] = self.now() + self.every
            if len(subflows) > 1:
                self._replace(conn, min(subflows, key=lambda subflow: subflow.tcp_info.pacing_rate))

    def _replace(self, conn: Connection, subflow: Subflow) -> None:
        key = (conn.token, subflow.local[0], subflow.remote[0])
        local = LocalAddress(subflow.local[0], self.interface_of(subflow.local[0]) or "")
        may_open = not (conn.deny_join_initial and subflow.remote[:2] == conn.remote[:2])
        if may_open and subflow.initial is not None and key not in self._replaced and not self.is_excluded(local):
            self._replaced[key] = subflow
            self.open(conn, local, subflow.remote[:2], backup=bool(subflow.backup))

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        replaced = self._replaced.pop((conn.token, subflow.local[0], subflow.remote[0]), None)
        if replaced is not None and replaced.local != subflow.local:
            conn.close_subflow(replaced)

    def on_subflow_failed(self, conn: Connection, event: Event) -> None:
        if event.local is not None and event.remote is not None:
            self._replaced.pop((conn.token, event.local[0], event.remote[0]), None)

    def on_subflow_lost(self, conn: Connection, event: Event) -> None:
        self.on_subflow_failed(conn, event)

    def on_closed(self, conn: Connection) -> None:
        self._replaced = {key: subflow for key, subflow in self._replaced.items() if key[0] != conn.token}
        self._due.pop(conn.token, None)
