"""Legends and titles do not overlap, in grids and in narrow columns; and series differ in grey too."""

from __future__ import annotations

import itertools
from typing import Any

import mptcp
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")

import matplotlib.pyplot as plt
from matplotlib.patches import StepPatch
from mptcp.plot import _style

KINDS = ("goodput", "rtt", "cwnd", "share", "rcv_rtt", "rtt_cdf", "rtt_ccdf", "rcv_wnd")


def boxes(figure: Any) -> dict[str, Any]:
    """Where the titles, the legends and the axes with their labels are."""
    figure.canvas.draw()
    found = {}
    for number, ax in enumerate(figure.axes):
        found[f"legend {number}"] = ax.get_legend().get_window_extent()
        found[f"title {number}"] = ax.title.get_window_extent()
        found[f"axes {number}"] = ax.get_window_extent()
        found[f"time {number}"] = ax.xaxis.get_tightbbox()
    if (title := figure.get_suptitle()) != "":
        assert title
        found["title of all"] = figure._suptitle.get_window_extent()
    return found


def overlapping(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Ticks and what is drawn belong to their axes, and touch them."""
    return [
        (one, other)
        for one, other in itertools.combinations(found, 2)
        if {one.split()[0], other.split()[0]} != {"axes", "time"} and found[one].padded(-1).overlaps(found[other])
    ]


@pytest.mark.parametrize("layout", ["constrained", "tight"])
@pytest.mark.parametrize("width", [3.4, 7.0])
def test_a_grid_with_titles(recording: mptcp.Recording, layout: str, width: float) -> None:
    with _style.style():
        columns = 1 if width < 4 else 2
        figure, axes = plt.subplots(8 // columns, columns, figsize=(width, 16 / columns))
        figure.set_layout_engine(layout)
        for kind, ax in zip(KINDS, axes.flat, strict=True):
            getattr(mptcp.plot, kind)(recording, ax=ax)
            ax.set_title(f"A title of {kind}")
        # The tight layout leaves no room for it in tall figures.
        if layout == "constrained":
            figure.suptitle("A title of all")
        found = boxes(figure)
        assert len(found) == 4 * len(KINDS) + (layout == "constrained")
        assert overlapping(found) == []
        whole = figure.bbox
        outside = {name for name, box in found.items() if not whole.padded(1).contains(*box.min)}
        assert outside == set()


def test_titles_are_seen_to_overlap(recording: mptcp.Recording) -> None:
    """What the test above relies on: matplotlib's own legend at the same place hides the title."""
    ax = mptcp.plot.rtt(recording)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0))
    ax.set_title("A title that is long enough", loc="center")
    assert ("legend 0", "title 0") in overlapping(boxes(ax.figure))


@pytest.mark.parametrize("width", [2.2, 3.4, 6.0])
def test_a_legend_is_as_wide_as_its_axes(recording: mptcp.Recording, width: float) -> None:
    figure = recording.plot(size=(width, 6))
    figure.canvas.draw()
    first = figure.axes[0]
    assert first.get_legend().get_window_extent().x1 <= figure.bbox.x1 + 1
    columns = len({round(text.get_window_extent().x0) for text in first.get_legend().get_texts()})
    assert columns == {2.2: 1, 3.4: 2, 6.0: 4}[width]


def grey(colour: str) -> float:
    red, green, blue = plt.matplotlib.colors.to_rgb(colour)
    return 255 * (0.299 * red + 0.587 * green + 0.114 * blue)


def test_series_differ_in_grey(recording: mptcp.Recording) -> None:
    looks = _style.LOOKS
    assert len({look.dashes for look in looks}) == len({look.hatch for look in looks}) == len(looks)
    for one, other in itertools.pairwise(looks):
        assert abs(grey(one.colour) - grey(other.colour)) > 30, "neighbours are dark and light"
    # And they are drawn like that.
    lines = mptcp.plot.rtt(recording, events=False).lines
    assert len({line.get_linestyle() for line in lines}) == 2
    areas = [patch for patch in mptcp.plot.goodput(recording).patches if isinstance(patch, StepPatch)]
    assert len({patch.get_hatch() for patch in areas}) == 2


def test_the_data_is_below_the_marks(recording: mptcp.Recording) -> None:
    """Markers are within the axes, so that a title has its place above them."""
    ax = mptcp.plot.goodput(recording)
    ax.figure.canvas.draw()
    marks = ax.collections
    assert marks
    # The markers' centres, less half of their height.
    centres = [mark.get_offset_transform().transform(mark.get_offsets()) for mark in marks]
    lowest = min(each[:, 1].min() for each in centres) - 2 * ax.figure.dpi / 72
    assert max(each[:, 1].max() for each in centres) < ax.bbox.y1
    highest = max(patch.get_data().values.max() for patch in ax.patches if isinstance(patch, StepPatch))
    assert ax.transData.transform((0, highest))[1] <= lowest + 1
