"""``mptcp demo``: the main job end to end. One connection, two subflows, and the loss of one in mid-transfer."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from mptcp._core import Subflow
from mptcp._socket import Socket
from mptcp.cli._screen import Screen
from mptcp.cli._show import as_json
from mptcp.lab import two_paths

SUMMARY = "open and close subflows of a transfer, in a lab of its own, and show what each carried"

_RATES = (60, 40)
"""Mbit/s of the two paths."""
_SIZE = 64 << 20
_CHUNK = 1 << 16
_HASH = hashlib.sha256

_SERVER_PORT = 5000
_LOCAL_PORT = 12345

_INTERVAL = 0.2
"""Seconds between two readings of the subflows."""
_CLOSING_INTERVAL = 0.01
"""The same while one is closing, so that its last reading is close to its final state."""
_TIMEOUT = 10.0
"""Seconds without any progress after which the transfer has failed."""

_MIB = 1 << 20
_MBIT = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Needs no privilege where unprivileged user namespaces are allowed; otherwise run it as root."
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    view = _View() if arguments.json else _OnScreen() if Screen.fits(sys.stdout) else _Lines()
    view.begin()
    with two_paths(rate=tuple(f"{rate}mbit" for rate in _RATES)) as (client, server, (first, second)):
        remote = first.address(server), _SERVER_PORT
        join = (second.address(client), _LOCAL_PORT), (second.address(server), _SERVER_PORT)
        transfer = _Transfer()
        with (
            # On every address, because a join to an address without a listener is refused.
            server.create_server(("", _SERVER_PORT)) as listener,
            client.create_connection(remote, _TIMEOUT) as sock,
        ):
            listener.settimeout(_TIMEOUT)
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(_TIMEOUT)
                transfer.run(sock, peer, join, view)

    if arguments.json:
        print(as_json(transfer.report(), indent=2))
    if failure := transfer.failure():
        print(f"mptcp demo: {failure}", file=sys.stderr)
        return 1
    return 0


class _Flow:
    """One subflow: its last reading, and when it was opened and closed, in seconds since the start."""

    def __init__(self, subflow: Subflow, now: float) -> None:
        self.opened = now
        self.closed: float | None = None
        self.subflow = subflow
        self.rate = 0.0
        """Bits per second over the last interval."""
        self._rated = now, self.bytes

    def read(self, subflow: Subflow, now: float) -> None:
        self.subflow = subflow
        since, before = self._rated
        # There are extra readings too, and a rate over a short moment would mean nothing.
        if now - since >= _INTERVAL / 2:
            self.rate = (self.bytes - before) * 8 / (now - since)
            self._rated = now, self.bytes

    @property
    def bytes(self) -> int:
        """Bytes of data that it has sent, each counted once, however often it was retransmitted."""
        tcp_info = self.subflow.tcp_info
        # The kernel counts both since Linux 4.19, before it had Multipath TCP.
        return (tcp_info.bytes_sent or 0) - (tcp_info.bytes_retrans or 0)

    def mean_rate(self, end: float) -> float:
        """Return the bits per second from its opening to its closing, or to ``end``."""
        return self.bytes * 8 / ((self.closed or end) - self.opened)

    def __str__(self) -> str:
        return f"subflow {self.subflow.id}: {_endpoint(self.subflow.local)} -> {_endpoint(self.subflow.remote)}"


class _Transfer:
    """One connection from the client's side, with what is observed of it. Times are seconds since it began."""

    def __init__(self) -> None:
        self.flows: list[_Flow] = []
        self.received = 0
        self.elapsed = 0.0
        self.hashes = {"client": "", "server": ""}
        self.mptcp_info: dict[str, int | None] = {}
        self._start = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._start

    def run(self, sock: Socket, peer: Socket, join: tuple[tuple[str, int], tuple[str, int]], view: _View) -> None:
        """Send the data over the initial subflow and a second one, and close the initial one half-way."""
        self.read(sock)
        (initial,) = self.flows
        view.event(self.now(), f"connected, {initial}")
        # Further subflows can be opened once the peer has acknowledged data. The size is data that the peer needs.
        sock.sendall(_SIZE.to_bytes(8, "big"))
        sock.open_subflow(*join, timeout=_TIMEOUT)
        self.read(sock)
        view.event(self.now(), f"opened {self.flows[-1]}")

        with _threads_on(sock, peer) as pool:
            running = {pool.submit(self._send, sock), pool.submit(self._receive, peer)}
            interval, closing = _INTERVAL, False
            while running:
                running = _still_running(running, interval)
                for flow in self.read(sock):
                    interval = _INTERVAL
                    view.event(self.now(), f"closed subflow {flow.subflow.id}")
                if self.received >= _SIZE // 2 and not closing:
                    initial.subflow.close()
                    # The kernel ends the initial subflow by a FIN, behind what is in its queue.
                    interval, closing = _CLOSING_INTERVAL, True
                    view.event(self.now(), f"closing subflow {initial.subflow.id}")
                view.progress(self.now(), self.received, self.flows)

        self.elapsed = self.now()
        info = sock.info()
        self.mptcp_info = {
            name: getattr(info, name) for name in ("bytes_sent", "bytes_retrans", "bytes_received", "bytes_acked")
        }
        view.end(self)

    def read(self, sock: Socket) -> list[_Flow]:
        """Read every subflow and return those that have disappeared since the last reading, which keep theirs."""
        snapshot = {subflow.id: subflow for subflow in sock.subflows()}
        now = self.now()
        gone = []
        for flow in self.flows:
            subflow = snapshot.pop(flow.subflow.id, None)
            if subflow is not None:
                flow.read(subflow, now)
            elif flow.closed is None:
                flow.closed = now
                gone.append(flow)
        self.flows += [_Flow(subflow, now) for subflow in snapshot.values()]
        return gone

    def failure(self) -> str | None:
        """Return what was wrong with a transfer that finished, or None."""
        if self.hashes["client"] != self.hashes["server"]:
            return "the received data is not the data that was sent: the SHA-256 hashes differ"
        if not all(flow.bytes for flow in self.flows):
            return "not every subflow carried data"
        if self.flows[0].closed is None:
            return "the first subflow was not closed"
        return None

    def report(self) -> dict[str, Any]:
        """Return the result as JSON types. A subflow's ``bytes`` are those that it sent, without retransmissions."""
        return {
            "kernel": os.uname().release,
            "bytes": _SIZE,
            "elapsed_s": round(self.elapsed, 6),
            "sha256": self.hashes,
            "mptcp_info": self.mptcp_info,
            "subflows": [
                {
                    "id": flow.subflow.id,
                    "local": flow.subflow.local,
                    "remote": flow.subflow.remote,
                    "bytes": flow.bytes,
                    "opened_s": round(flow.opened, 6),
                    "closed_s": None if flow.closed is None else round(flow.closed, 6),
                }
                for flow in self.flows
            ],
        }

    def _send(self, sock: Socket) -> None:
        """Be the client: send the data and receive the server's hash of it."""
        sent = _HASH()
        for _ in range(_SIZE // _CHUNK):
            # Never the same bytes twice: swapped pieces must change the hash.
            chunk = os.urandom(_CHUNK)
            sent.update(chunk)
            sock.sendall(chunk)
        self.hashes["client"] = sent.hexdigest()
        self.hashes["server"] = _receive_exactly(sock, sent.digest_size).hex()

    def _receive(self, peer: Socket) -> None:
        """Be the server: receive as much as was announced and answer with its hash."""
        size = int.from_bytes(_receive_exactly(peer, 8), "big")
        received = _HASH()
        buffer = memoryview(bytearray(_CHUNK))
        while self.received < size:
            count = peer.recv_into(buffer)
            if not count:
                raise ConnectionResetError("the connection ended before all data had arrived")
            received.update(buffer[:count])
            self.received += count
        peer.sendall(received.digest())


@contextlib.contextmanager
def _threads_on(*socks: Socket) -> Iterator[ThreadPoolExecutor]:
    """Provide threads that use these sockets; an error or Ctrl-C in the block does not have to wait for them."""
    with ThreadPoolExecutor(len(socks)) as pool:
        try:
            yield pool
        except BaseException:
            for sock in socks:
                # This wakes threads that wait in send() or recv(). The connection may be gone already.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            raise


def _still_running(futures: set[Future[None]], seconds: float) -> set[Future[None]]:
    """Wait up to ``seconds``, raise what a thread has raised, and return those that are not done."""
    done, running = wait(futures, seconds, FIRST_EXCEPTION)
    for future in done:
        future.result()
    return running


def _receive_exactly(sock: Socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the connection ended before all data had arrived")
        data += piece
    return data


class _View:
    """What the user sees of the transfer: with this class, nothing."""

    def begin(self) -> None:
        """Show what is going to be done."""

    def event(self, now: float, text: str) -> None:
        """Show what has happened."""

    def progress(self, now: float, received: int, flows: Sequence[_Flow]) -> None:
        """Show the subflows after a reading."""

    def end(self, transfer: _Transfer) -> None:
        """Show the result, once all data has arrived."""


class _Lines(_View):
    """Plain lines, for files, pipes and simple terminals."""

    def __init__(self) -> None:
        self._quarters = 1

    def show(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)

    def begin(self) -> None:
        rates = " and ".join(map(str, _RATES))
        self.show(
            f"mptcp demo: {_SIZE // _MIB} MiB from a client to a server over paths of {rates} Mbit/s",
            f"kernel {os.uname().release}, hosts in network namespaces of their own",
            "",
        )

    def event(self, now: float, text: str) -> None:
        self.show(f"{now:6.2f} s  {text}")

    def progress(self, now: float, received: int, flows: Sequence[_Flow]) -> None:
        if received < self._quarters * _SIZE // 4:
            return
        self._quarters = received * 4 // _SIZE + 1
        shares = ", ".join(f"subflow {flow.subflow.id} {flow.bytes / _MIB:.1f} MiB" for flow in flows)
        self.event(now, f"received {received / _MIB:.1f} MiB; sent by {shares}")

    def end(self, transfer: _Transfer) -> None:
        self.show("", *_result(transfer))


class _OnScreen(_Lines):
    """A live table of the subflows on a terminal, below the lines about what has happened."""

    def __init__(self) -> None:
        super().__init__()
        self._screen = Screen(sys.stdout)
        self._area: Sequence[str] = ()

    def show(self, *lines: str) -> None:
        self._screen.draw(self._area, above=lines)

    def progress(self, now: float, received: int, flows: Sequence[_Flow]) -> None:
        self._area = ["", *_table(flows), "", _bar(now, received)]
        self._screen.draw(self._area)

    def end(self, transfer: _Transfer) -> None:
        self._area = ()
        super().end(transfer)


def _bar(now: float, received: int) -> str:
    width = 40
    done = width * received // _SIZE
    return f"[{'#' * done}{'-' * (width - done)}]  {received / _MIB:.1f} of {_SIZE // _MIB} MiB  {now:6.2f} s"


def _table(flows: Sequence[_Flow]) -> list[str]:
    """Return the subflows at this moment."""
    lines = [f"{_HEADER}  {'state':11}  rtt ms  cwnd   MiB  Mbit/s"]
    for flow in flows:
        tcp_info = flow.subflow.tcp_info
        closed = flow.closed is not None
        state, rate = ("closed", "-") if closed else (flow.subflow.state, f"{flow.rate / _MBIT:.1f}")
        lines.append(
            f"{_identity(flow)}  {state:11}  {(tcp_info.rtt or 0) / 1000:6.1f}  {tcp_info.snd_cwnd or 0:4}"
            f"  {flow.bytes / _MIB:4.1f}  {rate:>6}"
        )
    return lines


def _result(transfer: _Transfer) -> list[str]:
    """Return what each subflow carried, and whether all data arrived as it was sent."""
    lines = [f"{_HEADER}  opened s  closed s   MiB  Mbit/s"]
    for flow in transfer.flows:
        closed = "-" if flow.closed is None else f"{flow.closed:.2f}"
        rate = flow.mean_rate(transfer.elapsed) / _MBIT
        lines.append(f"{_identity(flow)}  {flow.opened:8.2f}  {closed:>8}  {flow.bytes / _MIB:4.1f}  {rate:6.1f}")
    twice = sum(flow.bytes for flow in transfer.flows) - _SIZE
    if twice >= _MIB / 10:
        lines.append(f"{twice / _MIB:.1f} MiB went over both: they were in flight when the first was closed")
    equal = transfer.hashes["client"] == transfer.hashes["server"]
    return [
        *lines,
        "",
        f"sent      {transfer.hashes['client']}",
        f"received  {transfer.hashes['server']}",
        f"{_SIZE // _MIB} MiB in {transfer.elapsed:.2f} s; the SHA-256 hashes {'are equal' if equal else 'DIFFER'}",
    ]


_HEADER = f"id  {'local':14}    {'remote':13}"


def _identity(flow: _Flow) -> str:
    local, remote = _endpoint(flow.subflow.local), _endpoint(flow.subflow.remote)
    return f"{flow.subflow.id!s:>2}  {local:14} -> {remote:13}"


def _endpoint(address: tuple[Any, ...]) -> str:
    return f"{address[0]}:{address[1]}"
