"""Recordings in files, in one of three formats: written by the suffix, read by what the file begins with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._core import Event
from .._event_kind import EventKind

# json and pathlib are imported where they are needed: they would add an eighth to the time of `import mptcp`.
if TYPE_CHECKING:
    from pathlib import Path

    from .._rows import Recorded, Rows

SUFFIXES = (".npz", ".parquet", ".arrow")
# Those that qvis opens.
QLOG = (".qlog", ".json")

# The columns before those of the kernel's structures: src/samples/row.rs.
CONNECTIONS_HEAD = ("time_ns", "wait_ns", "token")
SAMPLES_HEAD = (*CONNECTIONS_HEAD, "subflow", "cookie", "state", "local_id", "remote_id", "backup", "final")


def check(path: str | os.PathLike[str], suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    from pathlib import Path

    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or a PathLike, not {path!r}")
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"the file's suffix must be {' or '.join(suffixes)}: {str(path)!r}")
    return path


def beside(path: Path) -> Path:
    """Return where the connections are if the samples are at ``path``."""
    return path.with_suffix(f".connections{path.suffix}")


def save(recording: Recorded, path: str | os.PathLike[str]) -> None:
    path = check(path)
    samples, connections = recording.samples, recording.connections
    metadata = metadata_of(recording)
    if path.suffix == ".npz":
        import json

        import numpy as np

        # Replaced when it is complete: a file of this name may be what this recording is read from.
        with replacing(path) as place, place.open("wb") as file:
            np.savez_compressed(file, samples=samples, connections=connections, metadata=np.array(json.dumps(metadata)))
        return
    from . import _arrow

    for rows, name in ((samples, path), (connections, beside(path))):
        with replacing(name) as place:
            if path.suffix == ".parquet":
                _arrow.write_parquet(place, rows, metadata)
            else:
                with _arrow.Stream(place, rows.dtype, metadata) as stream:
                    stream.write(rows)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the place of a new file, which replaces ``path`` at the end, or vanishes if something goes wrong."""
    place = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield place
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def metadata_of(recording: Recorded) -> dict[str, Any]:
    """Return the metadata and the events as a file stores them."""
    return {**recording.metadata, "events": [written(event) for event in recording.events]}


def written(event: Event) -> dict[str, Any]:
    return {
        name: value.value if name == "kind" else value for name, value in event.asdict().items() if value is not None
    }


def read_event(fields: dict[str, Any]) -> Event:
    """Return the event of which a file has these fields."""
    ends: dict[str, Any] = {name: tuple(fields[name]) for name in ("local", "remote") if name in fields}
    return Event(**{**fields, **ends, "kind": EventKind(fields["kind"])})


def read(path: str | os.PathLike[str]) -> tuple[Rows, Rows, list[Event], dict[str, Any]]:
    """Return the samples, connections, events and metadata of a file. Its errors are those of load()."""
    path = check(path)
    try:
        samples, connections, metadata = _READ[format_of(path)](path)
        _check_rows("samples", samples, SAMPLES_HEAD)
        _check_rows("connections", connections, CONNECTIONS_HEAD)
        events = [read_event(fields) for fields in metadata.pop("events", [])]
    except (OSError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        # zipfile, numpy and pyarrow raise many exceptions for files that are not theirs.
        raise ValueError(f"{str(path)!r} is not a recording: {error}") from error
    return samples, connections, events, metadata


Read = tuple["Rows", "Rows", dict[str, Any]]

MAGIC = {b"PK\3\4": ".npz", b"PAR1": ".parquet", b"ARRO": ".arrow"}


def format_of(path: Path) -> str:
    """Return the suffix of the format of a file: a recorder that was killed leaves Arrow's under any name."""
    with path.open("rb") as file:
        return MAGIC.get(file.read(4), path.suffix)


def _load_npz(path: Path) -> Read:
    import json

    import numpy as np

    # Opened here, because numpy leaves a damaged one open.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return file["samples"], file["connections"], json.loads(str(file["metadata"]))


def _load_arrow(path: Path) -> Read:
    from . import _arrow

    samples, metadata = _arrow.read(path)
    connections, about = _arrow.read(beside(path))
    return samples, connections, {**metadata, **({} if about.get("complete", True) else {"complete": False})}


def _load_parquet(path: Path) -> Read:
    from . import _arrow

    samples, metadata = _arrow.read_parquet(path)
    return samples, _arrow.read_parquet(beside(path))[0], metadata


_READ = {".npz": _load_npz, ".arrow": _load_arrow, ".parquet": _load_parquet}


def _check_rows(what: str, rows: Rows, head: tuple[str, ...]) -> None:
    names = rows.dtype.names or ()
    if rows.ndim != 1 or names[: len(head)] != head:
        raise ValueError(f"the {what} must begin with the columns {', '.join(head)}")
    for name in names:
        if rows.dtype[name].kind not in "biuf":
            raise ValueError(f"{name} of the {what} is not a number")
