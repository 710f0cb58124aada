"""Reading captures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from .._core import TraceReader
from . import _files
from ._event import TraceEvent
from ._trace import Trace

if TYPE_CHECKING:
    from .._rows import Rows

# Between two batches of this many packets, Python handles signals.
_BATCH = 100_000


def read_trace(*paths: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Trace:
    """Read captures of Multipath TCP, or a trace that Trace.save() wrote, and return a Trace.

    Captures are files in the pcap or pcapng format, of Ethernet, Linux cooked (SLL, SLL2), raw IP and loopback
    interfaces; "-" is standard input. Those of several interfaces, links or hosts are merged by the times of their
    packets, so their clocks must agree: where both ends of a subflow were captured, a segment is one row, with the time
    at which it left and the one at which it arrived. Neither root nor a capture from the beginning is needed: what
    cannot be known then is marked, see docs/traces.md. A file that ends within a packet is read up to there, and
    ``metadata["captures"]`` tells.

    Memory grows with the segments with data, 72 bytes for each, and with the options. With ``path``, an ``.arrow``
    file, the packets are written there while the captures are read, and only those not yet acknowledged are held in
    memory; ``Trace.packets`` then reads that file. It needs pyarrow: ``pip install 'mptcp[arrow]'``.

    Raises ValueError if a file is not a capture or is compressed, or if ``path`` has another suffix, and OSError.
    """
    from . import _types

    if not paths:
        raise TypeError("read_trace() needs at least one path")
    for each in paths:
        if not isinstance(each, str | os.PathLike):
            raise TypeError(f"path must be a str or a PathLike, not {each!r}")
        if "\0" in str(each):
            raise ValueError(f"path must not contain a NUL character: {each!r}")
    if path is not None:
        path = _files.check(path)
    if len(paths) == 1 and _files.is_saved(paths[0]):
        trace = Trace(*_files.read(paths[0]))
        if path is not None:
            trace.save(path)
        return trace
    reader = TraceReader([os.fspath(each) for each in paths])
    if path is None:
        while _read(reader):
            pass
        packets = reader.take_packets(True)
        return Trace(packets, *_rest(reader))
    with _files.streaming(path, _types.PACKETS) as write:
        while _read(reader):
            write(reader.take_packets(False))
        write(reader.take_packets(True))
        connections, subflows, events, metadata = _rest(reader)
        write.finish(connections, subflows, _files.metadata_of(metadata, events))
    return Trace(path, connections, subflows, events, metadata)


def _read(reader: TraceReader) -> bool:
    """Read some packets and return whether there may be more."""
    while True:
        try:
            return reader.read(_BATCH)
        except InterruptedError:
            # By a signal while a pipe had nothing to read: its handler runs now.
            continue


def _rest(reader: TraceReader) -> tuple[Rows, Rows, list[TraceEvent], dict[str, Any]]:
    """Return the connections, subflows, events and metadata of captures that were read."""
    return tables_of(reader, {"captures": reader.captures(), "counts": reader.counts()})


class _Tables(Protocol):
    """What has read or traced segments."""

    def tables(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]: ...
    def take_events(self) -> list[tuple[str, int, int, int, int, int, dict[str, Any]]]: ...


def tables_of(reader: _Tables, metadata: dict[str, Any]) -> tuple[Rows, Rows, list[TraceEvent], dict[str, Any]]:
    """Return the connections, subflows and events, and the metadata as given."""
    from . import _types

    connections, subflows = reader.tables()
    rows = _types.array(connections, _types.CONNECTIONS)
    events = [_event(*each, rows["token"]) for each in reader.take_events()]
    if not metadata["captures"]:
        events = [event._replace(capture=-1) for event in events]
    return rows, _types.array(subflows, _types.SUBFLOWS), events, metadata


def _event(
    kind: str,
    time_ns: int,
    capture: int,
    connection: int,
    subflow: int,
    direction: int,
    details: dict[str, Any],
    tokens: Any,
) -> TraceEvent:
    return TraceEvent(kind, time_ns, int(tokens[connection]), connection, subflow, direction, capture, details)
