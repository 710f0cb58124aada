"""Only one process at a time runs policies in a network namespace: which does, and which only pretends to."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

from .. import _proc

# A process that listens on this name in a network namespace, or on one that begins with it, runs policies there. An
# abstract name belongs to the namespace, needs no file, and is free again as soon as its process ends, however that
# happens. Any process can take it: the kernel reports which one listens, and one that cannot run policies is ignored.
_NAME = b"\0mptcp.policy"

_CAP_NET_ADMIN = 12  # <linux/capability.h>

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/unix_diag.h>
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTENING = 1 << 10
_UDIAG_SHOW_NAME = 1
_UNIX_DIAG_NAME = 0

OpenSocket = Callable[[int, int, int], socket.socket]
"""Opens a socket in the network namespace, by its family, type and protocol."""


def take(open_socket: OpenSocket) -> socket.socket:
    """Return a socket that keeps others from running policies in the network namespace of ``open_socket``'s sockets.

    Raises OSError (EBUSY) if another process already runs some there.
    """
    _refuse_another(open_socket, None)
    name = _NAME
    while True:
        sock = open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
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
        # Nobody can have taken one that nobody knows.
        name = _NAME + b"." + os.urandom(8).hex().encode()


def wait_for_others(open_socket: OpenSocket) -> None:
    """Wait until no other process runs policies in the network namespace; at once if none does."""
    for name, _ in _listeners(open_socket):
        with open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0) as sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.connect(name)
                pid, uid = _peer(sock)
                if _may_run_policies(pid, uid):
                    # It hangs up when the listener is closed, since nobody accepts.
                    poll = select.poll()
                    poll.register(sock, 0)
                    poll.poll()


def _refuse_another(open_socket: OpenSocket, own: bytes | None) -> None:
    for name, inode in _listeners(open_socket):
        if name != own and _runs_policies(name, inode, open_socket):
            raise OSError(
                errno.EBUSY,
                "policies already run in this network namespace: pass all of them to one run_policy() or "
                "`mptcp policy`",
            )


def _listeners(open_socket: OpenSocket) -> list[tuple[bytes, int]]:
    """Return the names on which somebody listens, with the inode numbers of the sockets, 0 if unknown."""
    try:
        with open_socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
            request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _LISTENING, 0, _UDIAG_SHOW_NAME, 0, 0)
            head = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
            diag.sendto(head + request, (0, 0))
            found = [one for one in _names(diag) if one[0] == _NAME or one[0].startswith(_NAME + b".")]
    except OSError:
        # This kernel cannot list them: the first name is looked at.
        return [(_NAME, 0)]
    return found


def _names(diag: socket.socket) -> Iterator[tuple[bytes, int]]:
    while True:
        answer = diag.recv(1 << 16)
        while len(answer) >= 16:
            length, kind = struct.unpack_from("=IH", answer)
            message, answer = answer[16:length], answer[(length + 3) & ~3 :]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", message)[0], "unix_diag")
            # struct unix_diag_msg, and the attributes.
            (inode,), attributes = struct.unpack_from("=I", message, 4), message[16:]
            while len(attributes) >= 4:
                size, of = struct.unpack_from("=HH", attributes)
                if of == _UNIX_DIAG_NAME:
                    yield attributes[4:size], inode
                attributes = attributes[max(4, (size + 3) & ~3) :]


def _runs_policies(name: bytes, inode: int, open_socket: OpenSocket) -> bool:
    """Return whether who listens on a name could run policies."""
    with open_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0) as sock:
        sock.setblocking(False)
        try:
            sock.connect(name)
        except BlockingIOError:
            # Its backlog is full: others have connected, and nobody accepts. Who holds it is visible all the same, to
            # those who may look at other users' processes.
            pid = _proc.holder(inode)
            return pid is not None and _may_run_policies(pid, None)
        except OSError:
            return False  # it does not listen any more
        return _may_run_policies(*_peer(sock))


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Return the pid and uid that listen, as the kernel reports; pid 0 is outside our PID namespace."""
    size = struct.calcsize("iII")
    pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def _may_run_policies(pid: int, uid: int | None) -> bool:
    """Return whether a process, which listened as ``uid``, could have CAP_NET_ADMIN over the network namespace.

    As far as we can see: of a process that cannot be looked at, root is believed.
    """
    try:
        if not pid:
            raise ProcessLookupError
        with open(f"/proc/{pid}/status", "rb") as file:
            status = dict(line.rstrip(b"\n").split(b":\t", 1) for line in file if b":\t" in line)
        uids = set(map(int, status[b"Uid"].split()))
        effective, owner = int(status[b"CapEff"], 16), os.stat(f"/proc/{pid}/environ").st_uid
    except (OSError, KeyError, ValueError):
        return uid in (0, os.geteuid())
    uid = min(uids) if uid is None else uid
    if uid == os.geteuid() and uid != 0:
        return True
    if uids != {uid} or owner != uid:
        # Since it listened it has become a program of more privilege, by its set-user-ID bit or by capabilities of the
        # file (its memory is root's then, proc(5)), which knows nothing of the socket that it has got.
        return False
    return bool(effective >> _CAP_NET_ADMIN & 1) and _has_our_user_namespace(pid)


def _has_our_user_namespace(pid: int) -> bool:
    """Return whether a process's capabilities count here: in a user namespace of its own it has all, for nothing."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user"))
    except PermissionError:
        # Of another user, who has what we lack.
        return os.stat(f"/proc/{pid}").st_uid == 0
    except OSError:
        return False
