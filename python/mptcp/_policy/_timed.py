"""Callbacks that depend on what ticks read: the RTO of subflows, and how far a connection has come by a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._connection import Connection
from .._core import Subflow
from ._policy import Policy
from ._progress import Progress

if TYPE_CHECKING:
    from ._connection import PolicyConnection

Round = tuple["PolicyConnection", list[Subflow]]


class Timed:
    """What one policy waits for."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        # The subflows whose RTO is above the threshold, by token and cookie.
        self._above: set[tuple[int, int | None]] = set()
        self._awaited: list[Progress] = []

    def expect(self, progress: Progress) -> None:
        self._awaited.append(progress)

    def calls(self, now: float, rounds: list[Round]) -> list[tuple[str, Connection, Any]]:
        """Return the methods to call after a reading of all connections, with their arguments."""
        found: list[tuple[str, Connection, Any]] = []
        limit = self._policy.rto_threshold * 1e6
        above = {
            (conn.token, subflow.cookie): (conn, subflow)
            for conn, subflows in rounds
            for subflow in subflows
            if (subflow.tcp_info.rto or 0) > limit
        }
        found += [("on_rto", *above[key]) for key in above if key not in self._above]
        self._above = set(above)
        by_token = {conn.token: subflows for conn, subflows in rounds}
        # One whose connection has ended is dropped: on_closed() has told.
        awaited = [progress for progress in self._awaited if progress.conn.token in by_token]
        decided = [one for one in awaited if one._update(now, by_token[one.conn.token])]
        # Another thread may have added one meanwhile.
        for progress in [one for one in self._awaited if one in decided or one not in awaited]:
            self._awaited.remove(progress)
        found += [("on_progress", one.conn, by_token[one.conn.token]) for one in decided]
        return found
