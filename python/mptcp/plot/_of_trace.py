"""The plots of a trace, each on axes of its own or on given ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _distribution, _lines, _marks, _style
from ._segments import Segments, Side, TraceChart, trace_chart
from ._thin import cells, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._rows import Floats, Recorded, Traced

# More points than this are an image within a vector file, which would be slow to show otherwise.
_VECTORS = 3000
_BYTES = ("bytes", "kB", "MB", "GB")


def sequence(
    trace: Traced,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    direction: Side | None = None,
    recording: Recorded | None = None,
    period: tuple[float, float] | None = None,
    events: bool = True,
) -> Axes:
    """Plot the data sequence numbers over time: a point for each segment when it was sent, in its subflow's colour.

    Reinjections are marked with an x, retransmissions with a +; the line is the data that DATA_ACKs have covered.
    Raises ValueError if there is no data.
    """
    chart = trace_chart(trace, token, direction, recording, period)
    factor, unit = _style.scale(max(float(_ends(part).max()) for part in _drawn(chart)), _BYTES)
    with _style.axes(ax) as ax:
        for part in _drawn(chart):
            end = _ends(part) / factor
            _dots(ax, chart, part, np.where(part.new, end, np.nan), ".", 1.6)
            _dots(ax, chart, part, np.where(part.retransmitted, end, np.nan), "+", 3.0)
            _dots(ax, chart, part, np.where(part.reinjected, end, np.nan), "x", 3.0)
            ax.plot([], [], color=part.look.colour, linestyle=part.look.dashes, label=part.label)
        acked = thinned(*_seen(chart, *_acked(chart)), holds=True)
        ax.plot(acked.time, acked.middle / factor, color=_style.TEXT, linewidth=0.6, label="DATA_ACK", zorder=1.9)
        for marker, name in (("+", "retransmitted"), ("x", "reinjected")):
            if any(getattr(part, name).any() for part in chart.parts):
                ax.plot([], [], marker=marker, markersize=3.5, color=_style.TEXT, linestyle="none", label=name)
        if chart.whole:
            ax.set_ylim(bottom=0)
        _finish(ax, chart, f"Data sequence\n({unit})", events)
    return ax


def flight(
    trace: Traced,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    direction: Side | None = None,
    recording: Recorded | None = None,
    period: tuple[float, float] | None = None,
    events: bool = True,
) -> Axes:
    """Plot the bytes of data in flight on each subflow over time: sent there, and not yet covered by a DATA_ACK.

    That includes data which has arrived and waits at the receiver for other data. Data that was reinjected is in flight
    on both subflows. Raises ValueError if there is no data.
    """
    chart = trace_chart(trace, token, direction, recording, period)
    series = [(part, *_seen(chart, *_in_flight(part))) for part in _drawn(chart)]
    factor, unit = _style.scale(max(float(level.max(initial=0)) for *_, level in series), _BYTES)
    with _style.axes(ax) as ax:
        for part, time, level in series:
            points = thinned(time, level / factor, holds=True)
            style = "default" if points.low is not None else "steps-post"
            _lines.line(ax, part.label, part.look, points, of=len(series), drawstyle=style)
        ax.set_ylim(bottom=0)
        _finish(ax, chart, f"Data in flight\n({unit})", events)
    return ax


def reordering(
    trace: Traced,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    direction: Side | None = None,
    recording: Recorded | None = None,
    period: tuple[float, float] | None = None,
) -> Axes:
    """Plot the distribution of the delay at the receiver: the part of the segments that waited up to so long.

    A segment waits from its arrival until all data before it has arrived. Copies of what had been delivered are not
    counted. Raises ValueError if there is no data, or no capture at the receiver.
    """
    chart = trace_chart(trace, token, direction, recording, period)
    waits = [(part.label, part.look, _waits(chart, part)) for part in chart.parts]
    if all(np.isnan(values).all() for *_, values in waits):
        raise ValueError("cannot plot the delay at the receiver: the trace has no capture at the receiver")
    with _style.axes(ax) as ax:
        _distribution.draw(ax, waits, complement=False)
        ax.set_xlabel("Delay at the receiver (ms)")
        ax.set_ylabel("Segments up to")
        _legend(ax)
    return ax


def delay(
    trace: Traced,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    direction: Side | None = None,
    recording: Recorded | None = None,
    period: tuple[float, float] | None = None,
    events: bool = True,
) -> Axes:
    """Plot how long data took over time, in milliseconds: a point for each segment when it was first sent.

    It is the time until the application at the receiver could read it, or without a capture at the receiver until a
    DATA_ACK covered it, which takes longer by the way back. A capture does not tell how long data waited in the
    sender's buffer. Raises ValueError if there is no data.
    """
    chart = trace_chart(trace, token, direction, recording, period)
    delivered = any(np.isfinite(part.delivered).any() for part in chart.parts)
    with _style.axes(ax) as ax:
        for part in _drawn(chart):
            until = part.delivered if delivered else part.acked
            _dots(ax, chart, part, np.where(part.new, 1e3 * (until - part.time), np.nan), ".", 1.6)
            ax.plot([], [], color=part.look.colour, linestyle=part.look.dashes, label=part.label)
        ax.set_ylim(bottom=0)
        _finish(ax, chart, f"Until {'delivered' if delivered else 'DATA_ACK'}\n(ms)", events)
    return ax


def _drawn(chart: TraceChart) -> Iterator[Segments]:
    """Those with data, the others behind the rest."""
    yield from sorted((part for part in chart.parts if len(part.time)), key=lambda part: part.look != _style.OTHERS)


def _ends(part: Segments) -> Floats:
    found: Floats = (part.dsn + part.length).astype(float)
    return found


def _acked(chart: TraceChart) -> tuple[Floats, Floats]:
    """Return when the data that DATA_ACKs cover grew, and to which end."""
    time = np.concatenate([part.acked for part in chart.parts])
    end = np.concatenate([_ends(part) for part in chart.parts])
    known = np.flatnonzero(~np.isnan(time))
    order = known[np.argsort(time[known], kind="stable")]
    return time[order], np.maximum.accumulate(end[order])


def _in_flight(part: Segments) -> tuple[Floats, Floats]:
    new = ~part.retransmitted
    acked = new & ~np.isnan(part.acked)
    time = np.concatenate((part.time[new], part.acked[acked]))
    change = np.concatenate((part.length[new], -part.length[acked])).astype(float)
    order = np.argsort(time, kind="stable")
    return time[order], np.cumsum(change[order])


def _seen(chart: TraceChart, time: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Return what is within the chart's time of a value that holds until its next change."""
    within = np.flatnonzero(chart.within(time))
    if not len(within):
        return time[:0], values[:0]
    before = max(0, int(within[0]) - 1)
    seen = slice(before, int(within[-1]) + 1)
    return np.maximum(time[seen], chart.begin), values[seen]


def _waits(chart: TraceChart, part: Segments) -> Floats:
    waited = 1e3 * (part.delivered - part.received)
    return np.where((waited >= 0) & chart.within(part.time), waited, np.nan)


def _dots(ax: Axes, chart: TraceChart, part: Segments, y: Floats, marker: str, size: float) -> None:
    x = part.time
    shown = cells(x, np.where(chart.within(x), y, np.nan))
    if not len(shown):
        return
    ax.plot(
        x[shown],
        y[shown],
        linestyle="none",
        marker=marker,
        markersize=size,
        markeredgewidth=0 if marker == "." else 0.6,
        color=part.look.colour,
        rasterized=len(shown) > _VECTORS,
        label="_",
    )


def _finish(ax: Axes, chart: TraceChart, title: str, events: bool) -> None:
    _style.over_time(ax, chart.end, title, begin=chart.begin)
    if events:
        _marks.draw(ax, chart.marks, chart.end - chart.begin)
    _legend(ax)


def _legend(ax: Any) -> None:
    from . import _legend  # imports matplotlib

    _legend.add(ax)
