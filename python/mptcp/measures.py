"""Measures that are common in papers, as functions of the arrays of a Recording.

``samples`` is Recording.samples, or a part of it. Times are in seconds, rates in bits per second. With ``error=True`` a
measure returns a pair: its value, and a bound of the error that comes from the sampling. docs/measuring.md derives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._rows import Direction, Floats, Rows

    _Counter = Callable[[Rows], Floats]
    _Rates = tuple[Floats, dict[int, Floats]]

__all__ = ["goodput", "jain_index", "reinjection_ratio", "share", "time_to_recover"]


# Goodput counts as lost below this part of the fraction at which it counts as recovered.
_HYSTERESIS = 0.8

# The SYN and the FIN, which bytes_acked counts as a byte each.
_SYN_AND_FIN = 2

COLUMNS = (
    "time_ns",
    "wait_ns",
    "token",
    "cookie",
    "final",
    "snd_mss",
    "unacked",
    "bytes_acked",
    "bytes_received",
    "notsent_bytes",
)
"""The columns of the samples that goodput() and share() read."""


@overload
def goodput(
    samples: Rows, *, window: float = ..., direction: Direction = ..., error: Literal[False] = ...
) -> _Rates: ...
@overload
def goodput(
    samples: Rows, *, window: float = ..., direction: Direction = ..., error: Literal[True]
) -> tuple[_Rates, dict[int, Floats]]: ...
@overload
def goodput(
    samples: Rows, *, window: float = ..., direction: Direction = ..., error: bool
) -> _Rates | tuple[_Rates, dict[int, Floats]]: ...
def goodput(
    samples: Rows, *, window: float = 0.1, direction: Direction = "sent", error: bool = False
) -> _Rates | tuple[_Rates, dict[int, Floats]]:
    """Return the goodput of each subflow: the windows' ends in seconds, and by cookie the rates in bits per second.

    For "sent" it is the growth of ``bytes_acked``, the bytes that the peer has acknowledged, over the window's length;
    for "received" that of ``bytes_received``. Neither counts a subflow's own retransmissions; both count what another
    subflow had already carried (see reinjection_ratio). ``window`` is in seconds, and windows start at the first
    sample; a counter's value at a window's edge is interpolated between the neighbouring samples. A subflow that begins
    during the recording counts from 0; what its final row adds counts in the interval after its last reading. Before a
    subflow's first sample and after its last the rate is 0. Times are seconds of CLOCK_MONOTONIC. All arrays are
    float64, with one value for each window.

    With ``error=True`` it returns the same and, by cookie, bounds in bits per second: by how much the interpolation at
    the two edges of a window may be wrong.

    Raises ValueError for another direction, a window that is not positive, and for no samples.
    """
    _check_window(window)
    if not len(samples):
        raise ValueError("samples must not be empty")
    flows = _flows(samples, _delivered(direction))
    begin, end = samples["time_ns"].min(), samples["time_ns"].max()
    length = window * 1e9
    edges = begin + length * np.arange(int(np.ceil(max(float(end - begin), length) / length - 1e-9)) + 1)
    rates = {flow.cookie: np.diff(flow.at(edges)) * 8 / window for flow in flows}
    times = edges[1:] / 1e9
    if not error:
        return times, rates
    bounds = {}
    for flow in flows:
        doubt = flow.doubt_at(edges)
        bounds[flow.cookie] = (doubt[:-1] + doubt[1:]) * 8 / window
    return (times, rates), bounds


@overload
def share(samples: Rows, *, direction: Direction = ..., error: Literal[False] = ...) -> dict[int, float]: ...
@overload
def share(
    samples: Rows, *, direction: Direction = ..., error: Literal[True]
) -> tuple[dict[int, float], dict[int, float]]: ...
@overload
def share(
    samples: Rows, *, direction: Direction = ..., error: bool
) -> dict[int, float] | tuple[dict[int, float], dict[int, float]]: ...
def share(
    samples: Rows, *, direction: Direction = "sent", error: bool = False
) -> dict[int, float] | tuple[dict[int, float], dict[int, float]]:
    """Return each subflow's share of the bytes that all ``samples`` delivered, by its cookie, from 0 to 1.

    A subflow's bytes are the growth of ``bytes_acked``, or for "received" of ``bytes_received``, from its first to its
    last row, or from 0 if it begins during the recording. The shares add up to 1; all are NaN if nothing was delivered.

    With ``error=True`` it returns the same and, by cookie, bounds of the shares: from SYN and FIN, which the kernel
    counts as a byte each, and the bytes that may have been delivered after a subflow's last reading where its final
    row does not tell.

    Raises ValueError for another direction.
    """
    flows = _flows(samples, _delivered(direction))
    # bytes_received counts a FIN, bytes_acked a SYN as well.
    signs = _SYN_AND_FIN if direction == "sent" else 1
    total = sum(flow.growth for flow in flows)
    shares = {flow.cookie: flow.growth / total if total else np.nan for flow in flows}
    if not error:
        return shares
    doubt = sum(flow.unknown + signs for flow in flows)

    def bound(flow: _Flow) -> float:
        own = flow.unknown + signs
        return min(1.0, (own + shares[flow.cookie] * doubt) / total) if np.isfinite(doubt) else 1.0

    return shares, {flow.cookie: bound(flow) if total else np.nan for flow in flows}


@overload
def reinjection_ratio(samples: Rows, connections: Rows, *, error: Literal[False] = ...) -> float: ...
@overload
def reinjection_ratio(samples: Rows, connections: Rows, *, error: Literal[True]) -> tuple[float, float]: ...
@overload
def reinjection_ratio(samples: Rows, connections: Rows, *, error: bool) -> float | tuple[float, float]: ...
def reinjection_ratio(samples: Rows, connections: Rows, *, error: bool = False) -> float | tuple[float, float]:
    """Return the fraction of the bytes sent on subflows that had already been sent on another subflow.

    It is ``(S - C) / S``, from 0 to 1. S is the growth of ``bytes_sent - bytes_retrans`` of the subflows, which leaves
    out their own retransmissions; C is that of mptcp_info's ``bytes_sent``, which counts each byte of the connection
    once. A subflow that begins during the recording counts from 0. NaN if nothing was sent, and on kernels without that
    counter (before Linux 6.5). Pass both arrays for the same period, which should begin and end with nothing in flight:
    the two are not read at the same moment.

    With ``error=True`` it returns the same and a bound, the sum of two parts: what S grew by between the connection's
    last row and the subflows', and the difference between S and ``bytes_acked``, SYN and FIN left out. Packets that the
    host's own queueing discipline drops count as reinjected, because TCP counts them as sent each time and never as
    retransmitted: the second part shows them (docs/measuring.md).
    """
    flows = _flows(samples, _sent_once)
    sent = sum(flow.growth for flow in flows)
    once, skew = 0.0, 0.0
    for token in np.unique(connections["token"]):
        rows = connections[connections["token"] == token]
        once += float(rows["bytes_sent"][-1] - rows["bytes_sent"][0])
        for flow in flows:
            if flow.token == token:
                skew += flow.growth - float(flow.at(rows["time_ns"][-1:].astype(float))[0] - flow.values[0])
    ratio = (sent - once) / sent if sent else np.nan
    if not error:
        return ratio
    acknowledged = _flows(samples, _delivered("sent"))
    allowance = _SYN_AND_FIN * len(flows)
    missing = max(0.0, abs(sent - sum(flow.growth for flow in acknowledged)) - allowance)
    return ratio, (missing + abs(skew)) / sent if sent else np.nan


@overload
def time_to_recover(
    samples: Rows,
    failure_ns: int,
    *,
    fraction: float = ...,
    window: float = ...,
    direction: Direction = ...,
    error: Literal[False] = ...,
) -> float: ...
@overload
def time_to_recover(
    samples: Rows,
    failure_ns: int,
    *,
    fraction: float = ...,
    window: float = ...,
    direction: Direction = ...,
    error: Literal[True],
) -> tuple[float, float]: ...
@overload
def time_to_recover(
    samples: Rows,
    failure_ns: int,
    *,
    fraction: float = ...,
    window: float = ...,
    direction: Direction = ...,
    error: bool,
) -> float | tuple[float, float]: ...
def time_to_recover(
    samples: Rows,
    failure_ns: int,
    *,
    fraction: float = 0.4,
    window: float = 0.1,
    direction: Direction = "sent",
    error: bool = False,
) -> float | tuple[float, float]:
    """Return the seconds from a failure until the goodput of all subflows together has recovered.

    Goodput is lost in the first window in which it is below 0.8 times ``fraction`` of its mean before the failure, and
    recovered at the end of the first window after that in which it is at least ``fraction`` of it, unless the next
    window is lost again. Windows are ``window`` seconds long and begin at ``failure_ns``, in nanoseconds of
    CLOCK_MONOTONIC as ``time_ns`` of samples and events. Returns 0.0 if it was never lost, infinity if it does not
    recover, NaN if nothing was delivered before.

    The default ``fraction`` is away from what one of two, two of three or one of three equal paths carries (0.5, 0.67,
    0.33): at such a value one window more or less decides. Choose one that is below what the paths that stay can carry.
    Pass the samples of the transfer only: the end of the transfer looks like a loss.

    With ``error=True`` it returns the same and a bound in seconds: a window, and the largest distance of two readings.

    Raises ValueError for a failure outside the time of the samples, and as goodput().
    """
    _check_window(window)
    flows = _flows(samples, _delivered(direction))
    begins, ends = (int(samples["time_ns"].min()), int(samples["time_ns"].max())) if len(samples) else (0, 0)
    if not begins < failure_ns <= ends:
        raise ValueError("failure_ns must be within the time of the samples")
    length = window * 1e9
    edges = failure_ns + length * np.arange(max(1, int((ends - failure_ns) / length)) + 1, dtype=np.float64)
    # Windows begin at the failure, and the mean is of the time before it: no window is on both sides.
    rates = np.diff(sum((flow.at(edges) for flow in flows), np.zeros(len(edges)))) / length
    around = np.array([begins, failure_ns], dtype=np.float64)
    before = sum(float(np.diff(flow.at(around))[0]) for flow in flows) / (failure_ns - begins)
    bound = window + _largest_gap(samples) / 1e9
    found = _recovered(rates, fraction * before, window) if before else np.nan
    return (found, bound) if error else found


def _recovered(rates: Floats, wanted: float, window: float) -> float:
    lost = rates < _HYSTERESIS * wanted
    if not lost.any():
        return 0.0
    first = int(np.argmax(lost))
    for index in range(first + 1, len(rates)):
        stays = index + 1 == len(rates) or not lost[index + 1]
        if rates[index] >= wanted and stays:
            return (index + 1) * window
    return np.inf


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


@dataclass(frozen=True)
class _Flow:
    """One counter of a subflow over time: where it was read, and where it must have been 0."""

    cookie: int
    token: int
    times: Floats
    values: Floats
    # Bytes that may have been counted after the last reading.
    unknown: float

    @property
    def growth(self) -> float:
        return float(self.values[-1] - self.values[0])

    def at(self, times: Floats) -> Floats:
        found: Floats = np.interp(times, self.times, self.values)
        return found

    def doubt_at(self, times: Floats) -> Floats:
        """By how much the interpolation at these times may be wrong: a counter may grow at any moment in between."""
        right = np.clip(np.searchsorted(self.times, times), 0, len(self.times) - 1)
        left = np.maximum(right - 1, 0)
        between = (times > self.times[0]) & (times < self.times[-1])
        value = self.at(times)
        doubt: Floats = np.where(between, np.maximum(value - self.values[left], self.values[right] - value), 0.0)
        return doubt


def _flows(samples: Rows, counter: _Counter) -> list[_Flow]:
    """Return a counter of each subflow over time.

    A subflow that was not there at the first tick began at 0 after the tick before its first row. A final row comes
    when the kernel frees the socket, maybe long after its last segment: what it adds was counted within an interval of
    the last reading, or nobody would know when.
    """
    if not len(samples):
        return []
    ticks = np.unique(samples["time_ns"][~samples["final"].astype(bool)]).astype(float)
    interval = float(np.median(np.diff(ticks))) if len(ticks) > 1 else 0.0
    return [_flow(cookie, rows, ticks, interval, counter) for cookie, rows in _by_subflow(samples)]


def _flow(cookie: int, rows: Rows, ticks: Floats, interval: float, counter: _Counter) -> _Flow:
    times, values = rows["time_ns"].astype(float), counter(rows)
    is_final = rows["final"].astype(bool)
    read = np.flatnonzero(~is_final)
    if is_final[-1] and len(read):
        times = times.copy()
        times[-1] = min(times[-1], times[read[-1]] + interval)
    begins_later = bool(len(ticks)) and times[0] > ticks[0]
    unknown = _unknown(rows, values, is_final)
    if begins_later:
        earlier = ticks[ticks < times[0]]
        times = np.concatenate(([earlier[-1]], times))
        values = np.concatenate(([0.0], values))
    return _Flow(cookie, int(rows["token"][0]), times, values, unknown)


def _unknown(rows: Rows, values: Floats, is_final: np.ndarray) -> float:
    """Return how many bytes may be missing at the end: none if the subflow lives, or its final row has its counters.

    Where the kernel had cleared these, wait_ns is negative, and the final row repeats the last reading. What was in
    flight or waiting then may have been counted since, or as much as in the busiest interval.
    """
    if not is_final[-1] or rows["wait_ns"][-1] >= 0:
        return 0.0
    if len(rows) < 2:
        return np.inf
    last = rows[-2]
    waiting = float(last["unacked"]) * float(last["snd_mss"]) + float(last["notsent_bytes"])
    return max(waiting, float(np.diff(values).max()))


def _largest_gap(samples: Rows) -> float:
    ticks = np.unique(samples["time_ns"])
    return float(np.diff(ticks).max()) if len(ticks) > 1 else 0.0


def _by_subflow(samples: Rows) -> list[tuple[int, Rows]]:
    """Return each subflow's cookie and rows, in order of time."""
    order = np.lexsort((samples["time_ns"], samples["cookie"]))
    in_order = bool((np.diff(order) == 1).all())
    rows = samples if in_order else samples[order]
    parts = np.split(rows, np.flatnonzero(np.diff(rows["cookie"])) + 1)
    return [(int(part["cookie"][0]), part) for part in parts]


def _check_window(window: float) -> None:
    if not window > 0:
        raise ValueError(f"window must be a number of seconds above 0, not {window}")


def _delivered(direction: str) -> _Counter:
    names = {"sent": "bytes_acked", "received": "bytes_received"}
    if direction not in names:
        raise ValueError(f"direction must be 'sent' or 'received', not {direction!r}")

    def read(rows: Rows) -> Floats:
        found: Floats = rows[names[direction]].astype(float)
        return found

    return read


def _sent_once(rows: Rows) -> Floats:
    found: Floats = (rows["bytes_sent"] - rows["bytes_retrans"]).astype(float)
    return found
