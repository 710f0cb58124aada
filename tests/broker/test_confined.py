"""What the running broker could still do if a caller took it over: system calls are made in its place, by ptrace."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brokered import Brokered, server_of

# <sys/ptrace.h>
SINGLESTEP, GETREGS, SETREGS, ATTACH, DETACH = 9, 12, 13, 16, 17
REGISTERS = [
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
]
WALL = 0x40000000  # __WALL

# Of x86-64, <asm/unistd_64.h>.
CALLS = {
    "open": 2, "poll": 7, "mmap": 9, "getpid": 39, "socket": 41, "connect": 42, "clone": 56, "fork": 57,
    "execve": 59, "kill": 62, "ptrace": 101, "setresuid": 117, "mount": 165, "openat": 257,
    "unshare": 272, "setns": 308, "process_vm_writev": 311, "seccomp": 317, "bpf": 321, "io_uring_setup": 425,
    "ppoll": 271, "clone3": 435,
}  # fmt: skip
AT_FDCWD = -100


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS]


libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, thread: int, data: object = None) -> None:
    if libc.ptrace(request, thread, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace request {request}")


class Stopped:
    """A stopped thread, in which a system call has been interrupted."""

    def __init__(self, thread: int) -> None:
        self.thread, self.before = thread, Registers()
        ptrace(GETREGS, thread, ctypes.byref(self.before))

    def call(self, name: str, *arguments: int | bytes) -> int:
        """Make a system call and return its result, a negative errno on failure. Bytes are put below its stack."""
        registers = Registers.from_buffer_copy(self.before)
        memory, room = [], self.before.rsp - 4096
        for argument in arguments:
            if isinstance(argument, bytes):
                with open(f"/proc/{self.thread}/mem", "r+b", buffering=0) as file:
                    file.seek(room)
                    file.write(argument)
                memory.append(room)
                room += 256
            else:
                memory.append(argument % 2**64)
        for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), [*memory, *[0] * 6], strict=False):
            setattr(registers, register, value)
        # The instruction before the one that it would go on with is "syscall", of two bytes.
        registers.rax, registers.orig_rax, registers.rip = CALLS[name], 2**64 - 1, self.before.rip - 2
        ptrace(SETREGS, self.thread, ctypes.byref(registers))
        ptrace(SINGLESTEP, self.thread)
        _, status = os.waitpid(self.thread, WALL)
        assert os.WIFSTOPPED(status), (name, status)
        ptrace(GETREGS, self.thread, ctypes.byref(registers))
        return ctypes.c_longlong(registers.rax).value


@contextmanager
def stopped(thread: int) -> Iterator[Stopped]:
    """Stop a thread while it waits in poll() or ppoll(), which a signal may interrupt."""

    def stop() -> Stopped | None:
        ptrace(ATTACH, thread)
        os.waitpid(thread, WALL)
        found = Stopped(thread)
        if found.before.orig_rax in (CALLS["poll"], CALLS["ppoll"]):
            return found
        ptrace(DETACH, thread)
        return None

    tries = (stop() for _ in range(1000))
    found = next(filter(None, tries))
    try:
        yield found
    finally:
        # What it waited for was interrupted.
        found.before.rax, found.before.orig_rax = -errno.EINTR % 2**64, 2**64 - 1
        ptrace(SETREGS, thread, ctypes.byref(found.before))
        ptrace(DETACH, thread)


def has_landlock() -> bool:
    return libc.syscall(444, None, 0, 1) > 0  # landlock_create_ruleset


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86-64, whose registers it writes")
def test_system_calls_that_would_take_more_over_are_refused(brokered: Brokered) -> None:
    pid = server_of(brokered)
    with stopped(pid) as thread:
        assert thread.call("getpid") == pid, "calls are made as they should be"
        refused = {
            "execve": (b"/bin/sh\0", 0, 0),
            "fork": (),
            "clone": (signal.SIGCHLD,),
            "open": (b"/proc/self/uid_map\0", os.O_RDWR),
            "ptrace": (0,),
            "process_vm_writev": (pid, 0, 0, 0, 0, 0),
            "kill": (os.getpid(), 0),
            "setresuid": (0, 0, 0),
            "unshare": (0x10000000,),
            "setns": (0, 0),
            "mount": (b"/\0", b"/\0", 0, 0, 0),
            "connect": (0, 0, 0),
            "seccomp": (0, 0, 0),
            "io_uring_setup": (1, 0),
            "bpf": (5, 0, 0),  # BPF_PROG_LOAD
        }
        told = {name: thread.call(name, *arguments) for name, arguments in refused.items()}
        assert told == dict.fromkeys(refused, -errno.EPERM)
        assert thread.call("clone3", 0, 0) == -errno.ENOSYS
        assert thread.call("socket", socket.AF_INET, socket.SOCK_STREAM, 0) == -errno.EPERM
        assert thread.call("mmap", 0, 4096, 7, 0x22, -1, 0) == -errno.EPERM, "memory that is writable and executable"
        assert thread.call("openat", AT_FDCWD, b"/proc/self/uid_map\0", os.O_RDWR) == -errno.EPERM
        if has_landlock():
            for path in (b"/etc/passwd\0", b"/proc/../etc/passwd\0", b"/proc/self/root/etc/passwd\0"):
                assert thread.call("openat", AT_FDCWD, path, os.O_RDONLY) == -errno.EACCES, path
                assert thread.call("open", path, os.O_RDONLY) == -errno.EACCES, path
    # It still serves.
    brokered.run('assert mptcp.Socket(path_manager="userspace").proto == socket.IPPROTO_TCP')


def test_every_thread_is_under_the_filter(brokered: Brokered) -> None:
    with brokered.popen("events = mptcp.Events(); print(flush=True); sys.stdin.read()") as program:
        assert program.stdout is not None
        program.stdout.readline()
        for task in Path(f"/proc/{server_of(brokered)}/task").iterdir():
            try:
                status = (task / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # one that served an earlier client, at its end
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
        program.communicate(timeout=20)
