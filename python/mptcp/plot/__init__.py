"""Plots of a recording, by matplotlib: ``pip install 'mptcp[plot]'``.

Each function draws one, on new axes or on those given by ``ax=``, and returns them. Recording.plot() draws several, one
above the other. They are pyplot's figures: show them by ``matplotlib.pyplot.show()``, or save them by ``savefig``.

What they share: ``token`` keeps one connection of several. Time is seconds since the first sample. A subflow has the
same colour in all, of Okabe and Ito's set for the colour-blind; of more than seven subflows those that carried least
are grey and, where they are stacked, one. Values that are missing (NaN) or without limit (infinite) are gaps.
``direction`` is that of mptcp.measures, "sent" or "received", by default whichever is more. The recording's events are
marks on the upper edge, in the colour of their subflow; ``events=False`` leaves them out.

A recording without samples, or without those asked for, raises ValueError.
"""

from __future__ import annotations

from ._draw import cwnd, goodput, rtt, share

__all__ = ["cwnd", "goodput", "rtt", "share"]

for _function in (cwnd, goodput, rtt, share):
    _function.__module__ = "mptcp.plot"
