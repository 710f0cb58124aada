"""Recordings that something has damaged, or that somebody has made up: load() reads them or refuses them as it says.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import io
import itertools
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mptcp._recording import _files
from support import descriptors, eventually, exchange

Damage = Callable[[bytes], bytes]

# What the end of a length field may be told to be: ends of C's types, and more than any memory has.
LENGTHS = [0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


class Files(dict[str, bytes]):
    """The files of a recording by their names."""

    def __repr__(self) -> str:
        # Hypothesis prints what a test was given.
        return ", ".join(self)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A short recording in every form, by the names of its files."""
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    folder = tmp_path_factory.mktemp("recorded")
    with (
        mptcp.create_server(("127.0.0.1", 0)) as listener,
        mptcp.create_connection(listener.getsockname(), timeout=10) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            exchange(sock, peer)
            with mptcp.Recorder(sock, 0.001, connection_interval=0.01) as recorder:
                assert eventually(lambda: recorder.metadata["ticks"] > 20 and len(recorder.connections) > 3, 30)
    for suffix in _files.SUFFIXES:
        recorder.save(folder / f"run{suffix}")
    return Files({path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


numbers = itertools.count()


def loaded(folder: Path, files: dict[str, bytes], suffix: str) -> mptcp.Recording | None:
    """What load() makes of the files, all of which can be used then, or None if it refuses them as documented."""
    # Names of their own: what is mapped into memory is not written again.
    name = f"{next(numbers)}"
    paths = []
    for old, data in files.items():
        if old.endswith(suffix):
            paths.append(folder / old.replace("run", name, 1))
            paths[-1].write_bytes(data)
    holding = descriptors()
    try:
        recording = mptcp.load(folder / f"{name}{suffix}")
    except (ValueError, OSError, MemoryError):
        recording = None
    else:
        _use(recording)
    for path in paths:
        path.unlink()
    assert eventually(lambda: descriptors() <= holding)
    return recording


def _use(recording: mptcp.Recording) -> None:
    assert repr(recording)
    assert recording._repr_html_()
    for rows in (recording.samples, recording.connections):
        # Every byte is read, and every field is a number.
        for name in rows.dtype.names or ():
            rows[name].copy()
            assert rows.dtype[name].kind in "biuf"
    assert isinstance(recording.metadata, dict)
    for event in recording.events:
        assert repr(event)


def overwritten(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data) or 1
    return data[:at] + new + data[at + len(new) :]


places = st.one_of(st.integers(0, 200), st.integers(0, 1 << 20), st.integers(0, 200).map(lambda back: -1 - back))
sizes = st.tuples(st.sampled_from(["<H", "<I", "<Q", ">I", ">Q"]), st.sampled_from(LENGTHS)).map(
    lambda size: struct.pack(size[0], size[1] & (1 << 8 * struct.calcsize(size[0])) - 1)
)
damage: st.SearchStrategy[Damage] = st.one_of(
    places.map(lambda at: lambda data: data[: at % (len(data) or 1)]),
    places.map(lambda at: lambda data: data[at % (len(data) or 1) :]),
    st.tuples(places, st.binary(min_size=1, max_size=8)).map(lambda it: lambda data: overwritten(data, *it)),
    st.tuples(places, sizes).map(lambda it: lambda data: overwritten(data, *it)),
    st.tuples(places, st.integers(0, 7)).map(
        lambda it: lambda data: overwritten(data, it[0], bytes([data[it[0] % len(data)] ^ 1 << it[1]])) if data else b""
    ),
    st.binary(max_size=300).map(lambda made_up: lambda data: made_up),
)
damages = st.lists(damage, min_size=1, max_size=3)


def damaged(data: bytes, damages: list[Damage]) -> bytes:
    for each in damages:
        data = each(data)
    return data


@pytest.mark.parametrize(
    "name", ["run.npz", "run.arrow", "run.connections.arrow", "run.parquet", "run.connections.parquet"]
)
@given(damages=damages)
def test_a_damaged_file(recorded: Files, folder: Path, name: str, damages: list[Damage]) -> None:
    loaded(folder, {**recorded, name: damaged(recorded[name], damages)}, Path(name).suffix)


@pytest.mark.parametrize("name", ["run.npz", "run.arrow", "run.parquet"])
def test_a_whole_file(recorded: Files, folder: Path, name: str) -> None:
    recording = loaded(folder, recorded, Path(name).suffix)
    assert recording is not None
    assert len(recording.samples) > 20


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


@pytest.mark.parametrize("member", ["samples", "connections", "metadata"])
@given(damages=damages)
def test_a_damaged_array_in_a_sound_archive(recorded: Files, folder: Path, member: str, damages: list[Damage]) -> None:
    with zipfile.ZipFile(io.BytesIO(recorded["run.npz"])) as archive:
        members = {name: archive.read(f"{name}.npy") for name in ("samples", "connections", "metadata")}
    members[member] = damaged(members[member], damages)
    loaded(folder, {"run.npz": zipped(members)}, ".npz")


arrays = st.sampled_from(
    [
        np.zeros(()),
        np.zeros(3),
        np.zeros((2, 2), [("time_ns", "i8")]),
        np.zeros(0, [("time_ns", "i8")]),
        np.zeros(2, [("time_ns", "i8"), ("token", "U4")]),
        np.zeros(2, [("time_ns", "i8"), ("token", "V4"), ("cookie", "c16")]),
        np.zeros(2, [("time_ns", "M8[ns]"), ("token", [("deep", "i8", (2,))])]),
        np.array("text"),
    ]
)


def holding(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=9), inside, max_size=3)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
jsons = leaves | holding(leaves | holding(leaves))
odd_events = st.lists(
    st.fixed_dictionaries(
        {}, optional={name: jsons for name in ("kind", "time_ns", "token", "local", "remote", "backup", "nonsense")}
    )
    | jsons,
    max_size=3,
)
odd_metadata = st.fixed_dictionaries(
    {},
    optional={"events": odd_events | jsons, **dict.fromkeys(("missed", "interval", "kernel", "scheduler"), jsons)},
)


@given(samples=arrays, connections=arrays, metadata=jsons | odd_metadata)
def test_made_up_arrays(folder: Path, samples: Any, connections: Any, metadata: object) -> None:
    file = io.BytesIO()
    np.savez(file, samples=samples, connections=connections, metadata=np.array(json.dumps(metadata)))
    loaded(folder, {"run.npz": file.getvalue()}, ".npz")


@pytest.mark.parametrize("suffix", _files.SUFFIXES)
@given(metadata=jsons | odd_metadata)
def test_made_up_metadata(recorded: Files, folder: Path, suffix: str, metadata: Any) -> None:
    place = folder / f"{next(numbers)}{suffix}"
    if suffix == ".npz":
        with np.load(io.BytesIO(recorded["run.npz"])) as file:
            np.savez(place, **{**file, "metadata": np.array(json.dumps(metadata))})
    else:
        from mptcp._recording import _arrow

        read = _arrow.read_parquet if suffix == ".parquet" else _arrow.read
        (folder / f"whole{suffix}").write_bytes(recorded[f"run{suffix}"])
        rows, _ = read(folder / f"whole{suffix}")
        if suffix == ".parquet":
            _arrow.write_parquet(place, rows, metadata)
        else:
            with _arrow.Stream(place, rows.dtype, metadata) as stream:
                stream.write(rows)
    made_up = {f"run{suffix}": place.read_bytes()}
    loaded(folder, {**recorded, **made_up}, suffix)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@given(columns=st.dictionaries(st.text(max_size=9) | st.just("time_ns"), st.sampled_from(range(7)), max_size=4))
def test_made_up_columns(recorded: Files, folder: Path, suffix: str, columns: dict[str, int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    of_kind = [
        pa.array(["text", None]),
        pa.array([[1], None]),
        pa.array([{"a": 1}, None]),
        pa.array([1, None]),
        pa.nulls(2),
        pa.array([b"bytes", b""]).dictionary_encode(),
        pa.array([1, 2], pa.timestamp("ns")),
    ]
    try:
        table = pa.table({name: of_kind[kind] for name, kind in columns.items()})
    except UnicodeError:
        return  # a name that Arrow has not either
    sink = io.BytesIO()
    if suffix == ".parquet":
        parquet.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    loaded(folder, {**recorded, f"run{suffix}": sink.getvalue()}, suffix)
