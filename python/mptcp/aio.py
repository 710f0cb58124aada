"""Multipath TCP for asyncio: streams over it, and subflows opened and closed without blocking the loop or a thread."""

from __future__ import annotations

import asyncio
import asyncio.staggered
import contextlib
import errno
import functools
import itertools
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from . import _core, _events
from ._address import Address
from ._connection import Connection, list_connections
from ._core import Subflow
from ._socket import IPPROTO_MPTCP, Socket, wrap

if TYPE_CHECKING:
    import ssl as ssl_module  # not every Python has it

__all__ = ["close_subflow", "open_connection", "open_subflow", "start_server"]

_LIMIT = 2**16  # asyncio's own

Reachable: TypeAlias = (
    Socket | Connection | asyncio.StreamWriter | asyncio.BaseTransport | TransportSocket | socket.socket
)
"""What a connection can be reached by."""


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    path_manager: str | None = None,
    limit: int = _LIMIT,
    ssl: bool | ssl_module.SSLContext | None = None,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    sock: socket.socket | None = None,
    local_addr: tuple[str, int] | None = None,
    happy_eyeballs_delay: float | None = None,
    interleave: int | None = None,
    all_errors: bool = False,
    **options: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect like asyncio.open_connection, over Multipath TCP; ``path_manager`` is as for Socket.

    The addresses of ``host`` are tried one after another, or with ``happy_eyeballs_delay``, in seconds, overlapping.
    ``port`` is a number or the name of a service. ``proto`` is 0 or IPPROTO_TCP. With ``sock`` it is that socket's
    connection, whatever its protocol. ``limit`` is in bytes. ``options`` are the others of loop.create_connection, such
    as ``server_hostname`` and ``ssl_handshake_timeout``. As for TCP, asyncio sets TCP_NODELAY. The connection may fall
    back to TCP: see Socket.is_mptcp.

    Raises what asyncio.open_connection and Socket raise. If it is cancelled, it closes the socket.
    """
    if sock is not None:
        if (host, port, path_manager) != (None, None, None):
            raise ValueError("host, port and path_manager cannot be passed with sock")
        return await asyncio.open_connection(sock=sock, limit=limit, ssl=ssl, **options)
    if host is None and port is None:
        raise ValueError("host and port, or sock, must be given")
    infos = await _addresses(host, port, family, proto, flags)
    if interleave is None:
        interleave = 0 if happy_eyeballs_delay is None else 1
    if interleave:
        infos = _interleaved(infos, interleave)
    sources = None
    if local_addr is not None:
        sources = await _addresses(*local_addr, family, proto, flags)
    connected = await _connect(infos, sources, path_manager, happy_eyeballs_delay, all_errors)
    try:
        if ssl and host is not None:
            options.setdefault("server_hostname", host)
        return await asyncio.open_connection(sock=connected, limit=limit, ssl=ssl, **options)
    except BaseException:
        connected.close()
        raise


async def _addresses(
    host: str | None, port: int | str | None, family: int, proto: int, flags: int
) -> list[tuple[int, Any]]:
    """Return the families and addresses of a host's name."""
    if proto not in (0, socket.IPPROTO_TCP, IPPROTO_MPTCP):
        raise ValueError("proto must be 0 or IPPROTO_TCP")
    infos = await asyncio.get_running_loop().getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=flags
    )
    if not infos:
        raise OSError("getaddrinfo returned an empty list")
    # A name may be in several files, and would be twice in the list.
    return list(dict.fromkeys((int(found), address) for found, _, _, _, address in infos))


def _interleaved(infos: list[tuple[int, Any]], first: int) -> list[tuple[int, Any]]:
    """Return the addresses with families in turn, after ``first`` ones of the first family, as asyncio orders them."""
    families: dict[int, list[tuple[int, Any]]] = {}
    for info in infos:
        families.setdefault(info[0], []).append(info)
    lists = list(families.values())
    begin, lists[0] = lists[0][: first - 1], lists[0][first - 1 :]
    turns = itertools.zip_longest(*lists)
    return begin + [info for turn in turns for info in turn if info is not None]


async def _connect(
    infos: list[tuple[int, Any]],
    sources: list[tuple[int, Any]] | None,
    path_manager: str | None,
    delay: float | None,
    all_errors: bool,
) -> Socket:
    errors: list[OSError] = []
    attempts = [functools.partial(_connect_to, info, sources, path_manager, errors) for info in infos]
    sock: Socket | None = None
    if delay is None:
        for attempt in attempts:
            try:
                sock = await attempt()
                break
            except OSError:
                continue
    else:
        sock, _, others = await asyncio.staggered.staggered_race(attempts, delay)
        for other in others:
            if other is not None and not isinstance(other, OSError | asyncio.CancelledError):
                raise other
    try:
        if sock is not None:
            return sock
        if all_errors:
            raise ExceptionGroup("open_connection failed", errors)
        raise errors[0]
    finally:
        errors.clear()  # an exception that holds its own frame is a cycle


async def _connect_to(
    info: tuple[int, Any], sources: list[tuple[int, Any]] | None, path_manager: str | None, errors: list[OSError]
) -> Socket:
    """Connect to one address; its error is added to the others'."""
    family, address = info
    try:
        sock = Socket(family, socket.SOCK_STREAM, path_manager=path_manager)
        try:
            sock.setblocking(False)
            if sources is not None:
                _bind(sock, [source for found, source in sources if found == family])
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        errors.append(error)
        raise
    return sock


def _bind(sock: Socket, sources: list[Any]) -> None:
    """Bind to the first of these addresses that can be bound."""
    failed = OSError(errno.EADDRNOTAVAIL, "local_addr has no address of the family of the remote one")
    for source in sources:
        try:
            sock.bind(source)
            return
        except OSError as error:
            failed = OSError(error.errno, f"{error.strerror} (while attempting to bind on address {source!r})")
    raise failed


async def start_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    host: str | Sequence[str] | None = None,
    port: int | str | None = None,
    *,
    limit: int = _LIMIT,
    family: int = 0,
    flags: int = socket.AI_PASSIVE,
    sock: socket.socket | None = None,
    backlog: int = 100,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    keep_alive: bool | None = None,
    start_serving: bool = True,
    **options: Any,
) -> asyncio.Server:
    """Serve like asyncio.start_server, over Multipath TCP. Clients without it are accepted as TCP.

    ``host`` is a name or a sequence of names, and there is a listener on each of their addresses. Without it there is
    one listener on every address, including IPv6 if the host has it. ``port`` is a number or the name of a service;
    0 or None chooses one, the same for all addresses unless it is in use on one. With ``sock`` it serves that listener,
    whatever its protocol. ``limit`` is in bytes. ``keep_alive``, which asyncio has from Python 3.13 on, sets
    SO_KEEPALIVE, with any version. ``options`` are the others of loop.create_server: ``ssl``,
    ``ssl_handshake_timeout`` and so on. As for TCP, asyncio sets TCP_NODELAY on what is accepted.

    Accepted connections latch the network namespace's path manager at each handshake: to open subflows on them, stay in
    ``mptcp.use_path_manager("userspace")`` for the server's life.

    Raises what asyncio.start_server and create_server raise.
    """
    if sock is not None:
        if host is not None or port is not None:
            raise ValueError("host and port cannot be passed with sock")
        listeners: list[socket.socket] = [sock]
    else:
        listeners = list(await _listeners(host, port, family, flags, reuse_address, bool(reuse_port)))
        if keep_alive:
            for listener in listeners:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    servers = []
    try:
        for listener in listeners:
            server = await asyncio.start_server(
                client_connected_cb,
                sock=listener,
                limit=limit,
                backlog=backlog,
                start_serving=start_serving and len(listeners) == 1,
                **options,
            )
            servers.append(server)
        together = servers[0] if len(servers) == 1 else _Servers(servers)
        if start_serving and len(servers) > 1:
            await together.start_serving()
        return together
    except BaseException:
        for server in servers:
            server.close()
        for listener in listeners:
            listener.close()
        raise


async def _listeners(
    host: str | Sequence[str] | None,
    port: int | str | None,
    family: int,
    flags: int,
    reuse_address: bool | None,
    reuse_port: bool,
) -> list[Socket]:
    hosts = [host or None] if host is None or isinstance(host, str) else list(host)
    found: list[tuple[int, Any, bool]] = []
    for name in hosts:
        if name is None and not family and socket.has_dualstack_ipv6():
            # One listener for both.
            [(_, address)] = await _addresses("::", port or 0, socket.AF_INET6, 0, flags)
            found.append((socket.AF_INET6, address, True))
        else:
            wanted = family or (0 if name is not None else socket.AF_INET)
            found += [(kind, address, False) for kind, address in await _addresses(name, port or 0, wanted, 0, flags)]
    listeners: list[Socket] = []
    try:
        for kind, address, dualstack in dict.fromkeys(found):
            listeners.append(_listener(kind, address, dualstack, listeners, reuse_address, reuse_port))
        if not listeners:
            raise OSError(errno.EADDRNOTAVAIL, f"could not bind on any address of {host!r}")
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listener(
    family: int,
    address: Any,
    dualstack: bool,
    others: list[Socket],
    reuse_address: bool | None,
    reuse_port: bool,
) -> Socket:
    sock = Socket(family, socket.SOCK_STREAM)
    try:
        if reuse_address is None or reuse_address:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dualstack)
        try:
            if address[1] == 0 and others:
                # The port that the first listener has, if it is free here too.
                with contextlib.suppress(OSError):
                    sock.bind((address[0], others[0].getsockname()[1], *address[2:]))
                    return sock
            sock.bind(address)
        except OSError as error:
            reason = f"{error.strerror} (while attempting to bind on address {address!r})"
            raise OSError(error.errno, reason) from None
        return sock
    except BaseException:
        sock.close()
        raise


class _Servers(asyncio.Server):
    """The servers of several listeners as one."""

    def __init__(self, servers: list[asyncio.Server]) -> None:
        self._servers = servers
        self._forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Server sockets={self.sockets!r}>"

    @property
    def sockets(self) -> tuple[Any, ...]:
        return tuple(sock for server in self._servers for sock in server.sockets)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._servers[0].get_loop()

    def is_serving(self) -> bool:
        return any(server.is_serving() for server in self._servers)

    async def start_serving(self) -> None:
        for server in self._servers:
            await server.start_serving()

    async def serve_forever(self) -> None:
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self._forever = self.get_loop().create_future()
        try:
            await self.start_serving()
            await self._forever
        except asyncio.CancelledError:
            try:
                self.close()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._forever = None

    def close(self) -> None:
        for server in self._servers:
            server.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()

    async def wait_closed(self) -> None:
        for server in self._servers:
            await server.wait_closed()

    # Since Python 3.13, so the types of older ones lack them.

    def close_clients(self) -> None:
        for server in self._servers:
            server.close_clients()  # type: ignore[attr-defined, unused-ignore]

    def abort_clients(self) -> None:
        for server in self._servers:
            server.abort_clients()  # type: ignore[attr-defined, unused-ignore]


# A timeout that is 0 only at run time is typed as one that waits.
@overload
async def open_subflow(
    sock: Reachable,
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
async def open_subflow(
    sock: Reachable,
    local: Address | None = None,
    remote: Address | None = None,
    *,
    backup: bool = False,
    interface: str | None = None,
    local_id: int | None = None,
    timeout: float | None = 5.0,
    force: bool = False,
) -> Subflow: ...


async def open_subflow(
    sock: Reachable,
    local: Address | None = None,
    remote: Address | None = None,
    *,
    backup: bool = False,
    interface: str | None = None,
    local_id: int | None = None,
    timeout: float | None = 5.0,
    force: bool = False,
) -> Subflow | None:
    """Open a subflow as Socket.open_subflow() does, without blocking the loop.

    ``sock`` is a Socket, a Connection, a StreamWriter or a transport, also of TLS, or a transport's socket. No thread
    is used: this waits for the connection's events and, once the peer has answered, looks for its acceptance by
    inet_diag at intervals of up to 5 ms. If it is cancelled, it closes the subflow that it was opening.

    ``timeout`` is in seconds. Returns the Subflow that the peer has accepted, or None at once with ``timeout=0``.
    Errors and privilege are those of Socket.open_subflow().
    """
    target = _target(sock)
    if timeout == 0:
        return target.open_subflow(
            local, remote, backup=backup, interface=interface, local_id=local_id, timeout=0, force=force
        )
    loop = asyncio.get_running_loop()
    try:
        deadline = None if timeout is None else loop.time() + timeout
        is_right = timeout is None or timeout > 0
    except OverflowError:
        is_right = False
    if not is_right:
        raise ValueError("timeout must be a number of seconds >= 0, or None")
    opening = _core.Opening(target._native, target, local, remote, bool(backup), interface, local_id, bool(force))
    try:
        while (subflow := opening.look()) is None:
            pause = opening.pause()
            if deadline is not None:
                if (left := deadline - loop.time()) <= 0:
                    opening.time_out()
                pause = min(pause, left)
            await _events.until_readable(opening.fileno(), pause)
        return subflow
    finally:
        opening.close()


async def close_subflow(
    sock: Reachable, subflow: Subflow | int | tuple[Address, Address], *, force: bool = False
) -> None:
    """Close a subflow as Socket.close_subflow() does; ``sock`` is as for open_subflow().

    This is a single command to the kernel and does not wait. Errors and privilege are those of Socket.close_subflow();
    raises TypeError for an id if ``sock`` is a Connection or belongs to another loop's transport.
    """
    target = _target(sock)
    if isinstance(target, Connection):
        if isinstance(subflow, int):
            raise TypeError("subflow must be a Subflow, not an id, for a Connection")
        target.close_subflow(subflow, force=force)
    else:
        target.close_subflow(subflow, force=force)


def _target(sock: Reachable) -> Socket | Connection:
    """Return the Socket or Connection of whatever asyncio uses for a connection."""
    if isinstance(sock, (Socket, Connection)):
        return sock
    get_extra_info = getattr(sock, "get_extra_info", None)
    inner = get_extra_info("socket") if get_extra_info is not None else sock
    # asyncio wraps the socket that is passed to it.
    inner = getattr(inner, "_sock", inner)
    if isinstance(inner, Socket):
        return inner
    # The socket of another class, as another loop has: by a Connection, which holds no descriptor.
    with wrap(inner) as wrapped:
        # Raises NotMultipathError. A token of 0 is that of a socket without a connection.
        token = wrapped.info().token
        found = list_connections(wrapped.fileno(), token=token) if token else []
    if not found:
        raise ConnectionError(errno.ENOTCONN, f"the connection of {sock!r} has ended")
    return found[0]
