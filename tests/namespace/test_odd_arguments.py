"""Arguments that no function of a network namespace can take: a refused call raises what is documented and changes
nothing.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import mptcp
from hostile import Call, World, check_module, hostile, params, with_each_value
from hypothesis import given

MODULE: dict[str, Call] = {
    "counters": lambda w, x: mptcp.counters(x),  # type: ignore[call-arg]
    "get_path_manager": lambda w, x: mptcp.get_path_manager(x),  # type: ignore[call-arg]
    "set_path_manager": lambda w, x: mptcp.set_path_manager(x),
    "use_path_manager": lambda w, x: mptcp.use_path_manager(x).__enter__(),
}


@params(MODULE)
def test_the_module_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_module, world, call)


@params(MODULE)
@given(value=hostile)
def test_the_module_and_what_comes(world: World, call: Call, value: object) -> None:
    check_module(world, call, value)
