"""What a capture says of a transfer, independently of the kernel's counters and of this package.

``segments`` reads captures by tshark; whatever else gives segments can stand in for it. The rest is arithmetic.
"""

from __future__ import annotations

import bisect
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support import PORT

End = tuple[str, int]
Flow = tuple[End, End]
"""The sending end, and the receiving one."""

FIN, SYN = 0x01, 0x02

_FIELDS = (
    "frame.time_epoch",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.flags",
    "tcp.seq_raw",
    "tcp.len",
    "tcp.options.mptcp.rawdataseqno",
    "tcp.options.mptcp.subflowseqno",
)


@dataclass(frozen=True)
class Segment:
    """A segment with data: where it lies in its subflow and, if it has a mapping, in the connection."""

    time: float  # CLOCK_REALTIME, seconds
    flow: Flow
    sequence: int  # from 1, the subflow's first byte
    length: int
    dsn: int | None  # from the connection's first byte in this direction
    fin: bool


def segments(*captures: Path) -> list[Segment]:
    """Return the segments with data, or with a FIN, of several captures in order of time, by tshark."""
    rows = sorted(row for capture in captures for row in _rows(capture))
    isn: dict[Flow, int] = {}
    first: dict[bool, int] = {}
    found = []
    for time, flow, flags, sequence, length, dsn, relative in rows:
        if flags & SYN:
            isn[flow] = sequence
        if flow not in isn or not (length or flags & FIN):
            continue
        at = (sequence - isn[flow]) % 2**32
        data = None
        if dsn is not None and relative is not None:
            # The mapping may begin before the segment, and its number may have 32 bits or 64.
            begin = (dsn + at - relative) % 2**32
            # A capture has one connection, whose accepting side has this port.
            data = (begin - first.setdefault(flow[0][1] == PORT, begin) + 2**31) % 2**32 - 2**31
        found.append(Segment(time, flow, at, length, data, bool(flags & FIN)))
    return found


def _rows(capture: Path) -> Iterator[tuple[float, Flow, int, int, int, int | None, int | None]]:
    fields = [argument for field in _FIELDS for argument in ("-e", field)]
    command = ["tshark", "-n", "-r", str(capture), "-Y", "tcp", "-T", "fields", "-E", "occurrence=f", *fields]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in output.splitlines():
        time, src4, dst4, src6, dst6, sport, dport, flags, sequence, length, dsn, relative = line.split("\t")
        flow = (src4 or src6, int(sport)), (dst4 or dst6, int(dport))
        numbers = [int(text, 0) if text else None for text in (dsn, relative)]
        yield float(time), flow, int(flags, 0), int(sequence), int(length), numbers[0], numbers[1]


class Intervals:
    """Ranges of numbers that have been seen: a sorted list of disjoint ranges."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> int:
        """Add the numbers from begin to before end, and return how many of them are new."""
        low = bisect.bisect_left(self._ends, begin)
        high = bisect.bisect_right(self._begins, end)
        known = sum(max(0, min(end, self._ends[at]) - max(begin, self._begins[at])) for at in range(low, high))
        new = end - begin - known
        if low < high:
            begin, end = min(begin, self._begins[low]), max(end, self._ends[high - 1])
        self._begins[low:high], self._ends[low:high] = [begin], [end]
        return new


def by_flow(found: Iterable[Segment]) -> dict[Flow, tuple[int, int]]:
    """Return how many bytes went on each subflow, all of them and each once."""
    total: dict[Flow, int] = {}
    once: dict[Flow, Intervals] = {}
    new: dict[Flow, int] = {}
    for segment in found:
        flow, begin = segment.flow, segment.sequence
        total[flow] = total.get(flow, 0) + segment.length
        ranges = once.setdefault(flow, Intervals())
        new[flow] = new.get(flow, 0) + ranges.add(begin, begin + segment.length)
    return {flow: (total[flow], new[flow]) for flow in total}


def share(found: Iterable[Segment]) -> dict[Flow, float]:
    """Return each subflow's share of the bytes, those that it sent again left out."""
    once = {flow: each for flow, (_, each) in by_flow(found).items()}
    return {flow: each / sum(once.values()) for flow, each in once.items()}


def reinjection_ratio(found: Iterable[Segment]) -> float:
    """Return which part of what the subflows sent for the first time had gone on another before."""
    found = [segment for segment in found if segment.dsn is not None and segment.length]
    carried = sum(once for _, once in by_flow(found).values())
    connection = Intervals()
    once = sum(connection.add(segment.dsn or 0, (segment.dsn or 0) + segment.length) for segment in found)
    return (carried - once) / carried


def recovery(found: Iterable[Segment], begin: float, failure: float, fraction: float, window: float) -> float:
    """Return the seconds from a failure to the end of the first window that has ``fraction`` of the mean rate between
    ``begin`` and the failure, after one that had not."""
    arrived: dict[Flow, Intervals] = {}
    before, windows = 0, {}
    for segment in found:
        new = arrived.setdefault(segment.flow, Intervals()).add(segment.sequence, segment.sequence + segment.length)
        if begin <= segment.time < failure:
            before += new
        elif segment.time >= failure:
            number = int((segment.time - failure) / window)
            windows[number] = windows.get(number, 0) + new
    wanted = fraction * before / (failure - begin) * window
    rates = [windows.get(number, 0) for number in range(max(windows, default=-1) + 1)]
    lost = next((number for number, rate in enumerate(rates) if rate < wanted), None)
    if lost is None:
        return 0.0
    return next(
        ((number + 1) * window for number, rate in enumerate(rates) if number > lost and rate >= wanted), float("inf")
    )
