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
    """Plot the goodput over time, in bit/s, stacked by subflow: see mptcp.measures.goodput() for what it counts.

    ``window`` is in seconds, by default between a 75th and a 30th of the recording. Raises ValueError for a window that
    is not above 0, another direction, and if there are no samples.
    """
    flows = flows_of(recording, token)
    direction = direction or main_direction(flows)
    window = round_window(end_of(flows)) if window is None else window
    times, rates = measures.goodput(rows_of(flows), window=window, direction=direction)
    # The window in which the recording ended would show less than there was.
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
    """Plot the smoothed round-trip time of each subflow (tcp_info's ``rtt``) over time, in milliseconds.

    If a subflow has more than 1,000 samples, they are divided into up to 500 pieces: the line is their medians, and a
    band reaches from the minimum to the maximum of each. Raises ValueError if there are no samples.
    """
    flows = flows_of(recording, token)
    with _style.axes(ax) as ax:
        # The kernel reports 0 before the first measurement.
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
    """Plot the congestion window of each subflow (tcp_info's ``snd_cwnd``) over time, in segments.

    ``ssthresh`` adds the slow start threshold (``snd_ssthresh``) as a dotted line, with gaps while it is infinite. Many
    samples are drawn as by rtt(). Raises ValueError if there are no samples.
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
    """Plot each subflow's share of its connection's bytes, in percent: mptcp.measures.share(), one bar per connection.

    Raises ValueError for another direction, and if there are no samples.
    """
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
    """Draw a field of tcp_info as one line per subflow, those without a colour of their own behind the others."""
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
