"""Multipath TCP sockets: everything that a socket.socket does, and the subflows of its connection."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from . import _core
from ._control import Control

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

# What callers of socket.create_connection pass for "not given", http.client for instance. Typeshed leaves it out.
_DEFAULT_TIMEOUT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]

IPPROTO_MPTCP = 262
"""<linux/in.h>; socket.IPPROTO_MPTCP exists only if Python was built with headers that define it."""


class Socket(Control, socket.socket):
    """A socket.socket of Multipath TCP, with its subflows.

    ``path_manager="userspace"`` latches the userspace path manager for this socket, which opening subflows requires.
    It needs CAP_NET_ADMIN in the user namespace that owns the network namespace, whose sysctl net.mptcp.path_manager
    is changed for some microseconds and restored: sockets that other programs create in that moment latch it too.
    ``path_manager="kernel"`` does likewise. None leaves the namespace's choice.

    While a Socket under the userspace path manager exists, a listening one included, this process subscribes to the
    path manager events of its network namespace: without a subscriber the kernel refuses subflows that the peer opens.
    Without the privilege there is silently no subscription.

    A Socket belongs to the network namespace in which it was created, whatever namespace the caller is in later.
    Threads can share it, a forked child inherits it, and multiprocessing can send it like a socket.socket. It cannot be
    pickled otherwise, and subinterpreters cannot import this package.

    Arguments that are not given are AF_INET, SOCK_STREAM and IPPROTO_MPTCP. With ``fileno`` they are read from the
    descriptor, and those that are given overrule it, as with socket.socket. The protocols 0 and IPPROTO_TCP, which
    programs pass for TCP, make Multipath TCP too. ``proto`` is IPPROTO_TCP for a Multipath TCP socket, because asyncio
    and other libraries recognize a TCP socket by it; SO_PROTOCOL is 262.

    Raises UnsupportedError where the kernel has no Multipath TCP or net.mptcp.enabled is 0, PermissionError where
    ``path_manager`` cannot be set or a sandbox denies Multipath TCP, TypeError and ValueError for what is not a path
    manager, and for a family or type that Multipath TCP does not have.
    """

    _native: _core.Handle

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        path_manager: str | None = None,
    ) -> None:
        self._native = _core.Handle(-1)
        if not isinstance(family, int) and hasattr(family, "fileno"):
            # Where eventlet has replaced socket.socket, its accept() passes the socket that it accepted.
            super().__init__(family)
            self._native.attach(self.fileno())
            return
        _tell_multiprocessing()
        if path_manager is not None:
            _core.check_path_manager(path_manager)
            if fileno is not None:
                raise ValueError("path_manager cannot be passed with fileno: it is latched when a socket is created")
        if fileno is not None:
            super().__init__(family, type, _shown_protocol(proto, fileno), fileno)
        else:
            # -1 is what socket.socket itself takes for an argument that is not given.
            family = socket.AF_INET if family == -1 else family
            type = socket.SOCK_STREAM if type == -1 else type
            proto = IPPROTO_MPTCP if proto == -1 or is_tcp_stream(family, type, proto) else proto
            fd = _core.create_socket(family, type, proto, path_manager)
            try:
                super().__init__(family, type, socket.IPPROTO_TCP if proto == IPPROTO_MPTCP else proto, fd)
            except BaseException:
                os.close(fd)
                raise
        self._native.attach(self.fileno())
        self._hold_events(path_manager)

    def _hold_events(self, path_manager: str | None) -> None:
        """Subscribe to path manager events if joins of this socket's connections depend on it."""
        # Unprivileged, or another namespace, or no Multipath TCP: later calls report it.
        with contextlib.suppress(OSError):
            self._native.hold_events(path_manager)

    # What socket.socket creates from itself is a Socket too.

    def accept(self) -> tuple[Socket, Any]:
        """Accept a connection as socket.socket.accept does, as a Socket. It may have fallen back: see is_mptcp."""
        # The base class waits in gevent's or eventlet's way where they have replaced socket.socket.
        accepted, address = super().accept()
        if isinstance(accepted, Socket):
            return accepted, address
        timeout = accepted.gettimeout()
        fd = accepted.detach()
        try:
            # Not type(self): a subclass may have an __init__ of its own, as one of socket.socket may.
            sock = Socket(self.family, self.type, self.proto, fd)
        except BaseException:
            os.close(fd)
            raise
        sock.settimeout(timeout)
        return sock, address

    def listen(self, *backlog: int) -> None:
        """Listen for connections, as socket.socket.listen does."""
        super().listen(*backlog)
        # The namespace's path manager may have changed after the socket was created.
        self._hold_events(None)

    @overload
    def setsockopt(self, level: int, optname: int, value: int | Buffer, /) -> None: ...

    @overload
    def setsockopt(self, level: int, optname: int, value: None, optlen: int, /) -> None: ...

    def setsockopt(self, level: int, optname: int, value: int | Buffer | None, *optlen: int) -> None:
        """Set an option as socket.socket.setsockopt does.

        Some options of TCP are refused on a Multipath TCP socket (ENOPROTOOPT, EOPNOTSUPP): docs/differences.md.
        """
        try:
            super().setsockopt(level, optname, value, *optlen)
        except OSError as error:
            if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP) and _is_multipath(self.fileno()):
                error.add_note(
                    "Multipath TCP sockets refuse some options of TCP: docs/differences.md has the alternatives"
                )
            raise

    def close(self) -> None:
        """Close the descriptor, as socket.socket.close does."""
        super().close()
        # Where gevent has replaced socket.socket, close() does not call _real_close().
        if self.fileno() == -1:
            self._native.release()

    def __reduce_ex__(self, protocol: Any, /) -> str | tuple[Any, ...]:
        # A Socket created before the program imported multiprocessing: the reducer is registered for the next time. Any
        # other pickling raises TypeError, as for a socket.socket.
        if type(self) is Socket and sys._getframe(1).f_globals.get("__name__") == "multiprocessing.reduction":
            _tell_multiprocessing()
            return _reduce_for_process(self)
        return super().__reduce_ex__(protocol)

    def _real_close(self, *args: Any) -> None:
        # First, because another thread's socket may get the number of the descriptor once it is closed.
        self._native.release()
        super()._real_close(*args)  # type: ignore[misc]

    def detach(self) -> int:
        """Return the descriptor and close the Socket, as socket.socket.detach does; its subscription to events ends."""
        fd = super().detach()
        self._native.release()
        return fd

    # The connection.

    @property
    def is_mptcp(self) -> bool:
        """Whether the socket is Multipath TCP and has not fallen back to TCP. Never raises on an open Socket.

        TCP_IS_MPTCP, before Linux 6.10 MPTCP_INFO. No privilege.
        """
        return self._native.is_multipath()

    @property
    def token(self) -> int | None:
        """The connection's token on this host, by which path manager commands and events name it.

        None before the socket is connected, after the peer has aborted the connection, on plain TCP and after a
        fallback. mptcpi_token of MPTCP_INFO. No privilege. Raises OSError (EBADF) on a closed Socket.
        """
        with _none_but_of_a_closed_socket():
            return self.info().token or None
        return None

    @property
    def path_manager(self) -> str | None:
        """The path manager that the connection latched: "kernel" or "userspace".

        None where ``token`` is None, and where the kernel reports it only to the privileged. Determined by a
        SUBFLOW_DESTROY of a subflow that cannot exist (CAP_NET_ADMIN), and without privilege by GET_ADDR with the
        connection's token (Linux 6.10). Raises OSError (EBADF) on a closed Socket.
        """
        with _none_but_of_a_closed_socket():
            return self._native.path_manager()
        return None

    @property
    def deny_join_initial(self) -> bool | None:
        """Whether the peer denies further subflows to its initial address and port, by the C bit of MP_CAPABLE.

        RFC 8684, section 3.1; open_subflow() obeys it. The event of the connection's begin tells (mptcp_pm_events,
        which a Socket under the userspace path manager subscribes to): None if this process did not hear that, and
        where ``token`` is None. False on kernels that do not tell (before 6.17). No privilege of its own.
        """
        with _none_but_of_a_closed_socket():
            return self._native.deny_join_initial()
        return None


def is_tcp_stream(family: int, type: int, proto: int) -> bool:
    """Whether these arguments of socket.socket, all of them given, ask for a TCP socket, Multipath or not."""
    return (
        family in (socket.AF_INET, socket.AF_INET6)
        and type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) == socket.SOCK_STREAM
        and proto in (0, socket.IPPROTO_TCP, IPPROTO_MPTCP)
    )


def _is_multipath(fileno: int) -> bool:
    return _core.protocol_of(fileno) == IPPROTO_MPTCP


def _shown_protocol(proto: int, fileno: int) -> int:
    """Return the protocol that a socket of this descriptor shows: IPPROTO_TCP for 262, otherwise ``proto`` itself."""
    given = proto if proto != -1 or not isinstance(fileno, int) else _core.protocol_of(fileno)
    return socket.IPPROTO_TCP if given == IPPROTO_MPTCP else proto


@contextlib.contextmanager
def _none_but_of_a_closed_socket() -> Iterator[None]:
    """Suppress every OSError but that of a closed Socket: an attribute without a value is None."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def _reduce_for_process(sock: Socket) -> tuple[Callable[[Any], Socket], tuple[Any]]:
    """Send a Socket to another process as multiprocessing sends a socket.socket, by its descriptor."""
    return _rebuild_in_process, (sys.modules["multiprocessing.reduction"].DupFd(sock.fileno()),)


def _rebuild_in_process(duplicate: Any) -> Socket:
    return Socket(fileno=duplicate.detach())


def _tell_multiprocessing() -> None:
    """Let multiprocessing send a Socket, if the program uses it: importing it takes longer than this whole package.

    It knows socket.socket by its exact class. Pickling in other ways is refused, as by socket.socket.
    """
    if (reduction := sys.modules.get("multiprocessing.reduction")) is not None:
        reduction.register(Socket, _reduce_for_process)


# Those of socket.create_connection and socket.create_server.
Port: TypeAlias = "bytes | str | int | None"
SocketAddress: TypeAlias = "tuple[Any, ...] | str | Buffer"
MakeSocket: TypeAlias = Callable[[int, int, int], Socket]


def create_connection(
    address: tuple[str | None, Port],
    timeout: float | None = _DEFAULT_TIMEOUT,
    source_address: SocketAddress | None = None,
    *,
    all_errors: bool = False,
    path_manager: str | None = None,
) -> Socket:
    """Connect like socket.create_connection, over Multipath TCP; ``path_manager`` is as for Socket.

    ``timeout`` is in seconds, or None. The connection may fall back to TCP, which is not an error: see Socket.is_mptcp.
    Until the peer has acknowledged data it is not fully established, and cannot have further subflows.

    Raises what socket.create_connection and Socket raise.
    """

    def make(family: int, type: int, proto: int) -> Socket:
        return Socket(family, type, proto, path_manager=path_manager)

    return _connect(make, address, timeout, source_address, all_errors)


def _connect(
    make: MakeSocket,
    address: tuple[str | None, Port],
    timeout: float | None,
    source_address: SocketAddress | None,
    all_errors: bool,
) -> Socket:
    """Do what create_connection does, with the sockets of ``make``."""
    host, port = address
    errors: list[OSError] = []
    for family, kind, _, _, target in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        sock = None
        try:
            sock = make(family, kind, IPPROTO_MPTCP)
            if timeout is not _DEFAULT_TIMEOUT:
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(target)
        except OSError as error:
            errors.append(error)
            if sock is not None:
                sock.close()
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        else:
            errors.clear()
            return sock
    try:
        if not errors:
            raise OSError("getaddrinfo returns an empty list")
        if all_errors:
            raise ExceptionGroup("create_connection failed", errors)
        raise errors[0]
    finally:
        errors.clear()  # an exception that holds its own frame is a cycle


def create_server(
    address: SocketAddress,
    *,
    family: int = socket.AF_INET,
    backlog: int | None = None,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
) -> Socket:
    """Listen like socket.create_server, over Multipath TCP. Clients without Multipath TCP are accepted as plain TCP.

    Accepted sockets latch the network namespace's path manager at each handshake: to accept and open subflows
    under the userspace path manager, stay in ``use_path_manager("userspace")`` for the server's life.

    Raises what socket.create_server and Socket raise.
    """

    def make(family: int, type: int, proto: int) -> Socket:
        return Socket(family, type, proto)

    return _listen(make, address, family, backlog, reuse_port, dualstack_ipv6)


def _listen(
    make: MakeSocket,
    address: SocketAddress,
    family: int,
    backlog: int | None,
    reuse_port: bool,
    dualstack_ipv6: bool,
) -> Socket:
    """Do what create_server does, with the sockets of ``make``."""
    if dualstack_ipv6 and family != socket.AF_INET6:
        raise ValueError("dualstack_ipv6 requires AF_INET6 family")
    sock = make(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dualstack_ipv6 else 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} (while attempting to bind on address {address!r})") from None
        if backlog is None:
            sock.listen()
        else:
            sock.listen(backlog)
        return sock
    except BaseException:
        sock.close()
        raise


def wrap(sock: Any) -> Socket:
    """Return a Socket of the same connection, with a duplicate of the descriptor.

    ``sock`` is a descriptor or anything with fileno(): a socket.socket, an ssl.SSLSocket, an asyncio transport's
    socket. The duplicate keeps the connection open: the peer sees its end only when both are closed. Data that is read
    from one cannot be read from the other. No privilege.

    Raises TypeError for what has no descriptor, OSError (ENOTSOCK, EBADF) for one that is not a socket or not open.
    """
    if isinstance(sock, bool) or not (isinstance(sock, int) or hasattr(sock, "fileno")):
        raise TypeError(f"sock must be a socket or a descriptor, not {type(sock).__name__}")
    fd = sock if isinstance(sock, int) else sock.fileno()
    try:
        duplicate = socket.dup(fd)
    except OverflowError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    try:
        # The blocking mode belongs to the connection, not to the descriptor: it must stay as it is.
        blocking = os.get_blocking(duplicate)
        # With the flag it ignores socket.setdefaulttimeout(), which would change the mode for a moment.
        wrapped = Socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=duplicate)
    except BaseException:
        os.close(duplicate)
        raise
    kind = wrapped.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    if kind != socket.SOCK_STREAM:
        wrapped = Socket(type=kind | socket.SOCK_NONBLOCK, fileno=wrapped.detach())
    # Each of these sets the mode that the connection already has.
    wrapped.settimeout(None if blocking else getattr(sock, "gettimeout", lambda: 0.0)())
    return wrapped


def attach(pid: int, fd: int) -> Socket:
    """Return a Socket of another process's connection: a duplicate of its descriptor ``fd``.

    The duplicate keeps the connection open: when its owner ends, the peer sees the end only when the duplicate is
    closed too. To watch or control a connection without that, use connections().

    pidfd_open and pidfd_getfd (Linux 5.6). Needs ptrace access to the process: the same user and, where
    kernel.yama.ptrace_scope is above 0, to be its parent; or CAP_SYS_PTRACE.

    Raises ProcessLookupError if there is no such process, PermissionError without that access, OSError (EBADF)
    for a descriptor that the process does not have, (ENOTSOCK) for one that is not a socket, TypeError and ValueError
    for what cannot be a process or a descriptor.
    """
    taken = _core.take_descriptor(pid, fd)
    try:
        return wrap(taken)
    finally:
        os.close(taken)


os.register_at_fork(before=_core.before_fork, after_in_parent=_core.after_fork, after_in_child=_core.after_fork)

_tell_multiprocessing()

Socket.__module__ = "mptcp"
