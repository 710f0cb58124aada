"""Witnesses of what read_trace() says: tshark, the bytes of the packets, and what an application sent."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
from mptcp.lab import Host, Link
from support import PORT

SUBTYPES = (
    "MP_CAPABLE",
    "MP_JOIN",
    "DSS",
    "ADD_ADDR",
    "REMOVE_ADDR",
    "MP_PRIO",
    "MP_FAIL",
    "MP_FASTCLOSE",
    "MP_TCPRST",
)


def options_by_tshark(files: Iterable[Path]) -> dict[str, int]:
    """How often each option of Multipath TCP is in the files."""
    counts: Counter[str] = Counter()
    for file in files:
        command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-e", "tcp.options.mptcp.subtype"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        words = output.replace(",", " ").split()
        counts.update(SUBTYPES[int(word, 0)] for word in words)
    return {name: counts[name] for name in SUBTYPES}


def check_options(trace: mptcp.Trace, files: Iterable[Path]) -> None:
    if shutil.which("tshark"):
        assert trace.metadata["counts"]["options"] == options_by_tshark(files)
    assert trace.metadata["counts"]["malformed"] == 0


def is_quiet(sock: mptcp.Socket, remote: str | None = None) -> bool:
    """Whether a subflow, or each of them, has nothing left to send or to send again."""
    subflows = [each for each in sock.subflows() if remote is None or each.remote[0] == remote]
    return all(each.tcp_info.unacked == each.tcp_info.notsent_bytes == 0 for each in subflows)


def new_bytes(trace: mptcp.Trace, direction: int) -> int:
    """The bytes sent for the first time, which are without a gap from the first one."""
    rows = trace.packets[trace.packets["direction"] == direction]
    rows = np.sort(rows[~rows["retransmitted"] & ~rows["reinjected"]], order="dsn")
    ends = rows["dsn"] + rows["length"]
    assert rows["dsn"].tolist() == [0, *ends[:-1].tolist()][: len(rows)]
    return int(rows["length"].sum())


@contextlib.contextmanager
def connected(
    client: Host, server: Host, links: list[Link], family: int = socket.AF_INET, **options: Any
) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    """Both ends of a connection with a subflow over each link."""

    def at(link: Link, host: Host) -> str:
        return link.address(host, family=family)

    with server.create_server(("" if family == socket.AF_INET else "::", PORT), family=family) as listener:
        address = at(links[0], server), PORT
        sock = client.create_connection(address, timeout=10, path_manager="userspace")
        with sock, listener.accept()[0] as peer:
            peer.settimeout(60)
            sock.sendall(b"x")
            assert peer.recv(1) == b"x"
            peer.sendall(b"x")
            assert sock.recv(1) == b"x"
            for link in links[1:]:
                sock.open_subflow(local=(at(link, client), 0), remote=(at(link, server), PORT), timeout=20, **options)
            yield sock, peer


def check_content(trace: mptcp.Trace, files: Iterable[Path], direction: int, content: bytes) -> None:
    """The payload of each segment is what the application sent at its data sequence number."""
    segments: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for file in files:
        for time_ns, sequence, payload in _segments(file.read_bytes()):
            segments[time_ns].append((sequence, payload))
    rows = trace.packets[trace.packets["direction"] == direction]
    assert len(rows)
    columns = [rows[name].tolist() for name in ("time_ns", "sequence", "dsn", "length")]
    for time_ns, sequence, dsn, length in zip(*columns, strict=True):
        found = (payload[(sequence - first) % 2**32 :][:length] for first, payload in segments[time_ns])
        assert content[dsn : dsn + length] in found


def _segments(pcapng: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The time, sequence number and payload of each TCP segment of a file of Link.capture(host="both")."""
    at = 0
    while at < len(pcapng):
        kind, size, _, high, low, captured = struct.unpack_from("=6I", pcapng, at)
        if kind == 6:
            frame = pcapng[at + 28 : at + 28 + captured]
            is_ipv4 = frame[12:14] == b"\x08\x00"
            tcp = 14 + ((frame[14] & 15) * 4 if is_ipv4 else 40)
            if frame[23 if is_ipv4 else 20] == 6:
                end = 14 + (struct.unpack_from("!H", frame, 16)[0] or captured - 14) if is_ipv4 else captured
                data = tcp + (frame[tcp + 12] >> 4) * 4
                yield high << 32 | low, struct.unpack_from("!I", frame, tcp + 4)[0], frame[data:end]
        at += size
