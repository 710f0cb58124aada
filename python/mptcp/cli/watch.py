"""``mptcp watch``: the connections of the network namespace and their subflows, live, with rates."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from mptcp._address import endpoint
from mptcp._core import Subflow
from mptcp.cli import _live
from mptcp.cli._screen import Screen
from mptcp.cli._show import as_json, show
from mptcp.cli.events import seconds
from mptcp.cli.list import Found, add_choice, find, flags, holders, number, or_unknown, owner, report, side, table

SUMMARY = "show the connections of this network namespace and their subflows live, with rates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and nothing else")
    add_choice(parser)
    parser.add_argument("--interval", type=seconds, default=1.0, help="seconds between two readings (default: 1)")
    parser.add_argument("--count", type=number(1, 2**63), help="exit after this many readings")


def run(arguments: argparse.Namespace) -> int:
    rates = _Rates()
    due = time.monotonic()
    with _display(arguments.json) as draw:
        for reading in itertools.count(1):
            found = find(arguments)
            rates.take(found, time.monotonic_ns())
            draw(found, rates)
            if reading == arguments.count:
                break
            # A late reading is not made up for.
            now = time.monotonic()
            due = max(due + arguments.interval, now)
            time.sleep(due - now)
    return 0


@contextlib.contextmanager
def _display(as_lines_of_json: bool) -> Iterator[Callable[[Found, _Rates], None]]:
    """Yield what shows a reading: in place on a terminal, by rich if it is installed, and as lines elsewhere."""
    if as_lines_of_json:
        yield lambda found, rates: print(as_json(_report(found, rates)), flush=True)
    elif _live.fits(sys.stdout):
        with _live.table(sys.stdout, _TITLES, numbers_from=3) as draw:
            yield lambda found, rates: draw(_rows(found, rates))
    elif Screen.fits(sys.stdout):
        screen = Screen(sys.stdout)
        # Lines that do not fit could not be redrawn.
        yield lambda found, rates: screen.draw(_lines(found, rates)[: shutil.get_terminal_size().lines - 1])
    else:
        yield lambda found, rates: show(*_lines(found, rates), "")


class _Rates:
    """Bits per second of each subflow between the last two readings, by cookie."""

    def __init__(self) -> None:
        self.time_ns = 0
        self._bytes: dict[int, tuple[int, int]] = {}
        self._rates: dict[int, tuple[float, float]] = {}

    def take(self, found: Found, time_ns: int) -> None:
        now = {
            subflow.cookie: (subflow.tcp_info.bytes_acked or 0, subflow.tcp_info.bytes_received or 0)
            for _, subflows in found
            for subflow in subflows
            if subflow.cookie is not None
        }
        elapsed = (time_ns - self.time_ns) / 1e9
        self._rates = {
            cookie: ((sent - before[0]) * 8 / elapsed, (received - before[1]) * 8 / elapsed)
            for cookie, (sent, received) in now.items()
            if (before := self._bytes.get(cookie)) is not None
        }
        self._bytes, self.time_ns = now, time_ns

    def of(self, subflow: Subflow) -> tuple[float | None, float | None]:
        """Return the rates of what the peer has acknowledged and of what was received; None at its first reading."""
        return (None, None) if subflow.cookie is None else self._rates.get(subflow.cookie, (None, None))


def _report(found: Found, rates: _Rates) -> Mapping[str, object]:
    """Return one reading as JSON types. Rates are in bits per second."""
    owners = holders() if found else {}
    connections = []
    for connection, subflows in found:
        reported = report(connection, subflows, owners)
        for each, subflow in zip(reported["subflows"], subflows, strict=True):
            each["sent_bps"], each["received_bps"] = rates.of(subflow)
        connections.append(reported)
    return {"time_ns": rates.time_ns, "connections": connections}


_TITLES = ("connections and subflows", "state", "", "rtt", "cwnd", "sent", "received")


def _rows(found: Found, rates: _Rates) -> Iterator[_live.Row]:
    if not found:
        yield _live.Row(("none", *[""] * (len(_TITLES) - 1)), False)
    owners = holders() if found else {}
    for connection, subflows in found:
        # Its rates are the sums of those of its subflows, as far as they are known.
        sums = [
            None if None in column else sum(filter(None, column))
            for column in zip(*map(rates.of, subflows), strict=True)
        ] or [None, None]
        where = f"{connection.token}  {endpoint(connection.local)} -> {endpoint(connection.remote)}"
        whose = ", ".join(filter(None, (side(connection), owner(connection, owners))))
        yield _live.Row((where, connection.state, whose, "", "", *map(_rate, sums)), True)
        for subflow in subflows:
            cells = _cells(subflow, rates)
            yield _live.Row((f"  {cells[0]}", *cells[1:]), False)


def _cells(subflow: Subflow, rates: _Rates) -> tuple[str, ...]:
    return (
        f"{endpoint(subflow.local)} -> {endpoint(subflow.remote)}",
        subflow.state,
        flags(subflow),
        f"{(subflow.tcp_info.rtt or 0) / 1000:.1f} ms",
        or_unknown(subflow.tcp_info.snd_cwnd),
        *map(_rate, rates.of(subflow)),
    )


def _lines(found: Found, rates: _Rates) -> list[str]:
    if not found:
        return ["no Multipath TCP connections"]

    def row(subflow: Subflow) -> tuple[str, ...]:
        *first, rtt, cwnd, sent, received = _cells(subflow, rates)
        return (*first, f"rtt {rtt}", f"cwnd {cwnd}", f"sent {sent}", f"received {received}")

    return table(found, holders(), row)


def _rate(bps: float | None) -> str:
    return "-" if bps is None else f"{bps / 1e6:.2f} Mbit/s"
