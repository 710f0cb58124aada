"""How the plots look: colours, axes, marks of events, legends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._flows import Flow, end_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .._rows import Recorded

# The palette of Okabe and Ito without yellow, which is faint on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_GREY = "#999999"
_TEXT = "#333333"

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
}
_OTHER_MARKER = "*"
# Events that are about no subflow, and addresses, which appear and disappear with their link.
_UNDRAWN = ("LISTENER_CREATED", "LISTENER_CLOSED", "ADDRESS_ADDED", "ADDRESS_REMOVED")
# More lines than this would hide the data: then there are only markers.
_EVENT_LINES = 40

# For one column of a paper, with text of the usual size. Text in vector files stays text.
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
# The width of a legend's entry, in inches.
_ENTRY = 1.15
_DPI = 120
WIDTH, HEIGHT = 6.0, 2.2
"""The size of a single plot, in inches."""


def style() -> contextlib.AbstractContextManager[None]:
    """Create the axes, or write the figures, of the block in our style."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Return a new pyplot figure. Call it outside style(): the first one loads a backend, whose settings must stay."""
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(width, height), dpi=_DPI, layout="constrained")


@contextlib.contextmanager
def axes(ax: Axes | None, height: float = HEIGHT) -> Iterator[Axes]:
    """Yield ``ax`` unchanged, or new axes in our style."""
    if ax is not None:
        yield ax
        return
    figure = new_figure(WIDTH, height)
    with style():
        yield figure.subplots()


def split(flows: list[Flow]) -> tuple[list[Flow], list[Flow]]:
    """Return the subflows with a colour of their own, and the rest, which carried least; each in order."""
    if len(flows) <= len(_COLOURS):
        return flows, []
    carried = {flow: flow.carried("sent") + flow.carried("received") for flow in flows}
    largest = set(sorted(flows, key=lambda flow: -carried[flow])[: len(_COLOURS)])
    return [flow for flow in flows if flow in largest], [flow for flow in flows if flow not in largest]


def looks(shown: Sequence[Flow], others: Sequence[Flow]) -> list[tuple[str, str]]:
    """Return the colour and label of each of ``shown``, and one for all ``others``."""
    found = [(colour, flow.label) for colour, flow in zip(_COLOURS, shown, strict=False)]
    return [*found, (_GREY, f"{len(others)} others")] if others else found


def scale(largest: float, units: Sequence[str]) -> tuple[float, str]:
    """Return a divisor that makes the largest value less than 1,000, if there is one, and its unit."""
    step = 0
    while step < len(units) - 1 and largest >= 1000.0 ** (step + 1):
        step += 1
    return 1000.0**step, units[step]


def bar(ax: Axes, row: int, width: float, left: float, colour: str, label: str) -> None:
    """Draw a part of a bar, with its percentage if there is room for it."""
    ax.barh(row, width, left=left, height=0.7, color=colour, label=label, linewidth=0)
    if width >= 7:
        text = "black" if _is_light(colour) else "white"
        ax.text(left + width / 2, row, f"{width:.1f} %", ha="center", va="center", color=text, fontsize="small")


def finish(ax: Axes, flows: list[Flow], recording: Recorded, title: str, events: bool) -> None:
    """Add to a plot over time what all of them have: axis, title, grid, events and legend."""
    end = end_of(flows)
    ax.set_xlim(0, end or 1.0)
    ax.set_xlabel("Time (s)")
    ax.set_ylabel(title)
    ax.grid(axis="y", linewidth=0.4, color="#dddddd")
    if events:
        mark(ax, flows, recording)
    legend(ax)


def mark(ax: Axes, flows: list[Flow], recording: Recorded, *, markers: bool = True) -> None:
    """Mark events by a line behind the data and a marker on the upper edge, above others of the same moment."""
    from matplotlib.transforms import ScaledTranslation

    marks = _marks(flows, recording)
    lines = len(marks) <= _EVENT_LINES
    level, before = 0, -np.inf
    for time, kind, colour in marks:
        if lines:
            ax.axvline(time, color=colour, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0.5, label="_")
        if markers:
            level = level + 1 if time - before < 0.015 * end_of(flows) else 0
            before = time
            raised = ScaledTranslation(0, level * 5 / 72, ax.figure.dpi_scale_trans)
            edge = ax.get_xaxis_transform() + raised
            shape = _MARKERS.get(kind, _OTHER_MARKER)
            ax.scatter(time, 1, s=18, c=colour, marker=shape, transform=edge, clip_on=False, zorder=4, linewidths=0)
    # The legend's markers belong to no subflow.
    for kind in dict.fromkeys(kind for _, kind, _ in marks) if markers else ():
        shape = _MARKERS.get(kind, _OTHER_MARKER)
        ax.plot([], [], marker=shape, markersize=4, color=_TEXT, linestyle="none", markeredgewidth=0, label=kind)


def _marks(flows: list[Flow], recording: Recorded) -> list[tuple[float, str, str]]:
    """Return time, kind and colour of each event of these subflows' connections and of links."""
    start, end = int(flows[0].rows["time_ns"][0]), end_of(flows)
    tokens = {None, *(flow.token for flow in flows)}
    shown, others = split(flows)
    colours = {flow.local: colour for flow, (colour, _) in zip(shown, looks(shown, others), strict=False)}
    marks = []
    for event in recording.events:
        kind, time = event.kind.name, (event.time_ns - start) / 1e9
        if kind not in _UNDRAWN and 0 <= time <= end and event.token in tokens:
            marks.append((time, kind, colours.get(event.local, _GREY)))
    return sorted(marks)


def legend(ax: Axes) -> None:
    """Put the legend above the axes, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        columns = _columns(ax.figure)
        ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns, borderaxespad=0.2)


def shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Replace the legends of all panels by one."""
    known: dict[str, Any] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
        if (own := ax.get_legend()) is not None:
            own.remove()
    figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=_columns(figure))


def _columns(figure: Any) -> int:
    """Return how many entries of a legend fit beside each other."""
    return max(1, int(figure.get_figwidth() / _ENTRY))


def _is_light(colour: str) -> bool:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
