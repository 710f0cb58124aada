"""Two hosts and the middle of a link between them, each a network namespace, without the lab.

It needs CAP_SYS_ADMIN over the user namespace that it runs in, as ``unshare -Ur`` gives it to everybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from mptcp._core import LinkEmulator, LinkLimits

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_libc = ctypes.CDLL(None, use_errno=True)

#: Of the two hosts.
A, B = "10.9.0.1", "10.9.0.2"
PORT = 5000
#: The number of the link.
LINK = 7
UNLIMITED = LinkLimits()


def _call(function: Callable[..., int], *arguments: int) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """A network namespace. Threads enter it, so that the process stays where it is."""

    def __init__(self) -> None:
        def make() -> int:
            _call(_libc.unshare, _CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self._file = _in_thread(make)

    def run(self, function: Callable[[], T]) -> T:
        def enter() -> T:
            _call(_libc.setns, self._file, _CLONE_NEWNET)
            return function()

        return _in_thread(enter)

    def ip(self, *commands: str) -> None:
        command = ["ip", "-batch", "-"]
        text = "\n".join(commands)
        done = self.run(lambda: subprocess.run(command, input=text, text=True, capture_output=True))
        assert done.returncode == 0, done.stderr

    def tc(self, *command: str) -> None:
        done = self.run(lambda: subprocess.run(["tc", *command], text=True, capture_output=True))
        assert done.returncode == 0, done.stderr

    def index(self, interface: str) -> int:
        return self.run(lambda: socket.if_nametoindex(interface))

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        return self.run(lambda: socket.socket(socket.AF_INET, kind))

    def packet_socket(self, address: tuple[str, int]) -> socket.socket:
        """A packet socket of an interface, for frames of this protocol."""

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.settimeout(10)
            sock.bind(address)
            return sock

        return self.run(make)

    def set_sysctl(self, name: str, value: str) -> None:
        def write() -> None:
            with open(f"/proc/sys/{name}", "w") as file:
                file.write(value)

        self.run(write)

    def close(self) -> None:
        os.close(self._file)


def _in_thread(function: Callable[[], T]) -> T:
    result: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


class Wire:
    """Hosts ``a`` and ``b`` with an interface ``eth`` each, and between them ``middle`` with ``a`` and ``b``."""

    def __init__(self, seed: int = 1) -> None:
        self.a, self.b, self.middle = Namespace(), Namespace(), Namespace()
        for name in ("all", "default"):
            self.middle.set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        for host, end, address in ((self.a, "a", A), (self.b, "b", B)):
            host.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            path = f"/proc/{os.getpid()}/fd/{host._file}"
            self.middle.ip(f"link add name {end} type veth peer name eth netns {path}", f"link set dev {end} up")
            host.ip("link set lo up", f"addr add {address}/24 dev eth", "link set eth up")
        # Nobody asks who has an address, so that every frame is one of a test.
        for host, peer, address in ((self.a, self.b, B), (self.b, self.a, A)):
            host.ip(f"neigh replace {address} lladdr {_address(peer)} dev eth nud permanent")
        self.indexes = self.middle.index("a"), self.middle.index("b")
        self.emulator = self.middle.run(lambda: LinkEmulator(seed=seed))

    def add(self, a_to_b: LinkLimits = UNLIMITED, b_to_a: LinkLimits = UNLIMITED) -> None:
        """Put the link's emulation to work, and let the hosts send frames as large as it wants them."""
        self.emulator.add(LINK, *self.indexes, a_to_b, b_to_a)
        self._segments(a_to_b, b_to_a)

    def set(self, a_to_b: LinkLimits = UNLIMITED, b_to_a: LinkLimits = UNLIMITED) -> None:
        self.emulator.set(LINK, a_to_b, b_to_a)
        self._segments(a_to_b, b_to_a)

    def _segments(self, *limits: LinkLimits) -> None:
        for host, limit in zip((self.a, self.b), limits, strict=True):
            host.ip(f"link set eth gso_max_segs {limit.gso_max_segs}")

    def datagrams(self) -> tuple[socket.socket, socket.socket]:
        """A connected UDP socket in each host."""
        one, other = self.a.socket(socket.SOCK_DGRAM), self.b.socket(socket.SOCK_DGRAM)
        one.bind((A, PORT))
        other.bind((B, PORT))
        one.connect((B, PORT))
        other.connect((A, PORT))
        for end in (one, other):
            end.settimeout(10)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return one, other

    @contextlib.contextmanager
    def stream(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A TCP connection from ``a`` to ``b``; both ends."""
        with self.b.socket() as listener, self.a.socket() as client:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((B, PORT))
            listener.listen()
            for end in (listener, client):
                end.settimeout(20)
            client.connect((B, PORT))
            server, _ = listener.accept()
            with server:
                server.settimeout(20)
                yield client, server

    def close(self) -> None:
        self.emulator.close()
        for namespace in (self.a, self.b, self.middle):
            namespace.close()


def _address(host: Namespace) -> str:
    """The Ethernet address of its interface."""
    show = ["ip", "-br", "link", "show", "eth"]
    done = host.run(lambda: subprocess.run(show, text=True, capture_output=True, check=True))
    return done.stdout.split()[2]
