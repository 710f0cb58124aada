"""Traces in files: written by the suffix, read by what the file begins with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .._recording import _files
from . import _event
from ._event import TraceEvent

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from .._recording._arrow import Stream
    from .._rows import Rows


TABLES = ("packets", "connections", "subflows")


def metadata_of(metadata: dict[str, Any], events: list[TraceEvent]) -> dict[str, Any]:
    """Return the metadata and the events as a file stores them."""
    return {**metadata, "trace_events": [_event.written(event) for event in events]}


def _beside(path: Path, table: str) -> Path:
    return path if table == "packets" else path.with_suffix(f".{table}{path.suffix}")


def save(tables: dict[str, Rows], metadata: dict[str, Any], path: str | os.PathLike[str]) -> None:
    path = _files.check(path)
    if path.suffix == ".npz":
        import json

        import numpy as np

        arrays: dict[str, Any] = {**tables, "metadata": np.array(json.dumps(metadata))}
        with _files.replacing(path) as place, place.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return
    from .._recording import _arrow

    for table, rows in tables.items():
        with _files.replacing(_beside(path, table)) as place:
            if path.suffix == ".parquet":
                _arrow.write_parquet(place, rows, metadata)
            else:
                with _arrow.Stream(place, rows.dtype, metadata) as stream:
                    stream.write(rows)


def check(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that grows while captures are read. Raises ValueError for another suffix."""
    return _files.check(path, (".arrow",))


class Streaming:
    """An .arrow file of packets that grows, and the files beside it, which are written at the end."""

    def __init__(self, path: Path, stream: Stream) -> None:
        self._path = path
        self._stream = stream

    def __call__(self, packets: Rows) -> None:
        self._stream.write(packets)

    def finish(self, connections: Rows, subflows: Rows, metadata: dict[str, Any]) -> None:
        """Write what is known only at the end."""
        from .._recording import _arrow

        self._stream.write(self._stream.nothing, metadata)
        for table, rows in (("connections", connections), ("subflows", subflows)):
            with (
                _files.replacing(_beside(self._path, table)) as place,
                _arrow.Stream(place, rows.dtype, {}) as stream,
            ):
                stream.write(rows)


@contextlib.contextmanager
def streaming(path: Path, dtype: np.dtype[np.void]) -> Iterator[Streaming]:
    """Replace the file ``path`` by what is written, when it is complete."""
    from .._recording import _arrow

    with _files.replacing(path) as place, _arrow.Stream(place, dtype, {}) as stream:
        yield Streaming(path, stream)


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as one that save() writes. False if it cannot be read: the reader says why."""
    from pathlib import Path

    # A pipe has no second beginning.
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) in _files.MAGIC


def read(path: str | os.PathLike[str]) -> tuple[Rows, Rows, Rows, list[TraceEvent], dict[str, Any]]:
    """Return the tables, events and metadata of a file that save() wrote. Raises ValueError if it is something else."""
    from pathlib import Path

    path = Path(path)
    try:
        tables, metadata = _READ[_files.format_of(path)](path)
        events = [_event.read(fields) for fields in metadata.pop("trace_events")]
    except (OSError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        # zipfile, numpy and pyarrow raise many exceptions for files that are not theirs.
        raise ValueError(f"{str(path)!r} is not a trace: {error}") from error
    return tables["packets"], tables["connections"], tables["subflows"], events, metadata


Read = tuple[dict[str, "Rows"], dict[str, Any]]


def _read_npz(path: Path) -> Read:
    import json

    import numpy as np

    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {table: file[table] for table in TABLES}, json.loads(str(file["metadata"]))


def _read_tables(path: Path, read: Callable[[Path], tuple[Rows, dict[str, Any]]]) -> Read:
    tables: dict[str, Rows] = {}
    metadata: dict[str, Any] = {}
    for table in TABLES:
        rows, about = read(_beside(path, table))
        tables[table] = rows
        metadata = about if table == "packets" else metadata
    # A stream of a Recorder grows these.
    return tables, {name: value for name, value in metadata.items() if name not in ("events", "subflows")}


def _read_arrow(path: Path) -> Read:
    from .._recording import _arrow

    return _read_tables(path, _arrow.read)


def _read_parquet(path: Path) -> Read:
    from .._recording import _arrow

    return _read_tables(path, _arrow.read_parquet)


_READ: dict[str, Callable[[Path], Read]] = {".npz": _read_npz, ".arrow": _read_arrow, ".parquet": _read_parquet}
