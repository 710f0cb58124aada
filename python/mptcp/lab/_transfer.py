"""Bulk data between two hosts, to measure by."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mptcp._socket import Socket
from mptcp.lab._lab import Host, Lab

if TYPE_CHECKING:
    from mptcp._recording import Recording

_CHUNK = 1 << 16
# Seconds in which a connection is made.
_TIMEOUT = 10.0


class Transfer:
    """One connection over which a host sends another data, zeros, as fast as it goes, until the with-block ends.

    ::

        with two_paths() as (client, server, (first, second)):
            with Transfer(client, server) as transfer, mptcp.Recorder(transfer.sock) as rec:
                transfer.sock.open_subflow(second.address(client), second.address(server))
                time.sleep(3)

    It goes over the first link that the two share, to ``port``; ``sock`` is the sender's end and ``peer`` the receiver's.
    Both ends are fully established before the data begins. Further subflows are the block's business. ``received`` counts
    the bytes that arrived. When the block ends what has been sent is waited for, and both ends are closed; if it ends by
    an exception they are closed at once.

    Raises what connecting raises, ValueError for hosts without a link, and at the end what sending or receiving raised.
    """

    def __init__(self, sender: Host, receiver: Host, port: int = 5000) -> None:
        shared = [link for link in sender.lab.links if set(link.hosts) == {sender, receiver}]
        if not shared:
            raise ValueError(f"{sender.name!r} and {receiver.name!r} have no link")
        #: The bytes that arrived until now.
        self.received = 0
        self._ending = threading.Event()
        with receiver.create_server(("", port)) as listener, contextlib.ExitStack() as undo:
            listener.settimeout(_TIMEOUT)
            self.sock: Socket = sender.create_connection((shared[0].address(receiver), port), _TIMEOUT)
            undo.callback(self.sock.close)
            self.peer: Socket = listener.accept()[0]
            undo.callback(self.peer.close)
            self.sock.settimeout(None)
            self.peer.settimeout(_TIMEOUT)
            for one, other in ((self.sock, self.peer), (self.peer, self.sock)):
                one.sendall(b"\0")
                other.recv(1)
            self.peer.settimeout(None)
            undo.pop_all()
        self._pool = ThreadPoolExecutor(2, "mptcp-transfer")
        self._running: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._running = [self._pool.submit(self._send), self._pool.submit(self._receive)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if error is not None:
            self._hang_up()
        with self.sock, self.peer, self._pool:
            for running in self._running:
                # Of an error in the block that one is told.
                if (failed := running.exception()) and error is None:
                    raise failed

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
    def _hung_up_on_error(self) -> Any:
        """Neither of the two is to wait for the other's end of a connection that has failed."""
        try:
            yield
        except BaseException:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        for sock in (self.sock, self.peer):
            # It wakes whoever waits in send() or recv(). Perhaps the connection is gone already.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def record_transfer(
    paths: Sequence[Mapping[str, Any]], seconds: float = 3.0, *, interval: float = 0.01
) -> Recording:
    """Record a Transfer between two hosts in a lab of its own: one cell of a sweep.

    ``paths`` has for each link between them the arguments of Lab.link, as ``[{"rate": "20mbit"}, {"rate": "10mbit"}]``.
    Over the first goes the initial subflow, over each other one more, all opened before the data begins, and then it
    is recorded for ``seconds``, with ``interval`` seconds between two samples.

    It is a function of the module and takes and returns what can be pickled, so any concurrent.futures.Executor can run
    it: ``executor.map(record_transfer, cells)``.

    Raises ValueError for no paths, UnsupportedError where the kernel lacks what a link asks for, and what a Lab raises.
    """
    import mptcp

    if not paths:
        raise ValueError("a transfer needs a path")
    with Lab() as lab:
        sender, receiver = lab.host("sender"), lab.host("receiver")
        links = [lab.link(sender, receiver, **options) for options in paths]
        transfer = Transfer(sender, receiver)
        for link in links[1:]:
            transfer.sock.open_subflow(link.address(sender), link.address(receiver))
        with transfer, mptcp.Recorder(transfer.sock, interval) as rec:
            time.sleep(seconds)
        return mptcp.Recording(rec.samples, rec.connections, rec.events, rec.metadata)
