"""qlog files: the part that a trace and a recording have in common. docs/traces.md says what each event means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

# The main schema's version 0.3 (draft-ietf-quic-qlog-main-schema), which qvis reads; it does not read 0.4.
_VERSION = "0.3"
# What JavaScript reads as it is written. The drafts allow a string in place of a larger number.
_LARGEST = (1 << 53) - 1

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class Log(NamedTuple):
    """One trace of a file: where it was seen, and its events in order of time."""

    title: str
    vantage_point: str
    """ "client" for the connecting side, "server" for the other, or "unknown"."""
    group: str
    events: Iterable[dict[str, Any]]


class Clock:
    """Times of events: milliseconds since a moment that is given in nanoseconds since 1970."""

    def __init__(self, start_ns: int, offset_ns: int = 0) -> None:
        self._start_ns = start_ns
        self.reference_ms = (start_ns + offset_ns) / 1e6

    def event(self, time_ns: int, name: str, data: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Return an event. ``fields`` are our own, which the schema allows beside its own."""
        # Only clocks that do not agree give times before the start.
        return {"time": round(max(time_ns - self._start_ns, 0) / 1e6, 6), "name": name, "data": data, **fields}


def write(file: IO[str], title: str, clock: Clock, logs: Iterable[Log]) -> None:
    """Write a file of the traces, event by event, so that little memory is enough."""
    # qvis looks for these two in the first 1,024 characters.
    head = {"qlog_version": _VERSION, "qlog_format": "JSON", "title": title}
    file.write(_text(head)[:-1] + ',"traces":[')
    for number, log in enumerate(logs):
        about = {
            "title": log.title,
            "vantage_point": {"type": log.vantage_point},
            "common_fields": {
                "time_format": "relative",
                "reference_time": clock.reference_ms,
                "protocol_type": ["TCP"],
                "group_id": log.group,
            },
        }
        file.write(("," if number else "") + "\n" + _text(about)[:-1] + ',"events":[')
        for position, event in enumerate(log.events):
            file.write(("," if position else "") + "\n" + _text(event))
        file.write("]}")
    file.write("]}\n")


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as JSON types: bytes as hexadecimal digits, large integers as decimal ones."""
    return {name: _plain(value) for name, value in values.items()}


def packet(number: int, length: int | None, frame: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an event packet_sent or packet_received."""
    data: dict[str, Any] = {"header": header(number), "frames": [frame]}
    if length is not None:
        data["raw"] = {"length": length, "payload_length": length}
    return data


def header(number: int) -> dict[str, Any]:
    """Return the header of a packet."""
    # TCP has no types of packets; this is the one that qvis takes for data.
    return {"packet_type": "1RTT", "packet_number": number}


def stream(stream_id: int, offset: int, length: int) -> dict[str, Any]:
    """Return the frame of data."""
    return {"frame_type": "stream", "stream_id": stream_id, "offset": max(offset, 0), "length": length}


def ack(numbers: Iterable[int]) -> dict[str, Any]:
    """Return the frame that acknowledges packets of these numbers, which increase."""
    return {"frame_type": "ack", "acked_ranges": list(_ranges(numbers))}


def started(local: tuple[str, int], remote: tuple[str, int]) -> dict[str, Any]:
    """Return the data of an event connection_started."""
    return {
        "ip_version": "v6" if ":" in local[0] else "v4",
        "src_ip": local[0],
        "dst_ip": remote[0],
        "protocol": "TCP",
        "src_port": local[1],
        "dst_port": remote[1],
    }


def _ranges(numbers: Iterable[int]) -> Iterator[list[int]]:
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = number
        elif number != last + 1:
            yield [first, last] if first != last else [first]
            first = number
        last = number
    if first is not None and last is not None:
        yield [first, last] if first != last else [first]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: dict[str, Any]) -> str:
    return _ENCODER.encode(value)
