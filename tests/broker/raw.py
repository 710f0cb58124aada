"""The broker's protocol by hand, as a program in any language would speak it: docs/broker.md."""

import array
import os
import socket
import struct

HELLO, COMMAND, DESTROY, EVENTS, HOLD, RELEASE, OPTIONS, USE, SUBFLOWS = range(1, 10)
ANNOUNCE, REMOVE, SUBFLOW_CREATE, SUBFLOW_DESTROY, SET_FLAGS = 8, 9, 10, 11, 7  # <linux/mptcp_pm.h>


class Denied(Exception):
    def __init__(self, errno: int, refused: bool, text: str) -> None:
        super().__init__(errno, refused, text)
        self.errno, self.refused, self.text = errno, refused, text


class Raw:
    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(os.environ["MPTCP_BROKER"])
        self.sequence = 0

    def send(self, kind: int, payload: bytes = b"", fds: list[int] | None = None, version: int = 1) -> None:
        self.sequence += 1
        message = struct.pack("=HHIII", version, kind, self.sequence, 0, 0) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([message], ancillary)

    def receive(self) -> bytes:
        reply = self.socket.recv(1 << 16)
        if not reply:
            raise EOFError
        _, _, sequence, errno, flags = struct.unpack_from("=HHIii", reply)
        if errno:
            raise Denied(errno, bool(flags & 1), reply[16:].decode())
        assert sequence == self.sequence
        return reply[16:]

    def ask(self, kind: int, payload: bytes = b"", fds: list[int] | None = None) -> bytes:
        self.send(kind, payload, fds)
        return self.receive()

    def denied(self, kind: int, payload: bytes = b"", fds: list[int] | None = None) -> Denied:
        try:
            self.ask(kind, payload, fds)
        except Denied as denied:
            return denied
        raise AssertionError("it was allowed")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def address(kind: int, ip: str, port: int = 0, id: int = 0, flags: int = 0, interface: int = 0) -> bytes:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    number = 4 if family == socket.AF_INET6 else 3
    inner = attribute(1, struct.pack("=H", family)) + attribute(number, socket.inet_pton(family, ip))
    for code, value, form in ((2, id, "=B"), (5, port, "=H"), (6, flags, "=I"), (7, interface, "=i")):
        if value:
            inner += attribute(code, struct.pack(form, value))
    return attribute(kind | 0x8000, inner)


def command(number: int, token: int, *rest: bytes) -> bytes:
    return struct.pack("=BBH", number, 1, 0) + b"".join(rest) + attribute(4, struct.pack("=I", token))


def create(token: int, local: str, remote: str, port: int, local_port: int = 0, interface: int = 0) -> bytes:
    ends = address(1, local, local_port, interface=interface, id=9), address(6, remote, port)
    return command(SUBFLOW_CREATE, token, *ends)


def destroy(token: int, local: tuple, remote: tuple) -> bytes:
    return command(SUBFLOW_DESTROY, token, address(1, *local[:2]), address(6, *remote[:2]))


def by_tuple(cookie: int, local: tuple, remote: tuple) -> bytes:
    """Return a TCP socket as DESTROY and SUBFLOWS take it."""
    message = struct.pack("=Q", cookie)
    for ip, port, *_ in (local, remote):
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        message += struct.pack("=HH16s", family, port, socket.inet_pton(family, ip))
    return message + bytes(4)


def announce(token: int, ip: str, id: int, port: int = 0) -> bytes:
    return command(ANNOUNCE, token, address(1, ip, port, id, flags=1))
