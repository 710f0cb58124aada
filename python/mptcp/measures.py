"""Measures that are common in papers, as functions of the arrays of a Recording.

``samples`` is Recording.samples, or a part of it. Times are in seconds, rates in bits per second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from ._rows import Direction, Floats, Rows

__all__ = ["goodput", "jain_index", "reinjection_ratio", "share", "time_to_recover"]


def goodput(samples: Rows, *, window: float = 0.1, direction: Direction = "sent") -> tuple[Floats, dict[int, Floats]]:
    """Return the goodput of each subflow: the windows' ends in seconds, and by cookie the rates in bits per second.

    For "sent" it is the growth of ``bytes_acked``, the bytes that the peer has acknowledged, over the window's length;
    for "received" that of ``bytes_received``. Neither counts a subflow's own retransmissions; both count what another
    subflow had already carried (see reinjection_ratio). ``window`` is in seconds, and windows start at the first
    sample; a counter's value at a window's edge is interpolated between the neighbouring samples. Before a subflow's
    first sample and after its last the rate is 0. Times are seconds of CLOCK_MONOTONIC. All arrays are float64, with
    one value for each window.

    Raises ValueError for another direction, a window that is not positive, and for no samples.
    """
    name = _counter(direction, {"sent": "bytes_acked", "received": "bytes_received"})
    if not window > 0:
        raise ValueError(f"window must be a number of seconds above 0, not {window}")
    if not len(samples):
        raise ValueError("samples must not be empty")
    begin, end = samples["time_ns"].min() / 1e9, samples["time_ns"].max() / 1e9
    edges = begin + window * np.arange(int(np.ceil(max(end - begin, window) / window - 1e-9)) + 1)
    rates = {}
    for cookie, rows in _by_subflow(samples):
        counted = np.interp(edges, rows["time_ns"] / 1e9, rows[name].astype(float))
        rates[cookie] = np.diff(counted) * 8 / window
    return edges[1:], rates


def share(samples: Rows, *, direction: Direction = "sent") -> dict[int, float]:
    """Return each subflow's share of the bytes that all ``samples`` carried, by its cookie, from 0 to 1.

    A subflow's bytes are the growth of ``bytes_sent - bytes_retrans``, or of ``bytes_received``, from its first to its
    last row. The shares add up to 1; all are NaN if nothing was carried. Raises ValueError for another direction.
    """
    carried = {cookie: _carried(rows, direction) for cookie, rows in _by_subflow(samples)}
    total = sum(carried.values())
    return {cookie: count / total if total else np.nan for cookie, count in carried.items()}


def reinjection_ratio(samples: Rows, connections: Rows) -> float:
    """Return the fraction of the bytes sent on subflows that had already been sent on another subflow.

    It is ``(S - C) / S``, from 0 to 1. S is the growth of ``bytes_sent - bytes_retrans`` of the subflows, which leaves
    out their own retransmissions; C is that of mptcp_info's ``bytes_sent``, which counts each byte of the connection
    once. NaN if nothing was sent, and on kernels without that counter (before Linux 6.5). Pass both arrays for the same
    period, which should begin and end with nothing in flight: the two are not read at the same moment.

    Packets that the host's own queueing discipline drops count as reinjected, because TCP counts them as sent each time
    and never as retransmitted (docs/measuring.md).
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
    """Return the seconds from a failure until the goodput of all subflows together has recovered.

    It has recovered at the end of the first window in which it is at least ``fraction`` of its mean before the failure,
    after one in which it was less. Windows are ``window`` seconds long and begin at ``failure_ns``, in nanoseconds of
    CLOCK_MONOTONIC as ``time_ns`` of samples and events. Returns 0.0 if it was never less, infinity if it does not
    recover, NaN if nothing was carried before.

    Raises ValueError for a failure outside the time of the samples, and as goodput().
    """
    begins = samples["time_ns"].min()
    if not begins < failure_ns <= samples["time_ns"].max():
        raise ValueError("failure_ns must be within the time of the samples")
    # Windows begin at the failure, and the mean is of the time before it: no window is on both sides.
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
    """Return Jain's fairness index of rates or shares: ``sum(x)**2 / (n * sum(x**2))``.

    It is from 1/n, where one has everything, to 1, where all are equal; NaN if all are 0.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness and Discrimination, DEC-TR-301, 1984. Raises
    ValueError if there are no values, or negative ones.
    """
    x = np.asarray(values, dtype=float).ravel()
    if not x.size or (x < 0).any():
        raise ValueError("values must be one or more numbers, none of them negative")
    squares = x.size * float((x**2).sum())
    return float(x.sum() ** 2) / squares if squares else np.nan


def _edges(samples: Rows, failure_ns: int, window: float) -> Floats:
    if not window > 0:
        raise ValueError(f"window must be a number of seconds above 0, not {window}")
    whole = max(1, int((samples["time_ns"].max() - failure_ns) / 1e9 / window))
    edges: Floats = failure_ns + window * 1e9 * np.arange(whole + 1, dtype=np.float64)
    return edges


def _by_subflow(samples: Rows) -> list[tuple[int, Rows]]:
    """Return each subflow's cookie and rows, in order of time."""
    found = []
    for cookie in np.unique(samples["cookie"]):
        rows = samples[samples["cookie"] == cookie]
        found.append((int(cookie), rows[np.argsort(rows["time_ns"], kind="stable")]))
    return found


def _counter(direction: str, names: dict[str, str]) -> str:
    if direction not in names:
        raise ValueError(f"direction must be 'sent' or 'received', not {direction!r}")
    return names[direction]


def _bytes(rows: Rows, direction: Direction) -> NDArray[Any]:
    return rows[_counter(direction, {"sent": "bytes_acked", "received": "bytes_received"})].astype(float)


def _carried(rows: Rows, direction: Direction) -> float:
    if _counter(direction, {"sent": "bytes_sent", "received": "bytes_received"}) == "bytes_received":
        counted = rows["bytes_received"]
    else:
        counted = rows["bytes_sent"] - rows["bytes_retrans"]
    return float(counted[-1] - counted[0])
