"""Transfers whose bytes are hashed at both ends, and ways for a connection to end."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import mptcp
from mptcp.lab import Host
from support import PORT

# What is asked for; of a transfer how many bytes, and what the sender's random numbers start from.
_HEADER = struct.Struct("!BQQ")
_LINGER = struct.pack("ii", 1, 0)
_PIECE = 1 << 15
_SERVING = "soak-serve"
_DIGEST = hashlib.sha256().digest_size

FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Asked(enum.IntEnum):
    """What the server is to do."""

    SEND = 0
    RECEIVE = 1
    ABORT = 2
    CLOSE_WITH_UNREAD_DATA = 3
    SHUT_DOWN_SENDING = 4
    """And to read what comes until the client has closed."""
    ANSWER_AFTER_THE_END = 5
    """A byte, once the client has shut down sending."""

    def ask(self, sock: mptcp.Socket) -> None:
        sock.sendall(_HEADER.pack(self, 0, 0))

    def serve(self, sock: mptcp.Socket) -> None:
        """The server's part, after which it closes the connection."""
        match self:
            case Asked.ABORT:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            case Asked.CLOSE_WITH_UNREAD_DATA:
                sock.recv(1, socket.MSG_PEEK)
            case Asked.SHUT_DOWN_SENDING:
                sock.shutdown(socket.SHUT_WR)
                _read_all(sock)
            case Asked.ANSWER_AFTER_THE_END:
                _read_all(sock)
                sock.sendall(b"x")


def abort(sock: mptcp.Socket) -> None:
    """Closes it by MP_FASTCLOSE."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    sock.close()


class Mismatch(Exception):
    """The two ends have hashed different bytes, or bytes came that were not sent there."""


@dataclass(frozen=True)
class Transfer:
    """Bytes in one direction, and then the server's hash of them."""

    upload: bool
    size: int
    seed: int

    def run(self, sock: mptcp.Socket) -> None:
        """The client's part."""
        self.ask(sock)
        ours = self._send(sock) if self.upload else self._receive(sock)
        theirs = _exactly(sock, _DIGEST)
        if ours != theirs:
            raise Mismatch(f"{self}: SHA-256 is {ours.hex()} at the client and {theirs.hex()} at the server")

    def ask(self, sock: mptcp.Socket) -> None:
        asked = Asked.RECEIVE if self.upload else Asked.SEND
        sock.sendall(_HEADER.pack(asked, self.size, self.seed))

    def serve(self, sock: mptcp.Socket) -> None:
        """The server's part, behind the header."""
        sock.sendall(self._receive(sock) if self.upload else self._send(sock))

    def _pieces(self) -> Iterator[bytes]:
        numbers = random.Random(self.seed)
        for start in range(0, self.size, _PIECE):
            yield numbers.randbytes(min(_PIECE, self.size - start))

    def _send(self, sock: mptcp.Socket) -> bytes:
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
            sock.sendall(piece)
        return digest.digest()

    def _receive(self, sock: mptcp.Socket) -> bytes:
        digest, begin = hashlib.sha256(), 0
        for right in self._pieces():
            piece = _exactly(sock, len(right))
            if piece != right:
                raise Mismatch(f"{self}: {self._where(piece, right, begin)}")
            digest.update(piece)
            begin += len(piece)
        return digest.digest()

    def _where(self, piece: bytes, right: bytes, begin: int) -> str:
        """Of a wrong piece, where it begins to be wrong, and where what is there belongs."""
        wrong = next(at for at in range(len(right)) if piece[at] != right[at])
        belongs = b"".join(self._pieces()).find(piece[wrong : wrong + 16])
        return f"from byte {begin + wrong} on there is what belongs to {belongs}"


def _read_all(sock: mptcp.Socket) -> None:
    while sock.recv(_PIECE):
        pass


def _exactly(sock: mptcp.Socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"the stream ended after {len(data)} of {size} bytes")
        data += piece
    return data


class Server:
    """Accepts connections of both families in a host and serves their transfers, each by a thread of its own."""

    def __init__(self, host: Host) -> None:
        self.failures: list[str] = []
        self.refused = 0
        """How often accept() failed for want of descriptors."""
        self.has_descriptors = threading.Event()
        self.has_descriptors.set()
        self._host = host
        self._served: set[mptcp.Socket] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a connection is served that its client has not closed, or of whose end has not been heard."""
        return any(thread.name == _SERVING for thread in threading.enumerate())

    @property
    def served(self) -> list[mptcp.Socket]:
        return list(self._served)

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            listeners = [
                stack.enter_context(self._host.create_server((address, PORT), family=family))
                for address, family in zip(("", "::"), FAMILIES, strict=True)
            ]
            stop, told = socket.socketpair()
            stack.enter_context(told)
            thread = threading.Thread(target=self._accept, args=(listeners, told))
            thread.start()
            stack.callback(thread.join)
            stack.enter_context(stop)  # closed before, which ends the thread
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _accept(self, listeners: list[mptcp.Socket], told: socket.socket) -> None:
        threads: list[threading.Thread] = []
        poll = select.poll()
        for waited in (*listeners, told):
            poll.register(waited, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if told.fileno() in ready:
                break
            for listener in listeners:
                if listener.fileno() in ready:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        self.refused += 1
                        self.has_descriptors.wait()
                        continue
                    threads = [thread for thread in threads if thread.is_alive()]
                    threads.append(threading.Thread(target=self._serve, args=(sock,), name=_SERVING))
                    threads[-1].start()
        for thread in threads:
            thread.join()

    def _serve(self, sock: mptcp.Socket) -> None:
        self._served.add(sock)
        with sock:
            try:
                while first := sock.recv(1):
                    asked, size, seed = _HEADER.unpack(first + _exactly(sock, _HEADER.size - 1))
                    if asked > Asked.RECEIVE:
                        Asked(asked).serve(sock)
                        break
                    Transfer(asked == Asked.RECEIVE, size, seed).serve(sock)
            except (ConnectionResetError, BrokenPipeError):
                pass  # the client gave the connection up
            except Exception as error:
                self.failures.append(repr(error))
            finally:
                self._served.discard(sock)
