"""Bulk data between two hosts, for measurements."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from mptcp._recording import Recorder, Recording
from mptcp._socket import Socket
from mptcp.lab._host import Host
from mptcp.lab._lab import Lab
from mptcp.lab._link import Link

_CHUNK = 1 << 16
# The timeout for connecting, in seconds.
_TIMEOUT = 10.0


class Transfer:
    """A connection over which one host sends data, zeros, to another at full speed, within a with-block.

    ::

        with two_paths() as (client, server, paths):
            with Transfer(client, server, paths) as transfer, mptcp.Recorder(transfer.sock) as rec:
                time.sleep(3)

    ``paths`` are links between the two: the initial subflow uses the first, and one further subflow is opened over each
    of the others before any data is sent. The receiver listens on all its addresses at ``port``, so more subflows can
    be opened. ``sock`` is the sender's end, ``peer`` the receiver's, and ``received`` the number of bytes that have
    arrived. When the block ends, both ends are closed once the data has arrived; after an exception, at once.

    Raises ValueError if there are no paths or one is not between these hosts, and what connecting and opening subflows
    raise; at the end of the block, what sending or receiving raised.
    """

    def __init__(self, sender: Host, receiver: Host, paths: Sequence[Link], *, port: int = 5000) -> None:
        if not paths or any(set(link.hosts) != {sender, receiver} for link in paths):
            raise ValueError(f"paths must be links between {sender.name!r} and {receiver.name!r}, not {paths!r}")
        #: The bytes that have arrived.
        self.received: int = 0
        self._ending = threading.Event()
        self._running: list[Future[None]] = []
        first, *others = paths
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(receiver.create_server(("", port)))
            listener.settimeout(_TIMEOUT)
            self.sock: Socket = stack.enter_context(sender.create_connection((first.address(receiver), port), _TIMEOUT))
            self.peer: Socket = stack.enter_context(listener.accept()[0])
            self.peer.settimeout(_TIMEOUT)
            # A byte in each direction, after which subflows can be opened.
            for one, other in ((self.sock, self.peer), (self.peer, self.sock)):
                one.sendall(b"\0")
                other.recv(1)
            for link in others:
                self.sock.open_subflow(link.address(sender), (link.address(receiver), port))
            self.sock.settimeout(None)
            self.peer.settimeout(None)
            self._pool = stack.enter_context(ThreadPoolExecutor(2, "mptcp-transfer"))
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        self._running = [self._pool.submit(self._send), self._pool.submit(self._receive)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if error is not None:
            self._hang_up()
        with self._open:
            failures = [running.exception() for running in self._running]
        # If the block failed, its own exception is the one to report.
        if error is None and any(failures):
            raise next(filter(None, failures))

    def _send(self) -> None:
        data = bytes(_CHUNK)
        with self._hung_up_on_error():
            while not self._ending.is_set():
                self.sock.sendall(data)
            self.sock.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        buffer = bytearray(_CHUNK)
        with self._hung_up_on_error():
            while count := self.peer.recv_into(buffer):
                self.received += count

    @contextlib.contextmanager
    def _hung_up_on_error(self) -> Iterator[None]:
        """On an error shut both ends down, so that the other thread does not wait for the failed connection."""
        try:
            yield
        except BaseException:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        for sock in (self.sock, self.peer):
            # This wakes threads that wait in send() or recv(). The connection may be gone already.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def record_transfer(
    paths: Sequence[Mapping[str, Any]], seconds: float = 3.0, *, interval: float = 0.01, seed: int | None = None
) -> Recording:
    """Record a Transfer between two hosts in a lab of its own, and return the Recording: one cell of a sweep.

    ``paths`` are the arguments of Lab.link() for each link, like ``[{"rate": "20mbit"}, {"rate": "10mbit"}]``. The
    transfer is recorded for ``seconds``, with ``interval`` seconds between two samples. ``seed`` is that of Lab. The
    recording's metadata has the seed (``labs``) and how late the links' frames left (``links``).

    Arguments and result can be pickled, so any concurrent.futures.Executor can run it, in other processes or on other
    machines: ``executor.map(record_transfer, cells)``.

    Raises ValueError if there are no paths, UnsupportedError if the kernel lacks what a link needs, what Lab raises.
    """
    with Lab(seed=seed) as lab:
        sender, receiver = lab.host("sender"), lab.host("receiver")
        links = [lab.link(sender, receiver, **options) for options in paths]
        with Transfer(sender, receiver, links) as transfer, Recorder(transfer.sock, interval) as rec:
            time.sleep(seconds)
        return Recording(rec.samples, rec.connections, rec.events, rec.metadata)
