"""Witnesses of what read_trace() says: tshark, and what an application sent."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections import Counter
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


def new_bytes(trace: mptcp.Trace, direction: int) -> int:
    """The bytes sent for the first time, which are without a gap from the first one."""
    rows = trace.packets[trace.packets["direction"] == direction]
    rows = np.sort(rows[~rows["retransmitted"] & ~rows["reinjected"]], order="dsn")
    ends = rows["dsn"] + rows["length"]
    assert rows["dsn"].tolist() == [0, *ends[:-1].tolist()][: len(rows)]
    return int(rows["length"].sum())


@contextlib.contextmanager
def connected(
    client: Host, server: Host, links: list[Link], **options: Any
) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    """Both ends of a connection with a subflow over each link."""
    with server.create_server(("", PORT)) as listener:
        address = links[0].address(server), PORT
        sock = client.create_connection(address, timeout=10, path_manager="userspace")
        with sock, listener.accept()[0] as peer:
            peer.settimeout(60)
            sock.sendall(b"x")
            assert peer.recv(1) == b"x"
            peer.sendall(b"x")
            assert sock.recv(1) == b"x"
            for link in links[1:]:
                sock.open_subflow(
                    local=(link.address(client), 0), remote=(link.address(server), PORT), timeout=20, **options
                )
            yield sock, peer
