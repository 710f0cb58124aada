"""``mptcp events``: the events of the network namespace's connections, subflows, links and addresses."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from mptcp._address import endpoint
from mptcp._core import Event
from mptcp._events import Events
from mptcp.cli._show import as_json, show
from mptcp.cli.list import number

SUMMARY = "print the events of connections, subflows, links and addresses in this network namespace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Without CAP_NET_ADMIN it polls, and misses connections and subflows that exist only briefly."
    parser.add_argument("--json", action="store_true", help="print one JSON object per line and nothing else")
    parser.add_argument("--token", type=number(0, 2**32 - 1), help="only events of the connection with this token")
    parser.add_argument("--count", type=number(1, 2**63), help="exit after this many events")
    parser.add_argument("--duration", type=seconds, help="exit after this many seconds")


def run(arguments: argparse.Namespace) -> int:
    with Events(token=arguments.token) as events:
        if events.source == "polling":
            print(
                "mptcp events: polling, because CAP_NET_ADMIN is missing: brief connections and subflows are missed",
                file=sys.stderr,
            )
        for event in _taken(events, arguments.count, arguments.duration):
            show(as_json(_report(event)) if arguments.json else _line(event))
    return 0


def seconds(text: str) -> float:
    """Convert an argument: a number of seconds above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text}")
    return value


def _taken(events: Events, count: int | None, duration: float | None) -> Iterator[Event]:
    deadline = None if duration is None else time.monotonic() + duration
    while count is None or count > 0:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        # None when the time has passed, and after the end of the connection that was asked for.
        if (event := events.get(left)) is None:
            return
        count = None if count is None else count - 1
        yield event


def _report(event: Event) -> dict[str, Any]:
    """Return an event as JSON types, by the names of the attributes."""
    return {**event.asdict(), "kind": event.kind.name}


def _line(event: Event) -> str:
    words = [f"{event.time_ns / 1e9:.6f}", f"{event.kind.name:16}"]
    if event.token is not None:
        words.append(f"{event.token:10}")
    ends = [endpoint(end) for end in (event.local, event.remote) if end is not None]
    words.extend([" -> ".join(ends)] if ends else [])
    if event.local_id is not None or event.remote_id is not None:
        ids = ("?" if id is None else str(id) for id in (event.local_id, event.remote_id))
        words.append(f"ids {'/'.join(ids)}")
    if event.server_side is not None:
        words.append("server" if event.server_side else "client")
    if event.backup:
        words.append("backup")
    if event.interface is not None:
        words.append(f"on {event.interface}")
    if event.error:
        words.append(os.strerror(event.error))
    if event.reset_reason is not None:
        words.append(f"reset reason {event.reset_reason}")
    return "  ".join(words)
