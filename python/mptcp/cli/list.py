"""``mptcp list``: the Multipath TCP connections of the network namespace and their subflows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from mptcp import _proc
from mptcp._address import endpoint
from mptcp._connection import Connection, connections, subflows_of
from mptcp._core import Subflow
from mptcp.cli._show import as_json, show

SUMMARY = "list the connections of this network namespace and their subflows"

_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    add_choice(parser)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select connections."""
    parser.epilog = (
        "Needs no privilege, but CAP_NET_ADMIN before Linux 6.15; --pid of another user's process also needs "
        "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH."
    )
    parser.add_argument("--token", type=number(0, 2**32 - 1), help="only the connection with this token")
    parser.add_argument("--pid", type=number(1, 2**31 - 1), help="only connections that this process holds")
    parser.add_argument("--port", type=number(0, 65535), help="only connections with this local or remote port")


Found = list[tuple[Connection, list[Subflow]]]


def find(arguments: argparse.Namespace) -> Found:
    """Return the connections that are asked for, with their subflows."""
    listed = connections(token=arguments.token, pid=arguments.pid, port=arguments.port)
    # Without those that ended while they were listed.
    read = zip(listed, subflows_of(listed), strict=True)
    return [(connection, subflows) for connection, subflows in read if subflows is not None]


def run(arguments: argparse.Namespace) -> int:
    found = find(arguments)
    owners = holders() if found else {}
    if arguments.json:
        print(as_json({"connections": [report(*each, owners) for each in found]}, indent=2))
    else:
        show(*_lines(found, owners))
    return 0


Holders = Mapping[int, tuple[int, str]]


def holders() -> Holders:
    """Return, by a socket's inode number, the first process that holds it and its program: one pass over /proc."""
    found = _proc.holders()
    programs = {pid: _proc.program(pid) for pid in set(found.values())}
    # Without those that have ended in the meantime.
    return {inode: (pid, program) for inode, pid in found.items() if (program := programs[pid]) is not None}


def number(lowest: int, highest: int) -> Callable[[str], int]:
    """Return the converter of an argument: an int, decimal or with 0x, from lowest to highest."""

    def number(text: str) -> int:
        value = int(text, 0)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"must be from {lowest} to {highest}, not {text}")
        return value

    return number


def report(connection: Connection, subflows: list[Subflow], holders: Holders) -> dict[str, Any]:
    """Return a connection as JSON types, by the names of the attributes."""
    names = ("token", "state", "server_side", "local", "remote", "uid", "inode", "cgroup")
    pid, program = holders.get(connection.inode, (None, None))
    return {
        **{name: getattr(connection, name) for name in names},
        "pid": pid,
        "program": program,
        "age_s": round(connection.age, 3),
        "subflows": [subflow_report(subflow) for subflow in subflows],
    }


def subflow_report(subflow: Subflow) -> dict[str, Any]:
    names = (
        "cookie",
        "local",
        "remote",
        "local_id",
        "remote_id",
        "initial",
        "backup",
        "peer_backup",
        "state",
    )
    return {**{name: getattr(subflow, name) for name in names}, "tcp_info": subflow.tcp_info.asdict()}


def _lines(found: Found, holders: Holders) -> list[str]:
    if not found:
        return ["no Multipath TCP connections"]
    return table(found, holders, _row)


def table(found: Found, holders: Holders, row: Callable[[Subflow], tuple[str, ...]]) -> list[str]:
    """Return a line for each connection and, below it, one for each of its subflows with the cells of ``row``."""
    rows = {subflow: row(subflow) for _, subflows in found for subflow in subflows}
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    lines = []
    for connection, subflows in found:
        lines.append(title(connection, holders))
        for subflow in subflows:
            cells = (f"{cell:{width}}" for cell, width in zip(rows[subflow], widths, strict=True))
            lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def title(connection: Connection, holders: Holders) -> str:
    held = owner(connection, holders)
    return (
        f"{connection.token}  {endpoint(connection.local)} -> {endpoint(connection.remote)}  {connection.state}"
        f"  {side(connection)}  uid {connection.uid}{held and '  '}{held}"
    )


def side(connection: Connection) -> str:
    return {True: "server", False: "client", None: "?"}[connection.server_side]


def owner(connection: Connection, holders: Holders) -> str:
    """Return the process that holds it and its program; "" if that is not known."""
    holder = holders.get(connection.inode)
    return "" if holder is None else "pid {} ({})".format(*holder)


def flags(subflow: Subflow) -> str:
    kind = {True: "initial", False: "joined", None: "?"}[subflow.initial]
    return ",".join(
        [kind, *(word for word, on in (("backup", subflow.backup), ("peer-backup", subflow.peer_backup)) if on)]
    )


def _row(subflow: Subflow) -> tuple[str, ...]:
    tcp_info = subflow.tcp_info
    return (
        f"{endpoint(subflow.local)} -> {endpoint(subflow.remote)}",
        subflow.state,
        f"ids {or_unknown(subflow.local_id)}/{or_unknown(subflow.remote_id)}",
        flags(subflow),
        f"rtt {(tcp_info.rtt or 0) / 1000:.1f} ms",
        f"cwnd {or_unknown(tcp_info.snd_cwnd)}",
        f"sent {(tcp_info.bytes_acked or 0) / _MIB:.1f} MiB",
        f"received {(tcp_info.bytes_received or 0) / _MIB:.1f} MiB",
    )


def or_unknown(value: int | None) -> str:
    return "?" if value is None else str(value)
