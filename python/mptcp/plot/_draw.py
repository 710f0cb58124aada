"""The plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _style
from ._flows import Direction, Flow, edges_of, flows_of, main_direction, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._recording import Recording


def goodput(
    recording: Recording,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    direction: Direction | None = None,
    window: float | None = None,
    events: bool = True,
) -> Axes:
    """Goodput over time, stacked by subflow: bytes that arrived, without those that a subflow sent again.

    A mean over ``window`` seconds, by default a 50th to 120th of the time. What was reinjected, and so went over two
    subflows, counts in both. Raises ValueError for a window that is no time.
    """
    flows = flows_of(recording, token)
    direction = _checked(direction) or main_direction(flows)
    edges = edges_of(flows, window)
    shown, others = _style.split(flows)
    rates = [flow.rate(edges, direction) for flow in shown]
    if others:
        rates.append(np.sum([flow.rate(edges, direction) for flow in others], axis=0))
    tops = np.cumsum(rates, axis=0)
    factor, unit = _style.scale(float(tops[-1].max()), ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))
    with _style.axes(ax) as ax:
        baseline = np.zeros(len(edges) - 1)
        for rate, top, (colour, label) in zip(rates, tops, _style.looks(shown, others), strict=True):
            ax.stairs(
                top / factor, edges, baseline=baseline / factor, fill=True, facecolor=colour, linewidth=0, label=label
            )
            baseline = baseline + rate
        ax.set_ylim(bottom=0)
        _style.finish(ax, flows, recording, f"Goodput ({unit})", events)
    return ax


def rtt(recording: Recording, *, ax: Axes | None = None, token: int | None = None, events: bool = True) -> Axes:
    """The smoothed round-trip time of each subflow (``rtt``) over time, in milliseconds.

    Of more than 1,000 samples of a subflow the line is the median of 500 pieces, with a band from the lowest to the
    highest of each.
    """
    # 0 is what the kernel has before the first measurement.
    return _lines(recording, "rtt", 1e3, "RTT (ms)", ax, token, events, zero_is_missing=True)


def cwnd(
    recording: Recording,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    ssthresh: bool = False,
    events: bool = True,
) -> Axes:
    """The congestion window of each subflow (``snd_cwnd``) over time, in segments; as rtt() where there are many samples.

    ``ssthresh`` adds the slow start threshold (``snd_ssthresh``), dotted; while it is infinite there is none.
    """
    ax = _lines(recording, "snd_cwnd", 1, "Congestion window\n(segments)", ax, token, events)
    if ssthresh:
        flows = flows_of(recording, token)
        shown, others = _style.split(flows)
        for flow, (colour, _) in zip(shown, _style.looks(shown, others), strict=False):
            ax.plot(*flow.values("snd_ssthresh"), color=colour, linestyle=":", linewidth=1, label="_")
    return ax


def share(
    recording: Recording, *, ax: Axes | None = None, token: int | None = None, direction: Direction | None = None
) -> Axes:
    """The share of each subflow in the bytes of its connection, in percent: a bar a connection."""
    flows = flows_of(recording, token)
    direction = _checked(direction) or main_direction(flows)
    shown, others = _style.split(flows)
    tokens = list(dict.fromkeys(flow.token for flow in flows))
    totals = {token: sum(flow.total(direction) for flow in flows if flow.token == token) for token in tokens}
    with _style.axes(ax, height=1.1 + 0.25 * len(tokens)) as ax:
        left = dict.fromkeys(tokens, 0.0)
        groups = [[flow] for flow in shown] + ([others] if others else [])
        for group, (colour, label) in zip(groups, _style.looks(shown, others), strict=True):
            for token in dict.fromkeys(flow.token for flow in group):
                part = sum(flow.total(direction) for flow in group if flow.token == token)
                percent = 100 * part / totals[token] if totals[token] else 0.0
                _style.bar(ax, tokens.index(token), percent, left[token], colour, label)
                left[token] += percent
                label = "_"
        ax.set_xlim(0, 100)
        ax.set_xlabel(f"Share of bytes {direction} (%)")
        ax.set_yticks(range(len(tokens)), [str(token) for token in tokens] if len(tokens) > 1 else [""])
        ax.tick_params(axis="y", length=0)
        if len(tokens) > 1:
            ax.set_ylabel("Connection")
        ax.invert_yaxis()
        _style.legend(ax)
    return ax


def _lines(
    recording: Recording,
    name: str,
    divisor: float,
    title: str,
    ax: Axes | None,
    token: int | None,
    events: bool,
    zero_is_missing: bool = False,
) -> Axes:
    flows = flows_of(recording, token)
    shown, others = _style.split(flows)
    looks = _style.looks(shown, others)
    with _style.axes(ax) as ax:
        drawn: list[tuple[Flow, str, str]] = [
            (flow, *look) for flow, look in zip(shown, looks[: len(shown)], strict=True)
        ]
        # Behind the others, and once in the legend.
        grey = [(flow, looks[-1][0], "_" if number else looks[-1][1]) for number, flow in enumerate(others)]
        for flow, colour, label in [*grey, *drawn]:
            time, values = flow.values(name)
            if zero_is_missing:
                values[values == 0] = np.nan
            time, middle, low, high = thinned(time, values / divisor)
            ax.plot(time, middle, color=colour, label=label)
            if low is not None and high is not None:
                ax.fill_between(time, low, high, color=colour, alpha=0.3, linewidth=0)
        ax.set_ylim(bottom=0)
        _style.finish(ax, flows, recording, title, events)
    return ax


def _checked(direction: Direction | None) -> Direction | None:
    if direction not in (None, "sent", "received"):
        raise ValueError(f"direction is 'sent' or 'received', not {direction!r}")
    return direction
