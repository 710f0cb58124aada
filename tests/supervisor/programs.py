"""What the tests of ``mptcp run`` share: a server, programs in Python that make the calls of 2016, and their output."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import PATIENCE, PORT, PYTHON, RUN, has_bpf

Paths = tuple[Host, Host, tuple[Link, Link]]

needs_bpf = pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")

#: What a program in Python needs to make the calls, which its socket module cannot: they read the buffer.
PRELUDE = r"""
import ctypes, os, socket, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(function, fd, option, buffer, length):
    result = function(fd, socket.IPPROTO_TCP, option, buffer, length)
    return ctypes.get_errno() if result < 0 else 0
def get(fd, option, data, length=None):
    "The error, and what getsockopt left in a buffer that held these bytes."
    buffer = ctypes.create_string_buffer(bytes(data), len(data))
    size = ctypes.c_uint32(len(data) if length is None else length)
    error = call(libc.getsockopt, fd, option, buffer, ctypes.byref(size))
    return error, buffer.raw[:min(size.value, len(data))]
def ids(fd):
    error, reply = get(fd, 66, bytes(512))
    assert error == 0, error
    return list(reply[2::2])
def end(host, port):
    return struct.pack("=HHL8x", socket.AF_INET, socket.htons(port), *struct.unpack("=L", socket.inet_aton(host)))
def open_subflow(fd, local, local_port, remote, remote_port):
    return get(fd, 69, b"\0" + end(local, local_port) + end(remote, remote_port))[0]
def connect(host, port):
    sock = socket.create_connection((host, int(port)), 30)
    sock.settimeout(None)
    sock.sendall(b"x")
    sock.recv(1)
    return sock
"""

#: Sets an option on one subflow, and on a new TCP socket; the errors' names, or "set".
SET = r"""
import errno
def name(error):
    return errno.errorcode.get(error, "set")
def on_subflow(level, option, value, id=1):
    data = ctypes.create_string_buffer(value, len(value))
    request = struct.pack("=BxxxiixxxxQIxxxx", id, level, option, ctypes.addressof(data), len(value))
    return name(call(libc.setsockopt, fd, 72, request, len(request)))
def on_socket(level, option, value, device=None):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 6) as own:
        if device:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        try:
            own.setsockopt(level, option, value)
        except OSError as error:
            return name(error.errno)
    return "set"
INT = lambda value: struct.pack("i", value)
"""


class Echo:
    """A server that sends back the first byte of each connection and keeps it."""

    def __init__(self, host: Host) -> None:
        self.listener = host.create_server(("", PORT))
        self.peers: list[mptcp.Socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            peer.sendall(peer.recv(1))

    def close(self) -> None:
        # This wakes accept().
        with contextlib.suppress(OSError):
            self.listener.shutdown(2)
        self._thread.join()
        for sock in (self.listener, *self.peers):
            sock.close()


class Program:
    """A program under mptcp run in the client's host, that waits for a line between its stages."""

    def __init__(
        self, paths: Paths, *command: str, options: tuple[str, ...] = (), prefix: tuple[str, ...] = ()
    ) -> None:
        self.process: subprocess.Popen[str] = paths[0].popen(
            [*prefix, *RUN, *options, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, stage: str) -> list[str]:
        """The lines up to ``-- stage``."""
        lines = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == f"-- {stage}\n":
                return lines
            lines.append(line.rstrip("\n"))
        assert self.process.stderr is not None
        raise AssertionError(f"{lines} {self.process.stderr.read()}")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        """Wait for its end; what it said."""
        output, errors = self.process.communicate(timeout=60 * PATIENCE)
        assert self.process.returncode == 0, errors
        assert errors == ""
        return output

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *unused: object) -> None:
        self.process.kill()
        self.process.communicate()


def ask(paths: Paths, program: str, *arguments: str, **options: Any) -> list[str]:
    """Run a program in Python with a connection ``sock`` of its own; the lines that it prints."""
    server = paths[2][0].address(paths[1])
    start = f"{PRELUDE}\nsock = connect({server!r}, {PORT})\nfd = sock.fileno()\n"
    with Program(paths, PYTHON, "-c", start + program, *arguments, **options) as running:
        return running.finish().splitlines()
