"""What outlives a killed ``mptcp policy``: a process that puts the path manager back which was there before."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import NoReturn

from mptcp._path_manager import get_path_manager, set_path_manager
from mptcp._policy import _turn

#: What policies set while they run, as `mptcp._policy._run` does.
_OURS = "userspace"


@contextlib.contextmanager
def put_back_after_sigkill() -> Iterator[None]:
    """Have another process put the path manager back if this one is killed in the block.

    To be called before there are threads, as the process is a fork. It does nothing while this process lives, nor if
    the path manager is another by then than policies set.
    """
    before = get_path_manager()
    if before == _OURS:
        yield
        return
    # Both tell when this process has ended: the pidfd whatever descriptors its children have inherited, and the
    # socket where a sandbox denies the pidfd.
    watched = None
    with contextlib.suppress(OSError):
        watched = os.pidfd_open(os.getpid())
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _run(theirs, watched, before)
    theirs.close()
    if watched is not None:
        os.close(watched)
    try:
        yield
    finally:
        with ours, contextlib.suppress(OSError):
            ours.send(b"over")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _run(channel: socket.socket, watched: int | None, before: str) -> NoReturn:
    """The process: it is of a session of its own, so that what is sent to the terminal's processes spares it."""
    try:
        os.setsid()
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write("mptcp-put-back")
        _close_others({channel.fileno(), watched})
        if _is_killed(channel, watched):
            _put_back(before)
    finally:
        os._exit(0)


def _close_others(kept: set[int | None]) -> None:
    """Hold nothing open that others wait for the end of: standard streams, pipes."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        numbers = list(range(os.sysconf("SC_OPEN_MAX")))
    for number in numbers:
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def _is_killed(channel: socket.socket, watched: int | None) -> bool:
    """Wait for the end of the parent; return whether it ended without saying that all is in order."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if watched is not None:
        poll.register(watched, select.POLLIN)
    poll.poll()
    channel.setblocking(False)
    try:
        return not channel.recv(16)
    except OSError:
        return True


def _put_back(before: str) -> None:
    while True:
        try:
            with _turn.take(socket.socket):
                if get_path_manager() == _OURS:
                    set_path_manager(before)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # Other policies run by now, and found what the killed ones had set.
            _turn.wait_for_others(socket.socket)
