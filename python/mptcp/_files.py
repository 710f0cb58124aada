"""Recordings in files: one of the three forms by the suffix."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._recording import Recording, read_event

if TYPE_CHECKING:
    from ._recording import Rows

SUFFIXES = (".npz", ".parquet", ".arrow")


def check(path: str | os.PathLike[str], suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a path is a str or a PathLike, not {path!r}")
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"the file's suffix is one of {', '.join(suffixes)}: {str(path)!r}")
    return path


def beside(path: Path) -> Path:
    """Where the connections are, if the samples are at ``path``."""
    return path.with_suffix(f".connections{path.suffix}")


def save(recording: Recording, path: str | os.PathLike[str]) -> None:
    path = check(path)
    samples, connections = recording.samples, recording.connections
    metadata = recording._metadata_of_file()
    if path.suffix == ".npz":
        import numpy as np

        with path.open("wb") as file:
            np.savez_compressed(file, samples=samples, connections=connections, metadata=np.array(json.dumps(metadata)))
        return
    from . import _arrow

    for rows, place in ((samples, path), (connections, beside(path))):
        if path.suffix == ".parquet":
            _arrow.write_parquet(place, rows, metadata)
        else:
            with _arrow.Stream(place, rows.dtype, metadata) as stream:
                stream.write(rows)


def load(path: str | os.PathLike[str]) -> Recording:
    """Read a recording that Recorder.save() wrote, or that a Recorder streams or has streamed to its ``path``.

    Of a recorder that was killed this reads what it had written: to the last whole batch, and without what is known
    only in the end. ``.parquet`` and ``.arrow`` need pyarrow: ``pip install 'mptcp[arrow]'``.

    Raises ValueError for another suffix and for a file that is no recording, and OSError.
    """
    path = check(path)
    if path.suffix == ".npz":
        samples, connections, metadata = _load_npz(path)
    else:
        from . import _arrow

        read = _arrow.read_parquet if path.suffix == ".parquet" else _arrow.read_stream
        samples, metadata = read(path)
        connections, _ = read(beside(path))
    if "time_ns" not in (samples.dtype.names or ()):
        raise ValueError(f"{str(path)!r} is no recording")
    events = [read_event(fields) for fields in metadata.pop("events", [])]
    return Recording(samples, connections, events, metadata)


def _load_npz(path: Path) -> tuple[Rows, Rows, dict[str, Any]]:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        try:
            return file["samples"], file["connections"], json.loads(str(file["metadata"]))
        except KeyError as error:
            raise ValueError(f"{str(path)!r} is no recording: {error.args[0]}") from None
