"""Lines over time, one for each series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ._flows import Flow
from ._series import Series
from ._style import OTHERS
from ._thin import alone, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._rows import Floats

    Values: TypeAlias = Callable[[Flow], Floats]


def draw(ax: Axes, series: Sequence[Series], values: Values, *, thin: bool = False) -> None:
    """Draw what ``values`` returns for each subflow as one line for each series, the others behind the rest.

    ``thin`` lines have no band and no entry in the legend.
    """
    import matplotlib

    # Where many bands overlap, each is fainter.
    faint = 0.5 / (1 + len(series))
    for one in sorted(series, key=lambda one: one.look != OTHERS):
        time, data = _of(one.flows, values)
        line = thinned(time, data, spread=len(one.flows) > 1)
        behind = 1.8 if one.look == OTHERS else 2.0
        ax.plot(
            line.time,
            line.middle,
            color=one.look.colour,
            label="_" if thin else one.label,
            linestyle=one.look.dashes,
            linewidth=matplotlib.rcParams["lines.linewidth"] * (0.5 if thin else 1),
            zorder=behind,
        )
        if thin:
            continue
        if line.low is not None and line.high is not None:
            ax.fill_between(line.time, line.low, line.high, color=one.look.colour, alpha=faint, linewidth=0, zorder=1.5)
        lone = alone(line.middle)
        if lone.any():
            ax.scatter(line.time[lone], line.middle[lone], s=3, color=one.look.colour, linewidths=0, zorder=behind)
    ax.set_ylim(bottom=0)


def _of(flows: Sequence[Flow], values: Values) -> tuple[Floats, Floats]:
    if len(flows) == 1:
        return flows[0].time, values(flows[0])
    time = np.concatenate([flow.time for flow in flows])
    data = np.concatenate([values(flow) for flow in flows])
    order = np.argsort(time, kind="stable")
    return time[order], data[order]
