"""Only one process at a time runs policies in a network namespace: which does, and which only pretends to."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable

# A process that listens on one of these names in a network namespace runs policies there. An abstract name belongs to
# the namespace, needs no file, and is free again as soon as its process ends, however that happens. Any process can
# take it: the kernel reports which one listens, and one that cannot run policies is ignored.
_NAMES = ["\0mptcp.policy", *(f"\0mptcp.policy.{number}" for number in range(1, 8))]

_CAP_NET_ADMIN = 12  # <linux/capability.h>

OpenSocket = Callable[[int, int], socket.socket]


def take(open_socket: OpenSocket) -> socket.socket:
    """Return a socket that keeps others from running policies in the network namespace of ``open_socket``'s sockets.

    Raises OSError (EBUSY) if another process already runs some there, or if all names are taken by one that does not.
    """
    _refuse_another(open_socket, None)
    for name in _NAMES:
        sock = open_socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(name)
            sock.listen()
            # Another process may have taken another name meanwhile.
            _refuse_another(open_socket, name)
        except BaseException as error:
            sock.close()
            if not (isinstance(error, OSError) and error.errno == errno.EADDRINUSE):
                raise
        else:
            return sock
    who = next((found for name in _NAMES if (found := _listener(name, open_socket))), None)
    which = f"process {who[0]} of user {who[1]}" if who else "a process that does not listen there"
    raise OSError(
        errno.EBUSY,
        f"cannot run policies: {which} has taken all names that reserve a network namespace for its policies "
        f"({_NAMES[0][1:]} in /proc/net/unix), but runs none: end that process",
    )


def _refuse_another(open_socket: OpenSocket, own: str | None) -> None:
    for name in _NAMES:
        who = None if name == own else _listener(name, open_socket)
        if who is not None and _may_run_policies(*who):
            raise OSError(
                errno.EBUSY,
                "policies already run in this network namespace: pass all of them to one run_policy() or "
                "`mptcp policy`",
            )


def _listener(name: str, open_socket: OpenSocket) -> tuple[int, int] | None:
    """Return the pid and uid that listen on a name, as the kernel reports; pid 0 is outside our PID namespace."""
    with open_socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(name)
        except OSError:
            # No process has the name, or it does not listen, or its backlog is full.
            return None
        size = struct.calcsize("iII")
        pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return pid, uid


def _may_run_policies(pid: int, uid: int) -> bool:
    """Return whether a process could have CAP_NET_ADMIN over the network namespace, as far as we can see."""
    if uid in (0, os.geteuid()):
        return True
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open(f"/proc/{pid}/status", "rb") as file:
            effective = next(line for line in file if line.startswith(b"CapEff:")).split()[1]
        theirs, ours = os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user")
        # In a user namespace of its own it has all capabilities, but none of them counts here.
        return bool(int(effective, 16) >> _CAP_NET_ADMIN & 1) and os.path.samestat(theirs, ours)
    return False
