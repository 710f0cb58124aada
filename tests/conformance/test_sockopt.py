"""The scenarios of mptcp_sockopt.sh: what the options of SOL_MPTCP tell, and options that reach every subflow."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import random
import select
import socket
import struct
import termios
import threading
from collections.abc import Iterator

import mptcp
import pytest
from mptcp._socket import IPPROTO_MPTCP
from scenario import Network, in_kernel
from support import eventually, exchange

pytestmark = pytest.mark.conformance

# <linux/mptcp.h>, <linux/tcp.h>, <linux/sockios.h>
SOL_MPTCP = 284
MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS = 2, 3
TCP_INQ = TCP_CM_INQ = 36
SIOCOUTQNSD = 0x894B
HEADER = struct.Struct("=IIII")
"""struct mptcp_subflow_data: its size, the number of subflows, the kernel's element size, the caller's."""

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def ends(family: int) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    """A connection over loopback on which nothing was sent."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        listener = mptcp.create_server((host, 0), family=family)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        pytest.skip(f"needs {host} on the loopback interface")
    with (
        listener,
        mptcp.create_connection(listener.getsockname()[:2], timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        peer.settimeout(10)
        yield sock, peer


def getsockopt(sock: socket.socket, option: int, data: bytes, length: int) -> tuple[int, bytes, int]:
    """The errno, the buffer and the length after getsockopt() with a buffer that is not zeros."""
    buffer, size = ctypes.create_string_buffer(data, max(len(data), 1)), ctypes.c_uint32(length)
    result = LIBC.getsockopt(sock.fileno(), SOL_MPTCP, option, buffer, ctypes.byref(size))
    return ctypes.get_errno() if result else 0, buffer.raw[: len(data)], size.value


def test_what_the_info_counts(ends: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    """Bytes and sequence numbers, before and after an exchange and after the end of the other's data."""
    client, server = ends
    size = random.randrange(128, 4095)
    before = [end.info() for end in ends]
    for end, info in zip(ends, before, strict=True):
        assert (info.bytes_sent, info.bytes_received) in ((0, 0), (None, None)), end
        assert info.subflows == 0
    client.sendall(bytes(size))
    received = b""
    while len(received) < size:
        received += server.recv(size)
    server.sendall(received)
    echoed = 0
    while echoed < size:
        echoed += len(client.recv(size))
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""

    def counted(end: mptcp.Socket, first: mptcp.Info, fin_received: int, fin_sent: int) -> bool:
        info = end.info()
        # A client does not know its peer's first number before the first data.
        arrived = info.rcv_nxt - first.rcv_nxt if first.rcv_nxt else size + fin_received
        return (
            arrived == size + fin_received
            and info.write_seq - first.write_seq == size + fin_sent
            and (info.bytes_sent, info.bytes_received) in ((size, size), (None, None))
            and info.bytes_acked in (size + fin_sent, None)
        )

    # The end of the data takes a sequence number, and is counted among the acknowledged bytes.
    assert eventually(lambda: counted(server, before[1], 1, 0), 10), (before[1], server.info())
    assert eventually(lambda: counted(client, before[0], 0, 1), 10), (before[0], client.info())


def test_subflows_are_those_of_the_socket_calls(ends: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    client, server = ends
    size = random.randrange(128, 4095)
    for sender, receiver in (ends, reversed(ends)):
        sender.sendall(bytes(size))
        assert receiver.recv(size, socket.MSG_WAITALL) == bytes(size)

    def counted(end: mptcp.Socket) -> bool:
        [subflow] = end.subflows()
        return (subflow.tcp_info.bytes_sent, subflow.tcp_info.bytes_received) == (size, size)

    for end in (client, server):
        [subflow] = end.subflows()
        assert (subflow.local, subflow.remote) == (end.getsockname(), end.getpeername())
        assert subflow.id == 1
        assert eventually(lambda end=end: counted(end), 10), end.subflows()[0].tcp_info


@pytest.mark.parametrize("option", [MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS], ids=["tcpinfo", "subflow_addrs"])
def test_headers_that_are_wrong(ends: tuple[mptcp.Socket, mptcp.Socket], option: int) -> None:
    exchange(*ends)
    good = HEADER.pack(HEADER.size, 0, 0, 0)
    for sock in ends:
        error, after, length = getsockopt(sock, option, bytes(HEADER.size), HEADER.size)
        assert (error, length) == (errno.EINVAL, HEADER.size), "a size of 0"

        error, after, length = getsockopt(sock, option, good, HEADER.size)
        _, subflows, kernel, user = HEADER.unpack(after)
        assert (error, length, subflows, user) == (0, HEADER.size, 1, 0)
        assert kernel > 0

        for short in range(HEADER.size):
            error, after, length = getsockopt(sock, option, good, short)
            assert (error, length) == (errno.EINVAL, short), "the length stays"

        for wrong in (HEADER.pack(HEADER.size, 0, 1, 0), HEADER.pack(HEADER.size, 1, 0, 0)):
            assert getsockopt(sock, option, wrong, HEADER.size)[0] == errno.EINVAL, "what the kernel sets must be 0"

        # A header that is longer than the kernel's, from a later one.
        longer = HEADER.pack(HEADER.size + 2, 0, 0, 0) + b"\xff\xff"
        error, after, length = getsockopt(sock, option, longer, len(longer))
        assert (error, length) == (0, HEADER.size), "cut to what was filled"
        assert HEADER.unpack_from(after)[0] == HEADER.size + 2

        # One byte more than the kernel's, and one byte of an element behind it.
        longer = HEADER.pack(HEADER.size + 1, 0, 0, 1) + b"\0\xff"
        error, after, length = getsockopt(sock, option, longer, len(longer))
        assert (error, length) == (0, len(longer))
        assert (HEADER.unpack_from(after)[0], after[HEADER.size]) == (HEADER.size + 1, 0)


def test_an_element_that_is_cut(ends: tuple[mptcp.Socket, mptcp.Socket], family: int) -> None:
    """Of MPTCP_SUBFLOW_ADDRS the family alone."""
    for sock in ends:
        data = HEADER.pack(HEADER.size, 0, 0, 2) + b"\xff" * 16
        error, after, length = getsockopt(sock, MPTCP_SUBFLOW_ADDRS, data, HEADER.size + 2)
        assert (error, length) == (0, HEADER.size + 2)
        assert struct.unpack_from("=H", after, HEADER.size) == (family,)
        assert after[HEADER.size + 2 :] == b"\xff" * 14, "nothing behind it is touched"


def test_the_type_of_service(ends: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    """IP_TOS reads back, a byte long; of no length nothing; of a length that cannot be, EINVAL."""
    for sock in ends:
        value = random.randrange(256) & 0xFC
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, bytes([value]))
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS, 1) == bytes([value])
        buffer, size = ctypes.create_string_buffer(4), ctypes.c_uint32(0)
        arguments = sock.fileno(), socket.IPPROTO_IP, socket.IP_TOS, buffer, ctypes.byref(size)
        assert LIBC.getsockopt(*arguments) == 0
        assert size.value == 0
        size.value = 0xFFFFFFFF
        assert LIBC.getsockopt(*arguments) == -1
        assert (ctypes.get_errno(), size.value) == (errno.EINVAL, 0xFFFFFFFF)


def test_a_mark_reaches_every_subflow(network: Network) -> None:
    """Those that the in-kernel path manager opens afterwards from the addresses that the server announces, too."""
    client, server = network.client, network.server
    paths = (2, 3, 4)
    for host in (client, server):
        in_kernel(host, subflows=8, add_addr_accepted=8)
    server.add_endpoint(network.address(server, 2), signal=True)
    any_address = "" if network.family == socket.AF_INET else "::"
    marks = {client: 2, server: 1}
    with server.create_server((any_address, 12001), family=network.family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks[server])
        with client.socket(network.family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks[client])
            sock.settimeout(10)
            sock.connect((network.address(server, 1), 12001))
            with listener.accept()[0] as peer:
                peer.settimeout(10)
                exchange(sock, peer)
                for count, path in enumerate(paths, 2):
                    assert eventually(lambda count=count: len(sock.subflows()) == len(peer.subflows()) == count, 10)
                    if path != paths[-1]:
                        server.add_endpoint(network.address(server, path + 1), signal=True)
                for end, host in ((sock, client), (peer, server)):
                    subflows = end.subflows()
                    assert len(subflows) == 1 + len(paths)
                    found = [subflow.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for subflow in subflows]
                    assert found == [marks[host]] * len(subflows)


@pytest.mark.parametrize(
    ("sending", "receiving"),
    [
        pytest.param(socket.IPPROTO_TCP, IPPROTO_MPTCP, id="tcp to mptcp"),
        pytest.param(IPPROTO_MPTCP, socket.IPPROTO_TCP, id="mptcp to tcp"),
        pytest.param(IPPROTO_MPTCP, IPPROTO_MPTCP, id="mptcp to mptcp"),
        pytest.param(socket.IPPROTO_TCP, socket.IPPROTO_TCP, id="tcp to tcp"),
    ],
)
def test_bytes_that_wait(network: Network, sending: int, receiving: int) -> None:
    """TCP_INQ, FIONREAD and, at the sender, TIOCOUTQ and SIOCOUTQNSD: whatever became of the connection."""
    with (
        network.server.socket(network.family, proto=receiving) as listener,
        network.client.socket(network.family, proto=sending) as sock,
    ):
        listener.bind((network.address(network.server, 1), 15432))
        listener.listen()
        sock.settimeout(10)
        sock.connect(listener.getsockname())
        with listener.accept()[0] as peer:
            peer.settimeout(10)
            peer.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
            size = random.randrange(128, 4095)
            sock.sendall(bytes(size))
            assert eventually(lambda: ioctl(peer, termios.FIONREAD) == size, 10)
            assert receive(peer, 1) == (1, size - 1)
            assert receive(peer, 4096) == (size - 1, 0)
            assert eventually(lambda: ioctl(sock, termios.TIOCOUTQ) == 0, 10)
            assert ioctl(sock, SIOCOUTQNSD) == 0

            # More than the buffers hold: what waits is never more than what is still to come.
            left = 2 << 20
            sender = threading.Thread(target=sock.sendall, args=(bytes(left),))
            sender.start()
            while left:
                count, waiting = receive(peer, 4096)
                assert count > 0
                left -= count
                assert 0 <= waiting <= left
            sender.join()
            assert eventually(lambda: ioctl(sock, termios.TIOCOUTQ) == 0, 10)

            # The end of the data counts as one more, as for TCP.
            sock.sendall(b"x")
            sock.shutdown(socket.SHUT_WR)
            assert eventually(lambda: at_the_end(peer), 10)
            assert receive(peer, 1) == (1, 1)
            assert receive(peer, 1) == (0, 1)


def ioctl(sock: socket.socket, number: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock.fileno(), number, bytes(4)), "little")


def receive(sock: socket.socket, size: int) -> tuple[int, int]:
    """How much was read, and how much more waits, by the control message."""
    data, messages, _, _ = sock.recvmsg(size, 4096)
    [waiting] = [value for level, kind, value in messages if (level, kind) == (socket.IPPROTO_TCP, TCP_CM_INQ)]
    return len(data), int.from_bytes(waiting, "little")


def at_the_end(sock: socket.socket) -> bool:
    """Whether the other end's FIN has come."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
