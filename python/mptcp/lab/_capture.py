"""Captures of a link: the object that the user holds, and the process in the host that writes the file."""

from __future__ import annotations

import contextlib
import heapq
import mmap
import os
import select
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from mptcp import _interrupts
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
# How many files an end of a capture with a limit has.
_RING_FILES = 3
# Of a capture with a limit, of which there may be many at once.
_FEW_BLOCKS = 8
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


# The pcapng format (draft-ietf-opsawg-pcapng): a section, an interface with its name and nanosecond times, a packet.
_PCAPNG_SECTION = struct.pack("=3IHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
_PCAPNG_INTERFACE = struct.Struct("=2I2HI")
_PCAPNG_OPTION = struct.Struct("=2H")
_PCAPNG_NAME, _PCAPNG_RESOLUTION = 2, 9
_PCAPNG_PACKET = struct.Struct("=7I")

#: What asks a host's process.
Request = Callable[..., tuple[Any, list[int]]]


class Capture:
    """A running capture, returned by :meth:`Link.capture`. :meth:`close` ends it and completes the file."""

    def __init__(
        self, ends: Mapping[str, Request], interface: str, path: str | os.PathLike[str], limit: int | None
    ) -> None:
        #: The number of packets in the file, known once the capture is closed.
        self.packets: int | None = None
        #: The number of packets lost because the file could not be written fast enough, known then too.
        self.dropped: int | None = None
        self._clients: list[_channel.Client] = []
        # Of several ends, or with a limit: what the ends are called, where each writes to, and the file for all of it.
        self._names = [f"{name}:{interface}" for name in ends]
        self._parts: list[list[IO[bytes]]] = []
        self._file: IO[bytes] | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self._abandon)
            # Both are closed by close() and _abandon().
            self._file = open(path, "wb")  # noqa: SIM115
            if len(ends) > 1 or limit is not None:
                count = 1 if limit is None else _RING_FILES
                self._parts = [[tempfile.TemporaryFile() for _ in range(count)] for _ in ends]  # noqa: SIM115
            each = None if limit is None else limit // len(ends)
            places: list[list[IO[bytes]]] = self._parts or [[self._file]]
            for request, files in zip(ends.values(), places, strict=True):
                with _interrupts.put_off():
                    descriptors = [file.fileno() for file in files]
                    _, (channel,) = request("capture", descriptors, name=interface, limit=each)
                    self._clients.append(_channel.Client(socket.socket(fileno=channel), "the capture"))
            if not self._parts:
                # The host's process has it.
                self._file.close()
            undo.pop_all()

    def close(self) -> None:
        """Write what has passed so far and end the capture. Calling it again has no effect.

        Raises OSError if the file could not be written.
        """
        if not self._clients:
            return
        try:
            counts = [client.request("finish")[0] for client in self._clients]
            self.packets, self.dropped = (sum(column) for column in zip(*counts, strict=True))
            if self._parts and self._file is not None:
                self.packets = _merge(self._names, self._parts, self._file)
                self._file.close()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        for client in self._clients:
            client.close()
        self._clients = []
        for file in (*(file for files in self._parts for file in files), *([self._file] if self._file else [])):
            # What could not be written has been told.
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _merge(names: Sequence[str], parts: Sequence[Sequence[IO[bytes]]], file: IO[bytes]) -> int:
    """Write the packets of each end's pcap files as one pcapng file, in the order of their times; return how many."""
    file.write(_PCAPNG_SECTION)
    for name in names:
        encoded = name.encode()
        options = _PCAPNG_OPTION.pack(_PCAPNG_NAME, len(encoded)) + encoded + bytes(-len(encoded) % 4)
        options += _PCAPNG_OPTION.pack(_PCAPNG_RESOLUTION, 1) + bytes([9, 0, 0, 0]) + _PCAPNG_OPTION.pack(0, 0)
        length = _PCAPNG_INTERFACE.size + len(options) + 4
        file.write(_PCAPNG_INTERFACE.pack(1, length, 1, 0, 1 << 18) + options + struct.pack("=I", length))
    each = [_packets(part, number) for number, files in enumerate(parts) for part in files]
    count = 0
    for when, number, length, frame in heapq.merge(*each, key=lambda packet: packet[0]):
        count += 1
        padding = -len(frame) % 4
        size = _PCAPNG_PACKET.size + len(frame) + padding + 4
        file.write(_PCAPNG_PACKET.pack(6, size, number, when >> 32, when & 0xFFFFFFFF, len(frame), length))
        file.write(frame + bytes(padding) + struct.pack("=I", size))
    return count


def _packets(part: IO[bytes], number: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the packets of a pcap file of ours: when in nanoseconds, the number, the length, and the frame."""
    part.seek(len(_PCAP_HEADER))
    while header := part.read(_PCAP_PACKET.size):
        seconds, nanoseconds, captured, length = _PCAP_PACKET.unpack(header)
        yield seconds * 10**9 + nanoseconds, number, length, part.read(captured)


class Recorder:
    """The packets of one interface of this namespace, from now on."""

    def __init__(self, interface: str, blocks: int) -> None:
        # Without a protocol until it is bound, so that no packet of another interface gets in.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            size = _BLOCK_SIZE * blocks
            request = _RING.pack(_BLOCK_SIZE, blocks, _FRAME_SIZE, size // _FRAME_SIZE, _RETIRE_MS, 0, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self._ring = mmap.mmap(self._socket.fileno(), size)
            self._socket.bind((interface, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise
        self._blocks = blocks
        self._next_block = 0
        self._packets = 0
        self._dropped = 0
        self._seen = 0

    def close(self) -> None:
        self._ring.close()
        self._socket.close()

    def write_until_told(self, out: Output, channel: socket.socket) -> None:
        """Write packets to ``out`` until ``channel`` asks for the end or its other end is closed."""

        def finish() -> _channel.Reply:
            self._drain(out)
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
                self._write_blocks(out)
            except OSError as error:
                # The disk is full, say: wait to be asked, and tell.
                failure = error
                poll.unregister(self._socket)

        def answer() -> _channel.Reply:
            if failure is not None:
                raise failure
            return finish()

        if not _channel.serve_one(channel, {"finish": answer}):
            self._drain(out)

    def _write_blocks(self, out: Output) -> None:
        """Write the blocks that the kernel has handed over, and give them back to it."""
        while True:
            base = self._next_block * _BLOCK_SIZE
            status, count, offset = _BLOCK.unpack_from(self._ring, base)
            if not status & _TP_STATUS_USER:
                return
            position = base + offset
            file = out.file()
            for _ in range(count):
                following, seconds, nanoseconds, captured, length, _, frame = _PACKET.unpack_from(self._ring, position)
                file.write(_PCAP_PACKET.pack(seconds, nanoseconds, captured, length))
                file.write(self._ring[position + frame : position + frame + captured])
                position += following
            self._packets += count
            struct.pack_into("=I", self._ring, base + _BLOCK_STATUS, 0)
            self._next_block = (self._next_block + 1) % self._blocks

    def _drain(self, out: Output) -> None:
        """Write all that has passed so far, including what is in a block that the kernel has not handed over yet."""
        # The count is of all that passed, dropped ones too, since it was last read: read once, it is the total.
        total, self._dropped, _ = _STATISTICS.unpack(
            self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        )
        deadline = time.monotonic() + _DRAIN_SECONDS
        self._write_blocks(out)
        while self._packets + self._dropped < total and time.monotonic() < deadline:
            select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
            self._write_blocks(out)
        out.flush()


class Output:
    """The pcap file or files of one end.

    With a limit there are three: the first is filled and kept, and the others take turns and have the last packets.
    """

    def __init__(self, files: Sequence[IO[bytes]], limit: int | None) -> None:
        self._files = files
        self._limits = None if limit is None else [limit // 4, 3 * limit // 8, 3 * limit // 8]
        self._current = 0
        for file in files:
            file.write(_PCAP_HEADER)

    def file(self) -> IO[bytes]:
        """Return the file that the next block belongs to: a block more than its limit is the most that it gets."""
        if self._limits is None or self._files[self._current].tell() < self._limits[self._current]:
            return self._files[self._current]
        self._current = 1 if self._current != 1 else 2
        file = self._files[self._current]
        file.seek(len(_PCAP_HEADER))
        file.truncate()
        return file

    def flush(self) -> None:
        for file in self._files:
            file.flush()


def record(interface: str, limit: int | None) -> Recorder:
    """Begin a capture of an interface of this namespace."""
    return Recorder(interface, _BLOCKS if limit is None else _FEW_BLOCKS)


def write(recorder: Recorder, files: Sequence[IO[bytes]], limit: int | None, channel: socket.socket) -> None:
    """Write whole pcap files."""
    with contextlib.ExitStack() as stack:
        for file in files:
            stack.enter_context(file)
        recorder.write_until_told(Output(files, limit), channel)
