"""Plots of a recording, by matplotlib: ``pip install 'mptcp[plot]'``.

Each function draws one plot, on new axes or on those passed as ``ax``, and returns the axes. Recording.plot() draws
several, one above the other. Their figures belong to pyplot: show them with ``matplotlib.pyplot.show()`` or save them
with ``savefig``.

All plots have this in common. ``token`` selects one of several connections. Time is in seconds since the first sample.
A subflow has the same colour in every plot, from Okabe and Ito's palette for the colour-blind; of more than seven
subflows those that carried least are grey, and stacked as one. Missing (NaN) and infinite values are gaps.
``direction`` is "sent" or "received", as in mptcp.measures, by default the one with more bytes. The recording's events
are marked on the upper edge, in the colour of their subflow; ``events=False`` omits them.

A recording without samples, or without samples of the connection, raises ValueError.
"""

from __future__ import annotations

from ._draw import cwnd, goodput, rtt, share

__all__ = ["cwnd", "goodput", "rtt", "share"]

for _function in (cwnd, goodput, rtt, share):
    _function.__module__ = "mptcp.plot"
