"""Lines over time, one for each series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ._flows import Flow
from ._series import Series
from ._style import OTHERS, Look
from ._thin import Thinned, alone, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._rows import Floats

    Values: TypeAlias = Callable[[Flow], Floats]


def draw(ax: Axes, series: Sequence[Series], values: Values, *, thin: bool = False) -> None:
    """Draw what ``values`` returns for each subflow as one line for each series, the others behind the rest.

    ``thin`` lines have no band and no entry in the legend.
    """
    for one in sorted(series, key=lambda one: one.look != OTHERS):
        time, data = _of(one.flows, values)
        line(ax, one.label, one.look, thinned(time, data, spread=len(one.flows) > 1), of=len(series), thin=thin)
    ax.set_ylim(bottom=0)


def line(
    ax: Axes, label: str, look: Look, points: Thinned, *, of: int, thin: bool = False, drawstyle: str = "default"
) -> None:
    """Draw one of so many lines, with its band: where many bands overlap, each is fainter."""
    import matplotlib

    behind = 1.8 if look == OTHERS else 2.0
    ax.plot(
        points.time,
        points.middle,
        color=look.colour,
        label="_" if thin else label,
        linestyle=look.dashes,
        linewidth=matplotlib.rcParams["lines.linewidth"] * (0.5 if thin else 1),
        zorder=behind,
        drawstyle=drawstyle,
    )
    if thin:
        return
    if points.low is not None and points.high is not None:
        faint = 0.5 / (1 + of)
        ax.fill_between(points.time, points.low, points.high, color=look.colour, alpha=faint, linewidth=0, zorder=1.5)
    lone = alone(points.middle)
    if lone.any():
        ax.scatter(points.time[lone], points.middle[lone], s=3, color=look.colour, linewidths=0, zorder=behind)


def _of(flows: Sequence[Flow], values: Values) -> tuple[Floats, Floats]:
    if len(flows) == 1:
        return flows[0].time, values(flows[0])
    time = np.concatenate([flow.time for flow in flows])
    data = np.concatenate([values(flow) for flow in flows])
    order = np.argsort(time, kind="stable")
    return time[order], data[order]
