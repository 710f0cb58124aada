"""Legends above the axes, where they hide nothing: as wide as the axes, and above a title."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerBase, HandlerLine2D, HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

from ._style import size_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

# In widths of the font: a handle, long enough to show dashes; of an area and a line beside each other; between columns.
_HANDLE, _BOTH, _PAD, _APART = 2.6, 4.2, 0.6, 1.2
# Between the axes, a title and the legend, in points.
_SPACE = 3.0


class _Above(Legend):
    """A legend that begins above the title of its axes, whenever that is set, and above the axes if there is none."""

    def get_bbox_to_anchor(self) -> BboxBase:
        ax: Any = self.axes
        titles = (ax.get_title(loc) and title for loc, title in _titles(ax))
        top = max([ax.bbox.y1, *(title.get_window_extent().y1 for title in titles if title)])
        return Bbox.from_extents(ax.bbox.x0, top + _SPACE * ax.figure.dpi / 72, ax.bbox.x1, top)


class _Beside(HandlerLine2D):
    """Puts a marker beside its name, however wide the handles are."""

    def create_artists(
        self, legend: Any, handle: Any, xdescent: float, ydescent: float, width: float, height: float, *more: Any
    ) -> Any:
        narrow = min(width, height)
        return super().create_artists(legend, handle, xdescent - (width - narrow), ydescent, narrow, height, *more)


def _titles(ax: Any) -> tuple[tuple[str, Any], ...]:
    return ("center", ax.title), ("left", ax._left_title), ("right", ax._right_title)


def add(ax: Axes) -> None:
    """Give the axes a legend of what has a label."""
    _place(ax, _joined([ax]))


def share(panels: Sequence[Axes]) -> int:
    """Replace the legends of all panels by one above the first, and return how many rows it has."""
    entries = _joined(panels)
    for ax in panels:
        if (own := ax.get_legend()) is not None:
            own.remove()
    return _place(panels[0], entries)


def _joined(panels: Sequence[Axes]) -> dict[str, list[Any]]:
    """Return the handles by their labels: of a label that has areas and lines, one of each."""
    found: dict[str, list[Any]] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            known = found.setdefault(label, [])
            if not any(isinstance(handle, Line2D) == isinstance(other, Line2D) for other in known):
                known.append(handle)
    # Series first, and then what events are.
    return dict(sorted(found.items(), key=lambda entry: _is_marker(entry[1][0])))


def _is_marker(handle: Any) -> bool:
    return isinstance(handle, Line2D) and handle.get_linestyle() == "None"


def _place(ax: Axes, entries: dict[str, list[Any]]) -> int:
    import matplotlib

    if not entries:
        return 0
    font = FontProperties(size=matplotlib.rcParams["legend.fontsize"])
    both = any(len(handles) > 1 for handles in entries.values())
    handle = _BOTH if both else _HANDLE
    columns = _columns(list(entries), font, handle, size_of(ax)[0])
    handles = [tuple(handles) if len(handles) > 1 else handles[0] for handles in entries.values()]
    handlers: dict[Any, HandlerBase] = {one: _Beside() for one in handles if _is_marker(one)}
    handlers[tuple] = HandlerTuple(ndivide=None, pad=0.4)
    legend = _Above(
        ax,
        handles,
        list(entries),
        loc="lower left",
        ncols=columns,
        borderaxespad=0,
        borderpad=0,
        handlelength=handle,
        handletextpad=_PAD,
        columnspacing=_APART,
        labelspacing=0.3,
        frameon=False,
        handler_map=handlers,
    )
    # As Axes.legend() does it, which can only create a Legend; matplotlib's stubs leave these members out.
    ax.legend_ = legend
    legend._remove_method = ax._remove_legend  # type: ignore[attr-defined]
    return -(-len(entries) // columns)


def _columns(labels: Sequence[str], font: FontProperties, handle: float, width: float) -> int:
    """Return how many columns, which are filled one after the other, fit into a width in points."""
    size = font.get_size_in_points()
    widths = [
        text_to_path.get_text_width_height_descent(label, font, False)[0] + (handle + _PAD) * size for label in labels
    ]
    for columns in range(len(labels), 1, -1):
        rows, longer = divmod(len(labels), columns)
        at, taken = 0, (columns - 1) * _APART * size
        for column in range(columns):
            count = rows + (column < longer)
            taken += max(widths[at : at + count])
            at += count
        if taken <= width:
            return columns
    return 1
