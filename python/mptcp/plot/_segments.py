"""What the plots draw of a trace: its segments by subflow. This does not use matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _names
from ._chart import chart_of
from ._flows import start_of
from ._marks import Mark
from ._series import Group, groups
from ._style import OTHERS, TEXT, Look

if TYPE_CHECKING:
    from .._rows import Floats, Recorded, Rows, Traced

Side: TypeAlias = Literal[0, 1]

# Events of the connection, not of one subflow.
_OF_CONNECTIONS = ("ADD_ADDR", "REMOVE_ADDR", "MP_FASTCLOSE", "DATA_FIN", "FALLBACK")


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of one series of subflows, in the order in which they were sent. Times are in seconds."""

    label: str
    look: Look
    time: Floats
    dsn: NDArray[np.int64]
    length: NDArray[np.int64]
    retransmitted: NDArray[np.bool_]
    reinjected: NDArray[np.bool_]
    acked: Floats
    """When a DATA_ACK covered it, NaN if none did; so with the others."""
    delivered: Floats
    received: Floats

    @property
    def new(self) -> NDArray[np.bool_]:
        """Where the data is sent for the first time."""
        return ~(self.retransmitted | self.reinjected)


@dataclass(frozen=True, eq=False)
class TraceChart:
    """One direction of one connection."""

    parts: list[Segments]
    marks: list[Mark]
    begin: float
    end: float
    whole: bool
    """Whether all of it is drawn."""

    def within(self, time: Floats) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (time >= self.begin) & (time <= self.end)
        return found


def trace_chart(
    trace: Traced,
    token: int | None,
    direction: Side | None,
    recording: Recorded | None,
    period: tuple[float, float] | None,
) -> TraceChart:
    """Return what to draw: by default of the connection, and the direction, with the most bytes.

    Zero is the connection's first packet or, with ``recording``, its first sample. Then the subflows that are in both
    have the look and the name that they have there, too.
    """
    if direction not in (None, 0, 1):
        raise ValueError(f"direction must be 0 or 1, not {direction!r}")
    if period is not None and not period[0] < period[1]:
        raise ValueError(f"period must be two times in seconds, the earlier one first, not {period!r}")
    number = _connection(trace, token)
    connection = trace.connections[number]
    if direction is None:
        direction = 0 if connection["bytes_0"] >= connection["bytes_1"] else 1
    packets = trace.packets
    rows = packets[(packets["connection"] == number) & (packets["direction"] == direction)]
    if not len(rows):
        raise ValueError(
            f"cannot plot: the trace has no data of connection {connection['token']}, direction {direction}"
        )
    rows = rows[np.argsort(rows["time_ns"], kind="stable")]
    subflows = np.flatnonzero(trace.subflows["connection"] == number)
    start, end = int(connection["start_ns"]), None
    if recording is not None:
        flows = chart_of(recording, None).flows
        start = start_of(flows) + int(recording.metadata["realtime_offset_ns"])
        end = max(float(flow.time[-1]) for flow in flows)
    found = _groups(trace.subflows[subflows], rows, subflows, recording)
    parts = [_part(group, rows[np.isin(rows["subflow"], subflows[group.members])], start) for group in found]
    if end is None:
        # A segment may be sent again after everything was acknowledged.
        end = max(float(np.nanmax(np.concatenate((part.time, part.acked)))) for part in parts if len(part.time))
    begin, end = (0.0, end) if period is None else period
    colours = {int(subflows[member]): group.look.colour for group in found for member in group.members}
    return TraceChart(parts, _marks(trace, number, colours, start, begin, end), begin, end, period is None)


def _connection(trace: Traced, token: int | None) -> int:
    """Return the row of the connection with this token, at either side, or of that with the most bytes."""
    connections = trace.connections
    chosen = np.arange(len(connections))
    if token is not None:
        chosen = np.flatnonzero((connections["token"] == token) | (connections["peer_token"] == token))
    if not len(chosen):
        of = "" if token is None else f" {token}"
        raise ValueError(f"cannot plot: the trace has no connection{of}")
    carried = connections["bytes_0"][chosen] + connections["bytes_1"][chosen]
    return int(chosen[np.argmax(carried)])


def _groups(ends: Rows, rows: Rows, subflows: NDArray[np.intp], recording: Recorded | None) -> list[Group]:
    entries = [
        {
            "cookie": index,
            "local": (str(row["address_0"]), int(row["port_0"])),
            "remote": (str(row["address_1"]), int(row["port_1"])),
        }
        for index, row in enumerate(ends)
    ]
    metadata = {"subflows": entries}
    if recording is not None:
        metadata["labs"] = recording.metadata.get("labs", ())
        same = _as_recorded(recording, [(entry["local"], entry["remote"]) for entry in entries])
        if same is not None:
            return same
    count = len(entries)
    named = _names.of(metadata, range(count), [0] * count, range(1, count + 1))
    carried = [float(rows["length"][rows["subflow"] == number].sum()) for number in subflows]
    return groups([name.label for name in named], [name.path for name in named], carried)


def _as_recorded(recording: Recorded, ends: Sequence[tuple[object, object]]) -> list[Group] | None:
    """Return the groups of the recording's plots, or None if it lacks one of these subflows."""
    index = {frozenset(pair): number for number, pair in enumerate(ends)}
    found: list[Group] = []
    known = 0
    for one in chart_of(recording, None).series:
        pairs = [frozenset((flow.local[:2], flow.remote[:2])) for flow in one.flows if flow.local and flow.remote]
        members = [index[pair] for pair in pairs if pair in index]
        known += len(members)
        if members:
            found.append(Group(one.label, one.look, members))
    return found if known == len(ends) else None


def _part(group: Group, rows: Rows, start: int) -> Segments:
    def seconds(name: str) -> Floats:
        # Differences first: nanoseconds since 1970 are too large for a float.
        found: Floats = (rows[name] - start) / 1e9
        found[rows[name] < 0] = np.nan
        return found

    return Segments(
        group.label,
        group.look,
        seconds("time_ns"),
        rows["dsn"].astype(np.int64),
        rows["length"].astype(np.int64),
        rows["retransmitted"].astype(bool),
        rows["reinjected"].astype(bool),
        seconds("data_acked_ns"),
        seconds("data_delivered_ns"),
        seconds("received_ns"),
    )


def _marks(trace: Traced, connection: int, colours: dict[int, str], start: int, begin: float, end: float) -> list[Mark]:
    marks = []
    for event in trace.events:
        time = (event.time_ns - start) / 1e9
        if event.connection == connection and begin <= time <= end:
            colour = TEXT if event.kind in _OF_CONNECTIONS else colours.get(event.subflow, OTHERS.colour)
            marks.append(Mark(time, event.kind, colour))
    return sorted(marks)
