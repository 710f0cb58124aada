"""Types that recordings, their files, plots and measures share: arrays of rows, and the protocol of a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ._core import Event

    Rows: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]
    Floats: TypeAlias = NDArray[np.float64]

Direction: TypeAlias = Literal["sent", "received"]


class Recorded(Protocol):
    """What was recorded, as Recording documents it."""

    @property
    def samples(self) -> Rows: ...
    @property
    def connections(self) -> Rows: ...
    @property
    def events(self) -> list[Event]: ...
    @property
    def metadata(self) -> dict[str, Any]: ...


class TraceEventLike(Protocol):
    """An event of a trace, as TraceEvent documents it."""

    @property
    def kind(self) -> str: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def connection(self) -> int: ...
    @property
    def subflow(self) -> int: ...


class Traced(Protocol):
    """What was captured, as Trace documents it."""

    @property
    def packets(self) -> Rows: ...
    @property
    def connections(self) -> Rows: ...
    @property
    def subflows(self) -> Rows: ...
    @property
    def events(self) -> Sequence[TraceEventLike]: ...


def names(rows: Rows) -> tuple[str, ...]:
    """Return the names of the columns."""
    found = rows.dtype.names
    assert found is not None
    return found
