"""What the tests of policies run on: three links, and the traffic of a program that knows nothing of Multipath TCP."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import eventually

PORT = 5000

# Sends until it is told to end by a line, and prints the digest of what it sent. It knows TCP only: `mptcp run` starts
# it.
SENDER = """
import hashlib, select, socket, sys
source, host, port = sys.argv[1:4]
sock = socket.socket()
sock.bind((source, 0))
sock.connect((host, int(port)))
print(sock.getsockname()[1], flush=True)
sent, block = hashlib.sha256(), bytes(range(251)) * 16
while not select.select([sys.stdin], [], [], 0)[0]:
    sock.sendall(block)
    sent.update(block)
sock.shutdown(socket.SHUT_WR)
sock.recv(1)
print(sent.hexdigest(), flush=True)
"""


@dataclass
class Site:
    """Three links between a client and a server that takes whatever comes."""

    client: Host
    server: Host
    links: list[Link]
    listener: mptcp.Socket
    received: dict[int, str] = field(default_factory=dict)

    def serve(self) -> None:
        while True:
            try:
                sock, (_, port) = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._drain, args=(sock, port), daemon=True).start()

    def _drain(self, sock: mptcp.Socket, port: int) -> None:
        digest = hashlib.sha256()
        with sock:
            while data := sock.recv(1 << 16):
                digest.update(data)
        self.received[port] = digest.hexdigest()


class Flow:
    """A sender's connection, looked at from outside."""

    def __init__(self, site: Site, process: subprocess.Popen[str]) -> None:
        self.site, self.process = site, process
        assert process.stdout is not None
        self.port = int(process.stdout.readline())

    def subflows(self) -> list[mptcp.Subflow]:
        found = [conn for conn in self.site.client.connections(port=self.port) if not conn.server_side]
        return found[0].subflows() if found else []

    def on(self, *links: Link) -> bool:
        """Whether the subflows are exactly on these links, one each."""
        addresses = sorted(link.address(self.site.client) for link in links)
        return sorted(local[0] for local in self.established()) == addresses

    def comes_to_be_on(self, *links: Link, seconds: float = 20) -> None:
        if not eventually(lambda: self.on(*links), seconds):
            there = [(one.state, one.local, one.remote) for one in self.subflows()]
            pytest.fail(f"not on {links} alone, but {there}")

    def established(self) -> list[tuple[str, int]]:
        return [subflow.local for subflow in self.subflows() if subflow.state == "ESTABLISHED"]

    def sent(self) -> dict[tuple[str, int], int]:
        return {subflow.local: subflow.tcp_info.bytes_acked or 0 for subflow in self.subflows()}

    def carrying(self, *links: Link) -> bool:
        """Whether it comes to this: of 400 kB acknowledged these links carried 50 kB each, and no other did."""
        wanted = {link.address(self.site.client) for link in links}
        before = self.sent()

        def settled() -> bool:
            nonlocal before
            now = self.sent()
            moved: dict[str, int] = {}
            for ends, count in now.items():
                moved[ends[0]] = moved.get(ends[0], 0) + count - before.get(ends, 0)
            if sum(moved.values()) < 400_000:
                return False
            # What was on its way on another link before takes its time.
            before = now
            return {address for address, count in moved.items() if count > 50_000} == wanted

        return eventually(settled, 30)

    def finish(self) -> None:
        """Ends the transfer: every byte has arrived."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        digest = self.process.stdout.readline().strip()
        assert self.process.wait(60) == 0
        assert eventually(lambda: self.port in self.site.received, 20)
        assert self.site.received[self.port] == digest


Start = Callable[..., Flow]
