"""The path manager that new sockets of the caller's network namespace get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import _core

NAMES = ("kernel", "userspace")


def check_path_manager(name: object) -> str:
    """Refuses what is not the name of a path manager."""
    if not isinstance(name, str):
        raise TypeError(f"a path manager is a str, not {type(name).__name__}")
    if name not in NAMES:
        raise ValueError(f"a path manager is 'kernel' or 'userspace', not {name!r}")
    return name


def get_path_manager() -> str:
    """The path manager that new sockets of the caller's network namespace latch: "kernel" or "userspace".

    Reads the sysctl net.mptcp.path_manager (net.mptcp.pm_type before Linux 6.15) of the calling thread's network
    namespace. No privilege.

    Raises UnsupportedError where the kernel has neither.
    """
    return _core.get_path_manager()


def set_path_manager(name: str) -> str:
    """Sets the path manager that new sockets of the caller's network namespace latch; returns the one before.

    Connections that exist keep theirs. Writes the sysctl net.mptcp.path_manager (net.mptcp.pm_type before Linux
    6.15). Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.

    Raises PermissionError without that, OSError (EROFS) where /proc/sys is read-only, as in containers,
    UnsupportedError where the kernel has no such sysctl.
    """
    return _core.set_path_manager(check_path_manager(name))


@contextmanager
def use_path_manager(name: str) -> Iterator[None]:
    """Within the block, new sockets of the caller's network namespace latch this path manager.

    Afterwards the namespace has the one that it had before. An accepted socket latches at its handshake, so a
    server holds this for its life. It reaches every process of the namespace: for one socket of your own use
    ``Socket(path_manager=...)``. The errors and the privilege are those of set_path_manager.
    """
    before = set_path_manager(name)
    try:
        yield
    finally:
        set_path_manager(before)
