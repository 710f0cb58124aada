"""Exceptions. Every one is an OSError with errno set, one class a cause."""

from __future__ import annotations

import errno as _errno


class NotMultipathError(OSError):
    """EOPNOTSUPP: the socket is plain TCP, or its connection fell back to TCP.

    A fallback is final. It comes from a peer without Multipath TCP or from a middlebox that removes its options.
    """


class PathManagerError(OSError):
    """EBUSY: the connection is under the in-kernel path manager, which does not take this command.

    A connection latches its path manager: a client's when the socket is made, an accepted socket's at the
    handshake. Make the socket with ``path_manager="userspace"``, or accept it within
    ``use_path_manager("userspace")``.
    """


class UnsupportedError(OSError):
    """ENOSYS: this kernel or host lacks the feature that the message names."""


class SubflowError(OSError):
    """A subflow could not be opened, closed or changed; errno says why.

    It is also the builtin exception of its errno, so ``except TimeoutError`` and ``except ConnectionRefusedError``
    work. The errnos of an open:

    ===============  ==================================================================================
    ECONNREFUSED     nobody listens at the remote address and port
    ECONNABORTED     refused after the SYN/ACK: the peer's limit, or no path manager accepts joins there
    EPROTO           answered without MP_JOIN: a plain TCP listener
    ECONNRESET       reset by the peer or a middlebox before the SYN/ACK
    ETIMEDOUT        no acceptance before the deadline
    ENOTCONN         the connection is not fully established, or has ended
    EADDRNOTAVAIL    the local address is not one of the socket's network namespace
    EADDRINUSE       the local port is in use, perhaps in TIME_WAIT
    ENETUNREACH      no route from the local to the remote address (also EHOSTUNREACH)
    ===============  ==================================================================================

    Closing a subflow that is closed already is ENOTCONN, and so is reading or setting an option of one. An option that
    the kernel refuses is the errno that it gave, and the message names the option.
    """

    reset_reason: int | None
    """The reset reason that the peer gave in MP_TCPRST (RFC 8684, section 3.6), or None."""

    def __new__(cls, *args: object) -> SubflowError:
        if cls is SubflowError and args and isinstance(args[0], int):
            cls = _BY_ERRNO.get(args[0], SubflowError)
        return super().__new__(cls, *args[:2])

    def __init__(self, errno: int, message: str, reset_reason: int | None = None) -> None:
        super().__init__(errno, message)
        self.reset_reason = reset_reason

    def __reduce__(self) -> tuple[object, ...]:
        return SubflowError, (self.errno, self.strerror, self.reset_reason)


def _also(builtin: type[OSError]) -> type[SubflowError]:
    """The SubflowError that is a builtin exception too. It shows itself as SubflowError."""
    return type("SubflowError", (SubflowError, builtin), {"__module__": "mptcp", "__doc__": SubflowError.__doc__})


_BY_ERRNO: dict[int, type[SubflowError]] = {
    _errno.ECONNABORTED: _also(ConnectionAbortedError),
    _errno.ECONNREFUSED: _also(ConnectionRefusedError),
    _errno.ECONNRESET: _also(ConnectionResetError),
    _errno.EPIPE: _also(BrokenPipeError),
    _errno.ETIMEDOUT: _also(TimeoutError),
    _errno.EACCES: _also(PermissionError),
    _errno.EPERM: _also(PermissionError),
}

for _class in (NotMultipathError, PathManagerError, SubflowError, UnsupportedError):
    _class.__module__ = "mptcp"
