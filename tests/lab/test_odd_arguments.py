"""Arguments that a lab cannot take: a refused call raises what is documented and changes nothing.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

from hostile import Call, World, hostile, literal, no_descriptor, params, refused, with_each_value
from hypothesis import given
from mptcp.lab import Host, two_paths


def no_path(value: object) -> object:
    """Nothing that could name a file: it would be written."""
    return "no such directory/\0" if isinstance(value, str | bytes) else no_descriptor(value)


def no_program(value: Any) -> Any:
    """Nothing that could name a program: it would be run."""
    return [no_path(word) for word in value] if type(value) in (list, tuple, dict) else no_path(value)


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
    "Host.add_endpoint(flag)": lambda w, x: one(w).add_endpoint("192.0.2.2", subflow=x),
    "Host.add_endpoint(interface)": lambda w, x: one(w).add_endpoint("192.0.2.2", interface=x),
    "Host.change_endpoint": lambda w, x: one(w).change_endpoint(x, backup=True),
    "Host.change_endpoint(backup)": lambda w, x: one(w).change_endpoint(255, backup=x),
    "Host.use_endpoints": lambda w, x: one(w).use_endpoints(x).__enter__(),
    "Host.use_limits": lambda w, x: one(w).use_limits(subflows=x).__enter__() and None,
    "Host.set_scheduler": lambda w, x: one(w).set_scheduler(x),
    "Host.add_endpoint(id)": lambda w, x: one(w).add_endpoint("192.0.2.2", id=x),
    "Host.add_endpoint(port)": lambda w, x: one(w).add_endpoint("192.0.2.2", signal=True, port=x),
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
    if of_client is not None and world.of_client() != of_client:
        assert error is None
        limits, forwarding, _ = of_client
        world.client.set_limits(**dataclasses.asdict(limits))
        world.client.sysctl("net.ipv4.ip_forward", forwarding)
        world.client.flush_endpoints()
        assert world.of_client() == of_client


@params(LAB)
def test_a_lab_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_lab, world, call)


@params(LAB)
@given(value=hostile)
def test_a_lab_and_what_comes(world: World, call: Call, value: object) -> None:
    check_lab(world, call, value)


def test_nothing_of_the_host_was_reached() -> None:
    """The sysctl that the texts above try to reach."""
    assert Path("/proc/sys/kernel/hostname").read_text().strip() == socket.gethostname()
