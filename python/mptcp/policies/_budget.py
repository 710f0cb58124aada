from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._policy import LocalAddress
from .._policy._amounts import Amounts, carried
from ._arguments import positive
from ._base import is_over_loopback
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening

_HOUR = 3600.0
# Of the hour, whose oldest minute is forgotten at once.
_SLOT = 60.0
# A spent budget is usable again when this much of it is free, so that subflows do not come and go.
_FREE = 0.1


class Budget(PathPolicy):
    """Use a path, such as a metered link, for at most ``bytes_per_hour`` bytes in any hour.

    Opens a subflow on the path while the budget lasts. When it is spent, the subflows on the path are closed, and no
    policy opens one there until a tenth of the budget is free again. A connection's last subflow is not closed but gets
    the backup flag, so that it carries data only until another path is there.

    Counts the data sent, with retransmissions, and received by the subflows of all connections on the path, every 0.1
    s, from the policy's start on; headers (3 to 6 %) and other traffic are not counted. Raises TypeError and ValueError
    if ``bytes_per_hour`` is not a number above 0.
    """

    tick: float = 0.1

    def __init__(
        self,
        path: PathName,
        bytes_per_hour: float,
        *,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.path: Path = Path(path)
        self.bytes_per_hour: float = positive("bytes_per_hour", bytes_per_hour)
        self._counts: dict[int, Amounts] = {}
        # What was carried in each minute: when that began, and the bytes.
        self._minutes: deque[list[float]] = deque()
        self._is_spent = False
        # Cookies of subflows that got the backup flag here.
        self._spared: set[int | None] = set()

    def used(self) -> float:
        """Return the bytes that the path carried in the last hour."""
        while self._minutes and self._minutes[0][0] + _SLOT <= self.now() - _HOUR:
            self._minutes.popleft()
        return sum(amount for _, amount in self._minutes)

    def is_spent(self) -> bool:
        """Return whether no more is to be carried now."""
        self._is_spent = self.used() >= self.bytes_per_hour * (1 - _FREE if self._is_spent else 1)
        return self._is_spent

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        is_free = local not in self.path or is_over_loopback(self, conn) or not self.is_spent()
        return is_free and super().allows(conn, local, remote)

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        on_path = self.on_path(self.path, subflows)
        if not self.is_spent():
            for subflow in on_path:
                if subflow.cookie in self._spared:
                    self._spared.discard(subflow.cookie)
                    subflow.set_backup(False)
            self.ensure(conn, subflows, opening, self.path)
            return
        others = [subflow for subflow in subflows if subflow not in on_path and self.is_up(subflow)]
        for subflow in on_path:
            if others or subflow is not on_path[-1]:
                conn.close_subflow(subflow)
            elif subflow.cookie not in self._spared:
                self._spared.add(subflow.cookie)
                subflow.set_backup(True)

    def on_connection(self, conn: Connection) -> None:
        with contextlib.suppress(OSError):
            # What was carried before the policy began does not count.
            self._counts[conn.token] = Amounts(carried, conn.subflows())
        super().on_connection(conn)

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        if is_over_loopback(self, conn):
            return
        was_spent = self._is_spent
        added = self._counts.setdefault(conn.token, Amounts(carried)).update(subflows)
        on_path = sum(added[subflow.cookie] for subflow in self.on_path(self.path, subflows))
        if on_path:
            now = self.now()
            if not self._minutes or now >= self._minutes[-1][0] + _SLOT:
                self._minutes.append([now, 0.0])
            self._minutes[-1][1] += on_path
        if self.is_spent() != was_spent:
            self._look_at_all()
        elif self._is_spent and self.on_path(self.path, subflows):
            self._look(conn)
        super().on_tick(conn, subflows)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._counts.pop(conn.token, None)
