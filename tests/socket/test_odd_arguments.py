"""Arguments that sockets and mptcp.aio cannot take: a refused call raises what is documented and changes nothing.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import mptcp
import mptcp.aio
from hostile import (
    NOWHERE,
    Call,
    World,
    check_connection,
    check_module,
    hostile,
    literal,
    no_descriptor,
    params,
    refused,
    with_each_value,
)
from hypothesis import given
from support import held, holds_no_more_than

# Hosts are literals here, for names would be asked of a name server.
MODULE: dict[str, Call] = {
    "Socket(family)": lambda w, x: mptcp.Socket(x),
    "Socket(type)": lambda w, x: mptcp.Socket(type=x),
    "Socket(proto)": lambda w, x: mptcp.Socket(proto=x),
    "Socket(fileno)": lambda w, x: None if x is None else mptcp.Socket(fileno=no_descriptor(x)),  # type: ignore[arg-type]
    "Socket(path_manager)": lambda w, x: mptcp.Socket(path_manager=x),
    "create_connection": lambda w, x: None if isinstance(x, tuple | list) else mptcp.create_connection(x),
    "create_connection(port)": lambda w, x: mptcp.create_connection(literal("192.0.2.1", x), 0.01),
    "create_connection(timeout)": lambda w, x: mptcp.create_connection(("127.0.0.1", 1), x),
    "create_connection(source_address)": lambda w, x: mptcp.create_connection(
        ("127.0.0.1", 1), 1, literal("192.0.2.2", x)
    ),
    "create_connection(all_errors)": lambda w, x: mptcp.create_connection(("127.0.0.1", "x"), 1, all_errors=x),  # type: ignore[arg-type]
    "create_connection(path_manager)": lambda w, x: mptcp.create_connection(("127.0.0.1", 1), path_manager=x),
    "create_server": lambda w, x: None if isinstance(x, tuple | list) else mptcp.create_server(x),
    "create_server(port)": lambda w, x: mptcp.create_server(literal("127.0.0.1", x)),
    "create_server(family)": lambda w, x: mptcp.create_server(("127.0.0.1", 0), family=x),
    "create_server(backlog)": lambda w, x: mptcp.create_server(("127.0.0.1", 0), backlog=x),
    "create_server(reuse_port)": lambda w, x: mptcp.create_server(("127.0.0.1", 0), reuse_port=x),
    "create_server(dualstack_ipv6)": lambda w, x: mptcp.create_server(("127.0.0.1", 0), dualstack_ipv6=x),
    "wrap": lambda w, x: mptcp.wrap(no_descriptor(x)),
}


# Whose errors are those of the standard library's functions, OverflowError for a port or a timeout out of range too.
LIKE_SOCKET = [call for name, call in MODULE.items() if name.startswith(("Socket", "create_"))]


def check(world: World, call: Call, value: object) -> None:
    check_module(world, call, value, *([OverflowError] if call in LIKE_SOCKET else []))


@params(MODULE)
def test_the_module_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check, world, call)


@params(MODULE)
@given(value=hostile)
def test_the_module_and_what_comes(world: World, call: Call, value: object) -> None:
    check(world, call, value)


async def streams(world: World, **arguments: Any) -> None:
    """A connection to a listener that accepts nothing, and its end."""
    host, port = world.listening
    _, writer = await mptcp.aio.open_connection(**{"host": host, "port": port, **arguments})
    # No end to wait for: a peer that was never accepted answers nothing.
    writer.transport.abort()
    await asyncio.sleep(0)


async def serving(callback: Any = print, host: Any = "127.0.0.1", port: Any = 0, **arguments: Any) -> None:
    server = await mptcp.aio.start_server(callback, host, port, **arguments)
    server.close()
    await server.wait_closed()


# Names are not asked for, and options that are asyncio's own are its own affair.
AIO: dict[str, Call] = {
    "open_connection(host)": lambda w, x: None if isinstance(x, str | bytes) else streams(w, host=x),
    "open_connection(port)": lambda w, x: streams(w, port=x),
    "open_connection(path_manager)": lambda w, x: streams(w, path_manager=x),
    "open_connection(local_addr)": lambda w, x: streams(w, local_addr=literal("127.0.0.1", x)),
    "open_connection(limit)": lambda w, x: streams(w, limit=x),
    "open_connection(family)": lambda w, x: streams(w, family=x),
    "open_connection(flags)": lambda w, x: streams(w, flags=x),
    "start_server(client_connected_cb)": lambda w, x: serving(x),
    "start_server(host)": lambda w, x: None if isinstance(x, str | bytes) else serving(host=x),
    "start_server(port)": lambda w, x: serving(port=x),
    "start_server(limit)": lambda w, x: serving(limit=x),
    "start_server(family)": lambda w, x: serving(family=x),
    "start_server(backlog)": lambda w, x: serving(backlog=x),
    "start_server(reuse_port)": lambda w, x: serving(reuse_port=x),
}
AIO_OF_CONNECTION: dict[str, Call] = {
    "aio.open_subflow(sock)": lambda w, x: mptcp.aio.open_subflow(no_descriptor(x), "10.0.2.1", NOWHERE, timeout=0.05),
    "aio.open_subflow(local)": lambda w, x: mptcp.aio.open_subflow(w.sock, x, NOWHERE, timeout=0.05),
    "aio.open_subflow(remote)": lambda w, x: mptcp.aio.open_subflow(w.sock, "192.0.2.2", x, timeout=0.05),
    "aio.open_subflow(backup)": lambda w, x: mptcp.aio.open_subflow(
        w.sock, "192.0.2.2", NOWHERE, backup=x, timeout=0.05
    ),
    "aio.open_subflow(interface)": lambda w, x: mptcp.aio.open_subflow(
        w.sock, "192.0.2.2", NOWHERE, interface=x, timeout=0.05
    ),
    "aio.open_subflow(timeout)": lambda w, x: mptcp.aio.open_subflow(w.sock, "192.0.2.2", NOWHERE, timeout=x),
    "aio.close_subflow(sock)": lambda w, x: mptcp.aio.close_subflow(no_descriptor(x), 12345),
    "aio.close_subflow(subflow)": lambda w, x: mptcp.aio.close_subflow(w.sock, x),
    "aio.close_subflow of a Connection": lambda w, x: mptcp.aio.close_subflow(w.handle, x),
}


def run(call: Call) -> Call:
    """The call in a loop of its own."""

    def within(world: World, value: object) -> object:
        coroutine: Any = call(world, value)
        return None if coroutine is None else asyncio.run(asyncio.wait_for(coroutine, 30))

    return within


def check_aio(world: World, call: Call, value: object) -> None:
    """Nothing is left behind; the errors are those of asyncio's functions."""
    before, holding = mptcp.get_path_manager(), held()
    refused(lambda: run(call)(world, value), OverflowError)
    assert mptcp.get_path_manager() == before
    assert holds_no_more_than(holding), held()


def check_aio_of_connection(world: World, call: Call, value: object) -> None:
    check_connection(world, run(call), value)


@params(AIO)
def test_asyncio_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_aio, world, call)


@params(AIO)
@given(value=hostile)
def test_asyncio_and_what_comes(world: World, call: Call, value: object) -> None:
    check_aio(world, call, value)


@params(AIO_OF_CONNECTION)
def test_a_connection_in_asyncio_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_aio_of_connection, world, call)


@params(AIO_OF_CONNECTION)
@given(value=hostile)
def test_a_connection_in_asyncio_and_what_comes(world: World, call: Call, value: object) -> None:
    check_aio_of_connection(world, call, value)
