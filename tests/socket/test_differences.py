"""docs/differences.md: each difference between Multipath TCP and TCP, tried on both, and the page's programs."""

from __future__ import annotations

import contextlib
import errno
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mptcp
import pytest
from support import KERNEL, eventually, exchange

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
MPTCP, TCP = 262, socket.IPPROTO_TCP
BOTH = pytest.mark.parametrize("proto", [MPTCP, TCP], ids=["mptcp", "tcp"])

# Those that the module socket of some Python here lacks: <linux/tcp.h>, <linux/in.h>, <linux/in6.h>, <asm/socket.h>.
NUMBERS = {
    "TCP_THIN_LINEAR_TIMEOUTS": 16,
    "TCP_REPAIR": 19,
    "TCP_SAVE_SYN": 27,
    "TCP_TX_DELAY": 37,
    "IP_MTU_DISCOVER": 10,
    "IP_RECVERR": 11,
    "IP_RECVTOS": 13,
    "IP_FREEBIND": 15,
    "IP_MINTTL": 21,
    "IP_BIND_ADDRESS_NO_PORT": 24,
    "IPV6_RECVERR": 25,
    "SO_PEEK_OFF": 42,
    "SO_MAX_PACING_RATE": 47,
    "SO_ZEROCOPY": 60,
    "SO_BUF_LOCK": 72,
    "SO_TXREHASH": 74,
}
LEVELS = {"TCP": socket.IPPROTO_TCP, "IP": socket.IPPROTO_IP, "IPV6": socket.IPPROTO_IPV6, "SO": socket.SOL_SOCKET}


def option(name: str) -> tuple[int, int]:
    return LEVELS[name.partition("_")[0]], getattr(socket, name, NUMBERS.get(name, -1))


def make(proto: int, family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM, proto)


@contextlib.contextmanager
def connected(proto: int, receive_buffer: int | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    with make(proto) as listener, make(proto) as sock:
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            exchange(sock, peer)
            yield sock, peer


# Options

REFUSED = [
    name for row in re.findall(r"^\| (`[A-Z].*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
]
REFUSED_ONCE_CONNECTED = re.findall(
    r"`(\w+)`", PAGE[PAGE.index("Once the socket is connected") :].partition(". Set")[0]
)


def test_the_page_names_options() -> None:
    assert len(REFUSED) > 20
    assert len(REFUSED_ONCE_CONNECTED) == 5
    for name in (*REFUSED, *REFUSED_ONCE_CONNECTED):
        assert option(name)[1] >= 0 or name == "TCP_MD5SIG", name


@pytest.mark.skipif(KERNEL < (6, 12), reason="the page is about newer kernels")
@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_is_refused(name: str) -> None:
    family = socket.AF_INET6 if name.startswith("IPV6") else socket.AF_INET
    # struct tcp_md5sig: family, flags, prefix, length 1, interface, key
    md5sig = struct.pack("=H4s122xBBHi80s", socket.AF_INET, b"", 0, 0, 1, 0, b"k")
    level, number = option(name) if name != "TCP_MD5SIG" else (socket.IPPROTO_TCP, 14)
    value = md5sig if name == "TCP_MD5SIG" else 1
    with make(TCP, family) as plain, make(MPTCP, family) as sock, mptcp.Socket(family) as ours:
        try:
            plain.setsockopt(level, number, value)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOPROTOOPT) or name not in ("TCP_REPAIR", "TCP_MD5SIG"):
                raise
            pytest.skip(f"here TCP refuses it too: {error}")
        for each in (sock, ours):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                each.setsockopt(level, number, value)
            assert caught.value.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP)
        assert "docs/differences.md" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", REFUSED_ONCE_CONNECTED)
def test_an_option_that_is_refused_once_connected(name: str) -> None:
    with connected(TCP) as (plain, _), connected(MPTCP) as (sock, _):
        try:
            plain.setsockopt(*option(name), 1)
        except PermissionError:
            pytest.skip(f"{name} needs CAP_NET_ADMIN")
        with make(MPTCP) as fresh:
            fresh.setsockopt(*option(name), 1)
        with pytest.raises(OSError, match="Invalid argument"):
            sock.setsockopt(*option(name), 1)


def test_an_error_that_is_not_the_protocols_has_no_note() -> None:
    with mptcp.Socket() as sock:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, b"x")
        assert not hasattr(caught.value, "__notes__")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        with pytest.raises(TypeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, "x")  # type: ignore[call-overload]
    with socket.socket() as plain, mptcp.wrap(plain) as sock:
        with pytest.raises(OSError, match="Protocol not available") as caught:
            sock.setsockopt(socket.IPPROTO_TCP, 999, 1)
        assert not hasattr(caught.value, "__notes__")


# The end of a connection


@BOTH
def test_writing_to_a_peer_that_has_closed(proto: int) -> None:
    """For Multipath TCP a second, not the minute that it takes until EPIPE."""
    with connected(proto) as (sock, peer):
        peer.close()
        assert sock.recv(1) == b""
        sock.send(b"1")
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        assert poll.poll(0), "what the page advises to look at"

        def fails() -> bool:
            try:
                sock.send(b"2")
            except BrokenPipeError:
                return True
            return False

        assert eventually(fails, seconds=1) == (proto == TCP)


@BOTH
def test_a_peer_that_closes_with_data_unread(proto: int) -> None:
    with connected(proto) as (sock, peer):
        sock.send(b"unread")
        assert peer.recv(1, socket.MSG_PEEK)
        peer.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


# Buffers, urgent data, poll, itself


def duration(proto: int, receive_buffer: int, size: int = 1 << 17) -> float:
    with connected(proto, receive_buffer) as (sock, peer):
        thread = threading.Thread(target=sock.sendall, args=(bytes(size),))
        begin = time.monotonic()
        thread.start()
        while size > 0:
            size -= len(peer.recv(65536))
        thread.join()
        return time.monotonic() - begin


def test_small_receive_buffers() -> None:
    small = duration(MPTCP, 4096)
    assert small > 5 * min(duration(TCP, 4096) for _ in range(3))
    assert small > 5 * min(duration(MPTCP, 65536) for _ in range(3))


@BOTH
def test_urgent_data(proto: int) -> None:
    with connected(proto) as (sock, peer):
        sock.send(b"be")
        sock.send(b"!", socket.MSG_OOB)
        sock.send(b"fore")
        sock.shutdown(socket.SHUT_WR)
        if proto == TCP:
            assert select.select([], [], [peer], 10)[2] == [peer]
        data = b""
        while chunk := peer.recv(100):
            data += chunk
        assert data == (b"be!fore" if proto == MPTCP else b"before")
        if proto == MPTCP:
            assert select.select([], [], [peer], 0)[2] == []


@BOTH
def test_a_refused_connect(proto: int) -> None:
    with make(proto) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(("127.0.0.1", 1)) in (errno.EINPROGRESS, errno.ECONNREFUSED)
        poll = select.poll()
        wanted = select.POLLOUT | select.POLLERR | select.POLLHUP
        only_tcps = select.POLLIN | select.POLLRDHUP
        poll.register(sock, wanted | only_tcps)
        [(_, events)] = poll.poll(10_000)
        assert events & wanted == wanted
        assert events & only_tcps == (only_tcps if proto == TCP else 0)


@BOTH
def test_connecting_to_itself(proto: int) -> None:
    with make(proto) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        sock.connect(sock.getsockname())
        sock.sendall(b"abc")
        assert sock.recv(3) == (b"bc" if proto == MPTCP else b"abc")
        assert sock.getsockname() == sock.getpeername()


def test_a_plain_socket_of_a_descriptor() -> None:
    with mptcp.Socket() as sock, mptcp.Socket(fileno=sock.detach()) as ours, ours.dup() as another:
        assert (ours.proto, another.proto) == (TCP, TCP)
        with socket.socket(fileno=another.detach()) as plain:
            assert plain.proto == MPTCP


# The page's programs

PROGRAMS = re.findall(r"^```python\n(.*?)^```\n+^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_program_is_run() -> None:
    assert len(PROGRAMS) == PAGE.count("```python\n")


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_of_the_page(program: str, output: str) -> None:
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == (output, "")
