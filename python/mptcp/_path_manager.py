"""The path manager that new sockets of the caller's network namespace get."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from . import _core, _interrupts


def get_path_manager() -> str:
    """Return the path manager that new sockets of the caller's network namespace latch: "kernel" or "userspace".

    Reads the sysctl net.mptcp.path_manager (net.mptcp.pm_type before Linux 6.15) of the calling thread's network
    namespace. No privilege.

    Raises UnsupportedError where the kernel has neither.
    """
    return _core.get_path_manager()


def set_path_manager(name: str) -> str:
    """Set the path manager that new sockets of the caller's network namespace latch, and return the previous one.

    Existing connections keep theirs. Writes the sysctl net.mptcp.path_manager (net.mptcp.pm_type before Linux
    6.15). Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.

    Raises PermissionError without that privilege, OSError (EROFS) where /proc/sys is read-only, as in containers,
    UnsupportedError where the kernel has no such sysctl, TypeError and ValueError for another name.
    """
    return _core.set_path_manager(_core.check_path_manager(name))


@contextmanager
def use_path_manager(name: str) -> Iterator[None]:
    """Have new sockets of the caller's network namespace latch this path manager within the block.

    The previous one is restored at its end. An accepted socket latches at its handshake, so a server stays in the
    block for its life. This affects every process of the namespace: for a single socket use
    ``Socket(path_manager=...)``.

    Errors and privilege are those of set_path_manager(). Without the privilege a broker (``mptcp broker``) whose rules
    allow it (``hold``) sets it for a limited time: TimeoutError at the end of a block that lasted longer, and OSError
    where another program has it use another path manager.
    """
    with ExitStack() as stack:
        with _interrupts.put_off():
            stack.callback(_change(name))
        yield


def _change(name: str) -> Callable[[], object]:
    """Set the path manager, by the broker where this process may not, and return what puts the previous one back."""
    try:
        before = set_path_manager(name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EROFS):
            raise
        kept = _core.use_path_manager(name)
        if kept is None:
            raise
        return kept.end
    if before == name:
        # It may be so for as long as another program has the broker keep it.
        with suppress(OSError):
            if kept := _core.use_path_manager(name):
                return kept.end
    return partial(set_path_manager, before)
