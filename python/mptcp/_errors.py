"""Exceptions. Each is an OSError with errno set; there is one class for each cause."""

from __future__ import annotations

import errno as _errno


class NotMultipathError(OSError):
    """EOPNOTSUPP: the socket is plain TCP, or its connection fell back to TCP.

    A fallback is final. Its cause is a peer without Multipath TCP, or a middlebox that removes its options.
    """


class PathManagerError(OSError):
    """EBUSY: the connection is under the in-kernel path manager, which does not accept this command.

    A connection latches its path manager: a client's when the socket is created, an accepted socket's at the
    handshake. Create the socket with ``path_manager="userspace"``, or accept it within
    ``use_path_manager("userspace")``.
    """


class UnsupportedError(OSError):
    """ENOSYS: this kernel or host lacks the feature that the message names."""


class SubflowError(OSError):
    """A subflow could not be opened, closed or changed; errno says why.

    It is also the builtin exception of its errno, so ``except TimeoutError`` and ``except ConnectionRefusedError``
    work. The errnos of an open:

    ===============  =========================================================================================
    ECONNREFUSED     a reset answered the SYN: no listener, one that does not know the connection, or a firewall
    ECONNABORTED     refused after the SYN/ACK: the peer has reached its limit, or no process accepts joins there
    EPROTO           answered without MP_JOIN: a plain TCP listener
    ECONNRESET       reset by the peer or a middlebox before the SYN/ACK
    ETIMEDOUT        no acceptance before the deadline
    ENOTCONN         the connection is not fully established, or has ended
    EACCES           the peer denies further subflows to its initial address and port (deny_join_initial)
    EADDRNOTAVAIL    the local address does not exist in the socket's network namespace
    EADDRINUSE       the local port is in use, perhaps in TIME_WAIT
    ENETUNREACH      no route from the local to the remote address (also EHOSTUNREACH)
    ===============  =========================================================================================

    Closing a subflow that is already closed raises ENOTCONN, as does reading or setting an option of one. An option
    that the kernel refuses raises the kernel's errno, and the message names the option.
    """

    reset_reason: int | None
    """The reset reason from the peer's MP_TCPRST (RFC 8684, section 3.6), or None."""

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
    """Return a SubflowError that is also a builtin exception. It is named SubflowError."""
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
