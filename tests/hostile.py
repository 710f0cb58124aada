"""Arguments that nothing was made for, what may be raised of them, and what a refused call must leave alone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import mptcp
import pytest
from hypothesis import strategies as st
from mptcp import Endpoint, Limits
from mptcp.lab import Capture, Host, Lab, Link
from support import PORT, Connection, connected, descriptors, eventually, held, holds_no_more_than

# Where no route leads, so that even what can be an endpoint is refused before a SYN.
NOWHERE = ("192.0.2.1", PORT)


class Theirs(Exception):
    """What an argument raises itself, which is the caller's own affair."""


def _raise(*_: object, **__: object) -> Any:
    raise Theirs


class Raises:
    """An object of which nothing works."""

    __index__ = __int__ = __float__ = __bool__ = __len__ = __iter__ = __getitem__ = __fspath__ = __str__ = _raise
    __eq__ = __ne__ = __lt__ = __contains__ = __call__ = fileno = keys = items = _raise
    __hash__ = object.__hash__


class WrongTypes:
    """An object whose methods return what they must not."""

    def _text(self, *_: object) -> Any:
        return "\ud800"

    __index__ = __int__ = __float__ = __bool__ = __len__ = __iter__ = __fspath__ = fileno = keys = items = _text


class Int(int):
    __index__ = __int__ = __eq__ = __str__ = __format__ = _raise
    __hash__ = int.__hash__


class Str(str):
    __eq__ = __str__ = __len__ = __iter__ = __getitem__ = encode = __format__ = _raise
    __hash__ = str.__hash__


class Tuple(tuple[object, ...]):
    __len__ = __iter__ = __getitem__ = __eq__ = _raise
    __hash__ = tuple.__hash__


class Dict(dict[object, object]):
    keys = items = values = __iter__ = __getitem__ = __len__ = _raise


def nested(depth: int) -> tuple[object, ...]:
    inside: tuple[object, ...] = ()
    for _ in range(depth):
        inside = (inside,)
    return inside


# Ends of C's types, more than a float holds, and more than Python prints.
INTS = [0, -1, 2**7, 2**8 - 1, 2**8, 2**16, -(2**31) - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, -(2**63) - 1, 2**63,
        2**64, 10**400, -(10**400), 10**5000, -(10**5000)]  # fmt: skip
TEXTS = ["", "\0", "a\0b", "\ud800", "a" * 300, "x" * 100_000, "10.0.2.1\0", "fe80::1%", "fe80::1%\0", "fe80::1%\ud800",
         "fe80::1%99999999999", "fe80::1%-1", "fe80::1%" + "x" * 5000, "::ffff:1.2.3.4%1", "1e400", "nan", "-1", "%s%n",
         "٣", "10.0.2.٣", "../../kernel/hostname", "\N{RIGHT-TO-LEFT OVERRIDE}", "\n"]  # fmt: skip
ODD = [None, ..., True, False, object(), object, int, len, Raises(), Raises, WrongTypes(), Int(54321),
       Str("10.0.2.1"), Tuple(("10.0.2.1", 1)), Dict({1: 2}), nested(100_000), 1j, range(3), memoryview(b"ab"),
       socket.AF_INET, float("nan"), float("inf"), -float("inf"), -0.5, 5e-324, 1e308, Theirs(), Theirs]  # fmt: skip

KNOWN = [*INTS, *TEXTS, *ODD]

scalars = st.one_of(
    # By their numbers, for not all of them can be printed.
    st.sampled_from(range(len(KNOWN))).map(lambda number: KNOWN[number]),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.binary(max_size=70),
    st.binary(max_size=70).map(bytearray),
)


hashable = scalars.filter(lambda value: not isinstance(value, bytearray | Dict | memoryview))
hostile = st.one_of(
    scalars,
    st.lists(scalars, max_size=5),
    st.lists(scalars, max_size=5).map(tuple),
    st.tuples(st.sampled_from(["10.0.2.1", "fd00::1", "", "fe80::1"]), scalars),
    st.tuples(st.sampled_from(["10.0.2.1", "fd00::1", "", "fe80::1"]), scalars, scalars, scalars),
    st.dictionaries(hashable, scalars, max_size=3),
)


def dispose(result: object) -> None:
    """Closes what a call made, whose arguments were none to refuse after all."""
    if isinstance(result, socket.socket | Capture):
        result.close()


def refused(call: Callable[[], object], *also: type[Exception]) -> BaseException | None:
    """Calls; what it was refused by, which is what may be raised: nothing else passes."""
    expected: tuple[type[Exception], ...] = (TypeError, ValueError, OSError, Theirs, *also)
    try:
        dispose(call())
    except expected as error:
        return error.with_traceback(None)
    return None


#: With what there is, and one value.
Call = Callable[[Any, Any], object]


def with_each_value(check: Callable[[Any, Call, object], None], world: Any, call: Call) -> None:
    for number, value in enumerate(KNOWN):
        try:
            check(world, call, value)
        except BaseException as error:
            error.add_note(f"with KNOWN[{number}]")  # which may be too large or too odd to print
            raise


def params(calls: dict[str, Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in calls.items()])


def no_descriptor(value: object) -> object:
    """No number of a descriptor that is open here: a socket made of one would close it."""
    return -1 if isinstance(value, int) and 0 <= int.__add__(value, 0) < 100_000 else value


def literal(host: str, value: object) -> Any:
    return (host, value)


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
        return self.client.get_limits(), self.client.sysctl("net.ipv4.ip_forward"), self.client.endpoints()

    def sent(self) -> dict[str, int]:
        """What a call that asks the kernel for something sends, by the kernel's counters."""
        return {name: value for name, value in self.client.counters().items() if name.endswith("Tx")}


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


def check_module(world: World, call: Call, value: object, *also: type[Exception]) -> None:
    """Nothing is left behind, and the host's sysctl is what it was."""
    before, count = mptcp.get_path_manager(), descriptors()
    refused(lambda: call(world, value), *also)
    assert mptcp.get_path_manager() == before
    assert eventually(lambda: descriptors() == count)
