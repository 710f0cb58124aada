"""Measures that papers use, as functions over the arrays of a Recording.

``samples`` is what Recording.samples gives, or a part of it. Time is in seconds, rates are in bits a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from ._rows import Direction, Floats, Rows

__all__ = ["goodput", "jain_index", "reinjection_ratio", "share", "time_to_recover"]


def goodput(samples: Rows, *, window: float = 0.1, direction: Direction = "sent") -> tuple[Floats, dict[int, Floats]]:
    """The goodput of each subflow: the times of windows' ends, and for each subflow's cookie its rate in each window.

    Of "sent" it is the growth of ``bytes_acked``, what the peer has acknowledged, over the window's length; of
    "received" that of ``bytes_received``. What a subflow repeats of its own is in neither; what another subflow had
    carried already is in both (see reinjection_ratio). ``window`` is in seconds, and the windows start at the first
    sample; a counter's value at a window's edge is interpolated between the samples round it. Before a subflow's first
    sample and after its last the rate is 0. Times are seconds of CLOCK_MONOTONIC.

    Raises ValueError for another direction, a window that is not positive, and no samples.
    """
    name = _counter(direction, {"sent": "bytes_acked", "received": "bytes_received"})
    if not window > 0:
        raise ValueError(f"a window is a positive number of seconds, not {window}")
    if not len(samples):
        raise ValueError("there are no samples")
    begin, end = samples["time_ns"].min() / 1e9, samples["time_ns"].max() / 1e9
    edges = begin + window * np.arange(int(np.ceil(max(end - begin, window) / window - 1e-9)) + 1)
    rates = {}
    for cookie, rows in _by_subflow(samples):
        counted = np.interp(edges, rows["time_ns"] / 1e9, rows[name].astype(float))
        rates[cookie] = np.diff(counted) * 8 / window
    return edges[1:], rates


def share(samples: Rows, *, direction: Direction = "sent") -> dict[int, float]:
    """Each subflow's share of the bytes that all of ``samples`` carried, by its cookie; together they are 1.

    A subflow's bytes are the growth of ``bytes_sent - bytes_retrans``, or of ``bytes_received``, from its first to its
    last row. All shares are NaN where nothing was carried.
    """
    carried = {cookie: _carried(rows, direction) for cookie, rows in _by_subflow(samples)}
    total = sum(carried.values())
    return {cookie: count / total if total else np.nan for cookie, count in carried.items()}


def reinjection_ratio(samples: Rows, connections: Rows) -> float:
    """How much of what was sent on the subflows went there again, having gone on another already.

    ``(S - C) / S``, where S is the growth of ``bytes_sent - bytes_retrans`` of the subflows, which leaves out what each
    repeats of its own, and C that of mptcp_info's ``bytes_sent``, which counts each byte of the connection once. NaN
    where nothing was sent or this kernel has no such counter (before Linux 6.5). Take both over the same time, from a
    moment when nothing was in flight to another: the two tables are not read at once.

    Packets that the host's own queueing discipline drops before the network count as reinjected, since TCP counts them
    as sent each time and as retransmitted never (docs/measuring.md).
    """
    sent = sum(_carried(rows, "sent") for _, rows in _by_subflow(samples))
    once = 0.0
    for token in np.unique(connections["token"]):
        counted = connections["bytes_sent"][connections["token"] == token]
        once += float(counted[-1] - counted[0])
    return (sent - once) / sent if sent else np.nan


def time_to_recover(
    samples: Rows, failure_ns: int, *, fraction: float = 0.5, window: float = 0.1, direction: Direction = "sent"
) -> float:
    """Seconds from a failure until the goodput of all subflows together is back.

    It is back at the end of the first window in which it is at least ``fraction`` of its mean before the failure, after
    one in which it was less; windows begin at ``failure_ns`` (CLOCK_MONOTONIC, as ``time_ns`` of samples and events).
    0.0 if it never was less, infinity if it does not come back, NaN if nothing was carried before.

    Raises ValueError for a failure that is not within the time of the samples, and as goodput().
    """
    begins = samples["time_ns"].min()
    if not begins < failure_ns <= samples["time_ns"].max():
        raise ValueError("the failure is not within the time of the samples")
    # Windows from the failure on, and the mean of what was before: no window is on both sides.
    rates = sum(
        np.diff(np.interp(_edges(samples, failure_ns, window), rows["time_ns"], _bytes(rows, direction)))
        for _, rows in _by_subflow(samples)
    )
    before = sum(
        float(np.diff(np.interp([begins, failure_ns], rows["time_ns"], _bytes(rows, direction)))[0])
        for _, rows in _by_subflow(samples)
    )
    if not before:
        return np.nan
    wanted = fraction * before / ((failure_ns - begins) / 1e9) * window
    low = np.flatnonzero(np.asarray(rates) < wanted)
    if not len(low):
        return 0.0
    back = np.flatnonzero(np.asarray(rates)[low[0] :] >= wanted)
    return float((low[0] + back[0] + 1) * window) if len(back) else np.inf


def jain_index(values: ArrayLike) -> float:
    """Jain's fairness index of rates or shares: ``sum(x)**2 / (n * sum(x**2))``, from 1/n to 1. NaN if all are 0.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness and Discrimination, DEC-TR-301, 1984. Raises
    ValueError for no values and for negative ones.
    """
    x = np.asarray(values, dtype=float).ravel()
    if not x.size or (x < 0).any():
        raise ValueError("the index is of one value or more, none of them negative")
    squares = x.size * float((x**2).sum())
    return float(x.sum() ** 2) / squares if squares else np.nan


def _edges(samples: Rows, failure_ns: int, window: float) -> Floats:
    if not window > 0:
        raise ValueError(f"a window is a positive number of seconds, not {window}")
    whole = max(1, int((samples["time_ns"].max() - failure_ns) / 1e9 / window))
    edges: Floats = failure_ns + window * 1e9 * np.arange(whole + 1, dtype=np.float64)
    return edges


def _by_subflow(samples: Rows) -> list[tuple[int, Rows]]:
    """Each subflow's cookie and rows, in order of time."""
    found = []
    for cookie in np.unique(samples["cookie"]):
        rows = samples[samples["cookie"] == cookie]
        found.append((int(cookie), rows[np.argsort(rows["time_ns"], kind="stable")]))
    return found


def _counter(direction: str, names: dict[str, str]) -> str:
    if direction not in names:
        raise ValueError(f"a direction is 'sent' or 'received', not {direction!r}")
    return names[direction]


def _bytes(rows: Rows, direction: Direction) -> NDArray[Any]:
    return rows[_counter(direction, {"sent": "bytes_acked", "received": "bytes_received"})].astype(float)


def _carried(rows: Rows, direction: Direction) -> float:
    if _counter(direction, {"sent": "bytes_sent", "received": "bytes_received"}) == "bytes_received":
        counted = rows["bytes_received"]
    else:
        counted = rows["bytes_sent"] - rows["bytes_retrans"]
    return float(counted[-1] - counted[0])
