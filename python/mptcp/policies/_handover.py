from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ._arguments import number
from ._paths import Path, PathName, PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


class Handover(PathPolicy):
    """Moves connections to another path before the one that they are on fails them: make before break.

    A path is left when its interface goes down, and, where ``rtt`` or ``loss`` is given, when the subflow on it is
    worse than that for ``patience`` ticks on end: a smoothed round-trip time above ``rtt`` seconds, or no
    acknowledgement of what is in flight for so long; or more than ``loss`` of the bytes of a tick sent again. It is
    closed when the peer has accepted the subflow on the next path, in the order given and round again.
    """

    tick = 0.2

    def __init__(
        self, *paths: PathName, rtt: float | None = None, loss: float | None = None, patience: int = 3
    ) -> None:
        super().__init__()
        if len(paths) < 2:
            raise ValueError("Handover() needs two paths at least")
        self.paths = [Path(name) for name in paths]
        self.rtt = None if rtt is None else number("rtt", rtt)
        self.loss = None if loss is None else number("loss", loss)
        self.patience = number("patience", patience)
        self._watched: dict[int, dict[int | None, _Watched]] = {}

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        watched = self._watched.get(conn.token, {})
        leaving = {cookie for cookie, one in watched.items() if one.bad >= self.patience}
        stay = [one for one in subflows if self.is_up(one) and one.cookie not in leaving]
        if stay:
            for subflow in subflows:
                if subflow not in stay:
                    conn.close_subflow(subflow)
        elif subflows:
            self._move(conn, subflows, opening)

    def _move(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        """Opens a subflow on the path behind the one that is used."""
        used = [number for number, path in enumerate(self.paths) if self.on_path(path, subflows)]
        after = used[-1] + 1 if used else 0
        for path in self.paths[after:] + self.paths[:after]:
            if not self.on_path(path, subflows) and self.ensure(conn, subflows, opening, path):
                return

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        before = self._watched.get(conn.token, {})
        self._watched[conn.token] = {one.cookie: self._watch(one, before.get(one.cookie)) for one in subflows}
        self._look(conn)

    def _watch(self, subflow: Subflow, before: _Watched | None) -> _Watched:
        info = subflow.tcp_info
        sent, again = info.bytes_sent or 0, info.bytes_retrans or 0
        since = before or _Watched(sent, again, 0)
        # Round trips are not measured on what is sent again: what waits for an acknowledgement tells then.
        waits = (info.last_ack_recv or 0) / 1e3 if info.unacked else 0.0
        is_slow = self.rtt is not None and max((info.rtt or 0) / 1e6, waits) > self.rtt
        is_lossy = self.loss is not None and again - since.again > self.loss * max(1, sent - since.sent)
        return _Watched(sent, again, since.bad + 1 if is_slow or is_lossy else 0)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._watched.pop(conn.token, None)


class _Watched(NamedTuple):
    """Of one subflow: bytes sent, bytes sent again, and the ticks on end that were too bad."""

    sent: int
    again: int
    bad: int
