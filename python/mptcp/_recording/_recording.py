"""What was recorded: arrays, and the ways to other libraries and to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .. import _tables
from .._core import Event
from .._rows import names
from . import _files

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure

    from .._rows import Direction, Rows
    from ..plot._panels import Panel

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
            f"{self._count('token')} connections, {_known(self.metadata.get('missed'))} ticks missed>"
        )

    def _repr_html_(self) -> str:
        return _table(self)

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
        CLOCK_MONOTONIC, at the start. ``subflows``: the ends of each, by its cookie. ``links``: what each link
        of the open labs had done in each direction at the end, as LinkStats: how late frames left, what was dropped.
        ``missed``, ``ticks``;
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
        frame = pandas.DataFrame({name: rows[name] for name in names(rows)}, copy=False)
        frame.attrs["mptcp"] = self.metadata
        return frame

    def to_arrow(self, table: Table = "samples") -> pyarrow.Table:
        """The samples, or the connections, as an Arrow table. Arrow's columns lie by themselves, so this copies.

        The metadata is in its schema. Needs pyarrow: ``pip install 'mptcp[arrow]'``.
        """
        from . import _arrow

        return _arrow.table(self._table(table), _files.metadata_of(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file that load() reads: numpy's ``.npz``, ``.parquet`` or ``.arrow`` by the suffix.

        The last two need pyarrow (``pip install 'mptcp[arrow]'``), and have the connections in a file beside the one of
        the samples: ``run.connections.parquet`` beside ``run.parquet``. An existing file is replaced.

        Raises ValueError for another suffix.
        """
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
        from ..plot import _panels

        return _panels.plot(self, panels, size, token, direction, window, events)

    def _table(self, table: Table) -> Rows:
        if table not in ("samples", "connections"):
            raise ValueError(f"a table is 'samples' or 'connections', not {table!r}")
        return self.samples if table == "samples" else self.connections


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that Recorder.save() wrote, or that a Recorder streams or has streamed to its ``path``.

    Of a recorder that was killed this reads what it had written: to the last whole batch, and without what is known
    only in the end. ``.parquet`` and ``.arrow`` need pyarrow: ``pip install 'mptcp[arrow]'``.

    Raises ValueError for another suffix and for a file that is no recording or is damaged, OSError, and MemoryError for
    one that is larger than the memory.
    """
    return Recording(*_files.read(path))


def _table(shown: Recording) -> str:
    """What was recorded, and how."""
    metadata, samples, known = shown.metadata, shown.samples, _known
    subflows, connections = (len(set(samples[name].tolist())) for name in ("cookie", "token"))
    seconds = (samples["time_ns"].max() - samples["time_ns"].min()) / 1e9 if len(samples) else 0.0
    rows: list[tuple[str, object]] = [
        ("samples", f"{len(samples):,} of {subflows} subflows of {connections} connections, in {seconds:.2f} s"),
        ("connections", f"{len(shown.connections):,} rows"),
        ("events", f"{len(shown.events):,}"),
        ("interval", f"{known(metadata.get('interval'))} s, {known(metadata.get('missed'))} ticks missed"),
        ("method", f"{known(metadata.get('method'))}, {known(metadata.get('scheduler'))}"),
        ("kernel", known(metadata.get("kernel"))),
    ]
    if metadata.get("failure"):
        rows.append(("failure", metadata["failure"]))
    return _tables.table((), rows)


def _known(value: object) -> object:
    """What the metadata has. Of a recorder that was killed they lack what is known only in the end."""
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else value
