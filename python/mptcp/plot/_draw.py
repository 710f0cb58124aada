"""The plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import measures
from . import _style
from ._flows import Flow, end_of, flows_of, main_direction, round_window, rows_of, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._rows import Direction, Recorded


def goodput(
    recording: Recorded,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    direction: Direction | None = None,
    window: float | None = None,
    events: bool = True,
) -> Axes:
    """Goodput over time, stacked by subflow: mptcp.measures.goodput, which says what it counts.

    ``window`` is in seconds, by default a 30th to a 75th of the time. Raises ValueError for what is no time.
    """
    flows = flows_of(recording, token)
    direction = direction or main_direction(flows)
    window = round_window(end_of(flows)) if window is None else window
    times, rates = measures.goodput(rows_of(flows), window=window, direction=direction)
    # A window in which the recording ended would show less than there was.
    whole = max(1, int(end_of(flows) / window * (1 + 1e-9)))
    edges = window * np.arange(min(whole, len(times)) + 1)
    rates = {cookie: rate[: len(edges) - 1] for cookie, rate in rates.items()}
    shown, others = _style.split(flows)
    layers = [rates[flow.cookie] for flow in shown]
    if others:
        layers.append(np.sum([rates[flow.cookie] for flow in others], axis=0))
    tops = np.cumsum(layers, axis=0)
    factor, unit = _style.scale(float(tops.max()), ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))
    with _style.axes(ax) as ax:
        bottom = np.zeros(len(edges) - 1)
        for top, (colour, label) in zip(tops / factor, _style.looks(shown, others), strict=True):
            ax.stairs(top, edges, baseline=bottom, fill=True, facecolor=colour, linewidth=0, label=label)
            bottom = top
        ax.set_ylim(bottom=0)
        _style.finish(ax, flows, recording, f"Goodput ({unit})", events)
    return ax


def rtt(recording: Recorded, *, ax: Axes | None = None, token: int | None = None, events: bool = True) -> Axes:
    """The smoothed round-trip time of each subflow (``rtt``) over time, in milliseconds.

    Of more than 1,000 samples of a subflow the line is the median of 500 pieces, with a band from the lowest to the
    highest of each.
    """
    flows = flows_of(recording, token)
    with _style.axes(ax) as ax:
        # 0 is what the kernel has before the first measurement.
        _lines(flows, ax, "rtt", 1e3, missing=0)
        _style.finish(ax, flows, recording, "RTT (ms)", events)
    return ax


def cwnd(
    recording: Recorded,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    ssthresh: bool = False,
    events: bool = True,
) -> Axes:
    """The congestion window of each subflow (``snd_cwnd``) over time, in segments. Many samples are drawn as by rtt().

    ``ssthresh`` adds the slow start threshold (``snd_ssthresh``), dotted; while it is infinite there is none.
    """
    flows = flows_of(recording, token)
    with _style.axes(ax) as ax:
        _lines(flows, ax, "snd_cwnd", 1)
        if ssthresh:
            _lines(flows, ax, "snd_ssthresh", 1, dotted=True)
        _style.finish(ax, flows, recording, "Congestion window\n(segments)", events)
    return ax


def share(
    recording: Recorded, *, ax: Axes | None = None, token: int | None = None, direction: Direction | None = None
) -> Axes:
    """The share of each subflow in its connection's bytes, in percent: mptcp.measures.share, a bar a connection."""
    flows = flows_of(recording, token)
    direction = direction or main_direction(flows)
    tokens = list(dict.fromkeys(flow.token for flow in flows))
    shares: dict[int, float] = {}
    for one in tokens:
        shares |= measures.share(rows_of([flow for flow in flows if flow.token == one]), direction=direction)
    shown, others = _style.split(flows)
    groups = [[flow] for flow in shown] + ([others] if others else [])
    with _style.axes(ax, height=0.85 + 0.25 * len(tokens)) as ax:
        left = dict.fromkeys(tokens, 0.0)
        for group, (colour, label) in zip(groups, _style.looks(shown, others), strict=True):
            for one in dict.fromkeys(flow.token for flow in group):
                percent = 100 * float(np.nansum([shares[flow.cookie] for flow in group if flow.token == one]))
                _style.bar(ax, tokens.index(one), percent, left[one], colour, label)
                left[one] += percent
                label = "_"
        ax.set(xlim=(0, 100), xlabel=f"Share of bytes {direction} (%)")
        several = len(tokens) > 1
        ax.set_yticks(range(len(tokens)), [str(one) if several else "" for one in tokens])
        ax.set_ylabel("Connection" if several else "")
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        _style.legend(ax)
    return ax


def _lines(
    flows: list[Flow],
    ax: Axes,
    name: str,
    divisor: float,
    *,
    missing: float | None = None,
    dotted: bool = False,
) -> None:
    """A field of tcp_info, a line a subflow; of those that have no colour of their own behind the others."""
    shown, others = _style.split(flows)
    looks = _style.looks(shown, others)
    lines = [(flow, *looks[-1]) for flow in others] + list(zip(shown, *zip(*looks, strict=True), strict=False))
    known = set()
    for flow, colour, label in lines:
        values = flow.values(name)
        values[values == missing] = np.nan
        time, middle, low, high = thinned(flow.time, values / divisor)
        label = "_" if dotted or label in known else label
        known.add(label)
        ax.plot(time, middle, color=colour, label=label, linestyle=":" if dotted else "-")
        if low is not None and high is not None and not dotted:
            ax.fill_between(time, low, high, color=colour, alpha=0.3, linewidth=0)
    ax.set_ylim(bottom=0)
