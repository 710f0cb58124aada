"""The plots, each on axes of its own or on given ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _distribution, _marks, _over_time, _share, _style
from ._chart import Chart, chart_of

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
    chart = chart_of(recording, token, direction)
    with _style.axes(ax) as ax:
        _over_time.goodput(ax, chart, window)
        _finish(ax, chart, events)
    return ax


def rtt(recording: Recorded, *, ax: Axes | None = None, token: int | None = None, events: bool = True) -> Axes:
    """Plot the smoothed round-trip time of each subflow (tcp_info's ``rtt``) over time, in milliseconds.

    The kernel keeps its last value while nothing is acknowledged: while that lasts longer than the retransmission
    timeout, as on a path that is dead or not used, the line has a gap. Raises ValueError if there are no samples.
    """
    chart = chart_of(recording, token)
    with _style.axes(ax) as ax:
        _over_time.rtt(ax, chart)
        _finish(ax, chart, events)
    return ax


def rcv_rtt(recording: Recorded, *, ax: Axes | None = None, token: int | None = None, events: bool = True) -> Axes:
    """Plot the round-trip time that each subflow measures as a receiver (``rcv_rtt``) over time, in milliseconds.

    A host that only receives has no other after the handshake. The kernel takes it from echoed timestamps, or from the
    time in which a window of data arrives. It has gaps as in rtt(), while nothing is received. Raises ValueError if
    there are no samples.
    """
    chart = chart_of(recording, token)
    with _style.axes(ax) as ax:
        _over_time.rcv_rtt(ax, chart)
        _finish(ax, chart, events)
    return ax


def rtt_cdf(
    recording: Recorded, *, ax: Axes | None = None, token: int | None = None, direction: Direction | None = None
) -> Axes:
    """Plot the distribution of each subflow's round-trip time: the part of its samples that are up to each value.

    It is the smoothed round-trip time at the ticks, as in rtt(), not that of segments; for "received" that of
    rcv_rtt(). What rtt() leaves out as a gap is not counted. Raises ValueError for another direction, and if there are
    no samples.
    """
    return _rtt_distribution(recording, ax, token, direction, complement=False)


def rtt_ccdf(
    recording: Recorded, *, ax: Axes | None = None, token: int | None = None, direction: Direction | None = None
) -> Axes:
    """Plot what rtt_cdf() does as the part of the samples above each value, on a logarithmic scale: the tail.

    Raises ValueError for another direction, and if there are no samples.
    """
    return _rtt_distribution(recording, ax, token, direction, complement=True)


def cwnd(
    recording: Recorded,
    *,
    ax: Axes | None = None,
    token: int | None = None,
    ssthresh: bool = False,
    events: bool = True,
) -> Axes:
    """Plot the congestion window of each subflow (tcp_info's ``snd_cwnd``) over time, in segments.

    ``ssthresh`` adds the slow start threshold (``snd_ssthresh``) as a thin line, with gaps while it is infinite.
    Raises ValueError if there are no samples.
    """
    chart = chart_of(recording, token)
    with _style.axes(ax) as ax:
        _over_time.cwnd(ax, chart, ssthresh)
        _finish(ax, chart, events)
    return ax


def rcv_wnd(recording: Recorded, *, ax: Axes | None = None, token: int | None = None, events: bool = True) -> Axes:
    """Plot the receive window that each subflow last announced (``rcv_wnd``) over time, in bytes.

    Subflows announce the window of their connection, so their lines are on top of each other except while one is
    silent. Empty on kernels without that field (before Linux 6.2). Raises ValueError if there are no samples.
    """
    chart = chart_of(recording, token)
    with _style.axes(ax) as ax:
        _over_time.rcv_wnd(ax, chart)
        _finish(ax, chart, events)
    return ax


def share(
    recording: Recorded, *, ax: Axes | None = None, token: int | None = None, direction: Direction | None = None
) -> Axes:
    """Plot each subflow's share of its connection's bytes, in percent: mptcp.measures.share(), one bar per connection.

    More than 12 connections are thin bars in order of the first series' share. Raises ValueError for another direction,
    and if there are no samples.
    """
    chart = chart_of(recording, token, direction)
    with _style.axes(ax, height=0.5 + _share.height(chart)) as ax:
        _share.share(ax, chart)
        _legend(ax)
    return ax


def _rtt_distribution(
    recording: Recorded, ax: Axes | None, token: int | None, direction: Direction | None, *, complement: bool
) -> Axes:
    chart = chart_of(recording, token, direction)
    if chart.direction not in ("sent", "received"):
        raise ValueError(f"direction must be 'sent' or 'received', not {direction!r}")
    with _style.axes(ax) as ax:
        _distribution.rtt(ax, chart, complement=complement)
        _legend(ax)
    return ax


def _finish(ax: Axes, chart: Chart, events: bool) -> None:
    if events:
        _marks.draw(ax, _marks.marks_of(chart.series, chart.recording), chart.end)
    _legend(ax)


def _legend(ax: Axes) -> None:
    from . import _legend  # imports matplotlib

    _legend.add(ax)
