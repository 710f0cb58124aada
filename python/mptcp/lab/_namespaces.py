"""Namespaces: making them, telling them apart, and ending the programs inside them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Collection

from mptcp import _core

# linux/capability.h
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21

# How long to wait for killed programs to end. Only one stuck inside the kernel takes longer.
_KILL_SECONDS = 10.0

#: Device and inode number of a namespace's file: the same for two files if they are the same namespace.
Identity = tuple[int, int]


def may_make_network_namespaces() -> bool:
    """Whether this process has the capabilities for network namespaces without a user namespace of its own."""
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return all(effective >> capability & 1 for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _denied(cause: OSError, uid: int) -> PermissionError:
    allow = (
        "allow it by the sysctls user.max_user_namespaces and user.max_net_namespaces (above 0), "
        "kernel.unprivileged_userns_clone (1, where it exists) and kernel.apparmor_restrict_unprivileged_userns "
        "(0, where it exists)"
    )
    if uid == 0:
        return PermissionError(
            errno.EPERM,
            "uid 0 of this process lacks CAP_SYS_ADMIN or CAP_NET_ADMIN, and may not make the user and network "
            f"namespaces that a lab needs either ({cause.strerror}): start the container with --cap-add SYS_ADMIN "
            f"--cap-add NET_ADMIN, or {allow}; docs/containers.md lists what each kind of host needs",
        )
    return PermissionError(
        errno.EPERM,
        "this system does not let an ordinary user create the user and network namespaces that a lab needs "
        f"({cause.strerror}): {allow}, or run as root",
    )


def check_host() -> None:
    """Raise OSError, naming what is missing, if the host lacks what every lab needs, whatever its privileges."""
    if not os.path.exists("/proc/self/ns/net"):
        raise FileNotFoundError(errno.ENOENT, "a lab needs the proc file system: mount it (mount -t proc proc /proc)")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise
        raise OSError(
            error.errno,
            f"a lab needs the system call pidfd_open, which is denied here ({error.strerror}): a seccomp profile older "
            "than Linux 5.3 denies it; use a newer container runtime, or its option --security-opt seccomp=unconfined",
        ) from error


def _callers_uid() -> int:
    """Return this process's uid; in a user namespace that maps only one uid, as ours does, that uid's outside it."""
    with open("/proc/self/uid_map") as file:
        lines = [[int(number) for number in line.split()] for line in file]
    return lines[0][1] if len(lines) == 1 and lines[0][2] == 1 else os.geteuid()


def enter_new_user_namespace() -> None:
    """Move this process to a user namespace of its own, in which the caller's user and group are root's."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        _core.enter_new_user_namespace()
        # Without a privilege over the parent namespace only one's own ids can be mapped, the group
        # only once setgroups is given up.
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise _denied(error, uid) from error


def enter_new_network_namespace() -> None:
    """Move this process to a network namespace of its own."""
    try:
        _core.enter_new_network_namespace()
    except OSError as error:
        # ENOSPC is the limit user.max_net_namespaces; EPERM is a security module that leaves a new user
        # namespace without capabilities.
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC):
            raise _denied(error, _callers_uid()) from error
        raise


def identity(file: int | str) -> Identity:
    """Return the identity of a namespace, from an open descriptor of it or the path of its file."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def kill_programs(namespaces: Collection[Identity], spare: Collection[int]) -> None:
    """Kill every process in these network namespaces but those in ``spare``, and wait until they have ended.

    The caller must hold the namespaces (be in them, or have them open), so that no other takes their numbers.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    # What is killed may just have forked, so repeat this until it finds nothing.
    while time.monotonic() < deadline:
        killed = [
            handle
            for name in os.listdir("/proc")
            if name.isdecimal() and int(name) not in spare
            if (handle := _kill_if_in(int(name), namespaces)) is not None
        ]
        if not killed:
            return
        for handle in killed:
            select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            os.close(handle)


def _kill_if_in(pid: int, namespaces: Collection[Identity]) -> int | None:
    """Kill the process if it is in one of the namespaces, and then return a pidfd of it."""
    try:
        # The pidfd comes first, so that the process that is checked is the one that is killed, whatever ends meanwhile.
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        if identity(f"/proc/{pid}/ns/net") in namespaces:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return handle
    except OSError:
        # It has ended, or belongs to another user and so cannot be in a namespace of ours.
        pass
    with contextlib.suppress(OSError):
        os.close(handle)
    return None
