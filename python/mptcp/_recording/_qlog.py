"""A recording as qlog: each connection as one trace, and each of its subflows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import _qlog
from .._address import endpoint
from .._event_kind import EventKind
from .._rows import names

if TYPE_CHECKING:
    from .._core import Event
    from .._rows import Recorded, Rows

    # When, the name of the event, and its data.
    Told: TypeAlias = tuple[int, str, dict[str, Any]]

# TCP_CA_* of <linux/tcp.h>, in the words of the draft's events.
_CONGESTION_STATES = ("open", "disorder", "cwr", "recovery", "loss")


def write(file: IO[str], recording: Recorded) -> None:
    samples = recording.samples
    times = [int(rows["time_ns"].min()) for rows in (samples, recording.connections) if len(rows)]
    start = recording.metadata.get("start_ns")
    clock = _qlog.Clock(min(times, default=0) if start is None else start, _offset(recording))
    _qlog.write(file, "Multipath TCP, as sampled", clock, _logs(recording, clock))


def _offset(recording: Recorded) -> int:
    return int(recording.metadata.get("realtime_offset_ns") or 0)


def _logs(recording: Recorded, clock: _qlog.Clock) -> Iterator[_qlog.Log]:
    samples = recording.samples
    known = {each["cookie"]: each for each in recording.metadata.get("subflows", ())}
    tokens = dict.fromkeys([*samples["token"].tolist(), *recording.connections["token"].tolist()])
    for token in tokens:
        group = f"{token:08x}"
        told = [_event(event) for event in recording.events if event.token in (token, None)]
        sides = [event.server_side for event in recording.events if event.token == token]
        known_side = next((side for side in sides if side is not None), None)
        vantage = "unknown" if known_side is None else "server" if known_side else "client"
        of_it = samples[samples["token"] == token]
        cookies = list(dict.fromkeys(of_it["cookie"].tolist()))
        ends = [_ends(known[cookie]) for cookie in cookies if cookie in known]
        title = f"connection {group}" + (f": {_title(ends[0])}" if ends else "")
        start = _started(int(of_it["time_ns"][0]), ends[0]) if ends else []
        rows = recording.connections[recording.connections["token"] == token]
        events = sorted([*start, *told, *_sums(of_it), *_Data(rows).events()], key=_when)
        # qvis cannot open a trace without events.
        if events:
            yield _qlog.Log(title, vantage, group, (clock.event(*event) for event in events))
        for cookie in cookies:
            rows = of_it[of_it["cookie"] == cookie]
            both = _ends(known[cookie]) if cookie in known else None
            start = _started(int(rows["time_ns"][0]), both) if both else []
            mine = [_event(event) for event in recording.events if both and _is_of(event, token, both)]
            title = f"subflow {int(rows['subflow'][0])} of {group}" + (f": {_title(both)}" if both else "")
            events = sorted([*start, *mine, *_metrics(rows), *_Data(rows).events()], key=_when)
            if events:
                yield _qlog.Log(title, vantage, group, (clock.event(*event) for event in events))


def _when(told: Told) -> int:
    return told[0]


def _started(time_ns: int, ends: tuple[tuple[str, int], tuple[str, int]]) -> list[Told]:
    return [(time_ns, "connectivity:connection_started", _qlog.started(*ends))]


def _event(event: Event) -> Told:
    fields = {name: value for name, value in event.asdict().items() if value is not None}
    kind, time_ns = fields.pop("kind"), fields.pop("time_ns")
    name = kind.value if isinstance(kind, EventKind) else str(kind)
    return time_ns, f"mptcp:{name.lower()}", _qlog.plain(fields)


def _is_of(event: Event, token: int, ends: tuple[tuple[str, int], tuple[str, int]]) -> bool:
    told = [(end[0], end[1]) if end else None for end in (event.local, event.remote)]
    return event.token == token and told == list(ends)


def _metrics(rows: Rows) -> Iterator[Told]:
    """Yield a subflow's metrics at each change of one of them, and its congestion state."""
    columns = _columns(rows)
    before: dict[str, Any] = {}
    state = None
    for at, time_ns in enumerate(rows["time_ns"].tolist()):
        now = {name: value for name, column in columns.items() if (value := column[at]) is not None}
        if changed := {name: value for name, value in now.items() if before.get(name) != value}:
            yield time_ns, "recovery:metrics_updated", changed
        before = {**before, **now}
        if "ca_state" in names(rows) and not math.isnan(rows["ca_state"][at]):
            code = int(rows["ca_state"][at])
            found = _CONGESTION_STATES[code] if 0 <= code < len(_CONGESTION_STATES) else str(code)
            if found != state:
                change = {"new": found} if state is None else {"old": state, "new": found}
                yield time_ns, "recovery:congestion_state_updated", change
            state = found


def _columns(rows: Rows) -> dict[str, list[Any]]:
    """Return the draft's metrics of each row: times in milliseconds, windows in bytes."""

    def field(name: str) -> np.ndarray[Any, Any]:
        return rows[name].astype(np.float64) if name in names(rows) else np.full(len(rows), np.nan)

    segment = field("snd_mss")
    flying = field("unacked") - field("sacked") - field("lost") + field("retrans")
    metrics = {
        "min_rtt": (field("min_rtt") / 1e3, float),
        "smoothed_rtt": (field("rtt") / 1e3, float),
        "rtt_variance": (field("rttvar") / 1e3, float),
        "pto_count": (field("backoff"), int),
        "congestion_window": (field("snd_cwnd") * segment, int),
        "bytes_in_flight": (np.maximum(flying, 0) * segment, int),
        "ssthresh": (field("snd_ssthresh") * segment, int),
        "packets_in_flight": (np.maximum(flying, 0), int),
        "pacing_rate": (field("pacing_rate") * 8, int),
    }
    # What is infinite has no number in JSON, and is left out as what is not known.
    return {
        name: [kind(value) if math.isfinite(value) else None for value in values.tolist()]
        for name, (values, kind) in metrics.items()
    }


def _sums(rows: Rows) -> Iterator[Told]:
    """Yield the sums over the subflows of a connection at each tick."""
    columns = _columns(rows)
    ticks: dict[int, dict[str, int]] = {}
    for at, (time_ns, is_final) in enumerate(zip(rows["time_ns"].tolist(), rows["final"].tolist(), strict=True)):
        if is_final:
            continue
        sums = ticks.setdefault(time_ns, {})
        for name in ("congestion_window", "bytes_in_flight", "packets_in_flight", "pacing_rate"):
            if (value := columns[name][at]) is not None:
                sums[name] = sums.get(name, 0) + value
    before: dict[str, int] = {}
    for time_ns, now in sorted(ticks.items()):
        if changed := {name: value for name, value in now.items() if before.get(name) != value}:
            yield time_ns, "recovery:metrics_updated", changed
        before = now


class _Data:
    """What was sent and received between two samples, as one packet each: a recording has no others."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._unacked: deque[tuple[int, int]] = deque()
        self._received = 0

    def events(self) -> Iterator[Told]:
        columns = [self._counter(name) for name in ("bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received")]
        if any(column is None for column in columns):
            return
        sent = again = received = number = 0
        for time_ns, *now in zip(self._rows["time_ns"].tolist(), *(column or [] for column in columns), strict=True):
            now_sent, now_again, now_acked, now_received = now
            if now_received > received:
                frame = _qlog.stream(0, received, now_received - received)
                yield self._receive(time_ns, now_received - received, frame)
                received = now_received
            if acked := list(self._acknowledge(now_acked)):
                yield self._receive(time_ns, None, _qlog.ack(acked))
            if now_sent > sent:
                frame = _qlog.stream(0, sent - again, now_sent - sent)
                yield time_ns, "transport:packet_sent", _qlog.packet(number, now_sent - sent, frame)
                self._unacked.append((now_sent - now_again, number))
                sent, again, number = now_sent, now_again, number + 1

    def _counter(self, name: str) -> list[int] | None:
        """Return a counter, which never goes back; None if this kernel lacks it."""
        if name not in names(self._rows) or np.isnan(self._rows[name]).any():
            return None
        values: list[int] = np.maximum.accumulate(self._rows[name].astype(np.int64)).tolist() if len(self._rows) else []
        return values

    def _acknowledge(self, acked: int) -> Iterator[int]:
        while self._unacked and self._unacked[0][0] <= acked:
            yield self._unacked.popleft()[1]

    def _receive(self, time_ns: int, length: int | None, frame: dict[str, Any]) -> Told:
        data = _qlog.packet(self._received, length, frame)
        self._received += 1
        return time_ns, "transport:packet_received", data


def _ends(about: dict[str, Any]) -> tuple[tuple[str, int], tuple[str, int]]:
    local, remote = ((str(about[side][0]), int(about[side][1])) for side in ("local", "remote"))
    return local, remote


def _title(ends: tuple[tuple[str, int], tuple[str, int]]) -> str:
    return " - ".join(endpoint(end) for end in ends)
