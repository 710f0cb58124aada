"""A trace: arrays, and their conversion for other libraries and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .._rows import names
from . import _files
from ._event import TraceEvent
from ._files import TABLES

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from .._rows import Rows

Table: TypeAlias = Literal["packets", "connections", "subflows"]


class Trace:
    """What captures or tracepoints tell of connections, segment by segment: of read_trace() or a Tracer.

    docs/traces.md describes the arrays column by column.
    """

    def __init__(
        self,
        packets: Rows | Path,
        connections: Rows,
        subflows: Rows,
        events: list[TraceEvent],
        metadata: dict[str, Any],
    ) -> None:
        # A path is that of an .arrow file, which is read when somebody asks for the packets.
        self._packets = packets
        self._connections = connections
        self._subflows = subflows
        self._events = events
        self._metadata = metadata

    def __repr__(self) -> str:
        count = (
            f"packets in {str(self._packets)!r}" if isinstance(self._packets, Path) else f"{len(self._packets)} packets"
        )
        return (
            f"<{type(self).__name__} {count} of {len(self.subflows)} subflows and {len(self.connections)} connections>"
        )

    @property
    def packets(self) -> Rows:
        """The segments with data as a structured numpy array, one row for each segment.

        A segment that is partly new is two rows. Its fields are ``time_ns, capture, token, subflow, direction, dsn,
        length, retransmitted, reinjected, data_acked_ns, data_delivered_ns, received_ns, connection, sequence``. Times
        are in nanoseconds since 1970, -1 if not known; ``dsn`` counts the bytes from the connection's first.
        """
        if isinstance(self._packets, Path):
            self._packets = _files.read(self._packets)[0]
        return self._packets

    @property
    def connections(self) -> Rows:
        """The connections as a structured numpy array. Columns that end in _0 or _1 are of that direction or side."""
        return self._connections

    @property
    def subflows(self) -> Rows:
        """The subflows as a structured numpy array. Columns that end in _0 or _1 are of that direction or side."""
        return self._subflows

    @property
    def events(self) -> list[TraceEvent]:
        """The options other than DSS, each time one was captured; the first DATA_FIN of each subflow and direction; and
        fallbacks to TCP. They are in the order in which they were captured."""
        return self._events

    @property
    def metadata(self) -> dict[str, Any]:
        """What was read, as a dict of JSON types.

        - ``captures``: a list of the interfaces of the files, each with its ``path``, ``interface`` (None where the
          file does not name it), ``link_type``, the number of ``frames``, how many of them were ``cut`` by a snap
          length, how many the capturing program says it ``dropped`` (None if it does not), and as ``damage`` why the
          file could not be read to its end, or None.
        - ``counts``: of all that was captured, Multipath TCP or not: ``frames``, TCP ``segments``, IP ``fragments``,
          headers or options that were ``cut``, frames of an ``unknown_link`` type, ``duplicates`` (segments seen at a
          third place, or twice on one host), ``malformed`` options, and ``options`` by their names. Not of a Tracer.
        - ``tracepoints``, of a Tracer only: how many records were ``lost`` and how many senders are ``unknown``.
        """
        return self._metadata

    def to_pandas(self, table: Table = "packets") -> pandas.DataFrame:
        """Return the packets, connections or subflows as a pandas DataFrame whose columns are views of the array.

        The metadata is in its ``attrs``. Needs pandas: ``pip install 'mptcp[pandas]'``. Raises ValueError if ``table``
        is not "packets", "connections" or "subflows".
        """
        rows = self._table(table)
        import pandas

        frame = pandas.DataFrame({name: rows[name] for name in names(rows)}, copy=False)
        frame.attrs["mptcp"] = self.metadata
        return frame

    def to_arrow(self, table: Table = "packets") -> pyarrow.Table:
        """Return the packets, connections or subflows as a pyarrow Table: a copy, as Arrow stores columns separately.

        The metadata and the events are in its schema. Needs pyarrow: ``pip install 'mptcp[arrow]'``. Raises ValueError
        if ``table`` is not "packets", "connections" or "subflows".
        """
        from .._recording import _arrow

        return _arrow.table(self._table(table), _files.metadata_of(self.metadata, self.events))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file for read_trace(): numpy's ``.npz``, ``.parquet`` or ``.arrow`` by the suffix.

        The last two need pyarrow (``pip install 'mptcp[arrow]'``), and have the connections and subflows in files
        beside that of the packets: ``run.connections.parquet`` and ``run.subflows.parquet`` beside ``run.parquet``. An
        existing file is replaced when the new one is complete.

        Raises ValueError for another suffix.
        """
        tables = {table: getattr(self, table) for table in TABLES}
        _files.save(tables, _files.metadata_of(self.metadata, self.events), path)

    def to_qlog(self, path: str | os.PathLike[str]) -> None:
        """Write a qlog file (version 0.3, JSON), for qvis: a trace of each connection and of each of its subflows.

        Each is seen from the side that sent more data. docs/traces.md has the events. ``path`` must end with .qlog or
        .json; an existing file is replaced when the new one is complete.

        Raises ValueError for another suffix, and OSError.
        """
        from .._recording import _files as files
        from . import _qlog

        with files.replacing(files.check(path, files.QLOG)) as place, place.open("w", encoding="ascii") as file:
            _qlog.write(file, self, self.events)

    def _table(self, table: Table) -> Rows:
        if table not in TABLES:
            raise ValueError(f"table must be 'packets', 'connections' or 'subflows', not {table!r}")
        rows: Rows = getattr(self, table)
        return rows
