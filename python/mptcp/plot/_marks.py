"""Marks of events in plots over time: markers within the upper edge, and lines behind the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._flows import Flow, end_of, start_of
from ._series import Series
from ._style import OTHERS, TEXT, size_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._core import Event
    from .._rows import Recorded

# The markers of events, by kind.
_MARKERS = {
    "CREATED": "o",
    "ESTABLISHED": "o",
    "CLOSED": "s",
    "SUB_ESTABLISHED": "^",
    "SUB_CLOSED": "v",
    "SUB_PRIORITY": "D",
    "ANNOUNCED": "P",
    "REMOVED": "X",
    "LINK_UP": ">",
    "LINK_DOWN": "<",
    # Of traces.
    "MP_CAPABLE": "o",
    "MP_JOIN": "^",
    "ADD_ADDR": "P",
    "REMOVE_ADDR": "X",
    "MP_PRIO": "D",
    "MP_FAIL": "d",
    "MP_FASTCLOSE": "s",
    "MP_TCPRST": "v",
    "DATA_FIN": "H",
}
_OTHER_MARKER = "*"
# Events that are about no subflow, and addresses, which appear and disappear with their link.
_UNDRAWN = ("LISTENER_CREATED", "LISTENER_CLOSED", "ADDRESS_ADDED", "ADDRESS_REMOVED")
_OF_SUBFLOWS = ("SUB_ESTABLISHED", "SUB_CLOSED", "SUB_PRIORITY")
# More lines than this would hide the data: then there are only markers.
_LINES = 40
# A marker's width and height, with a little space, in points.
_WIDTH, _HEIGHT = 5.0, 5.5
# So many markers are above each other at most.
_LEVELS = 4


@dataclass(frozen=True, order=True)
class Mark:
    """A moment, in seconds since the first sample: a kind of event, in the colour of what it is about."""

    time: float
    kind: str
    colour: str


def marks_of(series: Sequence[Series], recording: Recorded) -> list[Mark]:
    """Return the marks of the events of these subflows and their connections, and of links, in order.

    Those of a subflow have its colour. The others, of connections, addresses and links, have that of text.
    """
    flows = sorted((flow for one in series for flow in one.flows), key=lambda flow: flow.time[0])
    start, end = start_of(flows), end_of(flows)
    tokens = {None, *(flow.token for flow in flows)}
    colours = {flow: one.look.colour for one in series for flow in one.flows}
    marks = []
    owners = _Owners(flows)
    for event in recording.events:
        kind, time = event.kind.name, (event.time_ns - start) / 1e9
        if kind in _UNDRAWN or not 0 <= time <= end or event.token not in tokens:
            continue
        owner = owners.of(event, time) if kind in _OF_SUBFLOWS else None
        of_none = OTHERS.colour if kind in _OF_SUBFLOWS else TEXT
        marks.append(Mark(time, kind, of_none if owner is None else colours[owner]))
    return sorted(marks)


class _Owners:
    """Which subflow an event is about."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        self._found: dict[Any, list[Flow]] = {}
        for flow in flows:
            if flow.local is not None and flow.remote is not None:
                local, remote = flow.local[:2], flow.remote[:2]
                for key in ((local, remote), (local, remote[:1]), (local,)):
                    self._found.setdefault((flow.token, *key), []).append(flow)

    def of(self, event: Event, time: float) -> Flow | None:
        """Return it, or None: by both ends; after a failed connect, when the remote port is 0, by fewer of them.

        An accepting host has one local end for many subflows, so the local end alone does if there is but one. Of
        several with the same ends, it is the one that was there at that time.
        """
        if event.local is None or event.remote is None:
            return None
        local, remote = event.local[:2], event.remote[:2]
        for key in ((local, remote), (local, remote[:1]), (local,)):
            found = self._found.get((event.token, *key), [])
            if found and (len(found) == 1 or (len(key) == 2 and key[1] == remote)):
                return min(found, key=lambda flow: max(float(flow.time[0]) - time, time - float(flow.time[-1]), 0.0))
        return None


def draw(ax: Axes, marks: Sequence[Mark], seconds: float, *, markers: bool = True) -> None:
    """Draw marks on a plot of so many seconds: a line each, if they are few, and markers.

    Markers that would overlap are one if they are equal, and otherwise one below the other.
    """
    if len(marks) <= _LINES:
        for mark in marks:
            ax.axvline(mark.time, color=mark.colour, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0.5, label="_")
    if markers and marks:
        _markers(ax, marks, seconds)


def _markers(ax: Axes, marks: Sequence[Mark], seconds: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    width, height = size_of(ax)
    placed = _placed(marks, width / (seconds or 1.0))
    # Room for them above the data.
    depth = _HEIGHT * (1 + max(level for _, level in placed))
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / max(0.4, 1 - depth / height))
    groups: dict[tuple[str, int], list[Mark]] = {}
    for mark, level in placed:
        groups.setdefault((mark.kind, level), []).append(mark)
    for (kind, level), group in groups.items():
        lowered = ScaledTranslation(0, -(level + 0.5) * _HEIGHT / 72, ax.figure.dpi_scale_trans)
        ax.scatter(
            [mark.time for mark in group],
            [1] * len(group),
            s=16,
            c=[mark.colour for mark in group],
            marker=_MARKERS.get(kind, _OTHER_MARKER),
            transform=ax.get_xaxis_transform() + lowered,
            clip_on=False,
            zorder=4,
            linewidths=0,
        )
    # The legend's markers belong to no subflow.
    for kind in dict.fromkeys(mark.kind for mark in marks):
        shape = _MARKERS.get(kind, _OTHER_MARKER)
        ax.plot([], [], marker=shape, markersize=4, color=TEXT, linestyle="none", markeredgewidth=0, label=kind)


def _placed(marks: Sequence[Mark], points: float) -> list[tuple[Mark, int]]:
    """Return those that differ from their neighbours, each with its level, 0 the uppermost; ``points`` are a second."""
    found: list[tuple[Mark, int]] = []
    latest: dict[tuple[str, str], float] = {}
    taken: list[float] = []
    for mark in marks:
        at = mark.time * points
        before = latest.get((mark.kind, mark.colour))
        if before is not None and at - before < _WIDTH:
            continue
        latest[mark.kind, mark.colour] = at
        level = next((level for level, last in enumerate(taken) if at - last >= _WIDTH), len(taken))
        if level == _LEVELS:
            level = taken.index(min(taken))
        taken[level : level + 1] = [at]
        found.append((mark, level))
    return found
