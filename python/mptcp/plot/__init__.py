"""Plots of a recording or a trace, by matplotlib: ``pip install 'mptcp[plot]'``.

Each function draws one plot, on new axes or on those passed as ``ax``, and returns the axes. Recording.plot() draws
several, one above the other. Their figures belong to pyplot: show them with ``matplotlib.pyplot.show()`` or save them
with ``savefig``. Where they share a figure with other axes, create that with ``layout="constrained"``, which leaves
room for the legends above the axes.

All plots have this in common. ``token`` selects one of several connections. Time is in seconds since the first sample.
A subflow has the same colour, dashes and hatch in every plot, from Okabe and Ito's palette for the colour-blind, so
that grey prints tell them apart too. More than seven subflows are grouped by their link, or their address if they are
on no named link; of more than seven groups those that carried least are grey, "others". Subflows with one look are
stacked as one area, and one line: the median of all their samples in a piece of time, with a band from the lowest to
the highest. So is a line of more than 1,000 samples. Missing (NaN) and infinite values are gaps, and so is a time
without samples.

``direction`` is "sent" or "received", as in mptcp.measures, by default the one with more bytes. The recording's events
are marked at the upper edge, those of a subflow in its colour; ``events=False`` omits them.

sequence(), flight(), reordering() and delay() draw a trace of segments, which read_trace() returns: of the connection
with the most bytes unless ``token`` selects another, by its token at either end, and of the direction with more bytes.
Their ``direction`` is 0 for data from the connecting side and 1 for the other. Time is in seconds since the
connection's first packet, or with ``recording`` since that recording's first sample; subflows then look as in its
plots, so that both can be drawn above each other. ``period``, two
times in seconds, selects a part. Of segments that would be drawn at one place, one is. More than
3,000 points are an image in a vector file, with the resolution of ``savefig(dpi=...)``.

A recording without samples, or without samples of the connection, raises ValueError.
"""

from __future__ import annotations

from ._draw import cwnd, goodput, rcv_rtt, rcv_wnd, rtt, rtt_ccdf, rtt_cdf, share
from ._of_trace import delay, flight, reordering, sequence

__all__ = [
    "cwnd",
    "delay",
    "flight",
    "goodput",
    "rcv_rtt",
    "rcv_wnd",
    "reordering",
    "rtt",
    "rtt_ccdf",
    "rtt_cdf",
    "sequence",
    "share",
]

for _name in __all__:
    globals()[_name].__module__ = "mptcp.plot"
