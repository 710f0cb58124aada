"""Fewer points than were measured, where paper could not show all of them. This does not use matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .._rows import Floats

POINTS = 1000
"""More points than this in a line would not be visible on paper."""

# Of several lines the band leaves out so much above and below: of very many, some are always far off.
_OUTSIDE = 0.1
# Points that are further apart than so many times the usual distance are not joined.
_GAP = 10


@dataclass(frozen=True)
class Thinned:
    """A line, and the band around it if it stands for more points than it has."""

    time: Floats
    middle: Floats
    low: Floats | None = None
    high: Floats | None = None


def thinned(time: Floats, values: Floats, *, spread: bool = False) -> Thinned:
    """Return a line of at most 1,000 points and its gaps. ``time`` must be in order.

    More points are divided into up to 500 pieces of equal time: the line is the median of each, the band reaches from
    the minimum to the maximum. Pieces without a value are NaN. So are values between which more than ten times the
    usual time passed. With ``spread`` the points are of several lines: there is always a band, from their 10th to their
    90th percentile.
    """
    if len(time) <= POINTS and not spread:
        return Thinned(*_with_gaps(time, values))
    begin, end = float(time[0]), float(time[-1])
    distinct = np.unique(time) if spread else time
    # At least two points in a piece, or none would be in some.
    pieces = max(1, min(POINTS // 2, len(distinct) // 2))
    edges = np.linspace(begin, end, pieces + 1)
    piece = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, pieces - 1)
    known = ~np.isnan(values)
    piece, time, values = piece[known], time[known], values[known]
    order = np.lexsort((values, piece))
    piece, time, values = piece[order], time[order], values[order]
    counts = np.bincount(piece, minlength=pieces)
    full = np.flatnonzero(counts)
    first = (np.cumsum(counts) - counts)[full]
    count = counts[full]
    middle, low, high = (np.full(pieces, np.nan) for _ in range(3))
    times = (edges[1:] + edges[:-1]) / 2
    if len(full):
        middle[full] = (values[first + (count - 1) // 2] + values[first + count // 2]) / 2
        outside = ((count - 1) * (_OUTSIDE if spread else 0)).astype(int)
        low[full], high[full] = values[first + outside], values[first + count - 1 - outside]
        times[full] = np.add.reduceat(time, first) / count
    return Thinned(times, middle, low, high)


def alone(values: Floats) -> np.ndarray:
    """Return where a value has none beside it, so that a line would not show it."""
    missing = np.concatenate(([True], np.isnan(values), [True]))
    found: np.ndarray = ~missing[1:-1] & missing[:-2] & missing[2:]
    return found


def _with_gaps(time: Floats, values: Floats) -> tuple[Floats, Floats]:
    if len(time) < 3:
        return time, values
    apart = np.diff(time)
    wide = np.flatnonzero(apart > _GAP * np.median(apart)) + 1
    return np.insert(time, wide, (time[wide] + time[wide - 1]) / 2), np.insert(values, wide, np.nan)
