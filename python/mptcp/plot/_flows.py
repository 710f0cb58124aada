"""What the plots draw of each subflow, from a recording's rows. This does not use matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .._rows import Direction, Floats, Recorded, Rows

# More points than this in a line would not be visible on paper.
_POINTS = 1000
_SYN_SENT = 2


@dataclass(frozen=True, eq=False)
class Flow:
    """One subflow: its rows in order, and the time of each in seconds since the recording's first."""

    label: str
    token: int
    cookie: int
    local: tuple[Any, ...] | None
    rows: Rows
    time: Floats

    def carried(self, direction: Direction) -> float:
        """Return the bytes that it carried during the recording."""
        count = self.rows["bytes_acked" if direction == "sent" else "bytes_received"]
        return float(count[-1] - count[0])

    def values(self, name: str) -> Floats:
        """Return a field of tcp_info over time, NaN where it is missing or infinite and in the final row."""
        values = self.rows[name].astype(float)
        values[~np.isfinite(values) | self.rows["final"]] = np.nan
        return values


def flows_of(recording: Recorded, token: int | None = None) -> list[Flow]:
    """Return the subflows that got beyond SYN_SENT, or all if none did, in the order in which they appeared."""
    rows = recording.samples
    if token is not None:
        rows = rows[rows["token"] == token]
    if not len(rows):
        of = "" if token is None else f" of connection {token}"
        raise ValueError(f"cannot plot: the recording has no samples{of}")
    rows = rows[np.lexsort((rows["time_ns"], rows["cookie"]))]
    each = np.split(rows, np.flatnonzero(np.diff(rows["cookie"])) + 1)
    each = [one for one in each if np.any(one["state"] != _SYN_SENT)] or each
    each.sort(key=lambda one: one[["time_ns", "token", "subflow", "cookie"]][0].tolist())
    start = each[0]["time_ns"][0]
    entries = {entry["cookie"]: entry for entry in recording.metadata.get("subflows", ())}
    known = [entries.get(int(one["cookie"][0])) for one in each]
    locals_ = [None if entry is None else tuple(entry["local"]) for entry in known]
    links = _links(recording)
    names = [None if entry is None else next(_link_of(entry, links), None) for entry in known]
    return [
        Flow(label, int(one["token"][0]), int(one["cookie"][0]), local, one, (one["time_ns"] - start) / 1e9)
        for label, local, one in zip(_labels(each, locals_, names), locals_, each, strict=True)
    ]


def rows_of(flows: list[Flow]) -> Rows:
    return np.concatenate([flow.rows for flow in flows])


def end_of(flows: list[Flow]) -> float:
    """Return the time of the last row, in seconds since the first."""
    return max(float(flow.time[-1]) for flow in flows)


def main_direction(flows: list[Flow]) -> Direction:
    """Return the direction in which more bytes went."""
    return "received" if sum(f.carried("received") for f in flows) > sum(f.carried("sent") for f in flows) else "sent"


def round_window(seconds: float) -> float:
    """Return 1, 2 or 5 times a power of ten, between a 75th and a 30th of ``seconds``."""
    if not seconds:
        return 1.0
    power = 10.0 ** np.floor(np.log10(seconds / 75))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= seconds / 75 * (1 - 1e-9)))


def thinned(time: Floats, values: Floats) -> tuple[Floats, Floats, Floats | None, Floats | None]:
    """Return times and values; if there are too many to see, the medians of equal pieces, their minima and maxima."""
    if len(time) <= _POINTS:
        return time, values, None, None
    size = -(-len(time) // (_POINTS // 2))
    room = -len(time) % size
    times, data = (np.append(each, np.full(room, np.nan)).reshape(-1, size) for each in (time, values))
    known = ~np.isnan(data).all(axis=1)
    median, low, high = (np.full(len(data), np.nan) for _ in range(3))
    median[known] = np.nanmedian(data[known], axis=1)
    low[known] = np.nanmin(data[known], axis=1)
    high[known] = np.nanmax(data[known], axis=1)
    return np.nanmean(times, axis=1), median, low, high


def _links(recording: Recorded) -> dict[str, str]:
    """Return the names of the links that have one, by the addresses of their first hosts.

    Labs have the same addresses, so with several of them the result is empty.
    """
    labs = recording.metadata.get("labs", ())
    if len(labs) != 1:
        return {}
    links = [link for link in labs[0]["links"] if link.get("name") is not None]
    return {address: link["name"] for link in links for address in link["first_addresses"]}


def _link_of(entry: dict[str, Any], links: dict[str, str]) -> Iterator[str]:
    for end in (entry["local"], entry["remote"]):
        if end[0] in links:
            yield links[end[0]]


def _labels(each: list[Rows], locals_: list[tuple[Any, ...] | None], names: list[str | None]) -> list[str]:
    """Return the link's name or the local address of each subflow, with its id or port if several share that."""
    # Ids are unique only within a connection.
    ids = [int(one["subflow"][-1]) for one in each]
    if len({int(one["token"][0]) for one in each}) > 1:
        ids = [-1] * len(each)
    hosts = [None if local is None else name or str(local[0]) for local, name in zip(locals_, names, strict=True)]
    count = Counter(hosts)
    labels = []
    for one, local, host, id in zip(each, locals_, hosts, ids, strict=True):
        if local is None:
            labels.append(f"subflow {id}" if id >= 0 else f"cookie {one['cookie'][0]:x}")
        elif count[host] == 1:
            labels.append(str(host))
        elif id >= 0:
            labels.append(f"{host} ({id})")
        else:
            labels.append(f"[{host}]:{local[1]}" if ":" in str(host) else f"{host}:{local[1]}")
    return labels
