"""Distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._chart import Chart
from ._style import OTHERS, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._rows import Floats

# Of more samples, so many are drawn evenly, and so many of the largest ever more densely.
_EVENLY, _TAIL = 500, 300


def rtt(ax: Axes, chart: Chart, *, complement: bool) -> None:
    parts = [
        (one.label, one.look, np.concatenate([flow.measured(*_field(chart)) for flow in one.flows]) / 1e3)
        for one in chart.series
    ]
    draw(ax, parts, complement=complement)
    ax.set_xlabel("RTT (ms)" if chart.direction == "sent" else "Receiver's RTT (ms)")
    ax.set_ylabel("Samples above" if complement else "Samples up to")


def draw(ax: Axes, parts: Sequence[tuple[str, Look, Floats]], *, complement: bool) -> None:
    """Draw of each series the part of its values that are at most, or with ``complement`` above, each value."""
    largest = 0.0
    least = 1.0
    for label, look, data in sorted(parts, key=lambda part: part[1] != OTHERS):
        data = np.sort(data[~np.isnan(data)])
        if not len(data):
            continue
        largest = max(largest, float(data[-1]))
        values, below = _points(data)
        if complement:
            # The largest is above none, which a logarithmic axis cannot show.
            values, part = values[:-1], 1 - below[:-1]
            least = min(least, 1 / len(data))
        else:
            values, part = np.concatenate((values[:1], values)), np.concatenate(([0.0], below))
        ax.plot(values, part, color=look.colour, linestyle=look.dashes, label=label, drawstyle="steps-post")
    if complement:
        ax.set_yscale("log")
        ax.set_ylim(least, 1.2)
    else:
        ax.set_ylim(0, 1.02)
    ax.set_xlim(0, 1.02 * largest or 1.0)
    ax.grid(linewidth=0.4, color="#dddddd")
    ax.set_axisbelow(True)


def _field(chart: Chart) -> tuple[str, str]:
    return ("rtt", "bytes_acked") if chart.direction == "sent" else ("rcv_rtt", "bytes_received")


def _points(data: Floats) -> tuple[Floats, Floats]:
    """Return values in order, and the part of all that is up to each."""
    count = len(data)
    ranks = np.arange(count)
    if count > _EVENLY + _TAIL:
        tail = count - np.geomspace(1, count, _TAIL)
        ranks = np.unique(np.concatenate((np.linspace(0, count - 1, _EVENLY), tail)).astype(int))
    return data[ranks], (ranks + 1) / count
