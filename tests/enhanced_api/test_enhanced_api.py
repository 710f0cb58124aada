"""The enhanced socket API of 2016: six options, byte for byte, on real connections."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mptcp
import pytest
import support
from mptcp import enhanced_api as api
from mptcp.lab import Host, Link
from support import PORT, Connection, connected, eventually, exchange, ss

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

HERE = Path(__file__).parent
TESTS = HERE.parent
TCP, IP = socket.IPPROTO_TCP, socket.IPPROTO_IP
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])

# The flags of struct mptcp_sub_status in the kernel's layout.
SLAVE_SK, FULLY_ESTABLISHED, ATTACHED, LOW_PRIO = 0x01, 0x02, 0x04, 0x08


@dataclass(frozen=True)
class Layout:
    """One of the three layouts, encoded here a second time, with nothing of the package's."""

    name: str
    addrs: int
    offset: int = 0

    def get(self, sock: Any, optname: int, buffer: bytearray) -> int:
        layout: Any = "draft" if self.name == "draft" else "kernel"
        return api.getsockopt(sock, self.offset + optname, buffer, layout=layout)

    def set(self, sock: Any, optname: int, buffer: bytes) -> None:
        layout: Any = "draft" if self.name == "draft" else "kernel"
        api.setsockopt(sock, self.offset + optname, buffer, layout=layout)

    def ids(self, *subflows: tuple[int, int]) -> bytes:
        """struct mptcp_sub_ids of pairs of an id and the kernel's flags."""
        flags = (lambda flags: (flags & LOW_PRIO) >> 3) if self.name == "draft" else (lambda flags: flags)
        return bytes([len(subflows), 0, *(byte for id, bits in subflows for byte in (id, flags(bits)))])

    def tuple(self, id: int, local: tuple[Any, ...], remote: tuple[Any, ...], prio: int = 0) -> bytearray:
        head = bytes([id]) if self.name == "kernel" else bytes([id, prio])
        return bytearray(head.ljust(self.addrs, b"\0") + sockaddr(local) + sockaddr(remote))

    def close(self, id: int, how: int = socket.SHUT_RDWR) -> bytearray:
        return bytearray([id]) if self.name == "kernel" else bytearray(struct.pack("=B3xi", id, how))

    def list(self, sock: Any) -> bytes:
        buffer = bytearray(512)
        length = self.get(sock, api.MPTCP_GET_SUB_IDS, buffer)
        assert buffer[length:] == bytes(512 - length), "nothing behind the end is written"
        return bytes(buffer[:length])

    def open(self, sock: Any, local: tuple[Any, ...], remote: tuple[Any, ...], prio: int = 0) -> int:
        """The id of the new subflow."""
        wanted = self.tuple(0, local, remote, prio)
        buffer = bytearray(wanted)
        assert self.get(sock, api.MPTCP_OPEN_SUB_TUPLE, buffer) == len(wanted)
        assert buffer[1:] == wanted[1:]
        return buffer[0]

    def opened(self, sock: Any, local: tuple[Any, ...], remote: tuple[Any, ...], prio: int = 0) -> int:
        """The same once the peer has accepted it."""
        before = set(ids(KERNEL.list(sock)))
        told = self.open(sock, local, remote, prio)
        assert eventually(lambda: all(bits & FULLY_ESTABLISHED for bits in KERNEL.list(sock)[3::2]), 10)
        [id] = set(ids(KERNEL.list(sock))) - before
        assert told == id
        return id


KERNEL, DRAFT, HEADER = Layout("kernel", 1), Layout("draft", 2), Layout("header", 4, 0x4000)
LAYOUTS = pytest.mark.parametrize("layout", [KERNEL, DRAFT, HEADER], ids=lambda layout: layout.name)


def sockaddr(end: tuple[Any, ...]) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    host, port, *rest = end
    if ":" not in host:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    flow, scope = rest or (0, 0)
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, flow)
    return head + socket.inet_pton(socket.AF_INET6, host) + struct.pack("=I", scope)


def ids(listed: bytes) -> list[int]:
    assert len(listed) == 2 + 2 * listed[0]
    return list(listed[2::2])


@contextlib.contextmanager
def refused(number: int | None) -> Iterator[None]:
    """Expects an OSError of this number."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    assert caught.value.errno == number, caught.value


def answer(call: Callable[..., object], *arguments: object) -> int | None:
    """The errno that a call fails with."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0


def address(made: Connection, family: int) -> tuple[str, str]:
    return made.paths[1].address(made.client, family), made.paths[1].address(made.server, family)


# The options on a connection.


@LAYOUTS
@FAMILIES
def test_a_subflow_from_its_opening_to_its_end(layout: Layout, family: int, mptcp_two_paths: TwoPaths) -> None:
    with connected(*mptcp_two_paths, family) as made:
        sock, (local, remote) = made.sock, address(made, family)
        initial = (1, FULLY_ESTABLISHED | ATTACHED)
        assert layout.list(sock) == layout.ids(initial)
        assert layout.opened(sock, (local, 12345), (remote, PORT)) == 2
        assert layout.list(sock) == layout.ids((2, SLAVE_SK | FULLY_ESTABLISHED | ATTACHED), initial), "newest first"

        ends = {1: (sock.getsockname(), sock.getpeername()), 2: ((local, 12345), (remote, PORT))}
        for id, (ours, theirs) in ends.items():
            expected = layout.tuple(id, ours, theirs)
            buffer = bytearray([id] + [0xAA] * 99)
            assert layout.get(sock, api.MPTCP_GET_SUB_TUPLE, buffer) == len(expected)
            assert buffer == expected + b"\xaa" * (100 - len(expected))
        form = "[{}]:{}" if family == socket.AF_INET6 else "{}:{}"
        assert [form.format(local, 12345), form.format(remote, PORT)] in [row[3:5] for row in ss(made.client)]

        close = layout.close(2)
        assert layout.get(sock, api.MPTCP_CLOSE_SUB_ID, bytearray(close)) == len(close)
        assert layout.list(sock) == layout.ids(initial)
        assert eventually(lambda: len(made.peer.subflows()) == 1)
        exchange(sock, made.peer)


@LAYOUTS
def test_families_mix_in_one_connection(layout: Layout, mptcp_two_paths: TwoPaths) -> None:
    _, server, _ = mptcp_two_paths
    with connected(*mptcp_two_paths, socket.AF_INET6) as made, server.create_server(("", PORT)):
        ends = {1: (made.sock.getsockname(), made.sock.getpeername())}
        local, remote = made.second
        ends[layout.opened(made.sock, (local, 12345), (remote, 0))] = ((local, 12345), (remote, PORT))
        for id, (ours, theirs) in ends.items():
            buffer = bytearray([id] + [0] * 99)
            length = layout.get(made.sock, api.MPTCP_GET_SUB_TUPLE, buffer)
            assert buffer[:length] == layout.tuple(id, ours, theirs)


def test_lengths_of_each_layout(connection: Connection) -> None:
    local, remote = connection.second
    for layout, sizes in ((KERNEL, (33, 57)), (DRAFT, (34, 58)), (HEADER, (36, 60))):
        assert len(layout.tuple(0, (local, 0), (remote, 0))) == sizes[0]
        assert len(layout.tuple(0, ("::", 0), ("::1", 0))) == sizes[1]
        exact = bytearray([1] + [0] * (sizes[0] - 1))
        assert layout.get(connection.sock, api.MPTCP_GET_SUB_TUPLE, exact) == sizes[0]


@LAYOUTS
def test_a_short_buffer(layout: Layout, connection: Connection) -> None:
    """EINVAL, and the buffer as it was."""
    local, remote = connection.second
    size = len(layout.tuple(0, (local, 0), (remote, 0)))
    calls = [
        (api.MPTCP_GET_SUB_IDS, bytes(3)),
        (api.MPTCP_GET_SUB_IDS, b""),
        (api.MPTCP_GET_SUB_TUPLE, b"\1" + bytes(size - 2)),
        (api.MPTCP_GET_SUB_TUPLE, b""),
        (api.MPTCP_OPEN_SUB_TUPLE, layout.tuple(0, (local, 0), (remote, 0))[:-1]),
        (api.MPTCP_OPEN_SUB_TUPLE, layout.tuple(0, ("::", 0), ("::1", 0))[:-1]),
        (api.MPTCP_OPEN_SUB_TUPLE, b""),
        (api.MPTCP_CLOSE_SUB_ID, layout.close(1)[:-1]),
        (api.MPTCP_SUB_GETSOCKOPT, b"\1" + bytes(30)),
    ]
    for optname, content in calls:
        buffer = bytearray(content)
        with refused(errno.EINVAL):
            layout.get(connection.sock, optname, buffer)
        assert buffer == content
    with refused(errno.EINVAL):
        layout.set(connection.sock, api.MPTCP_SUB_SETSOCKOPT, b"\1" + bytes(30))
    assert ids(layout.list(connection.sock)) == [1]


def test_the_kernels_length_of_an_open_is_exact(connection: Connection) -> None:
    """Another layout is not taken for it; the others take a larger buffer."""
    (local, remote), sock = connection.second, connection.sock
    for buffer in (KERNEL.tuple(0, (local, 0), (remote, 0)) + b"\0", KERNEL.tuple(0, ("::", 0), ("::1", 0)) + b"\0"):
        with refused(errno.EINVAL):
            KERNEL.get(sock, api.MPTCP_OPEN_SUB_TUPLE, buffer)
    assert ids(KERNEL.list(sock)) == [1]
    larger = DRAFT.tuple(0, (local, 0), (remote, 0)) + bytes(66)
    assert DRAFT.get(sock, api.MPTCP_OPEN_SUB_TUPLE, larger) == 34
    assert ids(KERNEL.list(sock)) == [2, 1]


@LAYOUTS
def test_an_id_that_is_nobodys(layout: Layout, connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    id = layout.opened(sock, (local, 0), (remote, 0))
    layout.get(sock, api.MPTCP_CLOSE_SUB_ID, layout.close(id))
    for unknown in (0, id, 77, 255):
        request, _ = option(unknown, TCP, socket.TCP_CONGESTION, 16)
        for optname, buffer in (
            (api.MPTCP_GET_SUB_TUPLE, bytearray([unknown] + [0] * 99)),
            (api.MPTCP_CLOSE_SUB_ID, layout.close(unknown)),
            (api.MPTCP_SUB_GETSOCKOPT, request),
        ):
            with refused(errno.EINVAL):
                layout.get(sock, optname, buffer)
        with refused(errno.EINVAL):
            layout.set(sock, api.MPTCP_SUB_SETSOCKOPT, setting(unknown, IP, socket.IP_TOS, ctypes.c_int(16)))


def test_ids_last_for_a_subflows_life_and_are_the_same_to_all(connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    for expected in (2, 3):
        assert KERNEL.opened(sock, (local, 0), (remote, 0)) == expected
    KERNEL.get(sock, api.MPTCP_CLOSE_SUB_ID, bytearray([2]))
    assert ids(KERNEL.list(sock)) == [3, 1]
    assert KERNEL.opened(sock, (local, 0), (remote, 0)) == 4
    with mptcp.wrap(sock) as other, socket.socket(fileno=os.dup(sock.fileno())) as foreign:
        for same in (other, foreign):
            assert ids(KERNEL.list(same)) == [4, 3, 1]
    # The accepting side has its own.
    assert eventually(lambda: len(ids(KERNEL.list(connection.peer))) == 3)


def test_ids_of_a_socket_of_another_class_last_as_long_as_it(connection: Connection) -> None:
    local, remote = connection.second
    with socket.socket(fileno=os.dup(connection.peer.fileno())) as foreign:
        assert ids(KERNEL.list(foreign)) == [1]
        connection.sock.open_subflow(local, remote)
        connection.sock.open_subflow(local, remote)
        assert eventually(lambda: len(connection.peer.subflows()) == 3)
        # What only the foreign socket has been told.
        connection.peer.close()
        assert ids(KERNEL.list(foreign)) == [3, 2, 1]
        buffer = bytearray([2] + [0] * 99)
        KERNEL.get(foreign, api.MPTCP_GET_SUB_TUPLE, buffer)
        KERNEL.get(foreign, api.MPTCP_CLOSE_SUB_ID, bytearray([2]))
        assert ids(KERNEL.list(foreign)) == [3, 1]


@LAYOUTS
def test_priority(layout: Layout, connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    try:
        id = layout.opened(sock, (local, 0), (remote, 0), prio=1)
    except OSError as error:
        if error.errno != errno.ENOSYS or support.KERNEL >= (6, 12):
            raise
        assert len(sock.subflows()) == 1
        pytest.skip(str(error))
    joined = SLAVE_SK | FULLY_ESTABLISHED | ATTACHED
    backup = layout is not KERNEL  # whose structure has no priority
    assert sock.subflows()[1].backup is backup
    bits = joined | LOW_PRIO if backup else joined
    assert layout.list(sock) == layout.ids((id, bits), (1, FULLY_ESTABLISHED | ATTACHED))
    sock.subflows()[1].set_backup(not backup)
    assert layout.list(sock) == layout.ids((id, bits ^ LOW_PRIO), (1, FULLY_ESTABLISHED | ATTACHED))
    subflow = sock.subflows()[1]
    buffer = bytearray([id] + [0] * 99)
    length = layout.get(sock, api.MPTCP_GET_SUB_TUPLE, buffer)
    assert buffer[:length] == layout.tuple(id, subflow.local, subflow.remote, prio=not backup)


def test_an_open_returns_before_the_peer_answers(connection: Connection) -> None:
    local, remote = connection.second
    # Nobody has this address, so that nobody ever answers.
    silent = re.sub(r"\d+$", "250", remote)
    id = HEADER.open(connection.sock, (local, 0), (silent, 0))
    assert HEADER.list(connection.sock) == HEADER.ids((id, SLAVE_SK | ATTACHED), (1, FULLY_ESTABLISHED | ATTACHED))
    [subflow] = [subflow for subflow in connection.sock.subflows() if not subflow.initial]
    assert subflow.state == "SYN_SENT"
    assert subflow.remote == (silent, PORT), "port 0 is the connection's own"
    HEADER.get(connection.sock, api.MPTCP_CLOSE_SUB_ID, HEADER.close(id))
    assert ids(HEADER.list(connection.sock)) == [1]


def test_an_open_from_any_address(connection: Connection) -> None:
    _, remote = connection.second
    id = KERNEL.opened(connection.sock, ("0.0.0.0", 0), (remote, 0))
    buffer = bytearray([id] + [0] * 99)
    KERNEL.get(connection.sock, api.MPTCP_GET_SUB_TUPLE, buffer)
    subflow = connection.sock.subflows()[1]
    assert subflow.local[0] in connection.client.addresses
    assert buffer[:33] == KERNEL.tuple(id, subflow.local, (remote, PORT))


def test_an_open_that_is_refused_shows_by_its_absence(connection: Connection) -> None:
    local, remote = connection.second
    id = HEADER.open(connection.sock, (local, 0), (remote, 9))
    assert id == 2
    assert eventually(lambda: ids(HEADER.list(connection.sock)) == [1])
    with refused(errno.EINVAL):
        HEADER.get(connection.sock, api.MPTCP_CLOSE_SUB_ID, HEADER.close(id))
    assert HEADER.opened(connection.sock, (local, 0), (remote, 0)) == 3, "not given again at once"


@LAYOUTS
def test_an_open_has_the_errors_of_bind_and_connect(layout: Layout, connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    layout.opened(sock, (local, 12345), (remote, 0))
    before = layout.list(sock)
    alien = layout.tuple(0, (local, 0), (remote, 0))
    alien[layout.addrs : layout.addrs + 2] = struct.pack("=H", socket.AF_UNIX)
    mixed = layout.tuple(0, (local, 0), (remote, 0))
    mixed[layout.addrs + 16 : layout.addrs + 18] = struct.pack("=H", socket.AF_INET6)
    for number, buffer in (
        (errno.EADDRNOTAVAIL, layout.tuple(0, ("192.0.2.1", 0), (remote, 0))),
        (errno.EADDRINUSE, layout.tuple(0, (local, 12345), (remote, 0))),
        (errno.EAFNOSUPPORT, alien),
        (errno.EAFNOSUPPORT, mixed),
        (errno.EINVAL, layout.tuple(0, (local, 0), ("224.0.0.1", 0))),
        # On a socket of IPv4, as this one is.
        (errno.EAFNOSUPPORT, layout.tuple(0, ("fe80::1", 0), ("fe80::2", 0))),
    ):
        content = bytes(buffer)
        with refused(number):
            layout.get(sock, api.MPTCP_OPEN_SUB_TUPLE, buffer)
        assert buffer == content
    assert layout.list(sock) == before


def test_the_last_subflow_may_be_closed(connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    KERNEL.get(sock, api.MPTCP_CLOSE_SUB_ID, bytearray([1]))
    assert KERNEL.list(sock) == bytes([0, 0])
    sock.sendall(b"later")
    assert KERNEL.opened(sock, (local, 0), (remote, 0)) == 2
    assert connection.peer.recv(5, socket.MSG_WAITALL) == b"later"


def resets(host: Host) -> int:
    """Connections of a host that a reset ended, its own ones included."""
    text = host.run(["cat", "/proc/net/snmp"], capture_output=True, text=True, check=True).stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("EstabResets")])


@pytest.mark.parametrize("layout", [DRAFT, HEADER], ids=lambda layout: layout.name)
def test_how_a_subflow_is_closed(layout: Layout, connection: Connection) -> None:
    (local, remote), sock, peer = connection.second, connection.sock, connection.peer
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        id = layout.opened(sock, (local, 0), (remote, 0))
        layout.get(sock, api.MPTCP_CLOSE_SUB_ID, layout.close(id, how))
        assert ids(layout.list(sock)) == [1]
        assert eventually(lambda: len(peer.subflows()) == 1)
    id = layout.opened(sock, (local, 0), (remote, 0))
    assert eventually(lambda: len(peer.subflows()) == 2)
    before = resets(connection.server)
    layout.get(sock, api.MPTCP_CLOSE_SUB_ID, layout.close(id, api.MPTCP_RST))
    assert eventually(lambda: len(peer.subflows()) == 1)
    assert resets(connection.server) == before + 1
    assert eventually(lambda: ids(layout.list(sock)) == [1])
    exchange(sock, peer)


def test_how_that_is_none(connection: Connection) -> None:
    """The draft refuses it; a program of the kernel's interface leaves it as memory had it."""
    (local, remote), sock = connection.second, connection.sock
    id = DRAFT.opened(sock, (local, 0), (remote, 0))
    with refused(errno.EINVAL):
        DRAFT.get(sock, api.MPTCP_CLOSE_SUB_ID, DRAFT.close(id, 99))
    assert ids(DRAFT.list(sock)) == [id, 1]
    HEADER.get(sock, api.MPTCP_CLOSE_SUB_ID, HEADER.close(id, 99))
    assert ids(HEADER.list(sock)) == [1]


def test_under_the_kernels_path_manager(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    client.set_path_manager("kernel")
    with connected(client, server, paths) as made:
        local, remote = made.second
        assert KERNEL.list(made.sock) == KERNEL.ids((1, FULLY_ESTABLISHED | ATTACHED))
        with pytest.raises(mptcp.PathManagerError):
            KERNEL.open(made.sock, (local, 0), (remote, 0))


def test_reading_takes_no_privilege(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    for sock in pair:
        assert KERNEL.list(sock) == KERNEL.ids((1, FULLY_ESTABLISHED | ATTACHED))
        buffer = bytearray([1] + [0] * 99)
        assert KERNEL.get(sock, api.MPTCP_GET_SUB_TUPLE, buffer) == 33
        assert buffer[:33] == KERNEL.tuple(1, sock.getsockname(), sock.getpeername())
        request, value = option(1, TCP, socket.TCP_CONGESTION, 16)
        KERNEL.get(sock, api.MPTCP_SUB_GETSOCKOPT, request)
        assert value.raw == sock.getsockopt(TCP, socket.TCP_CONGESTION, 16)


# Options of one subflow, through pointers.


class SubGetsockopt(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_ubyte),
        ("level", ctypes.c_int),
        ("optname", ctypes.c_int),
        ("optval", ctypes.c_void_p),
        ("optlen", ctypes.c_void_p),
    )


class SubSetsockopt(ctypes.Structure):
    _fields_ = (*SubGetsockopt._fields_[:4], ("optlen", ctypes.c_uint))


class Value(ctypes.Structure):
    """A value, and its length beside it."""

    _fields_ = (("length", ctypes.c_uint), ("bytes", ctypes.c_char * 300))

    @property
    def raw(self) -> bytes:
        return ctypes.string_at(ctypes.addressof(self) + Value.bytes.offset, self.length)


def option(id: int, level: int, optname: int, room: int) -> tuple[bytearray, Value]:
    """struct mptcp_sub_getsockopt, and what it points to."""
    value = Value(room, b"\xaa" * 300)
    at = ctypes.addressof(value)
    request = SubGetsockopt(id, level, optname, at + Value.bytes.offset, at)
    return bytearray(request), value


def setting(id: int, level: int, optname: int, value: Any) -> bytes:
    """struct mptcp_sub_setsockopt. The value has to outlive the call, which the caller's expression sees to."""
    return bytes(SubSetsockopt(id, level, optname, ctypes.addressof(value), ctypes.sizeof(value)))


@LAYOUTS
def test_an_option_of_one_subflow_is_read(layout: Layout, connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    id = layout.opened(sock, (local, 0), (remote, 0))
    first, second = sock.subflows()
    for room in (16, 300, 5):
        request, value = option(id, TCP, socket.TCP_CONGESTION, room)
        sent = bytes(request)
        assert layout.get(sock, api.MPTCP_SUB_GETSOCKOPT, request) == len(sent) == 32
        assert request == sent
        assert value.raw == second.getsockopt(TCP, socket.TCP_CONGESTION, 16)[:room]
        assert bytes(value)[4 + value.length :] == b"\xaa" * (300 - value.length), "nothing behind the end is written"
    for subflow, number in ((first, 1), (second, id)):
        request, value = option(number, TCP, socket.TCP_INFO, 300)
        layout.get(sock, api.MPTCP_SUB_GETSOCKOPT, request)
        now = subflow.getsockopt(TCP, socket.TCP_INFO, 300)
        assert value.length == len(now)
        assert value.raw[0] == 1
        # tcpi_snd_mss, and the bytes that the subflow has received.
        assert value.raw[16:20] == now[16:20]
        assert value.raw[128:136] == now[128:136]
    # A larger buffer is as good.
    request, value = option(id, TCP, socket.TCP_CONGESTION, 16)
    assert layout.get(sock, api.MPTCP_SUB_GETSOCKOPT, request + bytes(10)) == 42
    assert value.length == 16


@contextlib.contextmanager
def read_only() -> Iterator[tuple[int, Callable[[], bytes]]]:
    """The address of a page that cannot be written, and its content."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(struct.pack("=I", 16).ljust(mmap.PAGESIZE, b"\xaa"))
    anchor = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(anchor)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(address, mmap.PAGESIZE, mmap.PROT_READ) == 0
    try:
        yield address, lambda: bytes(page)
    finally:
        del anchor
        page.close()


def test_wild_pointers(connection: Connection) -> None:
    """EFAULT, and nothing is changed anywhere."""
    sock = connection.sock
    for wild in (0, 1, 2**47, 2**64 - 4096):
        value = Value(16, b"\xaa" * 300)
        before, at = bytes(value), ctypes.addressof(value)
        for pointers in ((wild, at), (at + Value.bytes.offset, wild), (wild, wild)):
            with refused(errno.EFAULT):
                KERNEL.get(
                    sock, api.MPTCP_SUB_GETSOCKOPT, bytearray(SubGetsockopt(1, TCP, socket.TCP_CONGESTION, *pointers))
                )
            assert bytes(value) == before
        with refused(errno.EFAULT):
            KERNEL.set(sock, api.MPTCP_SUB_SETSOCKOPT, bytes(SubSetsockopt(1, IP, socket.IP_TOS, wild, 4)))
    with read_only() as (page, content):
        value = Value(16, b"\xaa" * 300)
        before, at, was = bytes(value), ctypes.addressof(value), content()
        for pointers in ((page + 8, at), (at + Value.bytes.offset, page)):
            with refused(errno.EFAULT):
                KERNEL.get(
                    sock, api.MPTCP_SUB_GETSOCKOPT, bytearray(SubGetsockopt(1, TCP, socket.TCP_CONGESTION, *pointers))
                )
            assert bytes(value) == before
            assert content() == was


def test_lengths_of_an_option(connection: Connection) -> None:
    sock = connection.sock
    request, value = option(1, TCP, socket.TCP_CONGESTION, 2**31)
    with refused(errno.EINVAL):
        KERNEL.get(sock, api.MPTCP_SUB_GETSOCKOPT, request)
    request, value = option(1, TCP, socket.TCP_CONGESTION, 0)
    KERNEL.get(sock, api.MPTCP_SUB_GETSOCKOPT, request)
    assert value.length == 0
    place = ctypes.create_string_buffer(1000)
    for length in (0, 257, 2**31, 2**32 - 1):
        with refused(errno.EINVAL):
            KERNEL.set(
                sock,
                api.MPTCP_SUB_SETSOCKOPT,
                bytes(SubSetsockopt(1, IP, socket.IP_TOS, ctypes.addressof(place), length)),
            )


@pytest.mark.mptcp_needs("bpf")
@LAYOUTS
def test_an_option_of_one_subflow_is_set(layout: Layout, connection: Connection) -> None:
    (local, remote), sock = connection.second, connection.sock
    id = layout.opened(sock, (local, 0), (remote, 0))
    # An int, a char, which IP options take for one, and a longer buffer, of which an int is taken.
    for tos, value in ((16, ctypes.c_int(16)), (8, ctypes.c_ubyte(8)), (4, (ctypes.c_int * 4)(4, 1, 2, 3))):
        layout.set(sock, api.MPTCP_SUB_SETSOCKOPT, setting(id, IP, socket.IP_TOS, value))
        assert [subflow.getsockopt(IP, socket.IP_TOS) for subflow in sock.subflows()] == [0, tos]
    name = b"cubic" if sock.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno" else b"reno"
    text = ctypes.create_string_buffer(name, 16)
    layout.set(sock, api.MPTCP_SUB_SETSOCKOPT, setting(id, TCP, socket.TCP_CONGESTION, text))
    assert sock.subflows()[1].getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == name
    ttl = ctypes.c_int(3)
    with refused(errno.EINVAL):
        layout.set(sock, api.MPTCP_SUB_SETSOCKOPT, setting(id, IP, socket.IP_TTL, ttl))
    assert sock.subflows()[0].getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") != name


def test_the_direction_of_an_option(connection: Connection) -> None:
    with refused(errno.ENOPROTOOPT):
        KERNEL.get(connection.sock, api.MPTCP_SUB_SETSOCKOPT, bytearray(32))
    for optname in (66, 67, 68, 69, 71):
        with refused(errno.ENOPROTOOPT):
            KERNEL.set(connection.sock, optname, bytes(32))


# Sockets of other kinds.


def test_plain_tcp() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as plain,
        mptcp.create_connection(listener.getsockname(), timeout=10) as fallen_back,
    ):
        for sock in (plain, fallen_back, listener):
            for optname in (66, 67, 68, 69, 71):
                buffer = bytearray(b"\1" + bytes(59))
                with pytest.raises(mptcp.NotMultipathError) as caught:
                    KERNEL.get(sock, optname, buffer)
                assert caught.value.errno == errno.EOPNOTSUPP
                assert buffer == b"\1" + bytes(59)
            with refused(errno.EOPNOTSUPP):
                KERNEL.set(sock, 72, bytes(32))


def test_before_there_is_a_connection() -> None:
    with mptcp.Socket() as sock, refused(errno.ENOTCONN):
        KERNEL.list(sock)
    with mptcp.create_server(("127.0.0.1", 0)) as listener, refused(errno.ENOTCONN):
        KERNEL.list(listener)


def test_what_is_no_tcp_socket_has_the_kernels_answer(tmp_path: Path) -> None:
    kinds = [
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ]
    for family, kind in kinds:
        with socket.socket(family, kind) as sock:
            kernels = answer(sock.getsockopt, TCP, api.MPTCP_GET_SUB_IDS, 42)
            assert kernels in (errno.EOPNOTSUPP, errno.ENOPROTOOPT)
            with refused(kernels):
                KERNEL.list(sock)
            with refused(answer(sock.setsockopt, TCP, api.MPTCP_SUB_SETSOCKOPT, bytes(32))):
                KERNEL.set(sock, api.MPTCP_SUB_SETSOCKOPT, bytes(32))
    with open(tmp_path / "file", "w") as file, refused(errno.ENOTSOCK):
        KERNEL.list(file)
    with mptcp.Socket() as closed:
        pass
    with refused(errno.EBADF):
        KERNEL.list(closed)


def test_what_c_would_not_compile(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock = pair[0]
    buffer: Any
    for buffer in (b"\0" * 42, "text", None, 42):
        with pytest.raises(TypeError):
            api.getsockopt(sock, api.MPTCP_GET_SUB_IDS, buffer)
    for optname in (0, 65, 70, 73, api.HEADER, api.HEADER + 70, -1, 2**31, 2**70):
        with pytest.raises(ValueError, match="optname"):
            api.getsockopt(sock, optname, bytearray(42))
        with pytest.raises(ValueError, match="optname"):
            api.setsockopt(sock, optname, bytes(42))
    wrong: Any = "slides"
    with pytest.raises(ValueError, match="layout"):
        api.getsockopt(sock, api.MPTCP_GET_SUB_IDS, bytearray(42), layout=wrong)
    nothing: Any = 3
    with pytest.raises(TypeError, match="sock"):
        api.getsockopt(nothing, api.MPTCP_GET_SUB_IDS, bytearray(42))
    optname_of_no_number: Any = "66"
    with pytest.raises(TypeError, match="optname"):
        api.getsockopt(sock, optname_of_no_number, bytearray(42))


def test_any_writable_buffer_will_do(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    expected = KERNEL.list(pair[0])
    array = (ctypes.c_char * 10)()
    assert api.getsockopt(pair[0], api.MPTCP_GET_SUB_IDS, array) == 4
    assert array.raw == expected.ljust(10, b"\0")
    whole = bytearray(10)
    with memoryview(whole) as view:
        assert api.getsockopt(pair[0], api.MPTCP_GET_SUB_IDS, view[3:]) == 4
    assert whole == b"\0\0\0" + expected + b"\0\0\0"


# The documentation, and C.


@pytest.mark.mptcp_needs("bpf")
def test_the_examples_run(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    sock = connection.sock
    second = sock.open_subflow(*connection.second)
    text = (TESTS.parent / "docs" / "enhanced-api.md").read_text()
    first, last = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {"sock": sock}
    exec(first, names)
    assert capsys.readouterr().out == "2\n1\n"
    exec(last, names)
    # Bytes among which there is a quote are printed between double ones.
    assert capsys.readouterr().out.startswith(("b'\\x01", 'b"\\x01'))
    assert second.getsockopt(IP, socket.IP_TOS) == 16


def compiled(program: str, folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    target = folder / program
    flags = ["-std=gnu17", "-Wall", "-Werror", "-I", str(api.include_dir())]
    subprocess.run([compiler, *flags, str(HERE / f"{program}.c"), "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("program", ["slides", "kernel_layout"])
def test_programs_of_2016_compile(program: str, tmp_path: Path) -> None:
    """Without our help they find that the kernel has no such options: it is `mptcp run` that serves them."""
    path = compiled(program, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with subprocess.Popen([path, host, str(port)], stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(1))
                _, message = process.communicate(timeout=60)
        assert process.returncode == 1
        assert message == "MPTCP_GET_SUB_IDS: Protocol not available\n"


def test_structures_are_those_of_the_header(tmp_path: Path) -> None:
    output = subprocess.run([compiled("structures", tmp_path)], capture_output=True, text=True, check=True).stdout
    captured = (TESTS / "data" / "enhanced_api.txt").read_text().splitlines()
    assert output.splitlines() == [line for line in captured if not line.startswith("#")]


def test_the_header_is_c_of_every_age_and_c_plus_plus(tmp_path: Path) -> None:
    source = tmp_path / "include.c"
    source.write_text("#include <mptcp_enhanced_api.h>\n")
    commands = [["cc", "-x", "c", f"-std={standard}"] for standard in ("gnu89", "c99", "c11", "c17")]
    commands.append(["c++", "-x", "c++", "-std=c++17"])
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    for command in commands:
        if shutil.which(command[0]):
            flags = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", str(api.include_dir())]
            subprocess.run([*command, *flags, str(source)], check=True)


def test_the_slides_are_in_their_program() -> None:
    """Its snippets are the slides' own, of which only white space may differ."""
    text = (HERE / "slides.c").read_text()
    squeezed = re.sub(r"\s+", "", text)
    for snippet in (
        "optlen = 42; // must be large enough\n ids = (struct mptcp_sub_ids *) malloc(optlen);",
        "err=getsockopt(sockfd, IPPROTO_TCP, MPTCP_GET_SUB_IDS, ids, &optlen);",
        'for(i = 0; i < ids->sub_count; i++){ printf("Subflow id : %i\\n", ids->sub_status[i].id); }',
        "sub_tuple->id = sub_id;",
        "sin = (struct sockaddr_in*) &sub_tuple->addrs[1];",
        "optlen = sizeof(struct mptcp_sub_tuple) + 2 * sizeof(struct sockaddr_in);",
        "error = getsockopt(sockfd, IPPROTO_TCP, MPTCP_OPEN_SUB_TUPLE, sub_tuple, &optlen);",
    ):
        assert re.sub(r"\s+", "", snippet) in squeezed, snippet
