"""What the plots draw of each subflow, from a recording's rows. This does not use matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import measures
from . import _names

if TYPE_CHECKING:
    from .._rows import Direction, Floats, Recorded, Rows

_SYN_SENT = 2


class _Columns:
    """Columns of a recording, each copied once: a row is much larger than what a plot needs of it."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._copied: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._copied:
            self._copied[name] = np.ascontiguousarray(self._rows[name])
        return self._copied[name]

    def dtype(self, names: Sequence[str]) -> np.dtype[np.void]:
        return np.dtype([(name, self._rows.dtype[name]) for name in names])


@dataclass(frozen=True, eq=False)
class Flow:
    """One subflow: which rows are its own, in order, and the time of each in seconds since the recording's first."""

    label: str
    path: str | None
    """The name of the link, or an address, that it may share with other subflows. None if not known."""
    token: int
    cookie: int
    local: tuple[Any, ...] | None
    remote: tuple[Any, ...] | None
    time: Floats
    rows: NDArray[np.intp]
    columns: _Columns

    def column(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self.columns[name][self.rows]
        return found

    def carried(self, direction: Direction) -> float:
        """Return the bytes that it carried during the recording."""
        count = self.columns["bytes_acked" if direction == "sent" else "bytes_received"]
        return float(count[self.rows[-1]] - count[self.rows[0]])

    def values(self, name: str) -> Floats:
        """Return a field of tcp_info over time, NaN where it is missing or infinite and in the final row."""
        values = self.column(name).astype(float)
        values[~np.isfinite(values) | self.column("final")] = np.nan
        return values

    def measured(self, name: str, counter: str) -> Floats:
        """Return a round-trip time over time, NaN where it is only remembered from an earlier measurement.

        The kernel measures when the bytes of ``counter`` arrive, and keeps its last value for as long as none do. While
        none did for longer than the retransmission timeout, the value is missing. 0 is "not measured yet".
        """
        values = self.values(name)
        values[values == 0] = np.nan
        if len(values) > 1:
            count = self.column(counter)
            grown = np.flatnonzero(np.concatenate(([True], np.diff(count) > 0)))
            each = np.arange(len(values))
            at = np.searchsorted(grown, each, side="right") - 1
            last, following = grown[at], np.append(grown, len(values) - 1)[at + 1]
            silence = self.time[following] - self.time[last]
            values[(each > last) & (silence > self.column("rto")[last] / 1e6)] = np.nan
        return values


def flows_of(recording: Recorded, token: int | None = None) -> list[Flow]:
    """Return the subflows that got beyond SYN_SENT, or all if none did, in the order in which they appeared."""
    samples = recording.samples
    columns = _Columns(samples)
    rows = np.arange(len(samples)) if token is None else np.flatnonzero(columns["token"] == token)
    if not len(rows):
        of = "" if token is None else f" of connection {token}"
        raise ValueError(f"cannot plot: the recording has no samples{of}")
    cookies, times = columns["cookie"][rows], columns["time_ns"][rows]
    order = np.lexsort((times, cookies))
    each = np.split(rows[order], np.flatnonzero(np.diff(cookies[order])) + 1)
    state = columns["state"]
    each = [one for one in each if np.any(state[one] != _SYN_SENT)] or each
    keys = [columns[name] for name in ("time_ns", "token", "subflow", "cookie")]
    each.sort(key=lambda one: [key[one[0]] for key in keys])
    start = columns["time_ns"][each[0][0]]
    cookie_of, token_of, id_of = (
        [int(columns[name][one[-1]]) for one in each] for name in ("cookie", "token", "subflow")
    )
    names = _names.of(recording.metadata, cookie_of, token_of, id_of)
    return [
        Flow(
            name.label,
            name.path,
            token,
            cookie,
            name.local,
            name.remote,
            (columns["time_ns"][one] - start) / 1e9,
            one,
            columns,
        )
        for name, token, cookie, one in zip(names, token_of, cookie_of, each, strict=True)
    ]


def rows_of(flows: Sequence[Flow]) -> Rows:
    """Return the rows of these subflows with the columns that the measures need."""
    columns = flows[0].columns
    rows = np.empty(sum(len(flow.rows) for flow in flows), columns.dtype(measures.COLUMNS))
    index = np.concatenate([flow.rows for flow in flows])
    for name in measures.COLUMNS:
        rows[name] = columns[name][index]
    return rows


def start_of(flows: Sequence[Flow]) -> int:
    """Return the ``time_ns`` of the first row, which is the plots' zero."""
    return int(flows[0].columns["time_ns"][flows[0].rows[0]])


def end_of(flows: Sequence[Flow]) -> float:
    """Return the time of the last row, in seconds since the first."""
    return max(float(flow.time[-1]) for flow in flows)


def main_direction(flows: Sequence[Flow]) -> Direction:
    """Return the direction in which more bytes went."""
    return "received" if sum(f.carried("received") for f in flows) > sum(f.carried("sent") for f in flows) else "sent"


def round_window(seconds: float) -> float:
    """Return 1, 2 or 5 times a power of ten, between a 75th and a 30th of ``seconds``."""
    if not seconds:
        return 1.0
    power = 10.0 ** np.floor(np.log10(seconds / 75))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= seconds / 75 * (1 - 1e-9)))
