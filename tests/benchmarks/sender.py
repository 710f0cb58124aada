"""A sender that writes 1 MB at a time at full speed, and holds its connection's lock for that."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import mptcp

_PROGRAM = """
import mptcp, os
listener = mptcp.create_server(("127.0.0.1", 0))
sock = mptcp.create_connection(listener.getsockname())
peer, _ = listener.accept()
if os.fork() == 0:
    sock.close()
    buffer = bytearray(1 << 20)
    while peer.recv_into(buffer):
        pass
    os._exit(0)
peer.close()
print(sock.token, sock.fileno(), flush=True)
data = bytes(1 << 20)
while True:
    sock.sendall(data)
"""


class Sender(NamedTuple):
    """The process that sends, its descriptor, and the connection."""

    pid: int
    fd: int
    connection: mptcp.Connection

    def bytes_sent(self) -> int:
        return self.connection.info().bytes_sent or 0


@contextlib.contextmanager
def at_full_speed(processors: set[int] | None = None) -> Iterator[Sender]:
    """Over loopback, with the receiver beside it; on these processors, or wherever it may run."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors or everywhere)  # which a process inherits
    try:
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _PROGRAM], stdout=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, everywhere)
    with process:
        try:
            assert process.stdout is not None
            token, fd = map(int, process.stdout.readline().split())
            [connection] = mptcp.connections(token=token)
            yield Sender(process.pid, fd, connection)
        finally:
            process.kill()
