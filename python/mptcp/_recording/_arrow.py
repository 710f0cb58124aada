"""Arrow tables and streams of structured arrays. Needs pyarrow, which only this module imports."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

try:
    import pyarrow as pa
    import pyarrow.ipc
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Arrow files and tables need pyarrow: pip install 'mptcp[arrow]'", name="pyarrow"
    ) from error

from .._rows import names

if TYPE_CHECKING:
    from .._rows import Rows

# The first call imports pandas, if it is installed: that takes seconds, in which a recording would lose rows.
pa.array(np.empty(0))

KEY = b"mptcp"
"""The key of the metadata, as JSON, in the schema and, as more becomes known, in the batches of a stream."""

GROWING = ("events", "subflows")
"""The lists to which a batch's metadata is appended. Everything else it replaces."""


def schema(dtype: np.dtype[np.void], metadata: dict[str, Any]) -> pa.Schema:
    assert dtype.names is not None
    fields = [pa.field(name, _type(dtype[name]), nullable=False) for name in dtype.names]
    return pa.schema(fields, metadata={KEY: json.dumps(metadata).encode()})


def _type(dtype: np.dtype[Any]) -> pa.DataType:
    return pa.string() if dtype.kind == "U" else pa.from_numpy_dtype(dtype)


def batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array(np.ascontiguousarray(rows[name])) for name in names(rows)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def table(rows: Rows, metadata: dict[str, Any]) -> pa.Table:
    described = schema(rows.dtype, metadata)
    return pa.Table.from_batches([batch(rows, described)], described)


class _Rows:
    """A structured array with the C layout of a Recorder's, which grows by batches: only one of these is in memory."""

    def __init__(self, described: pa.Schema) -> None:
        self._names = described.names
        dtype = np.dtype([(field.name, _numpy(field.type)) for field in described], align=True)
        self.rows: Rows = np.empty(0, dtype)

    def add(self, each: pa.RecordBatch) -> None:
        # A damaged file may state wrong sizes of its buffers.
        each.validate()
        start = len(self.rows)
        # Large arrays grow by mremap(), which copies nothing. Nobody else has a view of them yet.
        self.rows.resize(start + len(each), refcheck=False)
        for name, column in zip(self._names, each.columns, strict=True):
            if column.null_count:
                raise ValueError(f"the column {name} has missing values")
            self.rows[name][start:] = column.to_numpy(zero_copy_only=False)


def _numpy(kind: pa.DataType) -> Any:
    """Return the numpy type of a column. Texts are addresses, of which the longest has 39 characters."""
    return "U39" if pa.types.is_string(kind) else kind.to_pandas_dtype()


MAGIC = b"ARROW1"
"""What a file in Arrow's file format begins with, and ends with once it is complete."""

_ALIGNED = 8  # bytes from the beginning, after which the file format has a stream
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS = 1 << 16  # in a batch at most, of which the memory has one beside the rows


class Stream:
    """A file in Arrow's file format that grows by batches.

    It has a footer when it is closed, which other readers need. Before that, and whatever happens, read() reads what
    was written: up to the footer the format is that of a stream.
    """

    def __init__(self, path: Path, dtype: np.dtype[np.void], metadata: dict[str, Any]) -> None:
        self._schema = schema(dtype, metadata)
        self.nothing: Rows = np.empty(0, dtype)
        self._file = path.open("wb", buffering=0)
        # Compression pays because most columns hardly change from row to row.
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(self._file, self._schema, options=options)
        # The schema is written with the first batch, so this one makes the file readable before there are rows.
        self._writer.write_batch(batch(self.nothing, self._schema))

    def write(self, rows: Rows, metadata: dict[str, Any] | None = None) -> None:
        """Write a batch, with the metadata that have become known since the previous one."""
        if metadata:
            first, rows = rows[:_ROWS], rows[_ROWS:]
            self._writer.write_batch(batch(first, self._schema), custom_metadata={KEY: json.dumps(metadata).encode()})
        for start in range(0, len(rows), _ROWS):
            self._writer.write_batch(batch(rows[start : start + _ROWS], self._schema))

    def close(self) -> None:
        self._writer.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> tuple[Rows, dict[str, Any]]:
    """Return the rows up to the last whole batch, and the metadata, of a file in Arrow's file or stream format.

    The metadata has ``complete``, which is False, if the file lacks its end.
    """
    with pa.memory_map(str(path)) as file:
        is_file = file.read(len(MAGIC)) == MAGIC
        end = MAGIC if is_file else _END_OF_STREAM
        size = file.size()
        file.seek(max(0, size - len(end)))
        complete = file.read(len(end)) == end and size > len(end)
        file.seek(_ALIGNED if is_file else 0)
        reader = pa.ipc.open_stream(file)
        metadata = json.loads((reader.schema.metadata or {}).get(KEY, b"{}"))
        found = _Rows(reader.schema)
        while True:
            try:
                each, custom = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            except (pa.ArrowInvalid, OSError):
                complete = False  # the writer was killed while it wrote this batch
                break
            found.add(each)
            if custom is not None and KEY in custom:
                more = json.loads(custom[KEY])
                grown = {name: metadata.get(name, []) + more.get(name, []) for name in GROWING}
                metadata = {**metadata, **more, **grown}
        if not complete:
            metadata = {**metadata, "complete": False}
        return found.rows, metadata


def write_parquet(path: Path, rows: Rows, metadata: dict[str, Any]) -> None:
    import pyarrow.parquet as parquet

    described = schema(rows.dtype, metadata)
    with parquet.ParquetWriter(path, described) as writer:
        for start in range(0, len(rows), _ROWS):
            writer.write_batch(batch(rows[start : start + _ROWS], described))


def read_parquet(path: Path) -> tuple[Rows, dict[str, Any]]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        described = file.schema_arrow
        found = _Rows(described)
        for each in file.iter_batches(_ROWS):
            found.add(each)
    return found.rows, json.loads((described.metadata or {}).get(KEY, b"{}"))
