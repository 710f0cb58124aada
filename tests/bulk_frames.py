"""Captures of any length, by numpy: a connection over two subflows, of which one segment in a hundred is sent again."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from frames import ACK, SYN, Recorded, Side, dss, join_syn, option

PAYLOAD = 1420
# Two frames of data of one subflow, and what acknowledges them.
FRAMES_A_ROUND = 3
_ROUNDS_A_CHUNK = 20_000
# So many rounds on a subflow, then on the other; of so many, the last sends again what the one before it has sent.
_TURN, _AGAIN = 32, 100
_STEP_NS = 30_000
# Where things are in a frame: behind Ethernet's 14 bytes and IPv4's 20, and behind TCP's 20 and time stamps of 12.
_SOURCE, _DESTINATION, _PORTS, _SEQUENCE, _ACKNOWLEDGMENT, _DSS = 26, 30, 34, 38, 42, 66
_TIMESTAMPS = struct.pack("!BBBBII", 1, 1, 8, 10, 7, 7)


class Capture:
    """A pcap file of at least ``frames`` frames of 1514 bytes with data, of which ``snap`` bytes are captured."""

    def __init__(self, frames: int, snap: int = 1 << 18) -> None:
        self._rounds = -(-frames // 2)
        self.data_frames = 2 * self._rounds
        self.frames = FRAMES_A_ROUND * self._rounds + 5
        recorded = Recorded()
        self._side = Side(recorded)
        other, there = ("10.0.2.1", 41000), ("10.0.2.2", 5000)
        recorded.segment(other, there, 0, SYN, join_syn(self._side.peer_token))
        recorded.segment(there, other, 0, SYN | ACK, option(1, 0, struct.pack("!BQI", 3, 5, 9)), ack=1)
        self._begin_ns = recorded.now_ns + 10_000_000
        self._head = self._bytes(recorded)
        self._paths = [(self._side.here, self._side.there, self._side.isn, 5001), (other, there, 0, 1)]
        self._templates = [self._round(path, snap) for path in range(2)]

    @property
    def token(self) -> int:
        return self._side.token

    @property
    def bytes_of_data(self) -> int:
        """Each counted once."""
        return 2 * PAYLOAD * (self._rounds - self._rounds // _AGAIN)

    @staticmethod
    def _bytes(recorded: Recorded) -> bytes:
        file = io.BytesIO()
        recorded.write_to(file)
        return file.getvalue()

    def _round(self, path: int, snap: int) -> tuple[np.ndarray, list[int]]:
        """The bytes of a round, and where each of its frames begins."""
        source, destination, _, _ = self._paths[path]
        recorded = Recorded()
        data = _TIMESTAMPS + dss(ack=self._side.peer_idsn + 1, dsn=0, subflow=0, length=PAYLOAD)
        for _ in range(2):
            recorded.segment(source, destination, 0, ACK, data, bytes(PAYLOAD))
        recorded.segment(destination, source, 0, ACK, _TIMESTAMPS + dss(ack=0))
        file = io.BytesIO()
        recorded.write_to(file, snap=snap)
        records = file.getvalue()[24:]
        starts, at = [], 0
        while at < len(records):
            starts.append(at)
            at += 16 + struct.unpack_from("=I", records, at + 8)[0]
        return np.frombuffer(records, np.uint8), starts

    def chunks(self) -> Iterator[bytes]:
        yield self._head
        for first in range(0, self._rounds, _ROUNDS_A_CHUNK):
            yield self._chunk(np.arange(first, min(first + _ROUNDS_A_CHUNK, self._rounds)))

    def write(self, path: Path) -> Path:
        with path.open("wb") as file:
            for chunk in self.chunks():
                file.write(chunk)
        return path

    def _chunk(self, rounds: np.ndarray) -> bytes:
        turns = rounds // _TURN
        path = turns % 2
        # How many rounds this subflow had before, and how many in which data was new.
        before = turns // 2 * _TURN + rounds % _TURN
        new = rounds - rounds // _AGAIN
        is_again = rounds % _AGAIN == _AGAIN - 1
        dsn = 2 * PAYLOAD * np.where(is_again, new - 1, new)
        sent = 2 * PAYLOAD * np.where(is_again, new, new + 1)
        templates = np.stack([template for template, _ in self._templates])
        bytes_ = templates[path]
        idsn = self._side.idsn + 1
        # Both subflows have frames of the same sizes.
        _, starts = self._templates[0]
        for number, start in enumerate(starts):
            frame = start + 16
            time_ns = self._begin_ns + rounds * _STEP_NS + number * 1_000
            _put(bytes_, start, time_ns // 10**9, "<u4")
            _put(bytes_, start + 4, time_ns % 10**9, "<u4")
            isn = np.array([each[2] for each in self._paths])[path]
            ack = np.array([each[3] for each in self._paths])[path]
            offset = 1 + 2 * PAYLOAD * before + number * PAYLOAD
            if number < 2:
                _put(bytes_, frame + _SEQUENCE, isn + offset, ">u4")
                _put(bytes_, frame + _ACKNOWLEDGMENT, ack, ">u4")
                _put(bytes_, frame + _DSS + 12, _wrapped(idsn, dsn + number * PAYLOAD), ">u8")
                _put(bytes_, frame + _DSS + 20, offset, ">u4")
            else:
                _put(bytes_, frame + _SEQUENCE, ack, ">u4")
                _put(bytes_, frame + _ACKNOWLEDGMENT, isn + offset, ">u4")
                _put(bytes_, frame + _DSS + 4, _wrapped(idsn, sent), ">u8")
        return bytes_.tobytes()


def _wrapped(base: int, offsets: np.ndarray) -> np.ndarray:
    return np.uint64(base % 2**64) + offsets.astype(np.uint64)


def _put(rows: np.ndarray, at: int, values: np.ndarray, kind: str) -> None:
    """Write a number into each row, as what it is on the wire."""
    size = np.dtype(kind).itemsize
    plain = values if values.dtype == np.uint64 else values.astype(np.int64) % 2 ** (8 * min(size, 7))
    rows[:, at : at + size] = plain.astype(kind).view(np.uint8).reshape(len(values), size)
