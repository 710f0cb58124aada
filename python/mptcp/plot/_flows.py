"""From a recording's rows to what is drawn of each subflow. No matplotlib here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from .._recording import Recording, Rows

    Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

Direction: TypeAlias = Literal["sent", "received"]

_COUNTERS = {"sent": "bytes_acked", "received": "bytes_received"}

# Within this a new subflow is found: what it has carried by then it has carried since.
_FOUND_WITHIN = 0.1
# Lines of more points than this show nothing more on paper.
_POINTS = 1000
_SYN_SENT = 2


@dataclass(frozen=True, eq=False)
class Flow:
    """One subflow: its rows in order, and when each tick was, in seconds since the recording's first."""

    label: str
    token: int
    local: tuple[Any, ...] | None
    rows: Rows
    time: Floats

    def carried(self, direction: Direction) -> tuple[Floats, Floats]:
        """Times, and the bytes carried since the recording began or the subflow was opened."""
        count = self.rows[_COUNTERS[direction]].astype(float)
        if self.time[0] <= 0:
            return self.time, count - count[0]
        before = max(0.0, self.time[0] - _FOUND_WITHIN)
        return np.insert(self.time, 0, before), np.insert(count, 0, 0.0)

    def total(self, direction: Direction) -> float:
        """The bytes that it carried within the recording."""
        return float(self.carried(direction)[1][-1])

    def rate(self, edges: Floats, direction: Direction) -> Floats:
        """Bits a second within each of the intervals that these times bound."""
        return np.diff(np.interp(edges, *self.carried(direction))) * 8 / np.diff(edges)

    def values(self, name: str) -> tuple[Floats, Floats]:
        """Times, and a field of tcp_info then. NaN where there is none, infinities too. Without the final row."""
        alive = ~self.rows["final"]
        values = self.rows[name][alive].astype(float)
        values[~np.isfinite(values)] = np.nan
        return self.time[alive], values


def flows_of(recording: Recording, token: int | None = None) -> list[Flow]:
    """The subflows that were ever more than an attempt, in the order in which they appeared."""
    rows = recording.samples
    if token is not None:
        rows = rows[rows["token"] == token]
    if not len(rows):
        of = "" if token is None else f" of the connection {token}"
        raise ValueError(f"nothing to draw: the recording has no samples{of}")
    start = rows["time_ns"].min()
    rows = rows[np.lexsort((rows["time_ns"], rows["cookie"]))]
    each = np.split(rows, np.flatnonzero(np.diff(rows["cookie"])) + 1)
    each = [one for one in each if np.any(one["state"] != _SYN_SENT)] or each
    each.sort(key=lambda one: (one["time_ns"][0], one["token"][0], one["subflow"][-1], one["cookie"][0]))
    ends = {entry["cookie"]: tuple(entry["local"]) for entry in recording.metadata.get("subflows", ())}
    locals_ = [ends.get(int(one["cookie"][0])) for one in each]
    return [
        Flow(label, int(one["token"][0]), local, one, (one["time_ns"] - start) / 1e9)
        for label, local, one in zip(_labels(each, locals_), locals_, each, strict=True)
    ]


def main_direction(flows: list[Flow]) -> Direction:
    """The one in which more bytes went."""
    sent, received = (sum(flow.total(direction) for flow in flows) for direction in ("sent", "received"))
    return "received" if received > sent else "sent"


def edges_of(flows: list[Flow], window: float | None) -> Floats:
    """The bounds of intervals of ``window`` seconds over the whole time. None: 50 to 120 of a round length."""
    end = max(float(flow.time[-1]) for flow in flows)
    if window is None:
        window = _round_up(end / 120) if end else 1.0
    elif not 0 < window < float("inf"):
        raise ValueError(f"window is a number of seconds above 0, not {window!r}")
    return np.arange(max(1, round(end / window)) + 1) * window


def thinned(time: Floats, values: Floats) -> tuple[Floats, Floats, Floats | None, Floats | None]:
    """Times and values; of more than can be seen, the medians of equal pieces, with their minima and maxima."""
    if len(time) <= _POINTS:
        return time, values, None, None
    size = -(-len(time) // (_POINTS // 2))
    room = -len(time) % size

    def pieces(data: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.append(data, np.full(room, np.nan)).reshape(-1, size)

    data = pieces(values)
    known = ~np.isnan(data).all(axis=1)
    median, low, high = (np.full(len(data), np.nan) for _ in range(3))
    for into, reduce in ((median, np.nanmedian), (low, np.nanmin), (high, np.nanmax)):
        into[known] = reduce(data[known], axis=1)
    return np.nanmean(pieces(time), axis=1), median, low, high


def _round_up(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9)))


def _labels(each: list[Rows], locals_: list[tuple[Any, ...] | None]) -> list[str]:
    """By the local address, and where that is several subflows' by what tells them apart."""
    several = len({int(one["token"][0]) for one in each}) > 1
    ids = [-1 if several else int(one["subflow"][-1]) for one in each]
    hosts = [None if local is None else str(local[0]) for local in locals_]
    shared = Counter(hosts)
    labels = []
    for one, local, host, id in zip(each, locals_, hosts, ids, strict=True):
        if local is None:
            labels.append(f"subflow {id}" if id >= 0 else f"cookie {one['cookie'][0]:x}")
        elif shared[host] == 1:
            labels.append(str(host))
        elif id >= 0:
            labels.append(f"{host} ({id})")
        else:
            labels.append(f"[{host}]:{local[1]}" if ":" in str(host) else f"{host}:{local[1]}")
    return labels
