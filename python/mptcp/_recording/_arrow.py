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
    fields = [pa.field(name, pa.from_numpy_dtype(dtype[name]), nullable=False) for name in dtype.names]
    return pa.schema(fields, metadata={KEY: json.dumps(metadata).encode()})


def batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array(np.ascontiguousarray(rows[name])) for name in names(rows)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def table(rows: Rows, metadata: dict[str, Any]) -> pa.Table:
    described = schema(rows.dtype, metadata)
    return pa.Table.from_batches([batch(rows, described)], described)


def rows_of(batches: list[pa.RecordBatch], described: pa.Schema) -> Rows:
    """Return a structured array with the C layout of a Recorder's."""
    dtype = np.dtype([(field.name, field.type.to_pandas_dtype()) for field in described], align=True)
    rows = np.empty(sum(len(each) for each in batches), dtype)
    start = 0
    for each in batches:
        # A damaged file may state wrong sizes of its buffers.
        each.validate()
        for name, column in zip(described.names, each.columns, strict=True):
            if column.null_count:
                raise ValueError(f"the column {name} has missing values")
            rows[name][start : start + len(each)] = column.to_numpy(zero_copy_only=False)
        start += len(each)
    return rows


class Stream:
    """A file in Arrow's stream format that grows by batches. What was written stays readable, whatever happens."""

    def __init__(self, path: Path, dtype: np.dtype[np.void], metadata: dict[str, Any]) -> None:
        self._schema = schema(dtype, metadata)
        self._file = path.open("wb", buffering=0)
        # Compression pays because most columns hardly change from row to row.
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_stream(self._file, self._schema, options=options)
        # The schema is written with the first batch, so this one makes the file readable before there are rows.
        self._writer.write_batch(batch(np.empty(0, dtype), self._schema))

    def write(self, rows: Rows, metadata: dict[str, Any] | None = None) -> None:
        """Write a batch, with the metadata that have become known since the previous one."""
        if metadata:
            self._writer.write_batch(batch(rows, self._schema), custom_metadata={KEY: json.dumps(metadata).encode()})
        elif len(rows):
            self._writer.write_batch(batch(rows, self._schema))

    def close(self) -> None:
        self._writer.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_stream(path: Path) -> tuple[Rows, dict[str, Any]]:
    """Return the rows up to the last whole batch, and the metadata."""
    batches: list[pa.RecordBatch] = []
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_stream(file)
        metadata = json.loads((reader.schema.metadata or {}).get(KEY, b"{}"))
        while True:
            try:
                each, custom = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                break
            except (pa.ArrowInvalid, OSError):
                break  # the writer was killed while it wrote this batch
            batches.append(each)
            if custom is not None and KEY in custom:
                more = json.loads(custom[KEY])
                grown = {name: metadata.get(name, []) + more.get(name, []) for name in GROWING}
                metadata = {**metadata, **more, **grown}
        return rows_of(batches, reader.schema), metadata


def write_parquet(path: Path, rows: Rows, metadata: dict[str, Any]) -> None:
    import pyarrow.parquet as parquet

    parquet.write_table(table(rows, metadata), path)


def read_parquet(path: Path) -> tuple[Rows, dict[str, Any]]:
    import pyarrow.parquet as parquet

    read = parquet.read_table(path)
    metadata = json.loads((read.schema.metadata or {}).get(KEY, b"{}"))
    return rows_of(read.to_batches(), read.schema), metadata
