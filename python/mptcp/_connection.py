"""Connections of any process, without a descriptor: listing, reading and control."""

from __future__ import annotations

import contextlib
from typing import Any

from . import _core, _proc
from ._address import Address, endpoint
from ._control import Control
from ._core import Subflow
from ._subflows import Subflows
from ._tables import table


class Connection(Control):
    """A Multipath TCP connection of any process, returned by connections(). It holds no descriptor.

    The connection therefore ends when its owner ends it, however many of these exist. The attributes are those of the
    moment when it was listed, except ``age``, ``path_manager``, ``pid`` and ``program``; the methods act on the live
    connection, and raise OSError (ENOTCONN) once it has ended.

    Only info(), path_manager and the methods that change the connection wait for its lock, which a sender at full speed
    may hold for milliseconds. Reading needs no privilege, whoever owns the connection, except for subflows before Linux
    6.15; these, and changing anything, need CAP_NET_ADMIN in the user namespace that owns its network namespace.

    Two are equal if they are of the same connection.
    """

    __slots__ = ("__weakref__", "_native")

    _native: _core.ByToken

    def __init__(self, native: _core.ByToken) -> None:
        if not isinstance(native, _core.ByToken):
            raise TypeError("a Connection cannot be created directly: use mptcp.connections()")
        self._native = native

    def __repr__(self) -> str:
        return f"<Connection {self.token} {self.local} -> {self.remote} {self.state}>"

    def _repr_html_(self) -> str:
        ends = f"{endpoint(self.local)} &rarr; {endpoint(self.remote)}"
        title = f"Connection {self.token}, {ends}, {_side(self)}"
        try:
            return f"<p>{title}, {self.state}</p>{Subflows(self.subflows())._repr_html_()}"
        except OSError as error:
            # It has ended, or fell back.
            return f"<p>{title}</p>{table((), [[error.strerror]])}"

    def __eq__(self, other: object) -> bool:
        return self._native.cookie == other._native.cookie if isinstance(other, Connection) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._native.cookie)

    @property
    def token(self) -> int:
        """The connection's token on this host, by which path manager commands and events name it."""
        return self._native.token

    @property
    def local(self) -> tuple[Any, ...]:
        """The connection's own local end, which is that of its initial subflow, as getsockname() returns it."""
        return self._native.local

    @property
    def remote(self) -> tuple[Any, ...]:
        """The connection's own remote end, in the form of ``local``."""
        return self._native.remote

    @property
    def state(self) -> str:
        """The connection's state by its name in <net/tcp_states.h>: "ESTABLISHED", "CLOSE_WAIT" and so on."""
        return self._native.state

    @property
    def server_side(self) -> bool | None:
        """Whether the peer opened the connection; None if its initial subflow, which shows it, was gone."""
        return self._native.server_side

    @property
    def uid(self) -> int:
        """The id of the user that owns the socket."""
        return self._native.uid

    @property
    def inode(self) -> int:
        """The socket's inode number, as in ``socket:[...]`` of /proc/PID/fd; 0 until the connection is accepted."""
        return self._native.inode

    @property
    def cgroup(self) -> int | None:
        """The socket's cgroup, version 2: the inode number of its directory. None before Linux 5.9."""
        return self._native.cgroup

    @property
    def age(self) -> float:
        """The connection's age in seconds, or less.

        The kernel does not record when a connection began. This counts from the earliest moment at which this process
        knows that it existed: when it was first listed, or earlier by its subflows' tcp_info, which has the time since
        data was last sent, the time since the last acknowledgement, and the time spent sending. That is remembered
        while this process keeps a Connection or Socket of it.
        """
        return self._native.age

    @property
    def path_manager(self) -> str:
        """The path manager that the connection latched, "kernel" or "userspace". Waits for the connection's lock."""
        return self._native.path_manager()

    @property
    def deny_join_initial(self) -> bool | None:
        """Whether the peer denies further subflows to its initial address and port: see Socket.deny_join_initial."""
        with contextlib.suppress(OSError):
            return self._native.deny_join_initial()
        return None

    def when_lost(
        self,
        what: Subflow | str,
        local: Address | None = None,
        remote: Address | None = None,
        *,
        backup: bool = False,
        interface: str | None = None,
    ) -> None:
        """Leave a standing order: a subflow to be opened the moment that ``what`` is lost, without Python's part.

        For the connections that callbacks of policies get. ``what`` is a Subflow, lost when it is closed by the peer
        or by a failure; a local address, lost when it is removed or its interface goes down; or the name of an
        interface, lost when it goes down, loses its carrier or disappears. The other arguments are those of
        open_subflow(); without ``local`` the address is that of the route as it is now. The thread that reads the
        kernel's events carries the order out, however busy Python is, before the callback for the event is called:
        self.opening(conn) has the subflow then. The outcome is a callback, as for open_subflow().

        An order is carried out once. Another for the same ``what`` replaces it, and one with neither ``local``,
        ``remote`` nor ``interface`` takes it back, as close_subflow() of that subflow and the connection's end do. A
        subflow that the kernel closes because the peer withdrew its address is not replaced. Nothing is left if a
        policy does not allow the subflow.

        The privilege and the errors are those of open_subflow() in a callback; TypeError for what is neither a Subflow
        nor a str, ValueError for a name that no interface can have and for a subflow of another connection, and
        RuntimeError for a connection that no policy was given.
        """
        raise RuntimeError(
            "standing orders are carried out while policies run: call when_lost() on a connection that a callback got"
        )

    @property
    def pid(self) -> int | None:
        """The id of the process that holds the connection, from /proc/PID/fd: the lowest of several.

        A process that supervises others, as ``mptcp run`` does, is the last one considered.

        None if there is none: it is not accepted yet, or only the kernel holds it. Also None if the process is in
        another PID namespace, or is another user's and this process lacks CAP_SYS_PTRACE or CAP_DAC_READ_SEARCH.
        """
        return _proc.holder(self.inode)

    @property
    def program(self) -> str | None:
        r"""The name of that process, from /proc/PID/comm: 15 bytes at most. None where ``pid`` is.

        Whoever runs the process chooses it, so it may contain control characters. Bytes that are not UTF-8 are
        written \xNN.
        """
        return _proc.program(self.pid)


class Connections(list[Connection]):
    """A list of connections, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        head = ("token", "local", "remote", "state", "side", "pid", "program")
        rows = (
            (each.token, endpoint(each.local), endpoint(each.remote), each.state, _side(each), each.pid, each.program)
            for each in self
        )
        return table(head, rows)


def _side(connection: Connection) -> str:
    return {True: "server", False: "client", None: "side unknown"}[connection.server_side]


def connections(*, token: int | None = None, pid: int | None = None, port: int | None = None) -> list[Connection]:
    """Return the Multipath TCP connections of the calling thread's network namespace, whoever owns them.

    ``token`` selects the one with this token, ``pid`` those that a process holds, ``port`` those with this local or
    remote port of their own. Several of them select what matches all.

    Reads the subflows by a dump of inet_diag and then each connection by its token, without waiting for any
    connection's lock. A connection that has no subflow at the moment is found only by its token; one that fell back
    to TCP at its handshake is not listed. No privilege since Linux 6.15, before that CAP_NET_ADMIN in the user
    namespace that owns the network namespace; and for ``pid`` of another user CAP_SYS_PTRACE and
    CAP_DAC_READ_SEARCH.

    Raises TypeError and ValueError for what cannot be a token, a process or a port, ProcessLookupError if there is no
    such process, PermissionError for a process that must not be read and where the kernel reports subflows only to the
    privileged, UnsupportedError where it has no inet_diag for connections.
    """
    return list_connections(None, token=token, pid=pid, port=port)


def list_connections(
    fd: int | None, *, token: int | None = None, pid: int | None = None, port: int | None = None
) -> list[Connection]:
    """Return connections() of the network namespace that a socket belongs to, or of the caller's."""
    natives = _core.connections(fd, token, pid, port)
    inodes = None if pid is None else _proc.socket_inodes(pid)
    return Connections(Connection(native) for native in natives if inodes is None or native.inode in inodes)


def subflows_of(connections: list[Connection]) -> list[list[Subflow] | None]:
    """Return the subflows of many connections of one namespace, by one dump; None for one that ended or fell back."""
    return _core.subflows_of([connection._native for connection in connections], connections)


def counters() -> dict[str, int]:
    """Return the MPTcpExt counters of the calling thread's network namespace, by the kernel's names.

    Read from /proc/thread-self/net/netstat, as ``nstat`` shows them; empty without Multipath TCP. No privilege.
    """
    with open("/proc/thread-self/net/netstat") as file:
        return _proc.parse_counters(file.read())


Connection.__module__ = "mptcp"
