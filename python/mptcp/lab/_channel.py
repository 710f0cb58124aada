"""Requests, replies and descriptors between the processes of a lab: JSON over an AF_UNIX SOCK_SEQPACKET socket.

One packet is one message, so there is no framing to get wrong, and a packet carries its descriptors with it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from mptcp._errors import UnsupportedError

# A request or a reply has at most a few kilobytes; this is the largest packet that the kernel allows by default.
_MAX_MESSAGE = 1 << 18
# SCM_MAX_FD of the kernel is 253; no message of ours carries more than a few.
_MAX_DESCRIPTORS = 16

#: What a handler returns: a result in types of JSON, and descriptors that are closed here once they are sent.
Reply = tuple[Any, list[int]]
Handler = Callable[..., Reply]


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        # socket.setdefaulttimeout is not meant for these.
        end.settimeout(None)
    return ours, theirs


def send(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message, with copies of ``descriptors``."""
    ancillary = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)))
    sock.sendmsg([json.dumps(message).encode()], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Wait for a message and return it with its descriptors, which are close-on-exec.

    Returns None if the other end is closed.
    """
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4)
    try:
        data, ancillary, flags, _ = sock.recvmsg(_MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The other end was closed with messages of ours unread. The kernel reports that once, before its last message.
        data, ancillary, flags, _ = sock.recvmsg(_MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if not data:
        return None
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        if flags & socket.MSG_CTRUNC:
            # There is room for all that are ever sent, so it was this process that could not take them.
            raise OSError(errno.EMFILE, "too many open files to receive the lab's descriptors: raise RLIMIT_NOFILE")
        raise OSError(errno.EMSGSIZE, "a message of the lab was truncated")
    return json.loads(data), list(descriptors)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def call(handler: Handler, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Run a handler and return the reply to send: its result, or the exception, in types of JSON."""
    try:
        result, descriptors = handler(**arguments)
    except Exception as error:
        return _described(error), []
    return {"result": result}, descriptors


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, OSError):
        number = error.errno or errno.EIO
        return {"errno": number, "text": error.strerror or str(error), "file": error.filename}
    # A bug of this package: the caller sees where it happened.
    return {"defect": "".join(traceback.format_exception(error))}


def send_last(sock: socket.socket, error: BaseException) -> None:
    """Tell the client why this process ends: its current or next request raises that error."""
    with contextlib.suppress(OSError):
        send(sock, {"id": None, **_described(error)})


def result_of(reply: dict[str, Any]) -> Any:
    """Return the result in a reply, or raise the exception that it carries."""
    if "defect" in reply:
        raise RuntimeError(f"a process of the lab failed:\n{reply['defect']}")
    if "errno" not in reply:
        return reply["result"]
    number, text, file = reply["errno"], reply["text"], reply["file"]
    if number == errno.ENOSYS:
        raise UnsupportedError(number, text)
    raise OSError(number, text) if file is None else OSError(number, text, file)


def serve_one(sock: socket.socket, handlers: dict[str, Handler]) -> bool:
    """Answer one request; return False if the other end is closed."""
    received = receive(sock)
    if received is None:
        return False
    request, descriptors = received
    arguments = request["arguments"]
    if descriptors:
        arguments["descriptors"] = descriptors
    reply, to_send = call(handlers[request["call"]], arguments)
    try:
        send(sock, {"id": request["id"], **reply}, to_send)
    except (BrokenPipeError, ConnectionResetError):
        return False
    finally:
        close_all(to_send)
    return True


def serve(
    sock: socket.socket,
    lifeline: socket.socket,
    start: Callable[[], tuple[dict[str, Handler], Any, list[int]]],
) -> bool:
    """Start a process of a lab, and answer its requests until the helper, at the other end of ``lifeline``, is gone.

    ``start`` returns the handlers, and the result and descriptors to send to the helper. If it fails, the helper gets
    the exception and this returns False.
    """
    handlers: dict[str, Handler] = {}

    def begin() -> Reply:
        nonlocal handlers
        handlers, result, descriptors = start()
        return result, descriptors

    reply, descriptors = call(begin, {})
    send(lifeline, reply, descriptors)
    close_all(descriptors)
    if "result" not in reply:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        # The helper never sends anything, so it is gone.
        if lifeline.fileno() in ready:
            return True
        if sock.fileno() in ready and not serve_one(sock, handlers):
            poll.unregister(sock)


class Client:
    """The end of a channel that sends requests. Threads can share it: it sends one request at a time."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.settimeout(None)
        self._socket = sock
        self._name = name
        self._lock = threading.Lock()
        self._last_id = 0

    def request(self, call: str, descriptors: Sequence[int] = (), **arguments: Any) -> tuple[Any, list[int]]:
        """Send a request and return its result and descriptors, or raise the error that it caused."""
        with self._lock:
            self._check_open()
            self._last_id += 1
            # If the other end is gone, what it sent before can still be read.
            with contextlib.suppress(BrokenPipeError):
                send(self._socket, {"id": self._last_id, "call": call, "arguments": arguments}, descriptors)
            while True:
                received = receive(self._socket)
                if received is None:
                    raise self._gone()
                reply, received_descriptors = received
                # An id of None: the process ends, and says why.
                if reply["id"] in (self._last_id, None):
                    break
                # The reply to a request whose wait was cut short, by KeyboardInterrupt for instance.
                close_all(received_descriptors)
        return result_of(reply), received_descriptors

    def check(self) -> None:
        """Raise what a request would raise if the process at the other end has ended."""
        self._check_open()
        poll = select.poll()
        # Only for what is always reported: that the other end was closed.
        poll.register(self._socket, 0)
        if poll.poll(0):
            raise self._gone()

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise OSError(errno.EBADF, f"{self._name} is closed")

    def _gone(self) -> OSError:
        return OSError(errno.EPIPE, f"the process of {self._name} has ended")

    def hang_up(self) -> None:
        """Make the other end see the end, even if a forked child of ours has a copy of the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._socket.close()
