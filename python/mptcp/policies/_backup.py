from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ._arguments import positive
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening

# Seconds before a primary path that was left for its RTO is tried again: the first time, and at most.
_FIRST_RETURN, _LAST_RETURN = 10.0, 300.0


class Backup(PathPolicy):
    """Use two paths, of which the second carries data only while there is no subflow on the first.

    The subflow on ``backup`` stays open all the time, with the backup flag (RFC 8684, section 3.3.8). When the
    interface of ``primary`` goes down, its subflow is closed, so that the kernel does not have to detect the failure.
    With ``rto`` it is closed as well when its retransmission timeout exceeds so many seconds, long before the kernel
    gives it up (some 15 timeouts); the primary path is tried again 10 s later, doubled each time up to 5 minutes.

    Raises TypeError and ValueError if ``rto`` is not a number above 0.
    """

    tick: float = 0.2

    def __init__(
        self,
        primary: PathName,
        backup: PathName,
        *,
        rto: float | None = None,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.primary: Path = Path(primary)
        self.backup: Path = Path(backup)
        self.rto: float | None = None if rto is None else positive("rto", rto)
        self._left: dict[int, _Left] = {}

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        left = self._left.get(conn.token)
        if left is None or self.now() >= left.until:
            self.ensure(conn, subflows, opening, self.primary)
        self.ensure(conn, subflows, opening, self.backup, backup=True)
        spare = [subflow for subflow in self.on_path(self.backup, subflows) if self.is_up(subflow)]
        for subflow in spare:
            if not subflow.backup:
                subflow.set_backup(True)
            self.keep(conn, subflow, backup=True, path=self.backup)
        for subflow in self.on_path(self.primary, subflows):
            self.keep(conn, subflow, path=self.primary)
        for subflow in self.on_path(self.primary, subflows) if spare else ():
            if not self.is_up(subflow) or self._is_stuck(subflow):
                if self.is_up(subflow):
                    self._leave(conn)
                conn.close_subflow(subflow)

    def _is_stuck(self, subflow: Subflow) -> bool:
        return self.rto is not None and (subflow.tcp_info.rto or 0) / 1e6 > self.rto

    def _leave(self, conn: Connection) -> None:
        before = self._left.get(conn.token)
        times = 1 if before is None else before.times + 1
        self._left[conn.token] = _Left(times, self.now() + min(_FIRST_RETURN * 2 ** (times - 1), _LAST_RETURN))

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        left = self._left.get(conn.token)
        is_due = left is not None and self.now() >= left.until and not self.on_path(self.primary, subflows)
        if is_due or any(self._is_stuck(subflow) for subflow in self.on_path(self.primary, subflows)):
            self._look(conn)
        super().on_tick(conn, subflows)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._left.pop(conn.token, None)


class _Left(NamedTuple):
    """How often a connection left its primary path for its RTO, and until when it stays away."""

    times: int
    until: float
