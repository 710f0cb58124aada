from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._policy import LocalAddress
from .._policy._amounts import Amounts, through
from ._arguments import positive
from ._base import is_over_loopback
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening

# The rate is that of the last second, and a forecast counts once it was the same for so many ticks.
_WINDOW = 1.0
_TICKS = 3


class Deadline(PathPolicy):
    """Use a second path only if a transfer would otherwise miss its time: ``size`` bytes within ``seconds``.

    Both are of each connection, from its beginning; the bytes are those sent and acknowledged plus those received.
    Every 0.1 s the rate of the last second says when the transfer will be through. A subflow on ``path`` is opened if
    that is too late three times in a row, and closed once all bytes are through. Until it is needed no other policy
    opens a subflow on the path either.

    Raises TypeError and ValueError if ``size`` or ``seconds`` is not a number above 0.
    """

    tick: float = 0.1

    def __init__(
        self,
        path: PathName,
        *,
        size: float,
        seconds: float,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.path: Path = Path(path)
        self.size: float = positive("size", size)
        self.seconds: float = positive("seconds", seconds)
        self._transfers: dict[int, _Transfer] = {}

    def is_needed(self, conn: Connection) -> bool:
        """Return whether the connection needs the path to be in time."""
        transfer = self._transfers.get(conn.token)
        return transfer is not None and transfer.late >= _TICKS and transfer.total < self.size

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        is_free = local not in self.path or is_over_loopback(self, conn) or self.is_needed(conn)
        return is_free and super().allows(conn, local, remote)

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        if self.is_needed(conn):
            self.ensure(conn, subflows, opening, self.path)
            return
        transfer = self._transfers.get(conn.token)
        if transfer is not None and transfer.late >= _TICKS:
            on_path = self.on_path(self.path, subflows)
            if any(self.is_up(subflow) for subflow in subflows if subflow not in on_path):
                for subflow in on_path:
                    if subflow.initial is False:
                        conn.close_subflow(subflow)

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        transfer = self._transfers.setdefault(conn.token, _Transfer())
        was_needed, was_through = self.is_needed(conn), transfer.total >= self.size
        transfer.update(self.now(), subflows)
        if transfer.late < _TICKS:
            left = self.seconds - conn.age
            is_late = transfer.has_begun and self.size - transfer.total > max(0.0, left) * transfer.rate()
            transfer.late = transfer.late + 1 if is_late else 0
        if self.is_needed(conn) != was_needed or (transfer.total >= self.size) != was_through:
            self._look(conn)
        super().on_tick(conn, subflows)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._transfers.pop(conn.token, None)


class _Transfer:
    """How far one connection's transfer is."""

    def __init__(self) -> None:
        self.total = 0
        self.late = 0
        self.has_begun = False
        self._amounts = Amounts(through)
        # Moments, and the bytes that were through.
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now: float, subflows: list[Subflow]) -> None:
        self.total += sum(self._amounts.update(subflows).values())
        # Without data there is nothing to forecast: the SYN counts in bytes_acked.
        self.has_begun = self.has_begun or self.total > 1 or any(one.tcp_info.unacked for one in subflows)
        if self.has_begun:
            self._samples.append((now, self.total))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()

    def rate(self) -> float:
        """Return the bytes a second of the last second, or of less at the beginning; infinite before two readings."""
        if len(self._samples) < 2:
            return float("inf")
        (since, before), (now, total) = self._samples[0], self._samples[-1]
        return (total - before) / (now - since) if now > since else float("inf")
