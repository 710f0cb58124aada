"""Multipath TCP for asyncio: streams over it, and subflows opened and closed without blocking the loop or a thread."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from . import _core, _events
from ._address import Address
from ._connection import Connection, list_connections
from ._core import Subflow
from ._socket import IPPROTO_MPTCP, Socket, create_server, wrap

__all__ = ["close_subflow", "open_connection", "open_subflow", "start_server"]

_LIMIT = 2**16  # asyncio's own

Reachable: TypeAlias = "Socket | Connection | asyncio.StreamWriter | asyncio.BaseTransport | Any"


async def open_connection(
    host: str,
    port: int,
    *,
    path_manager: str | None = None,
    local_addr: tuple[str, int] | None = None,
    limit: int = _LIMIT,
    ssl: Any = None,
    family: int = 0,
    flags: int = 0,
    **options: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect like asyncio.open_connection, over Multipath TCP; ``path_manager`` is as for Socket.

    The addresses of ``host`` are tried one after another. TCP_NODELAY is set, as asyncio does for TCP. ``limit`` is in
    bytes. ``options`` are those of loop.create_connection for a connected socket: ``server_hostname``,
    ``ssl_handshake_timeout`` and ``ssl_shutdown_timeout``. The connection may fall back to TCP: see Socket.is_mptcp.

    Raises what asyncio.open_connection and Socket raise. If it is cancelled, it closes the socket.
    """
    sock = await _connect(host, port, path_manager, local_addr, family, flags)
    try:
        if ssl:
            options.setdefault("server_hostname", host)
        return await asyncio.open_connection(sock=sock, limit=limit, ssl=ssl, **options)
    except BaseException:
        sock.close()
        raise


async def _connect(
    host: str, port: int, path_manager: str | None, local_addr: tuple[str, int] | None, family: int, flags: int
) -> Socket:
    loop = asyncio.get_running_loop()
    errors: list[OSError] = []
    for found, kind, _, _, address in await loop.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=flags
    ):
        try:
            sock = Socket(found, kind, IPPROTO_MPTCP, path_manager=path_manager)
            try:
                sock.setblocking(False)
                if local_addr is not None:
                    sock.bind(local_addr)
                await _connected(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except BaseException:
                sock.close()
                raise
            return sock
        except OSError as error:
            errors.append(error)
    try:
        raise errors[0] if errors else OSError("getaddrinfo returns an empty list")
    finally:
        errors.clear()  # an exception that holds its own frame is a cycle


async def _connected(sock: Socket, address: Any) -> None:
    """Connect like loop.sock_connect, which would ask getaddrinfo for a protocol that it does not know."""
    try:
        sock.connect(address)
        return
    except BlockingIOError:
        pass
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(sock.fileno(), _events.finish, writable)
    try:
        await writable
    finally:
        loop.remove_writer(sock.fileno())
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, f"connect to {address}: {os.strerror(number)}")


async def start_server(
    client_connected_cb: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    host: str | None = None,
    port: int = 0,
    *,
    limit: int = _LIMIT,
    family: int = 0,
    backlog: int = 100,
    reuse_port: bool = False,
    **options: Any,
) -> asyncio.Server:
    """Serve like asyncio.start_server, over Multipath TCP, with one listener. Clients without it are accepted as TCP.

    Without ``host`` it listens on every address, including IPv6 if the host has it; for a name, on its first address.
    ``limit`` is in bytes. ``options`` are those of loop.create_server for a socket: ``ssl``, ``ssl_handshake_timeout``,
    ``start_serving`` and so on. Accepted connections latch the network namespace's path manager at each handshake: to
    open subflows on them, stay in ``mptcp.use_path_manager("userspace")`` for the server's life.

    Raises what asyncio.start_server and create_server raise.
    """
    if host:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = create_server((str(address[0]), port), family=family, backlog=backlog, reuse_port=reuse_port)
    else:
        family = family or (socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
        dualstack = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = create_server(
            ("", port), family=family, backlog=backlog, reuse_port=reuse_port, dualstack_ipv6=dualstack
        )
    try:
        # Accepted sockets inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await asyncio.start_server(client_connected_cb, sock=listener, limit=limit, backlog=backlog, **options)
    except BaseException:
        listener.close()
        raise


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


async def close_subflow(sock: Reachable, subflow: Subflow | int, *, force: bool = False) -> None:
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
        found = list_connections(wrapped.fileno(), token=wrapped.token)
    if not found:
        raise ConnectionError(errno.ENOTCONN, f"the connection of {sock!r} has ended")
    return found[0]
