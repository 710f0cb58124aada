"""The plots over time, without their events and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import measures
from . import _lines, _style
from ._chart import Chart
from ._flows import round_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def goodput(ax: Axes, chart: Chart, window: float | None) -> None:
    window = round_window(chart.end) if window is None else window
    times, rates = measures.goodput(chart.rows, window=window, direction=chart.direction)
    # The window in which the recording ended would show less than there was.
    whole = max(1, int(chart.end / window * (1 + 1e-9)))
    edges = window * np.arange(min(whole, len(times)) + 1)
    layers = [np.sum([rates[flow.cookie] for flow in one.flows], axis=0)[: len(edges) - 1] for one in chart.series]
    tops = np.cumsum(layers, axis=0)
    factor, unit = _style.scale(float(tops.max()), ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))
    bottom = np.zeros(len(edges) - 1)
    for top, one in zip(tops / factor, chart.series, strict=True):
        look = one.look
        ax.stairs(
            top,
            edges,
            baseline=bottom,
            fill=True,
            facecolor=look.colour,
            edgecolor="white",
            hatch=look.hatch,
            linewidth=0,
            label=one.label,
        )
        bottom = top
    ax.set_ylim(bottom=0)
    _style.over_time(ax, chart.end, f"Goodput ({unit})")


def rtt(ax: Axes, chart: Chart) -> None:
    _lines.draw(ax, chart.series, lambda flow: flow.measured("rtt", "bytes_acked") / 1e3)
    _style.over_time(ax, chart.end, "RTT (ms)")


def rcv_rtt(ax: Axes, chart: Chart) -> None:
    _lines.draw(ax, chart.series, lambda flow: flow.measured("rcv_rtt", "bytes_received") / 1e3)
    _style.over_time(ax, chart.end, "Receiver's\nRTT (ms)")


def cwnd(ax: Axes, chart: Chart, ssthresh: bool = False) -> None:
    _lines.draw(ax, chart.series, lambda flow: flow.values("snd_cwnd"))
    if ssthresh:
        _lines.draw(ax, chart.series, lambda flow: flow.values("snd_ssthresh"), thin=True)
    _style.over_time(ax, chart.end, "Congestion window\n(segments)")


def rcv_wnd(ax: Axes, chart: Chart) -> None:
    largest = max(float(np.nan_to_num(flow.values("rcv_wnd")).max()) for flow in chart.flows)
    factor, unit = _style.scale(largest, ("bytes", "kB", "MB", "GB"))
    _lines.draw(ax, chart.series, lambda flow: flow.values("rcv_wnd") / factor)
    _style.over_time(ax, chart.end, f"Receive window\n({unit})")
