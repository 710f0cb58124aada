"""How far a connection has come by a time."""

from __future__ import annotations

from collections.abc import Iterable

from .._connection import Connection
from .._core import Subflow
from ._amounts import Amounts, through


class Progress:
    """What Policy.expect_progress() returns: so many bytes of a connection within so many seconds."""

    conn: Connection
    """The connection."""

    size: float
    """How many bytes are expected."""

    seconds: float
    """Within how many seconds."""

    bytes: int
    """How many are through: sent and acknowledged, or received, as the last tick saw it."""

    is_met: bool | None
    """True once all are through, False if they were not when the time was over, None until then."""

    def __init__(self, conn: Connection, size: float, seconds: float, now: float, subflows: Iterable[Subflow]) -> None:
        self.conn, self.size, self.seconds = conn, size, seconds
        self.bytes, self.is_met = 0, None
        self._until = now + seconds
        self._amounts = Amounts(through, subflows)

    def __repr__(self) -> str:
        is_met = {None: "awaited", True: "met", False: "missed"}[self.is_met]
        return f"<Progress {self.bytes} of {self.size:g} bytes within {self.seconds:g} s: {is_met}>"

    def _update(self, now: float, subflows: list[Subflow]) -> bool:
        """Return whether it is decided."""
        self.bytes += sum(self._amounts.update(subflows).values())
        if self.bytes >= self.size:
            self.is_met = True
        elif now >= self._until:
            self.is_met = False
        return self.is_met is not None
