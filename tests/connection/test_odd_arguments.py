"""Every public callable with arguments that it was not made for: only the documented errors, and nothing is changed by
a call that failed.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mptcp
import mptcp.aio
import pytest
from hostile import Call, Theirs, hostile, params, refused, with_each_value
from hypothesis import given
from mptcp import enhanced_api
from mptcp.lab import Endpoint, Host, Lab, Limits, Link, two_paths
from support import PORT, Connection, connected, descriptors, eventually, held, holds_no_more_than

# Where no route leads, so that even what can be an endpoint is refused before a SYN.
NOWHERE = ("192.0.2.1", PORT)


class World:
    """A connection with a second subflow in a lab, and everything about it that a refused call must leave alone."""

    def __init__(self, client: Host, server: Host, paths: tuple[Link, Link]) -> None:
        self.client, self.server, self.paths = client, server, paths
        self.lab: Lab = client.lab
        self._stack = contextlib.ExitStack()
        self.renew()

    def renew(self) -> None:
        self._stack.close()
        self.connection: Connection = self._stack.enter_context(connected(self.client, self.server, self.paths))
        self.sock = self.connection.sock
        local, remote = self.connection.second
        self.subflow = self.sock.open_subflow(local, (remote, PORT), timeout=30)
        (self.handle,) = self.client.connections(token=self.sock.token)
        # Of the host's own network namespace, where asyncio's functions are called.
        listener = self._stack.enter_context(mptcp.create_server(("127.0.0.1", 0), backlog=4096))
        self.listening: tuple[str, int] = listener.getsockname()
        # Of an open one, what can be a timeout would be waited for.
        with self.sock.events() as self.closed_events:
            pass
        # What the first calls make and keep, netlink sockets and BPF programs, is there from now on.
        self.handle.subflows()
        with contextlib.suppress(OSError):
            self.subflow.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)

    def close(self) -> None:
        self._stack.close()

    def of_connection(self) -> object:
        subflows = [
            (subflow.id, subflow.local, subflow.remote, subflow.backup, subflow.peer_backup, subflow.state)
            for subflow in self.sock.subflows()
        ]
        return subflows, self.sock.gettimeout(), self.sock.getblocking(), self.sock.path_manager

    def of_lab(self) -> object:
        return (
            tuple(self.lab.hosts),
            len(self.lab.links),
            [
                (link.is_up, link.rate, link.delay, link.loss, link.queue, link.congestion_control)
                for link in self.paths
            ],
        )

    def of_client(self) -> tuple[Limits, str, list[Endpoint]]:
        return self.client.set_limits(), self.client.sysctl("net.ipv4.ip_forward"), self.client.endpoints

    def sent(self) -> dict[str, int]:
        """What a call that asks the kernel for something sends, by the kernel's counters."""
        return {name: value for name, value in self.client.counters().items() if name.endswith("Tx")}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        try:
            client, server, paths = stack.enter_context(two_paths(rate=None))
        except PermissionError as error:
            pytest.skip(f"needs namespaces: {error}")
        made = World(client, server, paths)
        stack.callback(made.close)
        yield made


def no_descriptor(value: object) -> object:
    """No number of a descriptor that is open here: a socket made of one would close it."""
    return -1 if isinstance(value, int) and 0 <= int.__add__(value, 0) < 100_000 else value


def no_path(value: object) -> object:
    """Nothing that could name a file: it would be written."""
    return "no such directory/\0" if isinstance(value, str | bytes) else no_descriptor(value)


def no_program(value: Any) -> Any:
    """Nothing that could name a program: it would be run."""
    return [no_path(word) for word in value] if type(value) in (list, tuple, dict) else no_path(value)


# What the types forbid is the point: each `type: ignore` in these tables stands for a call that mypy refuses as well.
SOCKET: dict[str, Call] = {
    "open_subflow(local)": lambda w, x: w.sock.open_subflow(x, NOWHERE, timeout=0.05),
    "open_subflow(remote)": lambda w, x: w.sock.open_subflow("192.0.2.2", x, timeout=0.05),
    "open_subflow(backup)": lambda w, x: w.sock.open_subflow("192.0.2.2", NOWHERE, backup=x, timeout=0.05),
    "open_subflow(interface)": lambda w, x: w.sock.open_subflow("192.0.2.2", NOWHERE, interface=x, timeout=0.05),
    "open_subflow(timeout)": lambda w, x: w.sock.open_subflow("192.0.2.2", NOWHERE, timeout=x),
    "close_subflow": lambda w, x: w.sock.close_subflow(x),
    "close_subflow(force)": lambda w, x: w.sock.close_subflow(2**32 - 1, force=x),
    "announce_address": lambda w, x: w.sock.announce_address(x),
    "announce_address(port)": lambda w, x: w.sock.announce_address("192.0.2.2", x),
    "remove_address": lambda w, x: w.sock.remove_address(x),
    "set_subflow_options": lambda w, x: w.sock.set_subflow_options(x),
    "set_subflow_options of one": lambda w, x: w.sock.set_subflow_options({w.subflow: x}),
    "set_subflow_options(option)": lambda w, x: w.sock.set_subflow_options({w.subflow: {x: 1}}),
    "Subflow.close": lambda w, x: w.subflow.close(x),  # type: ignore[call-arg]
    "Subflow.set_backup": lambda w, x: w.subflow.set_backup(x) if not isinstance(x, bool) else None,
    "Subflow.getsockopt(level)": lambda w, x: w.subflow.getsockopt(x, 1),
    "Subflow.getsockopt(optname)": lambda w, x: w.subflow.getsockopt(socket.IPPROTO_TCP, x),
    "Subflow.getsockopt(buflen)": lambda w, x: w.subflow.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, x),
    "Subflow.setsockopt(level)": lambda w, x: w.subflow.setsockopt(x, 1, 1),
    "Subflow.setsockopt(optname)": lambda w, x: w.subflow.setsockopt(socket.IPPROTO_TCP, x, 1),
    "Subflow.setsockopt(value)": lambda w, x: w.subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, x),
    "Events.get": lambda w, x: w.closed_events.get(x),
    "Connection.open_subflow(local)": lambda w, x: w.handle.open_subflow(x, NOWHERE, timeout=0.05),
    "Connection.open_subflow(remote)": lambda w, x: w.handle.open_subflow("192.0.2.2", x, timeout=0.05),
    "Connection.open_subflow(timeout)": lambda w, x: w.handle.open_subflow("192.0.2.2", NOWHERE, timeout=x),
    "Connection.open_subflow(interface)": lambda w, x: w.handle.open_subflow("192.0.2.2", NOWHERE, interface=x),
    "Connection.close_subflow": lambda w, x: w.handle.close_subflow(x),
    "Connection.announce_address": lambda w, x: w.handle.announce_address(x),
    "Connection.remove_address": lambda w, x: w.handle.remove_address(x),
    "Connection.set_subflow_options": lambda w, x: w.handle.set_subflow_options(x),
}


def check_connection(world: World, call: Call, value: object) -> None:
    """A connection is as it was after what it refused."""
    before, sent = world.of_connection(), world.sent()
    holding = held()
    error = refused(lambda: call(world, value))
    if error is None:
        if world.of_connection() != before:
            world.renew()
        return
    assert world.of_connection() == before
    assert holds_no_more_than(holding), held()
    if isinstance(error, TypeError | ValueError):
        assert world.sent() == sent


# An option that a program of today could not pass: see enhanced_api.getsockopt for the addresses in two of them.
ENHANCED: dict[str, Call] = {
    "getsockopt(sock)": lambda w, x: enhanced_api.getsockopt(no_descriptor(x), 66, bytearray(10)),  # type: ignore[arg-type]
    "getsockopt(optname)": lambda w, x: enhanced_api.getsockopt(w.sock, x, bytearray(10)),
    "getsockopt(buffer)": lambda w, x: enhanced_api.getsockopt(w.sock, enhanced_api.MPTCP_GET_SUB_TUPLE, x),
    "getsockopt(layout)": lambda w, x: enhanced_api.getsockopt(w.sock, 66, bytearray(100), layout=x),
    "MPTCP_CLOSE_SUB_ID": lambda w, x: enhanced_api.getsockopt(w.sock, enhanced_api.MPTCP_CLOSE_SUB_ID, x),
    "MPTCP_OPEN_SUB_TUPLE": lambda w, x: enhanced_api.getsockopt(w.sock, enhanced_api.MPTCP_OPEN_SUB_TUPLE, x),
    "setsockopt(sock)": lambda w, x: enhanced_api.setsockopt(no_descriptor(x), 72, bytearray(10)),  # type: ignore[arg-type]
    "setsockopt(optname)": lambda w, x: enhanced_api.setsockopt(w.sock, x, bytearray(10)),
    "setsockopt(layout)": lambda w, x: enhanced_api.setsockopt(w.sock, 72, bytearray(10), layout=x),
}


@params({**SOCKET, **ENHANCED})
def test_a_connection_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_connection, world, call)


@params({**SOCKET, **ENHANCED})
@given(value=hostile)
def test_a_connection_and_what_comes(world: World, call: Call, value: object) -> None:
    check_connection(world, call, value)


def literal(host: str, value: object) -> Any:
    return (host, value)


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
    "attach(pid)": lambda w, x: mptcp.attach(no_descriptor(x), 100_000),  # type: ignore[arg-type]
    "attach(fd)": lambda w, x: mptcp.attach(2**31 - 1, x),
    "connections(token)": lambda w, x: mptcp.connections(token=x),
    "connections(pid)": lambda w, x: mptcp.connections(pid=x),
    "connections(port)": lambda w, x: mptcp.connections(port=x),
    "counters": lambda w, x: mptcp.counters(x),  # type: ignore[call-arg]
    "get_path_manager": lambda w, x: mptcp.get_path_manager(x),  # type: ignore[call-arg]
    "set_path_manager": lambda w, x: mptcp.set_path_manager(x),
    "use_path_manager": lambda w, x: mptcp.use_path_manager(x).__enter__(),
    "Events": lambda w, x: None if x is None else mptcp.Events(token=x),
    "Connection": lambda w, x: mptcp.Connection(x),
    "Subflow": lambda w, x: mptcp.Subflow(x),  # type: ignore[call-arg]
    "Info": lambda w, x: mptcp.Info(x),  # type: ignore[call-arg]
    "TcpInfo": lambda w, x: mptcp.TcpInfo(x),  # type: ignore[call-arg]
    "SubflowError": lambda w, x: mptcp.SubflowError(x, "why"),
    "enhanced_api.include_dir": lambda w, x: enhanced_api.include_dir(x),  # type: ignore[call-arg]
}


# Whose errors are those of the standard library's functions, OverflowError for a port or a timeout out of range too.
LIKE_SOCKET = [call for name, call in MODULE.items() if name.startswith(("Socket", "create_"))]


def check_module(world: World, call: Call, value: object) -> None:
    """Nothing is left behind, and the host's sysctl is what it was."""
    before, count = mptcp.get_path_manager(), descriptors()
    refused(lambda: call(world, value), *([OverflowError] if call in LIKE_SOCKET else []))
    assert mptcp.get_path_manager() == before
    assert eventually(lambda: descriptors() == count)


@params(MODULE)
def test_the_module_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_module, world, call)


@params(MODULE)
@given(value=hostile)
def test_the_module_and_what_comes(world: World, call: Call, value: object) -> None:
    check_module(world, call, value)


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


def one(w: World) -> Host:
    return w.client


LAB: dict[str, Call] = {
    "Lab.host": lambda w, x: w.lab.host(x) if not isinstance(x, str) or len(x) > 63 else None,
    "Lab.link(a)": lambda w, x: w.lab.link(x, w.server),
    "Lab.link(b)": lambda w, x: w.lab.link(w.client, x),
    "Lab.link(rate)": lambda w, x: w.lab.link(w.client, w.client, rate=x),
    "Host.socket(family)": lambda w, x: one(w).socket(x),
    "Host.socket(type)": lambda w, x: one(w).socket(type=x),
    "Host.socket(proto)": lambda w, x: one(w).socket(proto=x),
    "Host.socket(path_manager)": lambda w, x: one(w).socket(path_manager=x),
    "Host.create_connection": lambda w, x: None if isinstance(x, tuple | list) else one(w).create_connection(x),
    "Host.create_connection(port)": lambda w, x: one(w).create_connection(literal("192.0.2.1", x), 0.01),
    "Host.create_server": lambda w, x: None if isinstance(x, tuple | list) else one(w).create_server(x),
    "Host.create_server(family)": lambda w, x: one(w).create_server(("127.0.0.1", 0), family=x),
    "Host.run": lambda w, x: one(w).run(no_program(x)),
    "Host.run of one word": lambda w, x: one(w).run(no_program([x])),
    "Host.run(cwd)": lambda w, x: one(w).run(["/nonexistent"], cwd=x),
    "Host.popen": lambda w, x: one(w).popen(no_program(x)),
    "Host.sysctl": lambda w, x: one(w).sysctl(x),
    "Host.sysctl of net": lambda w, x: one(w).sysctl(f"net/{x}" if isinstance(x, str) else x),
    "Host.sysctl(value)": lambda w, x: None if x is None else one(w).sysctl("net.ipv4.ip_forward", x) and None,
    "Host.connections(token)": lambda w, x: one(w).connections(token=x),
    "Host.connections(pid)": lambda w, x: one(w).connections(pid=x),
    "Host.connections(port)": lambda w, x: one(w).connections(port=x),
    "Host.set_path_manager": lambda w, x: one(w).set_path_manager(x),
    "Host.add_endpoint": lambda w, x: one(w).add_endpoint(x),
    "Host.add_endpoint(flags)": lambda w, x: one(w).add_endpoint("192.0.2.2", x),
    "Host.add_endpoint(id)": lambda w, x: one(w).add_endpoint("192.0.2.2", id=x),
    "Host.add_endpoint(port)": lambda w, x: one(w).add_endpoint("192.0.2.2", "signal", port=x),
    "Host.remove_endpoint": lambda w, x: one(w).remove_endpoint(x),
    "Host.set_limits(subflows)": lambda w, x: one(w).set_limits(subflows=x) and None,
    "Host.set_limits(add_addr_accepted)": lambda w, x: one(w).set_limits(add_addr_accepted=x) and None,
    "Link.address": lambda w, x: w.paths[0].address(x),
    "Link.address(family)": lambda w, x: w.paths[0].address(w.client, x),
    "Link.interface": lambda w, x: w.paths[0].interface(x),
    "Link.capture": lambda w, x: w.paths[0].capture(no_path(x)),  # type: ignore[arg-type]
    "Link.capture(host)": lambda w, x: w.paths[0].capture("/nonexistent/file", host=x),
    "Link.set(rate)": lambda w, x: w.paths[1].set(rate=x),
    "Link.set(delay)": lambda w, x: w.paths[1].set(delay=x),
    "Link.set(loss)": lambda w, x: w.paths[1].set(loss=x),
    "Link.set(jitter)": lambda w, x: w.paths[1].set(delay=0.001, jitter=x),
    "Link.set(queue)": lambda w, x: w.paths[1].set(rate="100mbit", queue=x),
    "Link.set(congestion_control)": lambda w, x: w.paths[1].set(congestion_control=x),
    "two_paths(rate)": lambda w, x: None if x is None or x is ... else two_paths(rate=[x] * 3).__enter__(),
}


OF_CLIENT = [call for name, call in LAB.items() if "endpoint" in name or "limits" in name or "sysctl" in name]
# Whose errors are those of the standard library's functions of these names, OverflowError for a port among them.
AS_SOCKET = [call for name, call in LAB.items() if name.startswith(("Host.create_", "Host.run", "Host.popen"))]


def check_lab(world: World, call: Call, value: object) -> None:
    """A lab is as it was after what it refused."""
    before, of_client = world.of_lab(), world.of_client() if call in OF_CLIENT else None
    error = refused(lambda: call(world, value), *([OverflowError] if call in AS_SOCKET else []))
    if world.of_lab() != before:
        assert error is None
        world.paths[1].set(rate=None, delay=None, loss=None, jitter=None, queue=None, congestion_control=None)
        assert world.of_lab() == before
    if of_client is not None and (now := world.of_client()) != of_client:
        assert error is None
        limits, forwarding, _ = of_client
        world.client.set_limits(**limits._asdict())
        world.client.sysctl("net.ipv4.ip_forward", forwarding)
        for endpoint in now[2]:
            world.client.remove_endpoint(endpoint.address)
        assert world.of_client() == of_client


@params(LAB)
def test_a_lab_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_lab, world, call)


@params(LAB)
@given(value=hostile)
def test_a_lab_and_what_comes(world: World, call: Call, value: object) -> None:
    check_lab(world, call, value)


@given(value=hostile)
def test_snapshots_compare_with_anything_and_are_frozen(world: World, value: object) -> None:
    endpoint = Endpoint("10.0.2.1", 1, (), None)
    for one in (world.subflow, world.subflow.tcp_info, world.sock.info(), world.handle, endpoint):
        try:
            assert (one == value) is False
            assert (one != value) is True
        except Theirs:
            pass
        for name in ("id", "token", "rtt", "new"):
            with pytest.raises((AttributeError, TypeError)):
                setattr(one, name, value)
        for order in ("__lt__", "__ge__"):
            assert getattr(one, order)(value) is NotImplemented
    assert hash(world.subflow) == hash(world.subflow)


def test_handles_are_not_pickled(world: World) -> None:
    for one in (world.sock, world.handle, world.subflow):
        with pytest.raises(TypeError):
            pickle.dumps(one)


def test_nothing_of_the_host_was_reached() -> None:
    """The sysctl that the texts above try to reach."""
    assert Path("/proc/sys/kernel/hostname").read_text().strip() == socket.gethostname()
