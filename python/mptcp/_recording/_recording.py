"""What was recorded: arrays, and their conversion for other libraries and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .. import _tables
from .._core import Event
from . import _files

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure

    from .._rows import Direction, Rows
    from ..plot._panels import Panel

Table: TypeAlias = Literal["samples", "connections"]


class Recording:
    """What a Recorder recorded, as load() reads it from a file. A Recorder is one too.

    docs/measuring.md describes the arrays field by field.
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
        """The samples as a structured numpy array, with one row for each subflow and tick.

        Its fields are ``time_ns, wait_ns, token, subflow, cookie, state, local_id, remote_id, backup, final`` and those
        of struct tcp_info without the prefix. Rows of one tick share ``time_ns``, in nanoseconds of CLOCK_MONOTONIC;
        each was read at most ``wait_ns`` nanoseconds later. A field that this kernel lacks is NaN. The row in which
        ``final`` is true has a subflow's last counters. If the kernel had cleared them, it has those of the last
        reading, and ``wait_ns`` is negative: minus the time since that reading.
        """
        return self._samples

    @property
    def connections(self) -> Rows:
        """The connections as a structured numpy array, with one row for each connection and reading.

        Its fields are ``time_ns, wait_ns, token`` and those of struct mptcp_info without the prefix; times are in
        nanoseconds, as in ``samples``. A field that this kernel lacks is NaN.
        """
        return self._connections

    @property
    def events(self) -> list[Event]:
        """The events of the recorded connections, and of links and addresses, with the clock of the arrays.

        They include FALLBACK: a connection that fell back to TCP is still recorded. Without CAP_NET_ADMIN in the user
        namespace that owns the network namespace they come from polling, see Events.
        """
        return self._events

    @property
    def missed(self) -> int:
        """The number of ticks without a reading, because the previous one, or something else, took too long.

        Raises ValueError if the file lacks it because the recorder was killed.
        """
        missed = self.metadata.get("missed")
        if not isinstance(missed, int):
            raise ValueError("the number of missed ticks is unknown: the recorder was killed before it wrote that")
        return missed

    @property
    def metadata(self) -> dict[str, Any]:
        """The conditions on which the numbers depend, as a dict of JSON types.

        - ``kernel``, ``machine``, ``versions``, ``labs``: the host, its software and the open labs.
        - ``namespaces``: a list of the recorded connections' network namespaces, each with its ``cookie``, the
          ``tokens`` of its connections, None for all, and its ``sysctls``.
        - ``interval``, ``connection_interval``: in seconds.
        - ``method``, ``method_reason``: how subflows are read, or were read last, and why.
        - ``method_trials``: what "auto" measured for each method: the processor time of one reading of everything, the
          number of subflows that it showed, and whether it waited for a lock.
        - ``scheduler``: SCHED_FIFO if the thread that reads subflows runs under it, otherwise SCHED_OTHER.
        - ``start_ns``: CLOCK_MONOTONIC at the start, in nanoseconds.
        - ``realtime_offset_ns``, ``realtime_offset_end_ns``: CLOCK_REALTIME minus CLOCK_MONOTONIC at the start and at
          the end, in nanoseconds. The second is None until then.
        - ``subflows``: a list of the ends of each subflow, with its cookie and token.
        - ``links``: what each link of the open labs had done in each direction at the end, as in LinkStats.
        - ``ticks``, ``missed``: how many readings of the subflows were done, and how many were due but not done.
        - ``dropped``: how many rows were lost because they could not be written in time.
        - ``notices_lost``: whether some subflows may lack their final row.
        - ``failure``: the error of the first reading that failed, or None.
        - ``complete``: there, and False, only if the recorder was killed or the file was cut.
        """
        return self._metadata

    def to_pandas(self, table: Literal["samples", "connections", "events"] = "samples") -> pandas.DataFrame:
        """Return the samples, the connections or the events as a pandas DataFrame.

        The columns of the arrays are views of them. ``time_s`` is added: seconds since the recording's start, as
        float64. The samples and events also have, as categories: ``local`` and ``remote``, a subflow's addresses and
        ports, and, where the recording was made in a lab, ``link``, ``host`` and ``peer``, the names of its link and of
        the hosts at its local and its remote end. An event has a column for each attribute; what events of its kind do
        not have is missing.

        The metadata is in the frame's ``attrs``. Needs pandas: ``pip install 'mptcp[pandas]'``. Raises ValueError for
        another ``table``.
        """
        if table not in ("samples", "connections", "events"):
            raise ValueError(f"table must be 'samples', 'connections' or 'events', not {table!r}")
        from . import _frames

        frame = {"samples": _frames.samples, "connections": _frames.connections, "events": _frames.events}[table](self)
        frame.attrs["mptcp"] = self.metadata
        return frame

    def to_arrow(self, table: Table = "samples") -> pyarrow.Table:
        """Return the samples, or the connections, as a pyarrow Table: a copy, as Arrow stores columns separately.

        The metadata is in its schema. Needs pyarrow: ``pip install 'mptcp[arrow]'``. Raises ValueError if ``table`` is
        neither "samples" nor "connections".
        """
        from . import _arrow

        return _arrow.table(self._table(table), _files.metadata_of(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file that load() reads: numpy's ``.npz``, ``.parquet`` or ``.arrow`` by the suffix.

        The last two need pyarrow (``pip install 'mptcp[arrow]'``), and have the connections in a second file beside
        that of the samples: ``run.connections.parquet`` beside ``run.parquet``. An ``.arrow`` file is in Arrow's file
        format, in batches of 65,536 rows. An existing file is replaced when the new one is complete.

        Raises ValueError for another suffix.
        """
        _files.save(self, path)

    def to_qlog(self, path: str | os.PathLike[str]) -> None:
        """Write a qlog file (version 0.3, JSON), for qvis: a trace of each connection and of each of its subflows.

        They have the metrics of congestion control, the congestion state and the events. What was sent or received
        between two samples is one packet, because a recording has no others. docs/traces.md has the events. ``path``
        must end with .qlog or .json; an existing file is replaced when the new one is complete.

        Raises ValueError for another suffix, and OSError.
        """
        from . import _qlog

        with _files.replacing(_files.check(path, _files.QLOG)) as place, place.open("w", encoding="ascii") as file:
            _qlog.write(file, self)

    def plot(
        self,
        panels: Panel | Sequence[Panel] | None = None,
        *,
        size: tuple[float, float] | None = None,
        token: int | None = None,
        direction: Direction | None = None,
        window: float | None = None,
        events: bool = True,
    ) -> Figure:
        """Draw plots of mptcp.plot, named by ``panels``, one above the other on a new pyplot figure, and return it.

        By default those are "goodput", "rtt", "cwnd" and "share" if more bytes were sent, and "goodput", "rcv_rtt",
        "rcv_wnd" and "share", which are what a receiver has, if more were received. ``size`` is its width and height in
        inches, ``window`` is in seconds; the other arguments are as in mptcp.plot. Needs matplotlib:
        ``pip install 'mptcp[plot]'``. Raises ValueError for an unknown panel, and for a recording without samples.
        """
        from ..plot import _panels

        return _panels.plot(self, panels, size, token, direction, window, events)

    def _table(self, table: Table) -> Rows:
        if table not in ("samples", "connections"):
            raise ValueError(f"table must be 'samples' or 'connections', not {table!r}")
        return self.samples if table == "samples" else self.connections


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that Recorder.save() wrote, or that a Recorder streams or has streamed to its ``path``.

    The format is that of the file's content. If the recorder was killed, or the file was cut, this reads up to the last
    whole batch, without what is known only at the end, and ``metadata["complete"]`` is False. ``.parquet`` and
    ``.arrow`` need pyarrow: ``pip install 'mptcp[arrow]'``.

    Raises ValueError for another suffix and for a file that is not a recording or is damaged, OSError, and MemoryError
    for one that is larger than the memory.
    """
    return Recording(*_files.read(path))


def _table(shown: Recording) -> str:
    """Return an HTML table of what was recorded, and how."""
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
    """Format a value of the metadata, which lack what is known only at the end if the recorder was killed."""
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else value
