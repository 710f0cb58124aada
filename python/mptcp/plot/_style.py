"""How the plots look: colours, dashes and hatches, figures and axes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Dashes: TypeAlias = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """What tells a series from others: in colour by its colour, in grey by its dashes or, as an area, its hatch."""

    colour: str
    dashes: Dashes
    hatch: str


LOOKS = (
    Look("#0072B2", "-", ""),
    Look("#E69F00", (0, (5, 1.3)), "/////"),
    Look("#009E73", (0, (5, 1.3, 1.2, 1.3)), "\\\\\\\\\\"),
    Look("#CC79A7", (0, (2, 1)), "....."),
    Look("#000000", (0, (9, 1.5)), "xxxxx"),
    Look("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "-----"),
    Look("#D55E00", (0, (9, 1.3, 1.2, 1.3)), "|||||"),
)
"""The palette of Okabe and Ito without yellow, which is faint on white; neighbours are dark and light in grey."""

OTHERS = Look("#999999", "-", "")
TEXT = "#333333"

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
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
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
    """Yield ``ax`` unchanged, or new axes in our style, whose figure goes if drawing fails."""
    if ax is not None:
        yield ax
        return
    import matplotlib.pyplot as plt

    figure = new_figure(WIDTH, height)
    try:
        with style():
            yield figure.subplots()
    except BaseException:
        plt.close(figure)
        raise


def size_of(ax: Axes) -> tuple[float, float]:
    """Return about how wide and high the axes are, in points: a layout engine may still change that."""
    box, figure = ax.get_position(), ax.figure
    width, height = (72 * length / figure.dpi for length in (figure.bbox.width, figure.bbox.height))
    return max(1.0, box.width * width), max(1.0, box.height * height)


def scale(largest: float, units: Sequence[str]) -> tuple[float, str]:
    """Return a divisor that makes the largest value less than 1,000, if there is one, and its unit."""
    step = 0
    while step < len(units) - 1 and largest >= 1000.0 ** (step + 1):
        step += 1
    return 1000.0**step, units[step]


def over_time(ax: Axes, end: float, title: str, *, begin: float = 0.0) -> None:
    """Give a plot over time its axes and grid."""
    ax.set_xlim(begin, end or 1.0)
    ax.set_xlabel("Time (s)")
    ax.set_ylabel(title)
    ax.grid(axis="y", linewidth=0.4, color="#dddddd")
    ax.set_axisbelow(True)


def is_light(colour: str) -> bool:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
