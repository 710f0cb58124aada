"""Arguments that no method of a connection can take: a refused call raises what is documented and changes nothing.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import pickle
import socket

import mptcp
import pytest
from hostile import (
    NOWHERE,
    Call,
    Theirs,
    World,
    check_connection,
    check_module,
    hostile,
    no_descriptor,
    params,
    with_each_value,
)
from hypothesis import given
from mptcp import Endpoint

# What the types forbid is the point: each `type: ignore` in these tables stands for a call that mypy refuses as well.
CONNECTION: dict[str, Call] = {
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
    "Connection.open_subflow(local)": lambda w, x: w.handle.open_subflow(x, NOWHERE, timeout=0.05),
    "Connection.open_subflow(remote)": lambda w, x: w.handle.open_subflow("192.0.2.2", x, timeout=0.05),
    "Connection.open_subflow(timeout)": lambda w, x: w.handle.open_subflow("192.0.2.2", NOWHERE, timeout=x),
    "Connection.open_subflow(interface)": lambda w, x: w.handle.open_subflow("192.0.2.2", NOWHERE, interface=x),
    "Connection.close_subflow": lambda w, x: w.handle.close_subflow(x),
    "Connection.announce_address": lambda w, x: w.handle.announce_address(x),
    "Connection.remove_address": lambda w, x: w.handle.remove_address(x),
    "Connection.set_subflow_options": lambda w, x: w.handle.set_subflow_options(x),
}


@params(CONNECTION)
def test_a_connection_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_connection, world, call)


@params(CONNECTION)
@given(value=hostile)
def test_a_connection_and_what_comes(world: World, call: Call, value: object) -> None:
    check_connection(world, call, value)


MODULE: dict[str, Call] = {
    "attach(pid)": lambda w, x: mptcp.attach(no_descriptor(x), 100_000),  # type: ignore[arg-type]
    "attach(fd)": lambda w, x: mptcp.attach(2**31 - 1, x),
    "connections(token)": lambda w, x: mptcp.connections(token=x),
    "connections(pid)": lambda w, x: mptcp.connections(pid=x),
    "connections(port)": lambda w, x: mptcp.connections(port=x),
    "Connection": lambda w, x: mptcp.Connection(x),
    "Subflow": lambda w, x: mptcp.Subflow(x),  # type: ignore[call-arg]
    "Info": lambda w, x: mptcp.Info(x),  # type: ignore[call-arg]
    "TcpInfo": lambda w, x: mptcp.TcpInfo(x),  # type: ignore[call-arg]
    "SubflowError": lambda w, x: mptcp.SubflowError(x, "why"),
}


@params(MODULE)
def test_the_module_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_module, world, call)


@params(MODULE)
@given(value=hostile)
def test_the_module_and_what_comes(world: World, call: Call, value: object) -> None:
    check_module(world, call, value)


@given(value=hostile)
def test_snapshots_compare_with_anything_and_are_frozen(world: World, value: object) -> None:
    endpoint = Endpoint("10.0.2.1", 1)
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
