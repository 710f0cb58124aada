"""What several test files need: a connection between two hosts, and ways to look at it from outside."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mptcp
import pytest
from mptcp import Event, EventKind
from mptcp.lab import Host, Link

PORT = 5000

ROOT = os.geteuid() == 0

# The start of a command line that runs a program without any capability.
NO_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]

KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))

# The start of a command line of Python with a lab: warnings are errors, except that a busy machine made frames late.
STRICT = [sys.executable, "-W", "error", "-W", "ignore:frames left:RuntimeWarning"]

RUN = [sys.executable, "-W", "error", "-m", "mptcp", "run"]
# What is run under it: of the system, which every user may execute.
PYTHON = "/usr/bin/python3"

CAP_PERFMON, CAP_BPF = 38, 39

SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>

# How much longer things take than on an idle machine; .ci/matrix sets it for emulated ones.
PATIENCE = float(os.environ.get("MPTCP_TEST_PATIENCE", "1"))

_PF_EXITING = 0x4  # <linux/sched.h>

_READER = "mptcp-events"  # the name of the threads that read events


def has_bpf() -> bool:
    """CAP_BPF and CAP_PERFMON, in the initial user namespace."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)
    identity = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return identity and all(capabilities >> number & 1 for number in (CAP_BPF, CAP_PERFMON))


needs_python = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs {PYTHON}")


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@dataclass
class Connection:
    """A fully established connection from ``client`` to ``server`` over the first of two links."""

    client: Host
    server: Host
    paths: tuple[Link, Link]
    listener: mptcp.Socket
    sock: mptcp.Socket
    peer: mptcp.Socket

    @property
    def second(self) -> tuple[str, str]:
        """The addresses of the second path, the client's first."""
        return self.paths[1].address(self.client), self.paths[1].address(self.server)


def exchange(one: socket.socket, other: socket.socket) -> None:
    """A byte in each direction, after which both ends are fully established."""
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"x")
        assert receiver.recv(1) == b"x"


@contextlib.contextmanager
def connected(
    client: Host, server: Host, paths: tuple[Link, Link], family: int = socket.AF_INET
) -> Iterator[Connection]:
    """A connection over the first path to a server that listens on every address."""
    any_address = "" if family == socket.AF_INET else "::"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server((any_address, PORT), family=family))
        remote = paths[0].address(server, family=family)
        sock = stack.enter_context(client.create_connection((remote, PORT), timeout=10))
        peer, _ = listener.accept()
        stack.enter_context(peer)
        peer.settimeout(10)
        exchange(sock, peer)
        yield Connection(client, server, paths, listener, sock, peer)


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Poll a condition that no event tells, until it holds or the deadline has passed.

    The deadline is far away: only a failure takes that long. After a moment there is a pause between two tries, because
    what is waited for needs the processor too.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        if waited > seconds * PATIENCE:
            return False
        if waited < 0.01:
            os.sched_yield()
        else:
            time.sleep(0.001)
    return True


def nft(host: Host, *lines: str) -> None:
    """Give nftables of a host a table; skip where that cannot be done."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft of nftables")
    made = host.run(["nft", "\n".join(lines)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs nftables in the kernel: {made.stderr.splitlines()[0]}")


def ss(host: Host, *options: str) -> list[list[str]]:
    """The rows of `ss -Htn` in a host, split into words: state, queues, local, remote."""
    output = host.run(["ss", "-Htn", *options], capture_output=True, text=True, check=True).stdout
    return [line.split() for line in output.splitlines()]


def tuples(host: Host) -> set[tuple[str, str]]:
    """Local and remote ends of the established TCP sockets of a host, as ss prints them."""
    return {(row[3], row[4]) for row in ss(host) if row[0] == "ESTAB"}


def ends(sock: mptcp.Socket) -> list[tuple[object, object]]:
    return [(subflow.local, subflow.remote) for subflow in sock.subflows()]


def subscribers(host: Host) -> int:
    """Sockets of a host that are subscribed to a generic netlink multicast group."""
    rows = host.run(["cat", "/proc/net/netlink"], capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(row.split()[1] == "16" and int(row.split()[3], 16) != 0 for row in rows[1:])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Those of this process, without one that was joined and that the kernel has not taken away yet."""
    return sum(not _is_exiting(task) for task in os.listdir("/proc/self/task"))


def held() -> tuple[int, int]:
    """How many descriptors and threads this process has."""
    return descriptors(), threads()


def holds_no_more_than(before: tuple[int, int]) -> bool:
    """Whether what was opened and started since ``held()`` is gone, or goes at once.

    Fewer is right, too: ``before`` may have counted a thread of an earlier test that was at its end.
    """
    return eventually(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


def _is_exiting(task: str) -> bool:
    try:
        # The fields behind the name, which may hold spaces: state, ppid, pgrp, session, tty_nr, tpgid, flags.
        fields = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(fields[6]) & _PF_EXITING)


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """RLIMIT_NOFILE that is reached when so many more descriptors are opened."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + number + 2, limit[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for descriptor in taken:
            os.close(descriptor)


class Marked:
    """Processes that are told by a variable of their environment, which those that they start inherit."""

    def __init__(self) -> None:
        self._mark = f"MPTCP_TEST_DEMO={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self.environment = {**os.environ, name: value}

    def processes(self) -> set[int]:
        found = set()
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    environment = (process / "environ").read_bytes()
                except OSError:
                    continue
                if self._mark.encode() in environment.split(b"\0"):
                    found.add(int(process.name))
        return found


def sysctls() -> dict[Path, str]:
    found = {}
    for area in ("mptcp", "ipv4", "core"):
        for path in (Path("/proc/sys/net") / area).rglob("*"):
            if path.name == "tcp_fastopen_key":
                continue  # drawn by the kernel when a first program listens for TCP Fast Open
            try:
                found[path] = path.read_text()
            except OSError:
                continue
    return found


@contextlib.contextmanager
def events_are_read_late() -> Iterator[None]:
    """The threads that read events run only while this one sleeps: on its processor, and with the least priority."""
    everywhere = os.sched_getaffinity(0)
    readers = [int(task.parent.name) for task in Path("/proc/self/task").glob("*/comm") if _name(task) == _READER]
    assert readers, "nobody reads events"
    for task in (0, *readers):
        os.sched_setaffinity(task, {min(everywhere)})
    for reader in readers:
        os.sched_setscheduler(reader, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        for task in (0, *readers):
            with contextlib.suppress(ProcessLookupError):  # one of an earlier test, at its end
                os.sched_setaffinity(task, everywhere)
        # Without privilege they stay what they are, which loses events only where every processor is taken.
        for reader in readers:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.sched_setscheduler(reader, os.SCHED_OTHER, os.sched_param(0))


def let_events_be_read(host: Host) -> None:
    """Return when this process has read all events so far: a stream that begins has no part in them."""
    host.events().close()


@contextlib.contextmanager
def computing(programs: int = 1) -> Iterator[None]:
    """Other programs keep the processors that this thread may use busy; the more there are, the longer others wait."""
    program = "print(flush=True)\nwhile True: pass"
    with contextlib.ExitStack() as stack:
        for _ in range(programs):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        yield


def has_joined(peer: mptcp.Socket, subflow: mptcp.Subflow) -> bool:
    """Whether the acceptor is through with a join and has the subflow in its list: see docs/kernel-bugs.md."""
    return subflow.local in [one.remote for one in peer.subflows()]


def _name(comm: Path) -> str:
    try:
        return comm.read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def churn(made: Connection, events: int, stack: contextlib.ExitStack, at_once: int = 50) -> None:
    """Connections that come and go, with so many events at the client; every fiftieth stays, with two subflows."""
    going: list[int] = []
    for number in range(1, events // 3 + 1):
        sock = made.client.create_connection(made.sock.getpeername(), timeout=10)
        peer, _ = made.listener.accept()
        exchange(sock, peer)
        if number % 50 == 0:
            sock.open_subflow(*made.second)
            stack.enter_context(sock)
            stack.enter_context(peer)
        else:
            going += [sock.detach(), peer.detach()]
        if number % at_once == 0:
            for fd in going:
                os.close(fd)
            going.clear()
    for fd in going:
        os.close(fd)


class Pictured:
    """What one who only listens believes: the subflows of each connection, the initial one as None."""

    def __init__(self) -> None:
        self.connections: dict[int, set[object]] = {}
        self.overruns = 0

    def take(self, event: Event) -> None:
        token = event.token
        if event.kind == EventKind.OVERRUN:
            self.overruns += 1
            self.connections.clear()
        elif token is None:
            return
        elif event.kind == EventKind.CREATED:
            self.connections.setdefault(token, set()).add((event.local, event.remote))
        elif event.kind == EventKind.CLOSED:
            self.connections.pop(token, None)
        elif event.kind == EventKind.SUB_ESTABLISHED:
            self.connections.setdefault(token, set()).add((event.local, event.remote))
        elif event.kind == EventKind.SUB_CLOSED and token in self.connections:
            self.connections[token].discard((event.local, event.remote))


def true_picture(host: Host) -> dict[int, set[object]]:
    picture: dict[int, set[object]] = {}
    for connection in host.connections():
        # One that its owner has closed lives on for its last segments.
        if connection.inode:
            picture[connection.token] = {(subflow.local, subflow.remote) for subflow in connection.subflows()}
    return picture


_HOLD_LOCK = """
import fcntl, os, sys
fcntl.flock(os.open("/proc/self/ns/net", os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def lock_held(host: Host) -> Iterator[int]:
    """The lock of a host's network namespace is held by a process, of this id, which any process may do."""
    command = [sys.executable, "-c", _HOLD_LOCK]
    with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.stdin.close()


#: For a program in Python: memory in which whoever reads it waits until ``release()``, a system call too, with the
#: locks that it holds (userfaultfd).
STUCK_MEMORY = r"""
import ctypes, fcntl, mmap, os, platform, select, struct
_libc = ctypes.CDLL(None, use_errno=True)
class Stuck:
    def __init__(self):
        number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
        self._fd = _libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self._fd, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))  # UFFDIO_API
        self.memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fcntl.ioctl(self._fd, 0xC020AA00, bytearray(struct.pack("QQQQ", start, mmap.PAGESIZE, 1, 0)))  # UFFDIO_REGISTER
    def wait(self):
        "Until somebody waits."
        assert select.select([self._fd], [], [], 60)[0]
    def release(self):
        os.close(self._fd)
"""


def has_userfaultfd() -> bool:
    """Whether a page fault of a system call can be held up."""
    program = f"{STUCK_MEMORY}\nStuck()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
