"""A trace as qlog: each connection as one trace, and each of its subflows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _qlog
from .._address import endpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._rows import Rows, Traced
    from ._event import TraceEvent

    Integers: TypeAlias = NDArray[np.int64]
    # When, the name of the event, and its data.
    Told: TypeAlias = tuple[int, str, dict[str, Any]]

# Streams that the connecting side opens: qvis takes others for control streams.
_STREAM_STEP = 4


def write(file: IO[str], trace: Traced, events: list[TraceEvent]) -> None:
    begin = int(trace.connections["start_ns"].min()) if len(trace.connections) else 0
    clock = _qlog.Clock(begin)
    _qlog.write(file, "Multipath TCP, as captured", clock, _logs(trace, events, clock))


def _logs(trace: Traced, events: list[TraceEvent], clock: _qlog.Clock) -> Iterator[_qlog.Log]:
    packets = trace.packets[np.argsort(trace.packets["time_ns"], kind="stable")]
    for number, connection in enumerate(trace.connections):
        # Seen from the side that sent more data: congestion and acknowledgments are of what is sent.
        side = 0 if connection["bytes_0"] >= connection["bytes_1"] else 1
        vantage = ("client", "server")[side]
        group = f"{int(connection['token']):08x}"
        rows = packets[packets["connection"] == number]
        options = [event for event in events if event.connection == number]
        members = np.flatnonzero(trace.subflows["connection"] == number).tolist()
        offsets, streams = rows["dsn"].astype(np.int64), _STREAM_STEP * (rows["subflow"].astype(np.int64) - members[0])
        seen = _Seen(trace.subflows, clock, side, rows, offsets, streams)
        ends = _ends(trace.subflows[members[0]], side)
        start = int(connection["start_ns"]), "connectivity:connection_started", _qlog.started(*ends)
        told = [start, *(_option(option, side) for option in options)]
        yield _qlog.Log(f"connection {group}: {_title(ends)}", vantage, group, seen.events(told))
        for member in members:
            subflow, rows_of_it = trace.subflows[member], rows[rows["subflow"] == member]
            ends = _ends(subflow, side)
            first = [int(time) for time in (subflow["syn_ns"], *rows_of_it["time_ns"][:1]) if time != -1]
            begin = min(first, default=int(subflow["end_ns"]))
            start = begin, "connectivity:connection_started", _qlog.started(*ends)
            told = [start, *(_option(option, side) for option in options if option.subflow == member)]
            streams = np.zeros(len(rows_of_it), np.int64)
            seen = _Seen(trace.subflows, clock, side, rows_of_it, _offsets(rows_of_it), streams)
            title = f"subflow {member} of {group}: {_title(ends)}"
            yield _qlog.Log(title, vantage, group, seen.events([*told, *_closed(subflow)]))


class _Seen:
    """What one side of a connection, or of one of its subflows, sees."""

    # Of one moment, what is in the capture's options comes first, and what is sent in answer last.
    _TOLD, _RECEIVED, _ACKED, _SENT = range(4)

    def __init__(
        self, subflows: Rows, clock: _qlog.Clock, side: int, rows: Rows, offsets: Integers, streams: Integers
    ) -> None:
        self._event = clock.event
        is_sent = rows["direction"] == side
        # When those of the other side were received here, as far as that is known; -1 if they were lost.
        is_captured = subflows[f"received_{1 - side}"][rows["subflow"]]
        arrived = np.where((rows["received_ns"] == -1) & ~is_captured, rows["time_ns"], rows["received_ns"])
        sent, received = np.flatnonzero(is_sent), np.flatnonzero(~is_sent & (arrived != -1))
        self._sent, self._received = sent.tolist(), received.tolist()
        self._sent_ns, self._received_ns = rows["time_ns"][sent], arrived[received]
        self._acks = _Acknowledgments(rows[sent])
        self._replaced = _replaced(rows[sent])
        # Lists: an element of an array takes longer to get at.
        self._stream, self._offset = streams.tolist(), offsets.tolist()
        self._subflow, self._dsn, self._length = (rows[name].tolist() for name in ("subflow", "dsn", "length"))
        self._marks = {name: rows[name].tolist() for name in ("retransmitted", "reinjected")}

    def events(self, told: list[Told]) -> Iterator[dict[str, Any]]:
        """Yield the events of the segments, and those that are told, in order of time."""
        moments = {
            self._TOLD: np.array([time_ns for time_ns, _, _ in told], np.int64),
            self._RECEIVED: self._received_ns,
            self._ACKED: self._acks.times,
            self._SENT: self._sent_ns,
        }
        times = np.concatenate(list(moments.values()))
        kinds = np.concatenate([np.full(len(each), kind) for kind, each in moments.items()])
        places = np.concatenate([np.arange(len(each)) for each in moments.values()])
        order = np.lexsort((kinds, times))
        event, received, flown = self._event, 0, 0
        for time_ns, kind, place in zip(*(each[order].tolist() for each in (times, kinds, places)), strict=True):
            if kind == self._TOLD:
                yield event(*told[place])
            elif kind == self._RECEIVED:
                yield self._segment("transport:packet_received", time_ns, received, self._received[place])
                received += 1
            elif kind == self._ACKED:
                numbers, metrics = self._acks.at(place, flown)
                # If it came with data, that is an event of its own.
                data = _qlog.packet(received, None, _qlog.ack(numbers))
                yield event(time_ns, "transport:packet_received", data)
                yield event(time_ns, "recovery:metrics_updated", metrics)
                received += 1
            else:
                at = self._sent[place]
                if (lost := self._replaced.get(place)) is not None:
                    yield event(time_ns, "recovery:packet_lost", {"header": _qlog.header(lost)})
                if not self._marks["retransmitted"][at]:
                    flown += self._length[at]
                yield self._segment("transport:packet_sent", time_ns, place, at)

    def _segment(self, name: str, time_ns: int, number: int, at: int) -> dict[str, Any]:
        length = self._length[at]
        data = _qlog.packet(number, length, _qlog.stream(self._stream[at], self._offset[at], length))
        marks = {name: True for name, column in self._marks.items() if column[at]}
        return self._event(time_ns, name, data, subflow=self._subflow[at], dsn=self._dsn[at], **marks)


class _Acknowledgments:
    """The moments at which DATA_ACKs covered segments, and which."""

    def __init__(self, rows: Rows) -> None:
        acked = rows["data_acked_ns"]
        # Those that are not acknowledged, -1, are the first.
        order = np.argsort(acked, kind="stable")
        self._order = order.tolist()
        self.times: Integers = np.unique(acked[acked != -1])
        first = np.searchsorted(acked[order], self.times)
        last = np.searchsorted(acked[order], self.times, side="right")
        self._bounds = list(zip(first.tolist(), last.tolist(), strict=True))
        is_fresh = ~rows["retransmitted"][order]
        sizes = np.where(is_fresh & (acked[order] != -1), rows["length"][order], 0)
        self._bytes = np.cumsum(sizes)[last - 1].tolist()
        newest = np.where(is_fresh, rows["time_ns"][order], -1)
        self._newest = (np.maximum.reduceat(newest, first) if len(first) else first).tolist()

    def at(self, place: int, flown: int) -> tuple[list[int], dict[str, Any]]:
        """Return the numbers of the segments, and what is known then, of ``flown`` bytes that were sent so far."""
        first, last = self._bounds[place]
        metrics: dict[str, Any] = {"bytes_in_flight": max(flown - self._bytes[place], 0)}
        if self._newest[place] != -1:
            metrics["latest_rtt"] = round((int(self.times[place]) - self._newest[place]) / 1e6, 6)
        return sorted(self._order[first:last]), metrics


def _replaced(rows: Rows) -> dict[int, int]:
    """Return the numbers of segments that send again what others have sent, and the numbers of these."""
    latest: dict[tuple[int, int], int] = {}
    replaced: dict[int, int] = {}
    columns = (rows[name].tolist() for name in ("subflow", "dsn", "retransmitted"))
    for number, (subflow, dsn, is_again) in enumerate(zip(*columns, strict=True)):
        before = latest.get((subflow, dsn))
        if is_again and before is not None:
            replaced[number] = before
        latest[subflow, dsn] = number
    return replaced


def _option(option: TraceEvent, side: int) -> Told:
    owner = "local" if option.direction == side else "remote"
    data = {"owner": owner, **_qlog.plain(dict(option.details)), "subflow": option.subflow}
    return option.time_ns, f"mptcp:{option.kind.lower()}", data


def _offsets(rows: Rows) -> Integers:
    """Return where each segment begins in its direction of the subflow, counted from the first byte captured."""
    offsets = np.zeros(len(rows), np.int64)
    for direction in (0, 1):
        of_it = rows["direction"] == direction
        sequences = rows["sequence"][of_it]
        if not len(sequences):
            continue
        steps = np.diff(sequences, prepend=sequences[:1]).astype(np.int32)
        unwrapped = np.cumsum(steps, dtype=np.int64)
        offsets[of_it] = unwrapped - unwrapped.min()
    return offsets


def _closed(subflow: Any) -> list[Told]:
    if subflow["reset_ns"] != -1:
        reason = "RST" if subflow["reset_reason"] == -1 else f"RST, MP_TCPRST reason {int(subflow['reset_reason'])}"
        data = {"trigger": "error", "reason": reason}
        return [(int(subflow["reset_ns"]), "connectivity:connection_closed", data)]
    ends = [int(subflow[f"fin_ns_{side}"]) for side in (0, 1)]
    if -1 in ends:
        return []
    return [(max(ends), "connectivity:connection_closed", {"trigger": "clean", "reason": "FIN"})]


def _ends(subflow: Any, side: int) -> tuple[tuple[str, int], tuple[str, int]]:
    local, remote = ((str(subflow[f"address_{each}"]), int(subflow[f"port_{each}"])) for each in (side, 1 - side))
    return local, remote


def _title(ends: tuple[tuple[str, int], tuple[str, int]]) -> str:
    return " - ".join(endpoint(end) for end in ends)
