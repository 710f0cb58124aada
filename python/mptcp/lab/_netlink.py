"""Netlink requests for a lab: requests are built here, and only the needed parts of replies are decoded.

Why no library does: docs/decisions/rtnetlink-by-hand.md.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# linux/netlink.h
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 10, 11

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_BUFFER = 1 << 16
# One datagram of requests is smaller than the smallest send buffer of a socket, by far.
_REQUESTS_AT_ONCE = 128
# A reply that the kernel could not queue never arrives: an error is better than waiting forever.
_SECONDS = 10.0


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """Return an attribute: bytes as they are, a str with its final zero, an int in 32 bits."""
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the values of attributes by type."""
    found = {}
    while len(data) >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not 4 <= length <= len(data):
            break
        found[kind & _NLA_TYPE_MASK] = data[4:length]
        data = data[length + -length % 4 :]
    return found


@dataclass(frozen=True)
class Request:
    """One request, with a phrase for error messages that says what it is for."""

    kind: int
    flags: int
    payload: bytes
    what: str


class Netlink:
    """A netlink socket in this process's network namespace."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sequence = 0
        try:
            self._socket.settimeout(_SECONDS)
            self._socket.bind((0, 0))
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def do(self, requests: Sequence[Request]) -> None:
        """Have the kernel carry out all requests in order; raise the error of the first one that it refused.

        Requests after a refused one are still carried out.
        """
        for start in range(0, len(requests), _REQUESTS_AT_ONCE):
            self._do(requests[start : start + _REQUESTS_AT_ONCE])

    def _do(self, requests: Sequence[Request]) -> None:
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(requests)
        # Only the last one is acknowledged: the others answer if they fail.
        self._socket.send(
            b"".join(
                _message(request, _NLM_F_ACK if number == last else 0, number)
                for number, request in enumerate(requests, first)
            )
        )
        failures: dict[int, OSError] = {}
        while True:
            for kind, flags, sequence, payload in self._receive():
                if kind != _NLMSG_ERROR or not first <= sequence <= last:
                    continue
                if failure := _failure(flags, payload, requests[sequence - first].what):
                    failures[sequence] = failure
                if sequence == last:
                    if failures:
                        raise failures[min(failures)]
                    return

    def get(self, request: Request, *, dump: bool = False) -> list[tuple[int, bytes]]:
        """Return the type and the payload of each message that answers the request."""
        self._sequence += 1
        self._socket.send(_message(request, _NLM_F_DUMP if dump else 0, self._sequence))
        found: list[tuple[int, bytes]] = []
        while True:
            for kind, flags, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    if failure := _failure(flags, payload, request.what):
                        raise failure
                    return found
                found.append((kind, payload))
                if not dump:
                    return found

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Wait for one datagram; yield type, flags, sequence number and payload of each message in it."""
        data = self._socket.recv(_BUFFER)
        while len(data) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            yield kind, flags, sequence, data[_HEADER.size : length]
            data = data[length + -length % 4 :]


def _message(request: Request, flags: int, sequence: int) -> bytes:
    length = _HEADER.size + len(request.payload)
    header = _HEADER.pack(length, request.kind, _NLM_F_REQUEST | request.flags | flags, sequence, 0)
    return header + request.payload + bytes(-length % 4)


def _failure(flags: int, payload: bytes, what: str) -> OSError | None:
    """Return the error that a reply reports, with the kernel's own message if there is one."""
    (code,) = _ERROR.unpack_from(payload)
    if code == 0:
        return None
    text = os.strerror(-code)
    if flags & _NLM_F_ACK_TLVS:
        echoed = _HEADER.size if flags & _NLM_F_CAPPED else _HEADER.unpack_from(payload, 4)[0]
        if sentence := attributes(payload[4 + echoed + -echoed % 4 :]).get(_NLMSGERR_ATTR_MSG):
            text = f"{text} ({sentence.rstrip(bytes(1)).decode(errors='replace')})"
    return OSError(-code, f"{what}: {text}")
