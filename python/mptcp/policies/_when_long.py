from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._policy import LocalAddress
from ._arguments import number
from ._base import is_over_loopback
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


class WhenLong(PathPolicy):
    """Reserve a path for long flows: open a subflow on it after ``after_bytes`` or ``after_seconds``.

    ``after_bytes`` counts the bytes sent and acknowledged plus those received; ``after_seconds`` is the connection's
    age in seconds. Until then no other policy opens a subflow on the path either.

    Raises ValueError if neither is given, and TypeError and ValueError for what is not a number of 0 or more.
    """

    tick: float = 0.1

    def __init__(
        self,
        path: PathName,
        *,
        after_bytes: float | None = None,
        after_seconds: float | None = None,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.path: Path = Path(path)
        if after_bytes is None and after_seconds is None:
            raise ValueError("WhenLong() needs after_bytes or after_seconds")
        self.after_bytes: float = float("inf") if after_bytes is None else number("after_bytes", after_bytes)
        self.after_seconds: float = float("inf") if after_seconds is None else number("after_seconds", after_seconds)
        self._long: set[int] = set()

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        is_free = local not in self.path or is_over_loopback(self, conn) or conn.token in self._long
        return is_free and super().allows(conn, local, remote)

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        if conn.token in self._long:
            self.ensure(conn, subflows, opening, self.path)

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        if conn.token not in self._long:
            counters = [subflow.tcp_info for subflow in subflows]
            total = sum((info.bytes_acked or 0) + (info.bytes_received or 0) for info in counters)
            if total < self.after_bytes and conn.age < self.after_seconds:
                return
            self._long.add(conn.token)
            self._look(conn)
        super().on_tick(conn, subflows)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._long.discard(conn.token)
