"""``mptcp trace``: what captures or the kernel's tracepoints tell of connections and subflows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import PurePath
from typing import Any

from mptcp._address import endpoint
from mptcp.cli._show import as_json, show

from .list import number as _number
from .record import seconds as _seconds
from .record import signals

SUMMARY = "print the connections and subflows of captures (pcap, pcapng) or of this host, or convert captures"

_TABLES = (".npz", ".parquet", ".arrow")
_IMAGES = (".png", ".pdf", ".svg")
_QLOG = ".qlog"
_PAUSE = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Needs no privilege, but CAP_BPF and CAP_PERFMON for --live. docs/traces.md explains the numbers."
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="captures in the pcap or pcapng format, merged by time, - for standard input; or one trace that -o wrote",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="instead of files, trace the connections of this network namespace by the kernel's tracepoints, until "
        "--duration has passed or SIGINT or SIGTERM arrives",
    )
    parser.add_argument("--token", type=_number(0, 2**32 - 1), help="with --live: only the connection with this token")
    parser.add_argument("--duration", type=_seconds(86400 * 365), help="with --live: seconds to trace")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "-o",
        "--output",
        type=_output,
        metavar="OUT",
        help="also write the trace: .npz, .parquet, or .arrow, for which little memory is enough; "
        "or plot it: .png, .pdf, .svg; or write it for qvis: .qlog",
    )


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.files) == arguments.live:
        print("mptcp trace: name the captures to read, or use --live, not both", file=sys.stderr)
        return 2
    if not arguments.live and (arguments.token is not None or arguments.duration is not None):
        print("mptcp trace: --token and --duration go with --live", file=sys.stderr)
        return 2
    output = arguments.output
    streamed = output is not None and output.suffix == ".arrow"
    try:
        trace = _trace(arguments, output if streamed else None)
        if trace is None:
            print("mptcp trace: no connection matches", file=sys.stderr)
            return 1
        if output is not None and output.suffix in _IMAGES:
            _plot(trace, output)
        elif output is not None and output.suffix == _QLOG:
            trace.to_qlog(output)
        elif output is not None and not streamed:
            trace.save(output)
    except (ModuleNotFoundError, ValueError) as error:
        print(f"mptcp trace: {error}", file=sys.stderr)
        return 1
    for capture in trace.metadata["captures"]:
        if capture["damage"]:
            show(f"mptcp trace: {capture['path']} was not read to its end: {capture['damage']}", file=sys.stderr)
    if arguments.json:
        print(as_json(_report(trace), indent=2))
    else:
        show(*_lines(trace))
    return 0


def _trace(arguments: argparse.Namespace, path: PurePath | None) -> Any:
    """Return the trace of the captures, or of the tracepoints; None if there is no such connection."""
    from mptcp._connection import connections
    from mptcp._trace import Tracer, read_trace

    if not arguments.live:
        return read_trace(*arguments.files, path=path)
    sources = None
    if arguments.token is not None:
        sources = connections(token=arguments.token)
        if not sources:
            return None
    with signals() as stopped, Tracer(sources, path=path) as tracer:
        print("tracing", file=sys.stderr, flush=True)
        begin = time.monotonic()
        while not stopped():
            left = _PAUSE if arguments.duration is None else arguments.duration - (time.monotonic() - begin)
            if left <= 0:
                break
            time.sleep(min(_PAUSE, left))
    return tracer.trace


def _output(text: str) -> PurePath:
    from pathlib import Path

    path = Path(text)
    suffixes = (*_TABLES, *_IMAGES, _QLOG)
    if path.suffix not in suffixes:
        raise argparse.ArgumentTypeError(
            f"the suffix must be {', '.join(suffixes[:-1])} or {suffixes[-1]}, not {text!r}"
        )
    return path


def _plot(trace: Any, output: PurePath) -> None:
    """Draw the connection with the most data: its sequence numbers and, below, what is in flight."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plotting needs matplotlib: pip install 'mptcp[plot]'") from error
    # It writes files, whether there is a display or not.
    matplotlib.use("agg")
    from matplotlib import pyplot

    from mptcp.plot import _style, flight, sequence

    with _style.style():
        figure, axes = pyplot.subplots(2, sharex=True, layout="constrained", figsize=(7, 5))
        sequence(trace, ax=axes[0])
        flight(trace, ax=axes[1])
        figure.savefig(output, dpi=200)


def _rows(rows: Any) -> list[dict[str, Any]]:
    return [dict(zip(rows.dtype.names, row, strict=True)) for row in rows.tolist()]


def _report(trace: Any) -> dict[str, Any]:
    """Return the connections with their subflows and events as JSON types, by the names of the columns."""
    from mptcp._trace import written

    subflows, events = _rows(trace.subflows), [written(event) for event in trace.events]
    connections = [
        {
            **connection,
            "subflows": [subflow for subflow in subflows if subflow["connection"] == number],
            "events": [event for event in events if event["connection"] == number],
        }
        for number, connection in enumerate(_rows(trace.connections))
    ]
    return {"connections": connections, **trace.metadata}


def _lines(trace: Any) -> list[str]:
    subflows = _rows(trace.subflows)
    lines: list[str] = []
    for number, connection in enumerate(_rows(trace.connections)):
        lines.append(_title(connection))
        rows = [_row(subflow) for subflow in subflows if subflow["connection"] == number]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            lines.append("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if live := trace.metadata.get("tracepoints"):
        lost = [f"{live['lost']:,} records were lost: rows are missing"] if live["lost"] else []
        return [*(lines or ["no Multipath TCP"]), *lost]
    counts = trace.metadata["counts"]
    options = ", ".join(f"{count:,} {name}" for name, count in counts["options"].items() if count)
    lines.append(f"{counts['frames']:,} packets, {counts['segments']:,} of TCP; {options or 'no Multipath TCP'}")
    if counts["malformed"]:
        lines.append(f"{counts['malformed']:,} malformed options")
    if counts["cut"]:
        lines.append(f"{counts['cut']:,} packets whose headers were cut: capture more of each (tcpdump -s 200)")
    return lines


def _title(connection: dict[str, Any]) -> str:
    marks = [
        f"version {connection['version']}" if connection["version"] >= 0 else "version unknown",
        *(["incomplete"] if not connection["complete"] else []),
        *(["checksums"] if connection["checksum"] else []),
        *(["fell back to TCP"] if connection["fallback"] else []),
    ]
    seconds = (connection["end_ns"] - connection["start_ns"]) / 1e9
    return (
        f"{connection['token']} / {connection['peer_token']}  {', '.join(marks)}  {seconds:.3f} s"
        f"  -> {_data(connection, 0)}  <- {_data(connection, 1)}"
    )


def _data(row: dict[str, Any], direction: int) -> str:
    """Format the bytes of one direction, and what of them needs attention."""
    parts = [f"{row[f'bytes_{direction}']:,} bytes"]
    for name in ("retransmitted", "reinjected", "missing", "unmapped"):
        if count := row.get(f"{name}_{direction}"):
            parts.append(f"{count:,} {name}")
    return ", ".join(parts)


def _row(subflow: dict[str, Any]) -> tuple[str, ...]:
    ends = [endpoint((subflow[f"address_{side}"], subflow[f"port_{side}"])) for side in (0, 1)]
    arrow = "<-" if subflow["initiator"] else "->"
    flags = ["initial" if subflow["initial"] else "joined"]
    if subflow["backup_0"] or subflow["backup_1"]:
        flags.append("backup")
    if subflow["reset_ns"] != -1:
        flags.append("reset" if subflow["reset_reason"] < 0 else f"reset, reason {subflow['reset_reason']}")
    for name, what in (("hmac_errors", "HMAC"), ("checksum_errors", "checksum")):
        if count := subflow[f"{name}_0"] + subflow[f"{name}_1"]:
            flags.append(f"{count:,} wrong {what}{'s' if count > 1 else ''}")
    handshake = "handshake ?"
    if subflow["ack_ns"] != -1 and subflow["syn_ns"] != -1:
        handshake = f"handshake {(subflow['ack_ns'] - subflow['syn_ns']) / 1e6:.2f} ms"
    return (
        f"{ends[0]} {arrow} {ends[1]}",
        ",".join(flags),
        handshake,
        f"-> {_data(subflow, 0)}",
        f"<- {_data(subflow, 1)}",
    )
