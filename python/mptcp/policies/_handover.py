from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ._arguments import number, positive
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


class Handover(PathPolicy):
    """Move connections to another path before the one that they use fails: make before break.

    A path is left when its interface goes down and, where ``rtt`` or ``loss`` is given, when the subflow on it exceeds
    it for ``patience`` consecutive ticks (of 0.2 s): a smoothed round-trip time above ``rtt`` seconds, or data in
    flight that long without an acknowledgement; or more than the fraction ``loss`` (0 to 1) of a tick's bytes
    retransmitted. With ``rto`` it is left at once when the subflow's retransmission timeout exceeds so many seconds,
    which it does as it doubles while nothing is acknowledged. The subflow on it is closed once the peer has accepted
    the one on the next path, in the given order and starting over after the last.

    Raises ValueError for fewer than two paths, and TypeError and ValueError for arguments that are not such numbers.
    """

    tick: float = 0.2

    def __init__(
        self,
        *paths: PathName,
        rtt: float | None = None,
        loss: float | None = None,
        rto: float | None = None,
        patience: int = 3,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        if len(paths) < 2:
            raise ValueError("Handover() needs at least two paths")
        self.paths: list[Path] = [Path(name) for name in paths]
        self.rtt: float | None = None if rtt is None else number("rtt", rtt)
        self.loss: float | None = None if loss is None else number("loss", loss)
        self.rto: float | None = None if rto is None else positive("rto", rto)
        self.patience: float = number("patience", patience)
        self._watched: dict[int, dict[int | None, _Watched]] = {}

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        watched = self._watched.get(conn.token, {})
        leaving = {cookie for cookie, one in watched.items() if one.bad >= self.patience}
        stay = [one for one in subflows if self.is_up(one) and one.cookie not in leaving]
        if stay:
            for subflow in subflows:
                if subflow not in stay:
                    conn.close_subflow(subflow)
            self._prepare(conn, stay)
        elif subflows:
            self._move(conn, subflows, opening)

    def _prepare(self, conn: Connection, stay: list[Subflow]) -> None:
        """Order what _move() does when the only interface in use goes down."""
        interfaces = {self.local_of(subflow).interface for subflow in stay}
        used = [number for number, path in enumerate(self.paths) if self.on_path(path, stay)]
        if len(interfaces) != 1 or "" in interfaces or not used:
            return
        (interface,) = interfaces
        after = used[-1] + 1
        for path in self.paths[after:] + self.paths[:after]:
            for local in self.addresses_on(path, conn):
                if local.interface != interface:
                    self.when_lost(conn, interface, local, path=path)
                    return

    def _move(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        """Open a subflow on the path after the one in use."""
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
        # Round trips are not measured on retransmissions: the wait for an acknowledgement shows the delay then.
        waits = (info.last_ack_recv or 0) / 1e3 if info.unacked else 0.0
        is_slow = self.rtt is not None and max((info.rtt or 0) / 1e6, waits) > self.rtt
        is_lossy = self.loss is not None and again - since.again > self.loss * max(1, sent - since.sent)
        if self.rto is not None and (info.rto or 0) / 1e6 > self.rto:
            return _Watched(sent, again, max(self.patience, since.bad))
        return _Watched(sent, again, since.bad + 1 if is_slow or is_lossy else 0)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._watched.pop(conn.token, None)


class _Watched(NamedTuple):
    """Of one subflow: bytes sent, bytes retransmitted, and the consecutive ticks that were too bad."""

    sent: int
    again: int
    bad: float
