"""What was recorded: arrays, and the ways to other libraries and to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import _html
from ._core import Event
from ._event_kind import EventKind, remake

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import pyarrow
    from matplotlib.figure import Figure

    from .measures import Direction
    from .plot._panels import Panel

    Rows: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]

Table: TypeAlias = Literal["samples", "connections"]


class Recording:
    """What a Recorder recorded, as load() reads it from a file. A Recorder is one itself.

    docs/measuring.md has the arrays field by field.
    """

    def __init__(self, samples: Rows, connections: Rows, events: list[Event], metadata: dict[str, Any]) -> None:
        self._samples = samples
        self._connections = connections
        self._events = events
        self._metadata = metadata

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {len(self.samples)} samples of {self._count('cookie')} subflows and "
            f"{self._count('token')} connections, {_html.known(self.metadata.get('missed'))} ticks missed>"
        )

    def _repr_html_(self) -> str:
        return _html.recording(self)

    def _count(self, name: str) -> int:
        import numpy as np

        return len(np.unique(self.samples[name]))

    @property
    def samples(self) -> Rows:
        """A structured array, one row a subflow a tick: ``time_ns, wait_ns, token, subflow, cookie, state, local_id,
        remote_id, backup, final`` and the fields of struct tcp_info without the prefix.

        Rows of one tick share ``time_ns`` (CLOCK_MONOTONIC); each was read between that and ``wait_ns`` later. A field
        that this kernel lacks is NaN. The row where ``final`` is true has a subflow's last counters.
        """
        return self._samples

    @property
    def connections(self) -> Rows:
        """A structured array, one row a connection a reading: ``time_ns, wait_ns, token`` and the fields of struct
        mptcp_info without the prefix. A field that this kernel lacks is NaN."""
        return self._connections

    @property
    def events(self) -> list[Event]:
        """The events of the recorded connections, and of links and addresses, in the time base of the arrays.

        FALLBACK among them: a connection that fell back to TCP is recorded on. Without CAP_NET_ADMIN in the user
        namespace that owns the network namespace they come by polling, see Events.
        """
        return self._events

    @property
    def missed(self) -> int:
        """Ticks for which no reading was done, since the one before, or something else, took too long.

        Raises ValueError where the file does not say, since the recorder was killed.
        """
        missed = self.metadata.get("missed")
        if not isinstance(missed, int):
            raise ValueError("how many ticks were missed is not known: the recorder was killed before it wrote that")
        return missed

    @property
    def metadata(self) -> dict[str, Any]:
        """What the numbers depend on. All of it can be written as JSON.

        ``kernel``, ``versions``, ``labs``: the surroundings. ``namespaces``: the network namespace of the recorded
        connections by its cookie, their tokens or None for all, and its ``sysctls``; several if they live in several.
        ``interval``, ``connection_interval``: seconds. ``method``, ``method_reason``: how subflows are read, or were in
        the end, and why so. ``method_trials``: what "auto" measured; for each of the two ways the processor time of one
        reading of everything, the subflows that it showed, and whether it waited for a lock. ``scheduler``: SCHED_FIFO
        where the thread that reads subflows had that, else SCHED_OTHER. ``realtime_offset_ns``: CLOCK_REALTIME minus
        CLOCK_MONOTONIC, at the start. ``subflows``: the ends of each, by its cookie. ``missed``, ``ticks``;
        ``dropped``: rows that were not written in time;
        ``notices_lost``: whether some subflows may lack their final row; ``failure``: the first reading that failed.
        """
        return self._metadata

    def to_pandas(self, table: Table = "samples") -> pandas.DataFrame:
        """The samples, or the connections, as a data frame whose columns are views of the array.

        The metadata is in its ``attrs``. Needs pandas: ``pip install 'mptcp[pandas]'``.
        """
        import pandas

        rows = self._table(table)
        frame = pandas.DataFrame({name: rows[name] for name in _names(rows)}, copy=False)
        frame.attrs["mptcp"] = self.metadata
        return frame

    def to_arrow(self, table: Table = "samples") -> pyarrow.Table:
        """The samples, or the connections, as an Arrow table. Arrow's columns lie by themselves, so this copies.

        The metadata is in its schema. Needs pyarrow: ``pip install 'mptcp[arrow]'``.
        """
        from . import _arrow

        return _arrow.table(self._table(table), self._metadata_of_file())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file that load() reads: numpy's ``.npz``, ``.parquet`` or ``.arrow`` by the suffix.

        The last two need pyarrow (``pip install 'mptcp[arrow]'``), and have the connections in a file beside the one of
        the samples: ``run.connections.parquet`` beside ``run.parquet``. An existing file is replaced.

        Raises ValueError for another suffix.
        """
        from . import _files

        _files.save(self, path)

    def plot(
        self,
        panels: Panel | Sequence[Panel] = ("goodput", "rtt", "cwnd", "share"),
        *,
        size: tuple[float, float] | None = None,
        token: int | None = None,
        direction: Direction | None = None,
        window: float | None = None,
        events: bool = True,
    ) -> Figure:
        """The plots of mptcp.plot with these names, one above the other, on a new figure of pyplot's.

        ``size`` is its width and height in inches. The rest is as in mptcp.plot. Needs matplotlib: ``pip install
        'mptcp[plot]'``. Raises ValueError for what is no panel, and for a recording without samples.
        """
        from .plot import _panels

        return _panels.plot(self, panels, size, token, direction, window, events)

    def _table(self, table: Table) -> Rows:
        if table not in ("samples", "connections"):
            raise ValueError(f"a table is 'samples' or 'connections', not {table!r}")
        return self.samples if table == "samples" else self.connections

    def _metadata_of_file(self) -> dict[str, Any]:
        """The metadata and the events, as a file holds them."""
        return {**self.metadata, "events": [written(event) for event in self.events]}


def written(event: Event) -> dict[str, Any]:
    return {
        name: value.value if name == "kind" else value for name, value in event.asdict().items() if value is not None
    }


def read_event(fields: dict[str, Any]) -> Event:
    """An event from what a file has of it."""
    ends: dict[str, Any] = {name: tuple(fields[name]) for name in ("local", "remote") if name in fields}
    return remake({**fields, **ends, "kind": EventKind(fields["kind"])})


def _names(rows: Rows) -> tuple[str, ...]:
    names = rows.dtype.names
    assert names is not None
    return names
