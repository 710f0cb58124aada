"""Info and subflows of a connection by ctypes, socket and struct: what a careful programmer writes without the package.

The fastest way that we know in pure Python, for Linux 6.18 only: requests and buffers are made once, structures are
decoded to tuples by one struct call each, nothing is checked that the kernel does not get wrong, and there is no way
for older kernels, for more than eight subflows or for bound ones.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

SOL_MPTCP = 284
MPTCP_INFO = 1
MPTCP_FULL_INFO = 4
NETLINK_SOCK_DIAG = 4

_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_INFO = 2
_INET_DIAG_ULP_INFO = 19
_INET_ULP_INFO_MPTCP = 3
_ULP_TOKEN_LOC, _ULP_FLAGS, _ULP_ID_REM, _ULP_ID_LOC = 2, 8, 9, 10
_ULP_FLAG_JOIN, _ULP_FLAG_BACKUP_REM, _ULP_FLAG_BACKUP_LOC = 0x0C, 0x10, 0x20
_NLMSG_ERROR = 2
_TCP_CLOSE = 7

_INFO = struct.Struct("=6B2x2I3Q3BxI4QB3x3I")
_TCP_INFO = struct.Struct("=8B24I4Q6I4Q2I2Q6I2H8I4x")
#: sizes of tcp_info and of mptcp_subflow_info as the kernel and as we have them, count, room, two pointers.
_FULL_INFO = struct.Struct("=6I2Q")
_SUBFLOW_INFO_SIZE = 264
_ROOM = 8
#: struct nlmsghdr and struct inet_diag_req_v2.
_LOOK_UP = struct.Struct("=IHHIIBBBxI2s2s4s12x4s12xIQ")
_MESSAGE_TYPE = struct.Struct("=4xH")
#: What follows struct nlmsghdr is struct inet_diag_msg, of which this is the cookie.
_COOKIE = struct.Struct("=60xQ")
_DIAG_ATTRIBUTES = 16 + 72
_ATTRIBUTE = struct.Struct("=HH")
_PORT = struct.Struct(">2xH")
_U32 = struct.Struct("=I")


class Subflow(NamedTuple):
    id: int
    cookie: int
    local: tuple[str, int]
    remote: tuple[str, int]
    local_id: int
    remote_id: int
    initial: bool
    backup: bool
    peer_backup: bool
    tcp_info: tuple[int, ...]


class Reader:
    """Reads one IPv4 connection, with a sock_diag socket of its network namespace."""

    def __init__(self, sock: socket.socket, diag: socket.socket) -> None:
        self._sock = sock
        self._diag = diag
        self._getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt
        self._header = ctypes.create_string_buffer(_FULL_INFO.size + _INFO.size)
        self._length = ctypes.c_uint32()
        self._length_pointer = ctypes.byref(self._length)
        self._subflows = ctypes.create_string_buffer(_ROOM * _SUBFLOW_INFO_SIZE)
        self._tcp_infos = ctypes.create_string_buffer(_ROOM * _TCP_INFO.size)
        self._first_subflow = ctypes.addressof(self._subflows)
        pointers = self._first_subflow, ctypes.addressof(self._tcp_infos)
        self._request = _FULL_INFO.pack(0, _TCP_INFO.size, 0, _SUBFLOW_INFO_SIZE, 0, _ROOM, *pointers)

    def info(self) -> tuple[int, ...]:
        """The fields of struct mptcp_info in their order."""
        return _INFO.unpack(self._sock.getsockopt(SOL_MPTCP, MPTCP_INFO, _INFO.size))

    def subflows(self) -> list[Subflow]:
        header = self._header
        ctypes.memmove(header, self._request, _FULL_INFO.size)
        self._length.value = _FULL_INFO.size + _INFO.size
        fd = self._sock.fileno()
        if self._getsockopt(fd, SOL_MPTCP, MPTCP_FULL_INFO, header, self._length_pointer) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        count = _FULL_INFO.unpack_from(header)[4]
        readings = []
        look_ups = []
        for index in range(count):
            tcp_info = _TCP_INFO.unpack_from(self._tcp_infos, index * _TCP_INFO.size)
            if tcp_info[0] == _TCP_CLOSE:
                continue
            start = index * _SUBFLOW_INFO_SIZE
            element = ctypes.string_at(self._first_subflow + start, _SUBFLOW_INFO_SIZE)
            local, remote = element[8:16], element[136:144]
            readings.append((_U32.unpack_from(element)[0], _endpoint(local), _endpoint(remote), tcp_info))
            look_ups.append(_look_up(local, remote))
        self._diag.send(b"".join(look_ups))
        return [self._subflow(*reading) for reading in readings]

    def _subflow(self, id: int, local: tuple[str, int], remote: tuple[str, int], tcp_info: tuple[int, ...]) -> Subflow:
        reply = self._diag.recv(8192)
        if _MESSAGE_TYPE.unpack_from(reply)[0] == _NLMSG_ERROR:
            raise OSError("the subflow is gone")
        (cookie,) = _COOKIE.unpack_from(reply)
        flags, local_id, remote_id = ulp_info(
            next((ulp for kind, ulp in _attributes(reply, _DIAG_ATTRIBUTES) if kind == _INET_DIAG_ULP_INFO), b"")
        )
        return Subflow(
            id,
            cookie,
            local,
            remote,
            local_id,
            remote_id,
            not flags & _ULP_FLAG_JOIN,
            bool(flags & _ULP_FLAG_BACKUP_LOC),
            bool(flags & _ULP_FLAG_BACKUP_REM),
            tcp_info,
        )


def ulp_info(ulp: bytes) -> tuple[int, int, int]:
    """Flags, local and remote id of a subflow, of the attribute INET_DIAG_ULP_INFO."""
    flags = local_id = remote_id = 0
    for kind, mptcp in _attributes(ulp, 0):
        if kind != _INET_ULP_INFO_MPTCP:
            continue
        for name, value in _attributes(mptcp, 0):
            if name == _ULP_FLAGS:
                (flags,) = _U32.unpack(value)
            elif name == _ULP_ID_LOC:
                local_id = value[0]
            elif name == _ULP_ID_REM:
                remote_id = value[0]
    return flags, local_id, remote_id


def _endpoint(sockaddr: bytes) -> tuple[str, int]:
    return socket.inet_ntoa(sockaddr[4:8]), _PORT.unpack_from(sockaddr)[0]


def _look_up(local: bytes, remote: bytes) -> bytes:
    """A request for the one subflow between two struct sockaddr_in."""
    return _LOOK_UP.pack(
        _LOOK_UP.size,
        _SOCK_DIAG_BY_FAMILY,
        1,  # NLM_F_REQUEST
        0,
        0,
        socket.AF_INET,
        socket.IPPROTO_TCP,
        1 << (_INET_DIAG_INFO - 1),
        0xFFFFFFFF,
        local[2:4],
        remote[2:4],
        local[4:8],
        remote[4:8],
        0,
        0xFFFFFFFFFFFFFFFF,  # INET_DIAG_NOCOOKIE
    )


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    end = len(data)
    while offset < end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += length + 3 & ~3
