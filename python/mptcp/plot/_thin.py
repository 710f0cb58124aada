"""Fewer points than were measured, where paper could not show all of them. This does not use matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .._rows import Floats

POINTS = 1000
"""More points than this in a line would not be visible on paper."""

# Of several lines the band leaves out so much above and below: of very many, some are always far off.
_OUTSIDE = 0.1
# Cells of a plot in which one point is as good as several.
_ACROSS, _UP = 2000, 1000
# Points that are further apart than so many times the usual distance are not joined.
_GAP = 10


@dataclass(frozen=True)
class Thinned:
    """A line, and the band around it if it stands for more points than it has."""

    time: Floats
    middle: Floats
    low: Floats | None = None
    high: Floats | None = None


def thinned(time: Floats, values: Floats, *, spread: bool = False, holds: bool = False) -> Thinned:
    """Return a line of at most 1,000 points and its gaps. ``time`` must be in order.

    More points are divided into up to 500 pieces of equal time: the line is the median of each, the band reaches from
    the minimum to the maximum. Pieces without a value are NaN. So are values between which more than ten times the
    usual time passed. With ``spread`` the points are of several lines: there is always a band, from their 10th to their
    90th percentile. A value that ``holds`` until its next change has no gaps.
    """
    if holds:
        if len(time) <= POINTS:
            return Thinned(time, values)
        time, values = _held(time, values)
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


def cells(x: Floats, y: Floats) -> NDArray[np.intp]:
    """Return the points, in order, without those that would be drawn where another is already.

    Two thousand by a thousand cells are finer than what a page shows. A point without a place (NaN) is left out.
    """
    known = np.flatnonzero(~(np.isnan(x) | np.isnan(y)))
    if len(known) <= POINTS:
        return known
    across, up = (_cell(axis[known], count) for axis, count in ((x, _ACROSS), (y, _UP)))
    _, first = np.unique(across * _UP + up, return_index=True)
    shown: NDArray[np.intp] = known[np.sort(first)]
    return shown


def _cell(values: Floats, count: int) -> NDArray[np.intp]:
    low, high = float(values.min()), float(values.max())
    cell: NDArray[np.intp] = ((values - low) * ((count - 1) / ((high - low) or 1.0))).astype(np.intp)
    return cell


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


def _held(time: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Add points between the changes, so that no piece of time is without one."""
    between = np.linspace(float(time[0]), float(time[-1]), POINTS)
    times = np.concatenate((time, between))
    order = np.argsort(times, kind="stable")
    holds = values[np.searchsorted(time, between, side="right") - 1]
    return times[order], np.concatenate((values, holds))[order]
