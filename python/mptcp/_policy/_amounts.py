"""What the subflows of a connection carried from one tick to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .._core import Subflow


def acked(subflow: Subflow) -> int:
    """Return the bytes that the peer has acknowledged."""
    return subflow.tcp_info.bytes_acked or 0


def through(subflow: Subflow) -> int:
    """Return the bytes sent and acknowledged plus those received."""
    return acked(subflow) + (subflow.tcp_info.bytes_received or 0)


def carried(subflow: Subflow) -> int:
    """Return the bytes sent, retransmissions included, plus those received."""
    return (subflow.tcp_info.bytes_sent or 0) + (subflow.tcp_info.bytes_received or 0)


class Amounts:
    """Differences of a counter of one connection's subflows, by their cookies: one that is new begins at 0."""

    def __init__(self, count: Callable[[Subflow], int], subflows: Iterable[Subflow] = ()) -> None:
        self._count = count
        self._before: dict[int | None, int] = {one.cookie: count(one) for one in subflows}

    def update(self, subflows: Iterable[Subflow]) -> dict[int | None, int]:
        """Return what was added to each subflow's counter since the last call."""
        now = {one.cookie: self._count(one) for one in subflows}
        added = {cookie: max(0, count - self._before.get(cookie, 0)) for cookie, count in now.items()}
        self._before = now
        return added
