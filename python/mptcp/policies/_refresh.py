from __future__ import annotations

from typing import TYPE_CHECKING

from .._policy import Policy
from ._arguments import number
from ._paths import is_over_loopback

if TYPE_CHECKING:
    from .._connection import Connection
    from .._core import Event, Subflow


class Refresh(Policy):
    """Replace a subflow that is stuck, behind a NAT or on a bad ECMP path, by a new one between the same addresses.

    A subflow is stuck if it has data in flight and no acknowledgement for ``after`` seconds. It is closed once the peer
    has accepted the new one, which has another local port.

    Raises TypeError and ValueError if ``after`` is not a number above 0.
    """

    tick: float = 0.2

    def __init__(self, after: float = 2.0) -> None:
        self.after: float = number("after", after)
        if not self.after > 0:
            raise ValueError("after must be a number of seconds above 0, not 0")
        self._stuck: dict[tuple[int, str, str], Subflow] = {}

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        for subflow in subflows if not is_over_loopback(self, conn) else ():
            info = subflow.tcp_info
            key = (conn.token, subflow.local[0], subflow.remote[0])
            is_stuck = bool(info.unacked) and (info.last_ack_recv or 0) > self.after * 1000
            may_open = not (conn.deny_join_initial and subflow.remote[:2] == conn.remote[:2])
            if is_stuck and may_open and subflow.initial is not None and key not in self._stuck:
                self._stuck[key] = subflow
                conn.open_subflow(subflow.local[0], subflow.remote[:2], backup=bool(subflow.backup))

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        stuck = self._stuck.pop((conn.token, subflow.local[0], subflow.remote[0]), None)
        if stuck is not None and stuck.local != subflow.local:
            conn.close_subflow(stuck)

    def on_subflow_failed(self, conn: Connection, event: Event) -> None:
        if event.local is not None and event.remote is not None:
            self._stuck.pop((conn.token, event.local[0], event.remote[0]), None)

    def on_subflow_lost(self, conn: Connection, event: Event) -> None:
        self.on_subflow_failed(conn, event)

    def on_closed(self, conn: Connection) -> None:
        self._stuck = {key: subflow for key, subflow in self._stuck.items() if key[0] != conn.token}
