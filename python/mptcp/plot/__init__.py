"""Plots of a recording, by matplotlib: ``pip install 'mptcp[plot]'``.

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

A recording without samples, or without samples of the connection, raises ValueError.
"""

from __future__ import annotations

from ._draw import cwnd, goodput, rcv_rtt, rcv_wnd, rtt, rtt_ccdf, rtt_cdf, share

__all__ = ["cwnd", "goodput", "rcv_rtt", "rcv_wnd", "rtt", "rtt_ccdf", "rtt_cdf", "share"]

for _function in (cwnd, goodput, rcv_rtt, rcv_wnd, rtt, rtt_ccdf, rtt_cdf, share):
    _function.__module__ = "mptcp.plot"
