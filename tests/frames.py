"""Captures that no kernel would make: segments of Multipath TCP, put together byte by byte."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

FIN, SYN, RST, ACK = 1, 2, 4, 16
CLIENT, SERVER = "10.0.1.1", "10.0.1.2"
ETHERNET, RAW, SLL, SLL2 = 1, 101, 113, 276


def token_and_idsn(key: int) -> tuple[int, int]:
    digest = hashlib.sha256(key.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[-8:], "big")


def option(subtype: int, flags: int, rest: bytes = b"") -> bytes:
    return bytes([30, 3 + len(rest), subtype << 4 | flags]) + rest


def capable(*keys: int, length: int | None = None, flags: int = 1) -> bytes:
    data = b"" if length is None else struct.pack("!H", length)
    return option(0, 1, bytes([flags]) + b"".join(key.to_bytes(8, "big") for key in keys) + data)


def dss(
    *,
    ack: int | None = None,
    dsn: int | None = None,
    subflow: int = 0,
    length: int = 0,
    long: bool = True,
    fin: bool = False,
) -> bytes:
    size, form = (8, "!Q") if long else (4, "!I")
    flags, rest = 0, b""
    if ack is not None:
        flags |= 1 | (2 if long else 0)
        rest += struct.pack(form, ack % 256**size)
    if dsn is not None:
        flags |= 4 | (8 if long else 0) | (16 if fin else 0)
        rest += struct.pack(form, dsn % 256**size) + struct.pack("!IH", subflow, length)
    return option(2, 0, bytes([flags]) + rest)


def join_syn(token: int, *, address_id: int = 1, backup: bool = False) -> bytes:
    return option(1, int(backup), struct.pack("!BII", address_id, token, 7))


def _address(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


@dataclass
class Recorded:
    """The packets of a capture, as they are appended."""

    packets: list[tuple[int, bytes]] = field(default_factory=list)
    now_ns: int = 1_000_000_000_000_000_000

    def segment(
        self,
        source: tuple[str, int],
        destination: tuple[str, int],
        sequence: int,
        flags: int,
        options: bytes = b"",
        data: bytes = b"",
        ack: int = 0,
        after_ns: int = 1_000_000,
    ) -> None:
        options += b"\x01" * (-len(options) % 4)
        head = struct.pack(
            "!HHIIBBHHH",
            source[1],
            destination[1],
            sequence % 2**32,
            ack % 2**32,
            (20 + len(options)) // 4 << 4,
            flags,
            1000,
            0,
            0,
        )
        tcp = head + options + data
        ends = _address(source[0]) + _address(destination[0])
        self.now_ns += after_ns
        self.packets.append(
            (self.now_ns, struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + ends + tcp)
        )

    def write(self, path: Path, link: int = ETHERNET, *, snap: int = 1 << 18, vlan: bool = False) -> Path:
        with path.open("wb") as file:
            self.write_to(file, link, snap=snap, vlan=vlan)
        return path

    def write_to(self, file: IO[bytes], link: int = ETHERNET, *, snap: int = 1 << 18, vlan: bool = False) -> None:
        file.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, snap, link))
        for when, packet in self.packets:
            frame = _link_header(link, vlan) + packet
            file.write(
                struct.pack("=4I", when // 10**9, when % 10**9, min(snap, len(frame)), len(frame)) + frame[:snap]
            )


def _link_header(link: int, vlan: bool) -> bytes:
    if link == ETHERNET:
        return bytes(12) + (b"\x81\x00\x00\x07\x88\xa8\x00\x08" if vlan else b"") + b"\x08\x00"
    if link == SLL:
        return struct.pack("!HHH8sH", 4, 1, 6, b"", 0x0800)
    if link == SLL2:
        return struct.pack("!HHIHBB8s", 0x0800, 0, 2, 1, 4, 6, b"")
    return b""


class Side:
    """One end of a connection with one subflow, whose other end only acknowledges."""

    def __init__(
        self,
        recorded: Recorded,
        *,
        keys: tuple[int, int] = (1, 2),
        isn: int = 1000,
        port: int = 40000,
        long: bool = True,
        handshake: bool = True,
    ) -> None:
        self.recorded = recorded
        self.here, self.there = (CLIENT, port), (SERVER, 5000)
        self.isn, self.long = isn, long
        self.token, self.idsn = token_and_idsn(keys[0])
        self.peer_token, self.peer_idsn = token_and_idsn(keys[1])
        if handshake:
            recorded.segment(self.here, self.there, isn, SYN, capable())
            recorded.segment(self.there, self.here, 5000, SYN | ACK, capable(keys[1]), ack=isn + 1, after_ns=20_000_000)
            recorded.segment(self.here, self.there, isn + 1, ACK, capable(*keys), ack=5001, after_ns=10_000)

    def send(self, dsn: int, data: bytes, *, subflow: int | None = None, options: bytes | None = None) -> None:
        """Data of which the first byte has this number, counted from the first; the subflow's is the same, plus 1."""
        subflow = dsn + 1 if subflow is None else subflow
        if options is None:
            options = dss(dsn=self.idsn + 1 + dsn, subflow=subflow, length=len(data), long=self.long)
        self.recorded.segment(self.here, self.there, self.isn + subflow, ACK, options, data, 5001)

    def acknowledge(self, dsn: int, *, subflow: int | None = None) -> None:
        subflow = dsn + 1 if subflow is None else subflow
        options = dss(ack=self.idsn + 1 + dsn, long=self.long)
        self.recorded.segment(self.there, self.here, 5001, ACK, options, ack=self.isn + subflow)


def pcapng(blocks: Iterable[bytes]) -> bytes:
    section = struct.pack("=3IHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    interface = struct.pack("=2I2HII", 1, 20, ETHERNET, 0, 0, 20)
    return section + interface + b"".join(blocks)
