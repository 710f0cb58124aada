"""What a capture says of a transfer, independently of the kernel's counters.

There are two witnesses: ``segments`` reads captures by tshark, and what is found in those is arithmetic, independent of
this package; ``mptcp.read_trace`` is the other. ``findings`` has both say the same things, to be compared.
"""

from __future__ import annotations

import bisect
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mptcp
from support import PORT

End = tuple[str, int]
Flow = tuple[End, End]
"""The sending end, and the receiving one."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

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
    "tcp.ack_raw",
    "tcp.len",
    "tcp.options.mptcp.rawdataseqno",
    "tcp.options.mptcp.subflowseqno",
    "tcp.options.mptcp.rawdataack",
)


@dataclass(frozen=True)
class Segment:
    """One segment. Numbers of a subflow count from 1, its first byte; the SYN is 0."""

    time: float  # CLOCK_REALTIME, seconds
    flow: Flow
    sequence: int
    length: int
    dsn: int | None = None  # of its first byte, from the first byte that the connection sent in this direction
    ack: int | None = None  # of the other direction: the next byte that is expected
    data_ack: int | None = None  # likewise of the connection's data, counted as in dsn
    fin: bool = False
    reset: bool = False


def segments(*captures: Path) -> list[Segment]:
    """Return the segments of several captures in order of time, by tshark: those of subflows whose SYN is there."""
    isn: dict[Flow, int] = {}
    first: dict[bool, int] = {}
    found = []
    for time, flow, (flags, sequence, ack, length), dsn, relative, data_ack in _rows(captures):
        if flags & SYN:
            isn[flow] = sequence
        if flow not in isn:
            continue
        at, data, expected = (sequence - isn[flow]) % 2**32, None, None
        if dsn is not None and relative is not None and length:
            # The mapping may begin before the segment, and its number may have 32 bits or 64.
            begin = (dsn + at - relative) % 2**32
            # A capture has one connection, whose accepting side has this port.
            data = (begin - first.setdefault(flow[0][1] == PORT, begin) + 2**31) % 2**32 - 2**31
        if flags & ACK and flow[::-1] in isn:
            expected = (ack - isn[flow[1], flow[0]]) % 2**32
        found.append(Segment(time, flow, at, length, data, expected, data_ack, bool(flags & FIN), bool(flags & RST)))

    def relative_to_first(segment: Segment) -> Segment:
        begin = first.get(segment.flow[1][1] == PORT)
        if segment.data_ack is None or begin is None:
            return replace(segment, data_ack=None)
        return replace(segment, data_ack=(segment.data_ack - begin + 2**31) % 2**32 - 2**31)

    # What is acknowledged first is sent later.
    return [relative_to_first(segment) for segment in found]


def _rows(
    captures: Sequence[Path],
) -> Iterator[tuple[float, Flow, tuple[int, ...], int | None, int | None, int | None]]:
    fields = [argument for field in _FIELDS for argument in ("-e", field)]
    merged = subprocess.run(["mergecap", "-w", "-", *captures], capture_output=True, check=True).stdout
    # Nothing of its own analysis is needed.
    options = ("tcp.analyze_sequence_numbers:false", "mptcp.analyze_mptcp:false", "tcp.desegment_tcp_streams:false")
    command = ["tshark", "-n", "-r", "-", *(part for option in options for part in ("-o", option))]
    command += ["-Y", "tcp", "-T", "fields", "-E", "occurrence=f", *fields]
    output = subprocess.run(command, input=merged, capture_output=True, check=True).stdout.decode()
    for line in output.splitlines():
        time, src4, dst4, src6, dst6, sport, dport, *numbers, dsn, relative, data_ack = line.split("\t")
        flow = (src4 or src6, int(sport)), (dst4 or dst6, int(dport))
        optional = [int(text, 0) if text else None for text in (dsn, relative, data_ack)]
        yield float(time), flow, tuple(int(number or "0", 0) for number in numbers), *optional


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
        new[flow] = new.get(flow, 0) + (ranges.add(begin, begin + segment.length) if segment.length else 0)
    return {flow: (total[flow], new[flow]) for flow in total}


def acknowledgements(found: Iterable[Segment]) -> Iterator[tuple[float, Flow, int]]:
    """Return times, subflows in the direction of their data, and how many bytes of data were acknowledged then for the
    first time, until the subflow is reset."""
    ends: dict[Flow, int] = {}
    reached: dict[Flow, int] = {}
    over: set[frozenset[End]] = set()
    for segment in found:
        flow, both = (segment.flow[1], segment.flow[0]), frozenset(segment.flow)
        if segment.fin:
            ends[segment.flow] = segment.sequence + segment.length
        if segment.reset:
            over.add(both)
        if segment.ack is None or both in over:
            continue
        # A FIN takes a number too.
        ack = min(segment.ack, ends.get(flow, segment.ack))
        new = ack - reached.get(flow, 1)
        if new > 0:
            reached[flow] = ack
            yield segment.time, flow, new


def acknowledged(found: Iterable[Segment]) -> dict[Flow, int]:
    """Return how many bytes of each subflow were acknowledged."""
    count: dict[Flow, int] = {}
    for _, flow, new in acknowledgements(found):
        count[flow] = count.get(flow, 0) + new
    return count


def reinjection_ratio(found: Iterable[Segment]) -> float:
    """Return which part of what the subflows sent for the first time had gone on another before."""
    found = [segment for segment in found if segment.dsn is not None and segment.length]
    carried = sum(once for _, once in by_flow(found).values())
    connection = Intervals()
    once = sum(connection.add(segment.dsn or 0, (segment.dsn or 0) + segment.length) for segment in found)
    return (carried - once) / carried


@dataclass(frozen=True)
class Findings:
    """What a witness says of the captures of one side."""

    bytes: dict[Flow, tuple[int, int]]  # on each subflow in each direction, all of them and each once
    reinjected: dict[bool, int]  # bytes towards the connecting side (True) and from it
    data_acks: dict[bool, int]  # how many of them were acknowledged by DATA_ACK
    fins: set[Flow]
    resets: set[frozenset[End]]


def findings(source: Sequence[Segment] | mptcp.Trace) -> Findings:
    """Return what a witness says: the segments of one side's captures, by tshark, or their trace."""
    if isinstance(source, mptcp.Trace):
        return _of_trace(source)
    reinjected, acks = {}, {}
    for download in (True, False):
        sent = [segment for segment in source if (segment.flow[0][1] == PORT) is download]
        data = [segment for segment in sent if segment.dsn is not None and segment.length]
        ranges = Intervals()
        once = sum(ranges.add(segment.dsn or 0, (segment.dsn or 0) + segment.length) for segment in data)
        reinjected[download] = sum(each for _, each in by_flow(data).values()) - once
        others = (segment for segment in source if (segment.flow[0][1] == PORT) is not download)
        back = [segment.data_ack for segment in others if segment.data_ack is not None]
        # A DATA_FIN takes a number too. The data of an MP_CAPABLE precedes the first number that its option tells.
        end = max(((segment.dsn or 0) + segment.length for segment in data), default=0)
        early = by_flow(segment for segment in sent if segment.dsn is None and segment.length)
        acks[download] = min(max(back, default=0), end) + sum(once for _, once in early.values())
    fins = {segment.flow for segment in source if segment.fin}
    resets = {frozenset(segment.flow) for segment in source if segment.reset}
    return Findings(by_flow(source), reinjected, acks, fins, resets)


def _of_trace(trace: mptcp.Trace) -> Findings:
    [connection] = trace.connections
    count, fins, resets = {}, set(), set()
    for row in trace.subflows:
        ends = [(str(row[f"address_{side}"]), int(row[f"port_{side}"])) for side in (0, 1)]
        for side in (0, 1):
            flow = ends[side], ends[1 - side]
            total = int(row[f"bytes_{side}"])
            count[flow] = total, total - int(row[f"retransmitted_{side}"])
            if row[f"fin_ns_{side}"] >= 0:
                fins.add(flow)
        if row["reset_ns"] >= 0:
            resets.add(frozenset(ends))
    # Direction 1 is towards the connecting side.
    reinjected, acks = (
        {bool(side): int(connection[f"{name}_{side}"]) for side in (0, 1)} for name in ("reinjected", "data_acked")
    )
    return Findings(count, reinjected, acks, fins, resets)


def recovery(arrivals: Iterable[tuple[float, int]], begin: float, failure: float, window: float) -> float:
    """Return the seconds from a failure to the end of the first window that has 0.4 of the mean rate between ``begin``
    and the failure, after one that has less than 0.8 times that, and before another such."""
    before, windows = 0, {0: 0}
    for time, new in arrivals:
        if begin <= time < failure:
            before += new
        elif time >= failure:
            number = int((time - failure) / window)
            windows[number] = windows.get(number, 0) + new
    wanted = 0.4 * before / (failure - begin) * window
    # The last window may be cut short.
    rates = [windows.get(number, 0) for number in range(max(windows))]
    lost = [rate < 0.8 * wanted for rate in rates]
    if True not in lost:
        return 0.0
    for number in range(lost.index(True) + 1, len(rates)):
        if rates[number] >= wanted and not any(lost[number + 1 : number + 2]):
            return (number + 1) * window
    return float("inf")
