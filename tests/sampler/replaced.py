"""Record a connection whose second subflow is opened and closed again and again: ``replaced.py METHOD COUNT CAPTURE``.

Prints, for each end of the connection: the ends of the subflows of which events told, and of each that was recorded the
ends, the bytes that it sent and received, and how many final rows it has. As a program, so that system calls can be
denied to it.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from typing import Any

import mptcp
from mptcp.lab import two_paths
from support import connected, eventually

PIECE = 5_000


def recorded(recorder: mptcp.Recorder) -> dict[str, Any]:
    rows = {}
    ends = {each["cookie"]: (each["local"], each["remote"]) for each in recorder.metadata["subflows"]}
    for cookie in {int(cookie) for cookie in recorder.samples["cookie"]}:
        of_it = recorder.samples[recorder.samples["cookie"] == cookie]
        last = of_it[-1]
        local, remote = ends[cookie]
        rows[f"{local[0]}:{local[1]} {remote[0]}:{remote[1]}"] = {
            "sent": int(last["bytes_sent"]),
            "received": int(last["bytes_received"]),
            "final": int(of_it["final"].sum()),
            "wait_ns": int(last["wait_ns"]),
        }
    begun = [event for event in recorder.events if event.kind is mptcp.EventKind.SUB_ESTABLISHED]
    return {
        "events": [
            f"{event.local[0]}:{event.local[1]} {event.remote[0]}:{event.remote[1]}"
            for event in begun
            if event.local and event.remote
        ],
        "rows": rows,
        "method": recorder.metadata["method"],
        "failure": recorder.metadata["failure"],
    }


def main(method: Any, count: int, capture: str) -> None:
    with two_paths(rate=None) as (client, server, paths), connected(client, server, paths) as made:
        sock, peer = made.sock, made.peer
        # The replaced ones carry the data.
        sock.subflows()[0].set_backup(True)

        def read() -> None:
            while peer.recv(1 << 16):
                pass

        reading = threading.Thread(target=read)
        reading.start()
        with (
            paths[0].capture(f"{capture}.0"),
            paths[1].capture(f"{capture}.1"),
            mptcp.Recorder(sock, 1.0, method=method) as here,
            mptcp.Recorder(peer, 1.0, method=method) as there,
        ):
            for port in range(20000, 20000 + count):
                opened = sock.open_subflow((made.second[0], port), made.second[1])
                sock.sendall(bytes(PIECE))
                sock.close_subflow(opened)
            sock.shutdown(socket.SHUT_WR)
            reading.join()

            # The peer's may stay in CLOSE_WAIT until the connection ends.
            eventually(lambda: bool(here.samples["final"].sum() >= count))
        print(json.dumps([recorded(here), recorded(there)]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
