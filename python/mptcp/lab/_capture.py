"""Captures of a link: the object that the user holds, and the process in the host that writes the file."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any

from mptcp.lab import _channel

# linux/if_packet.h and linux/if_ether.h
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V3 = 2
_TP_STATUS_USER = 1
_ETH_P_ALL = 3

# A ring, because an ordinary user's socket buffer is too small for what arrives while we wait for the processor.
_BLOCK_SIZE = 1 << 20
_BLOCKS = 32
# No frame needs this much, but the kernel requires a number that divides the blocks.
_FRAME_SIZE = 1 << 11
# The kernel hands over a block that is not full after this time.
_RETIRE_MS = 20
_DRAIN_SECONDS = 2.0

_RING = struct.Struct("=7I")
_STATISTICS = struct.Struct("=3I")
_BLOCK = struct.Struct("=8x3I")  # status, packets, offset of the first one
_BLOCK_STATUS = 8
_PACKET = struct.Struct("=6IH")  # offset of the next one, s, ns, captured length, length, status, offset of the frame

# The pcap format: nanosecond times, version 2.4, longest frame, link type Ethernet.
_PCAP_HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 1)
_PCAP_PACKET = struct.Struct("=4I")


class Capture:
    """A running capture, returned by :meth:`Link.capture`. :meth:`close` ends it and completes the file."""

    def __init__(
        self, request: Callable[..., tuple[Any, list[int]]], interface: str, path: str | os.PathLike[str]
    ) -> None:
        #: The number of packets in the file, known once the capture is closed.
        self.packets: int | None = None
        #: The number of packets lost because the file could not be written fast enough, known then too.
        self.dropped: int | None = None
        self._client: _channel.Client | None = None
        with open(path, "wb") as file:
            _, (channel,) = request("capture", [file.fileno()], name=interface)
        self._client = _channel.Client(socket.socket(fileno=channel), "the capture")

    def close(self) -> None:
        """Write what has passed so far and end the capture. Calling it again has no effect.

        Raises OSError if the file could not be written.
        """
        client, self._client = self._client, None
        if client is None:
            return
        try:
            (self.packets, self.dropped), _ = client.request("finish")
        finally:
            client.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Recorder:
    """The packets of one interface of this namespace, from now on."""

    def __init__(self, interface: str) -> None:
        # Without a protocol until it is bound, so that no packet of another interface gets in.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            size = _BLOCK_SIZE * _BLOCKS
            request = _RING.pack(_BLOCK_SIZE, _BLOCKS, _FRAME_SIZE, size // _FRAME_SIZE, _RETIRE_MS, 0, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self._ring = mmap.mmap(self._socket.fileno(), size)
            self._socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise
        self._next_block = 0
        self._packets = 0
        self._dropped = 0
        self._seen = 0

    def close(self) -> None:
        self._ring.close()
        self._socket.close()

    def write_until_told(self, file: IO[bytes], channel: socket.socket) -> None:
        """Write packets to ``file`` until ``channel`` asks for the end or its other end is closed."""

        def finish() -> _channel.Reply:
            self._drain(file)
            return [self._packets, self._dropped], []

        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(channel, select.POLLIN)
        failure: OSError | None = None
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if channel.fileno() in ready:
                break
            try:
                self._write_blocks(file)
            except OSError as error:
                # The disk is full, say: wait to be asked, and tell.
                failure = error
                poll.unregister(self._socket)

        def answer() -> _channel.Reply:
            if failure is not None:
                raise failure
            return finish()

        if not _channel.serve_one(channel, {"finish": answer}):
            self._drain(file)

    def _write_blocks(self, file: IO[bytes]) -> None:
        """Write the blocks that the kernel has handed over, and give them back to it."""
        while True:
            base = self._next_block * _BLOCK_SIZE
            status, count, offset = _BLOCK.unpack_from(self._ring, base)
            if not status & _TP_STATUS_USER:
                return
            position = base + offset
            for _ in range(count):
                following, seconds, nanoseconds, captured, length, _, frame = _PACKET.unpack_from(self._ring, position)
                file.write(_PCAP_PACKET.pack(seconds, nanoseconds, captured, length))
                file.write(self._ring[position + frame : position + frame + captured])
                position += following
            self._packets += count
            struct.pack_into("=I", self._ring, base + _BLOCK_STATUS, 0)
            self._next_block = (self._next_block + 1) % _BLOCKS

    def _drain(self, file: IO[bytes]) -> None:
        """Write all that has passed so far, including what is in a block that the kernel has not handed over yet."""
        # The count is of all that passed, dropped ones too, since it was last read: read once, it is the total.
        total, self._dropped, _ = _STATISTICS.unpack(
            self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        )
        deadline = time.monotonic() + _DRAIN_SECONDS
        self._write_blocks(file)
        while self._packets + self._dropped < total and time.monotonic() < deadline:
            select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
            self._write_blocks(file)
        file.flush()


def record(recorder: Recorder, file: IO[bytes], channel: socket.socket) -> None:
    """Write a whole pcap file."""
    with file:
        file.write(_PCAP_HEADER)
        recorder.write_until_told(file, channel)
