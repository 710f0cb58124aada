"""Several plots of one recording, one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from . import _draw, _style
from ._flows import flows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .._rows import Direction, Recorded

Panel: TypeAlias = Literal["goodput", "rtt", "cwnd", "share"]

PANELS: tuple[Panel, ...] = ("goodput", "rtt", "cwnd", "share")
# Heights in inches: of a panel over time, of a bar, and of everything around them.
_TIME, _BAR, _REST = 1.35, 0.3, 0.55


def plot(
    recording: Recorded,
    panels: Panel | Sequence[Panel],
    size: tuple[float, float] | None,
    token: int | None,
    direction: Direction | None,
    window: float | None,
    events: bool,
) -> Figure:
    import matplotlib.pyplot as plt

    panels = (panels,) if isinstance(panels, str) else tuple(panels)
    if not panels or not set(panels) <= set(PANELS) or len(set(panels)) != len(panels):
        raise ValueError(
            f"panels must be one or more of {', '.join(map(repr, PANELS))}, each at most once, not {panels!r}"
        )
    bars = 1 if token is not None else len(set(recording.samples["token"].tolist()))
    heights = [0.35 + _BAR * bars if panel == "share" else _TIME for panel in panels]
    size = size or (_style.WIDTH, _REST + sum(heights))
    over_time = [panel for panel in panels if panel != "share"]
    figure = _style.new_figure(*size)
    with _style.style():
        try:
            drawn = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
            axes = dict(zip(panels, drawn, strict=True))
            # Markers of events are above the uppermost panel over time.
            if "goodput" in axes:
                ax, marked = axes["goodput"], events and over_time[0] == "goodput"
                _draw.goodput(recording, ax=ax, token=token, direction=direction, window=window, events=marked)
            if "rtt" in axes:
                _draw.rtt(recording, ax=axes["rtt"], token=token, events=events and over_time[0] == "rtt")
            if "cwnd" in axes:
                _draw.cwnd(recording, ax=axes["cwnd"], token=token, events=events and over_time[0] == "cwnd")
            if "share" in axes:
                _draw.share(recording, ax=axes["share"], token=token, direction=direction)
            for panel in over_time[1:] if events else ():
                _style.mark(axes[panel], flows_of(recording, token), recording, markers=False)
            for panel in over_time[:-1]:
                axes[panel].sharex(axes[over_time[-1]])
                axes[panel].set_xlabel("")
                axes[panel].tick_params(labelbottom=False)
            _style.shared_legend(figure, list(drawn))
            figure.align_ylabels([axes[panel] for panel in over_time])
        except BaseException:
            plt.close(figure)
            raise
    return figure
