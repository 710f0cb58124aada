"""Arguments that Events cannot take: a refused call raises what is documented and changes nothing.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import mptcp
from hostile import Call, World, check_connection, check_module, hostile, params, with_each_value
from hypothesis import given

EVENTS: dict[str, Call] = {
    "Events.get": lambda w, x: w.closed_events.get(x),
}


@params(EVENTS)
def test_a_connection_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_connection, world, call)


@params(EVENTS)
@given(value=hostile)
def test_a_connection_and_what_comes(world: World, call: Call, value: object) -> None:
    check_connection(world, call, value)


MODULE: dict[str, Call] = {
    "Events": lambda w, x: None if x is None else mptcp.Events(token=x),
}


@params(MODULE)
def test_the_module_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_module, world, call)


@params(MODULE)
@given(value=hostile)
def test_the_module_and_what_comes(world: World, call: Call, value: object) -> None:
    check_module(world, call, value)
