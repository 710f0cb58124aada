"""The sysctls of a host's network namespace, also where /proc/sys is mounted read-only."""

from __future__ import annotations

import ctypes
import errno
import os

# linux/sched.h, linux/mount.h
_CLONE_NEWNS = 0x00020000
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000

_ROOT = "/proc/sys"

_libc = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> str:
    with open(f"{_ROOT}/{path}") as file:
        return file.read().strip()


def write(path: str, value: str) -> None:
    with open(f"{_ROOT}/{path}", "w") as file:
        file.write(value)


def make_writable() -> None:
    """Remount /proc/sys for writing, in a mount namespace of this process's own, if it is read-only.

    Containers have it read-only, although the sysctls of the network namespace made here are this process's to set.
    Where this process may not remount it, as in a user namespace that inherited the mount, OSError says what to do.
    """
    if not os.statvfs(_ROOT).f_flag & os.ST_RDONLY:
        return
    # The second, or the third would reach the namespace that this one was copied from.
    if (
        _libc.unshare(_CLONE_NEWNS) != 0
        or _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0
        or _libc.mount(None, _ROOT.encode(), None, ctypes.c_ulong(_MS_REMOUNT | _MS_BIND), None) != 0
    ):
        raise OSError(
            errno.EROFS,
            "/proc/sys is mounted read-only and cannot be remounted "
            f"({os.strerror(ctypes.get_errno())}), so the hosts of a lab cannot have sysctls of their own: start "
            "the container with --security-opt systempaths=unconfined (Docker) or --security-opt "
            "unmask=/proc/sys (Podman); docs/containers.md lists what each kind of host needs",
        )
