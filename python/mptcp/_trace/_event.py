"""What a trace tells besides segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._docs import document


class TraceEvent(NamedTuple):
    """An option of Multipath TCP other than a DSS, a DATA_FIN, or a fallback to TCP."""

    kind: str
    time_ns: int
    token: int
    connection: int
    subflow: int
    direction: int
    capture: int
    details: Mapping[str, Any]


document(
    TraceEvent,
    kind="RFC 8684's name of the option, DATA_FIN, or FALLBACK.",
    time_ns="When it was captured, in nanoseconds since 1970.",
    token="The connecting side's token of its connection, 0 if it is not known.",
    connection="The row of its connection in ``Trace.connections``.",
    subflow="The row of its subflow in ``Trace.subflows``.",
    direction="0 if the connecting side sent it, otherwise 1.",
    capture='Where it was captured: an index into ``Trace.metadata["captures"]``, -1 for tracepoints.',
    details="The fields of the option as a dict: docs/traces.md lists them for each kind.",
)


def written(event: TraceEvent) -> dict[str, Any]:
    """Return an event as JSON types."""
    details = {name: _json(value) for name, value in event.details.items()}
    return {**event._asdict(), "details": details}


def read(fields: dict[str, Any]) -> TraceEvent:
    """Return the event that ``written`` was given."""
    details = {name: _value(value) for name, value in fields["details"].items()}
    return TraceEvent(**{**fields, "details": details})


def _json(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _value(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
