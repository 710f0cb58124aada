"""Information from /proc: who holds a socket, and the kernel's MPTcpExt counters."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


def parse_counters(text: str, group: str = "MPTcpExt") -> dict[str, int]:
    """Return the counters of a group in ``text``, the contents of a /proc/net/netstat.

    That file holds pairs of lines, ``MPTcpExt: name name ...`` and then ``MPTcpExt: value value ...``.
    A kernel without Multipath TCP has no such lines: the result is then empty.
    """
    names: list[str] | None = None
    for line in text.splitlines():
        prefix, _, rest = line.partition(":")
        if prefix != group:
            continue
        if names is None:
            names = rest.split()
        else:
            return {name: int(value) for name, value in zip(names, rest.split(), strict=True)}
    return {}


def socket_inodes(pid: int) -> set[int]:
    """Return the inode numbers of a process's sockets."""
    return _sockets(pid)[0]


def _sockets(pid: int) -> tuple[set[int], bool]:
    """Return the inode numbers of a process's sockets, and whether it supervises others, as mptcp run does."""
    inodes, supervises = set(), False
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    inodes.add(int(target[len("socket:[") : -1]))
                supervises |= target == "anon_inode:seccomp notify"
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
    except PermissionError:
        raise PermissionError(
            errno.EPERM,
            f"reading the descriptors of process {pid}, which is another user's, needs CAP_SYS_PTRACE and "
            "CAP_DAC_READ_SEARCH",
        ) from None
    return inodes, supervises


def holders() -> dict[int, int]:
    """Return the first process that holds each socket, by the sockets' inode numbers, of those that can be read."""
    found: dict[int, int] = {}
    for pid, inodes in _processes():
        for inode in inodes:
            found.setdefault(inode, pid)
    return found


def holder(inode: int) -> int | None:
    """Return the first process that holds the socket with this inode number."""
    return next((pid for pid, inodes in _processes() if inode in inodes), None) if inode else None


def program(pid: int | None) -> str | None:
    r"""Return a process's name, 15 bytes at most, or None if there is no such process.

    Bytes that are not UTF-8 are written \xNN.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().removesuffix(b"\n").decode(errors="backslashreplace")
    except OSError:
        return None


def _processes() -> Iterator[tuple[int, set[int]]]:
    """Yield every process with its sockets' inode numbers, except those that have ended or cannot be read.

    Supervisors come last: for a moment they hold the sockets that they create for others.
    """
    supervisors = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(OSError):
            inodes, supervises = _sockets(pid)
            if supervises:
                supervisors.append((pid, inodes))
            else:
                yield pid, inodes
    yield from supervisors
