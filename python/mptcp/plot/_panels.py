"""Several plots of one recording, one above the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from . import _distribution, _legend, _marks, _over_time, _share, _style
from ._chart import Chart, chart_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .._rows import Direction, Recorded

Panel: TypeAlias = Literal["goodput", "rtt", "cwnd", "share", "rcv_rtt", "rcv_wnd", "rtt_cdf", "rtt_ccdf"]

PANELS: tuple[Panel, ...] = get_args(Panel)
_OF_A_SENDER: tuple[Panel, ...] = ("goodput", "rtt", "cwnd", "share")
_OF_A_RECEIVER: tuple[Panel, ...] = ("goodput", "rcv_rtt", "rcv_wnd", "share")

_TIMES = {"goodput", "rtt", "cwnd", "rcv_rtt", "rcv_wnd"}
# Heights in inches: of a panel over time, of a distribution, and of a row of the legend.
_TIME, _DISTRIBUTION, _ROW = 1.35, 1.8, 0.13
# Around the panels.
_REST = 0.4


def plot(
    recording: Recorded,
    panels: Panel | Sequence[Panel] | None,
    size: tuple[float, float] | None,
    token: int | None,
    direction: Direction | None,
    window: float | None,
    events: bool,
) -> Figure:
    import matplotlib.pyplot as plt

    chosen = None if panels is None else (panels,) if isinstance(panels, str) else tuple(panels)
    if chosen is not None and (not chosen or not set(chosen) <= set(PANELS) or len(set(chosen)) != len(chosen)):
        raise ValueError(
            f"panels must be one or more of {', '.join(map(repr, PANELS))}, each at most once, not {panels!r}"
        )
    chart = chart_of(recording, token, direction)
    chosen = chosen or _default(chart)
    heights = [_height(panel, chart) for panel in chosen]
    width, height = size or (_style.WIDTH, _REST + sum(heights))
    figure = _style.new_figure(width, height)
    with _style.style():
        try:
            drawn = list(figure.subplots(len(chosen), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0])
            for panel, ax in zip(chosen, drawn, strict=True):
                _draw(chart, window)[panel](ax)
            over_time = [ax for panel, ax in zip(chosen, drawn, strict=True) if panel in _TIMES]
            _finish(over_time, chart, events)
            rows = _legend.share(drawn)
            if size is None:
                figure.set_size_inches(width, height + _ROW * rows)
            figure.align_ylabels(over_time)
        except BaseException:
            plt.close(figure)
            raise
    return figure


def _default(chart: Chart) -> tuple[Panel, ...]:
    if chart.direction == "sent":
        return _OF_A_SENDER
    has_window = any(np.isfinite(flow.column("rcv_wnd")).any() for flow in chart.flows)
    return tuple(panel for panel in _OF_A_RECEIVER if panel != "rcv_wnd" or has_window)


def _height(panel: Panel, chart: Chart) -> float:
    if panel == "share":
        return _share.height(chart)
    return _TIME if panel in _TIMES else _DISTRIBUTION


def _draw(chart: Chart, window: float | None) -> dict[Panel, Callable[[Axes], None]]:
    return {
        "goodput": lambda ax: _over_time.goodput(ax, chart, window),
        "rtt": lambda ax: _over_time.rtt(ax, chart),
        "cwnd": lambda ax: _over_time.cwnd(ax, chart),
        "rcv_rtt": lambda ax: _over_time.rcv_rtt(ax, chart),
        "rcv_wnd": lambda ax: _over_time.rcv_wnd(ax, chart),
        "share": lambda ax: _share.share(ax, chart),
        "rtt_cdf": lambda ax: _distribution.rtt(ax, chart, complement=False),
        "rtt_ccdf": lambda ax: _distribution.rtt(ax, chart, complement=True),
    }


def _finish(over_time: Sequence[Axes], chart: Chart, events: bool) -> None:
    """Give the panels over time one axis, below the last, and the events, with markers in the first."""
    marks = _marks.marks_of(chart.series, chart.recording) if events else []
    for ax in over_time:
        _marks.draw(ax, marks, chart.end, markers=ax is over_time[0])
    for ax in over_time[:-1]:
        ax.sharex(over_time[-1])
        ax.set_xlabel("")
        ax.tick_params(labelbottom=False)
