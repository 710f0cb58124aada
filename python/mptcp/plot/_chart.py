"""What all plots of one recording draw from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ._flows import Flow, end_of, flows_of, main_direction, rows_of
from ._series import Series, series_of

if TYPE_CHECKING:
    from .._rows import Direction, Recorded, Rows


@dataclass(frozen=True)
class Chart:
    """A recording's subflows, and how they are grouped."""

    recording: Recorded
    flows: list[Flow]
    direction: Direction

    @cached_property
    def series(self) -> list[Series]:
        return series_of(self.flows)

    @cached_property
    def rows(self) -> Rows:
        """The rows of all subflows, one subflow after the other, with the columns that the measures need."""
        return rows_of(sorted(self.flows, key=lambda flow: flow.cookie))

    @cached_property
    def end(self) -> float:
        """The time of the last row, in seconds since the first."""
        return end_of(self.flows)


def chart_of(recording: Recorded, token: int | None, direction: Direction | None = None) -> Chart:
    """Return what to draw of one connection, or of all; the direction is by default the one with more bytes."""
    flows = flows_of(recording, token)
    return Chart(recording, flows, direction or main_direction(flows))
