"""What a Socket and a Connection have in common: reading and changing the subflows of a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, overload

from . import _core
from ._address import Address
from ._core import Info, Subflow
from ._events import Events
from ._subflows import Subflows

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

    from . import _endpoints
    from ._explain import Explanation


class Control:
    """The methods of Socket and Connection that read and change a connection's subflows.

    A Socket reaches the connection through its descriptor, a Connection by the token and without a descriptor.
    """

    __slots__ = ()

    _native: _core.Native

    def info(self) -> Info:
        """Return ``struct mptcp_info`` of the connection: by MPTCP_INFO of a Socket, by inet_diag of a Connection.

        Fields have the kernel's names without the prefix; a field that this kernel lacks is None. Waits for the
        connection's lock, which a sender at full speed may hold for milliseconds. No privilege.

        Raises NotMultipathError after a fallback and for plain TCP; of a Connection also OSError (ENOTCONN) once the
        connection has ended.
        """
        return self._native.info()

    def subflows(self) -> list[Subflow]:
        """Return a snapshot of the subflows in every state but CLOSE, oldest first.

        Of a Socket it is consistent: ids, addresses and tcp_info are one atomic reading by MPTCP_FULL_INFO (before
        Linux 6.5 by MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS, repeated until they agree); cookie, address ids, initial and
        the backup flags are a second one, by exact inet_diag look-ups, and None if the subflow was gone by then (before
        Linux 6.15 all of these but the cookie are None without CAP_NET_ADMIN). No privilege, except for a Socket of
        another network namespace than the caller's: CAP_NET_ADMIN and CAP_SYS_ADMIN over that one.

        Of a Connection the subflows are read one after the other by a dump of inet_diag, without the connection's
        lock: the initial one first, the others in the order in which this process saw them appear. Subflow.id is None,
        as only a descriptor tells it. No privilege since Linux 6.15, before that CAP_NET_ADMIN in the user namespace
        that owns the network namespace.

        Raises NotMultipathError after a fallback; PermissionError where the Socket's network namespace cannot be
        entered, and where the kernel reports subflows only to the privileged; of a Connection also OSError (ENOTCONN)
        once the connection has ended.
        """
        return Subflows(self._native.subflows(self))

    def events(self) -> Events:
        """Return the events of this connection from now on. The privilege and the errors are those of Events.

        CLOSED reports the end of the connection and is its last event. The events do not keep the connection open.

        Raises NotMultipathError, and OSError (ENOTCONN) before the connection has a token and once it has ended.
        """
        return Events._of(self._native.events())

    # A timeout that is 0 only at run time is typed as one that waits.
    @overload
    def open_subflow(
        self,
        local: Address | None = None,
        remote: Address | None = None,
        *,
        backup: bool = False,
        interface: str | None = None,
        local_id: int | None = None,
        timeout: Literal[0],
        force: bool = False,
    ) -> None: ...

    @overload
    def open_subflow(
        self,
        local: Address | None = None,
        remote: Address | None = None,
        *,
        backup: bool = False,
        interface: str | None = None,
        local_id: int | None = None,
        timeout: float | None = 5.0,
        force: bool = False,
    ) -> Subflow: ...

    def open_subflow(
        self,
        local: Address | None = None,
        remote: Address | None = None,
        *,
        backup: bool = False,
        interface: str | None = None,
        local_id: int | None = None,
        timeout: float | None = 5.0,
        force: bool = False,
    ) -> Subflow | None:
        """Open a subflow and return it once the peer has accepted it, which is the fourth ACK of its handshake.

        ``local`` and ``remote`` are a host or ``(host, port)``. Without ``local`` the address is that of the route
        to ``remote``; port 0 lets the kernel choose. Without ``remote``, or with port 0, it is the connection's own
        remote address or port: on an accepted connection the client's, which refuses unless it listens there.
        ``backup`` asks the peer to use the subflow only when no other is left; where SUBFLOW_CREATE ignores that
        (Linux 6.1), MP_PRIO follows once the subflow is accepted, and a ``timeout`` of 0 is refused.
        ``interface`` binds the subflow to an interface. ``local_id`` is the address id of the local address, from 0 to
        255, 0 for the initial address; without it a free one is chosen. ``timeout`` is in seconds: None waits as long
        as the kernel does, 0 returns None at once and the outcome is an event. The descriptor's own timeout and
        blocking mode have no effect.

        A peer may deny further subflows to its initial address and port (``deny_join_initial``): EACCES then, unless
        ``force`` is true.

        SUBFLOW_CREATE of the generic netlink family mptcp_pm, the events of mptcp_pm_events and inet_diag look-ups.
        Needs CAP_NET_ADMIN in the user namespace that owns the connection's network namespace.

        Raises SubflowError with the cause in errno: nothing is left of the subflow, and the connection is as it
        was. PathManagerError under the in-kernel path manager; NotMultipathError; PermissionError; UnsupportedError on
        Linux 6.1 for an interface, and for a backup with a ``timeout`` of 0. TypeError and ValueError for wrong
        arguments, before any system call.
        """
        return self._native.open_subflow(self, local, remote, bool(backup), interface, local_id, timeout, bool(force))

    def close_subflow(self, subflow: Subflow | int | tuple[Address, Address], *, force: bool = False) -> None:
        """Close one subflow; data that it has not delivered goes over the others.

        ``subflow`` is a Subflow, its local and remote end as ``((host, port), (host, port))``, or, of a Socket, a
        subflow id. It is gone when this returns, except for the initial one: that ends by a FIN after the data in its
        queue, and is listed in FIN_WAIT1 until then.

        The last subflow can be closed too: what is sent then waits for a new one, for net.mptcp.close_timeout seconds.
        Under the in-kernel path manager, where nothing could open a new one, that is refused without ``force``.

        SUBFLOW_DESTROY of the generic netlink family mptcp_pm, or SOCK_DESTROY of sock_diag under the in-kernel path
        manager (which may open a new subflow in response). Needs CAP_NET_ADMIN in the user namespace that owns the
        connection's network namespace.

        Raises SubflowError (ENOTCONN) if the subflow is closed already, ValueError for a Subflow of another
        connection, PathManagerError for the last one without ``force``, NotMultipathError, PermissionError.
        """
        self._native.close_subflow(subflow, bool(force))

    def set_subflow_options(self, options: Mapping[Subflow, Mapping[tuple[int, int], int | Buffer]], /) -> None:
        """Set socket options on single subflows, several options and several subflows at once.

        ``options`` is ``{subflow: {(level, optname): value, ...}, ...}``, with values as for socket.setsockopt: an int
        or a bytes-like object, TCP_CONGESTION by its name. Subflow.setsockopt is the case of one option. The levels are
        SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP and IPPROTO_IPV6, the options all that the kernel lets a BPF program set.
        docs/subflow-options.md lists them, their effect after the handshake, and what a later setsockopt on the whole
        socket does to them.

        A BPF program of type iter/tcp visits the sockets of the connection's network namespace once, and changes only
        these subflows; one visit takes 512 options, 32 of each subflow. The subflow's socket is locked for the moment.
        It is not atomic: where an option is refused, those before and after it are set all the same. Needs CAP_BPF,
        CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace, and CAP_SYS_ADMIN for another network namespace
        than the caller's.

        Raises SubflowError with the errno of the first option that was refused, naming the subflow and the option
        and which others were applied, and with ENOTCONN for a subflow that is closed, on which nothing is set.
        PermissionError; UnsupportedError for a kernel without BTF or the iterator; NotMultipathError. TypeError and
        ValueError for wrong arguments, before any system call, and ValueError for a Subflow of another connection.
        """
        self._native.set_subflow_options(options)

    def announce_address(
        self, address: str, port: int | None = None, *, address_id: int | None = None, listen: bool = True
    ) -> int:
        """Announce a further local address to the peer, by ADD_ADDR, and return its address id, from 1 to 255.

        What the peer does with it is up to its path manager: it may open a subflow to ``address``, at ``port`` or,
        without one, at the port that it connected to itself; on a client that is the client's own local port. If no
        Multipath TCP listener is there, one is opened unless ``listen`` is false, and kept until remove_address(),
        until the connection ends, or until the last Socket and Connection of this process that used it is gone.
        ``address_id``, from 1 to 255, is the id to announce it with; without it a free one is chosen. An IPv6
        link-local address names its interface, as in ``"fe80::1%eth0"``. Announcing the same address again sends it
        again with the same id.

        Some kernels (seen on 6.18) silently drop an IPv6 address with a port, for which there is no room beside TCP
        timestamps (net.ipv4.tcp_timestamps): counters() counts it in AddAddrTxDrop.

        ANNOUNCE of the generic netlink family mptcp_pm. Needs CAP_NET_ADMIN in the user namespace that owns the
        connection's network namespace.

        Raises SubflowError: EADDRNOTAVAIL for an address that is not local, EADDRINUSE if a plain TCP listener is
        there, EINVAL for an id that another address has, ENOTCONN before the connection is fully established;
        PathManagerError under the in-kernel path manager;
        NotMultipathError; PermissionError. TypeError and ValueError for wrong arguments, before any system call. After
        an error nothing is announced and no listener kept.
        """
        return self._native.announce_address(address, port, address_id, bool(listen))

    def remove_address(self, address_id: int, *, force: bool = False) -> None:
        """Withdraw a local address by RM_ADDR, and close the listener that was kept for it.

        ``address_id`` is from 0 to 255, 0 for the initial address. The peer closes the subflows that use the address
        (RFC 8684, section 3.4.2), so an id in use is refused unless ``force`` is true.

        REMOVE of the generic netlink family mptcp_pm. The kernel forgets an announced address when its last subflow is
        closed here: to withdraw it, a subflow from the address to itself is begun (SUBFLOW_CREATE) and closed, and the
        peer receives RM_ADDR alone. Where that is impossible, for example because the address is no longer local,
        nothing is changed unless ``force`` is true: then the address is announced once more and withdrawn at once,
        between which the peer may open a subflow to it. Needs CAP_NET_ADMIN in the user namespace that owns the
        connection's network namespace.

        Raises SubflowError: EBUSY for an id that a live subflow uses, which it names, EADDRNOTAVAIL for an id that no
        address has or whose address is no longer local; PathManagerError, NotMultipathError, PermissionError,
        TypeError, ValueError.
        """
        self._native.remove_address(address_id, bool(force))

    def addresses(self) -> list[_endpoints.Address]:
        """Return the local addresses that the kernel keeps for the connection, each with its address id and flags.

        They are those that were announced, those from which subflows were opened, the failed ones included, and, with
        the flag ``implicit``, those that the peer opened subflows to; the initial address is not among them until a
        subflow is opened from it again. A pair of address and port keeps its id, and an id its pair, until the address
        is withdrawn or its subflow closed by close_subflow().

        GET_ADDR of the generic netlink family mptcp_pm with the connection's token (Linux 6.10). No privilege.

        Raises PathManagerError under the in-kernel path manager, which keeps no such list: see mptcp.endpoints();
        UnsupportedError before Linux 6.10; NotMultipathError; OSError (ENOTCONN) once the connection has ended.
        """
        from . import _endpoints  # here, because few programs ask

        return _endpoints.addresses(self._native)

    def explain(self, *, attempt: bool = False) -> Explanation:
        """Return why this connection has the subflows that it has, and no others.

        For each pair of addresses that could be a path: how the last try ended, as far as events told a policy, an
        Events or a Socket of this process, and what stands in the way: endpoints and limits of the in-kernel path
        manager, the C bit, routes, interfaces. Each line says whether it was seen, is inferred, or is not visible
        without CAP_NET_ADMIN. str() of the result is in words, its asdict() for JSON; docs/why.md lists the causes.

        ``attempt`` opens each pair without a subflow once, and closes it again, which tells more: what the peer and the
        network refuse is visible by a try only. It needs the userspace path manager, and takes up to five seconds for a
        pair that is not answered.

        mptcp_pm GET_ADDR and GET_LIMITS, inet_diag, rtnetlink, and the sysctls of net.mptcp. No privilege; with
        ``attempt`` that of open_subflow(). A fallback, and a connection that has ended, are part of the result and
        not an exception.
        """
        from ._explain import explain  # here, because few programs ask

        return explain(self, attempt=bool(attempt))

    # For the methods of Subflow

    def _set_backup(self, subflow: Subflow, backup: bool) -> None:
        self._native.set_backup(subflow, backup)

    def _get_subflow_option(self, subflow: Subflow, level: int, optname: int, buflen: int | None) -> int | bytes:
        return self._native.get_subflow_option(subflow, level, optname, buflen)
