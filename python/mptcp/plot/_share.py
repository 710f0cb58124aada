"""Shares of bytes, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import measures
from . import _style
from ._chart import Chart
from ._series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._rows import Floats

# More bars than this are as thin as lines.
_BARS = 12
# Heights in inches: of a bar, of all bars when they are many, and of what is around them.
_BAR, _MANY, _AROUND = 0.25, 1.2, 0.35
# The least width of a part that has room for its number, in points.
_LABELLED = 32


def height(chart: Chart) -> float:
    count = len(_tokens(chart))
    return _AROUND + (_BAR * count if count <= _BARS else _MANY)


def share(ax: Axes, chart: Chart) -> None:
    shares = _shares(chart)
    if len(shares[0]) > _BARS:
        _many(ax, chart, shares)
    else:
        _few(ax, chart, shares)
    ax.set(xlim=(0, 100), xlabel=f"Share of bytes {chart.direction} (%)")
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()


def _tokens(chart: Chart) -> list[int]:
    return list(dict.fromkeys(flow.token for flow in chart.flows))


def _shares(chart: Chart) -> list[Floats]:
    """Return for each series its percentage of each connection, NaN where it has no subflow."""
    tokens = _tokens(chart)
    parts: dict[int, float] = {}
    of = chart.rows["token"]
    order = np.argsort(of, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
        parts |= measures.share(chart.rows[rows] if len(tokens) > 1 else chart.rows, direction=chart.direction)
    row_of = {token: row for row, token in enumerate(tokens)}
    found = []
    for one in chart.series:
        percent = np.full(len(tokens), np.nan)
        for flow in one.flows:
            row = row_of[flow.token]
            percent[row] = np.nansum([percent[row], 100 * parts[flow.cookie]])
        found.append(percent)
    return found


def _few(ax: Axes, chart: Chart, shares: list[Floats]) -> None:
    tokens = _tokens(chart)
    left = np.zeros(len(tokens))
    for one, percents in zip(chart.series, shares, strict=True):
        label = one.label
        for row in np.flatnonzero(~np.isnan(percents)):
            _bar(ax, int(row), float(percents[row]), float(left[row]), one, label)
            label = "_"
        left += np.nan_to_num(percents)
    several = len(tokens) > 1
    ax.set_yticks(range(len(tokens)), [str(token) if several else "" for token in tokens])
    ax.set_ylabel("Connection" if several else "")


def _bar(ax: Axes, row: int, width: float, left: float, one: Series, label: str) -> None:
    """Draw a part of a bar, with its percentage if there is room for it."""
    look = one.look
    ax.barh(
        row,
        width,
        left=left,
        height=0.7,
        color=look.colour,
        edgecolor="white",
        hatch=look.hatch,
        label=label,
        linewidth=0,
    )
    if width / 100 * _style.size_of(ax)[0] >= _LABELLED:
        light = _style.is_light(look.colour)
        # On a ground of its own, or the hatch would run through it.
        ground = {"boxstyle": "round,pad=0.1", "facecolor": look.colour, "linewidth": 0}
        ax.text(
            left + width / 2,
            row,
            f"{width:.1f} %",
            ha="center",
            va="center",
            color="black" if light else "white",
            fontsize="small",
            bbox=ground,
        )


def _many(ax: Axes, chart: Chart, shares: list[Floats]) -> None:
    """Draw a line for each connection, in the order of the first series' shares."""
    order = np.argsort(-np.nan_to_num(shares[0]), kind="stable")
    edges = np.arange(len(order) + 1)
    left = np.zeros(len(order))
    for one, percents in zip(chart.series, shares, strict=True):
        right = left + np.nan_to_num(percents[order])
        look = one.look
        ax.stairs(
            right,
            edges,
            baseline=left,
            orientation="horizontal",
            fill=True,
            facecolor=look.colour,
            edgecolor="white",
            hatch=look.hatch,
            linewidth=0,
            label=one.label,
        )
        left = right
    ax.set_ylim(0, len(order))
    ax.set_yticks([])
    ax.set_ylabel(f"{len(order)} connections")
