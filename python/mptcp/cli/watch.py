"""``mptcp watch``: the connections of the network namespace and their subflows, live, with rates."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Mapping

from mptcp._address import endpoint
from mptcp._core import Subflow
from mptcp.cli._screen import Screen
from mptcp.cli._show import as_json, show
from mptcp.cli.events import seconds
from mptcp.cli.list import Found, add_choice, find, flags, holders, number, or_unknown, report, table

SUMMARY = "show the connections of this network namespace and their subflows live, with rates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and nothing else")
    add_choice(parser)
    parser.add_argument("--interval", type=seconds, default=1.0, help="seconds between two readings (default: 1)")
    parser.add_argument("--count", type=number(1, 2**63), help="exit after this many readings")


def run(arguments: argparse.Namespace) -> int:
    screen = Screen(sys.stdout) if not arguments.json and Screen.fits(sys.stdout) else None
    rates = _Rates()
    due = time.monotonic()
    for reading in itertools.count(1):
        found = find(arguments)
        rates.take(found, time.monotonic_ns())
        if arguments.json:
            print(as_json(_report(found, rates)), flush=True)
        else:
            lines = _lines(found, rates)
            if screen is not None:
                # Lines that do not fit could not be redrawn.
                screen.draw(lines[: shutil.get_terminal_size().lines - 1])
            else:
                show(*lines, "")
        if reading == arguments.count:
            return 0
        # A late reading is not made up for.
        now = time.monotonic()
        due = max(due + arguments.interval, now)
        time.sleep(due - now)
    return 0


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


def _lines(found: Found, rates: _Rates) -> list[str]:
    if not found:
        return ["no Multipath TCP connections"]

    def row(subflow: Subflow) -> tuple[str, ...]:
        sent, received = rates.of(subflow)
        return (
            f"{endpoint(subflow.local)} -> {endpoint(subflow.remote)}",
            subflow.state,
            flags(subflow),
            f"rtt {(subflow.tcp_info.rtt or 0) / 1000:.1f} ms",
            f"cwnd {or_unknown(subflow.tcp_info.snd_cwnd)}",
            f"sent {_rate(sent)}",
            f"received {_rate(received)}",
        )

    return table(found, holders(), row)


def _rate(bps: float | None) -> str:
    return "-" if bps is None else f"{bps / 1e6:.2f} Mbit/s"
