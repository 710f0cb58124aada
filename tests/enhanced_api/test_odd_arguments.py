"""Arguments that the options of 2016 cannot take: a refused call raises what is documented and changes nothing.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

from hostile import Call, World, check_connection, check_module, hostile, no_descriptor, params, with_each_value
from hypothesis import given
from mptcp import enhanced_api

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


@params(ENHANCED)
def test_a_connection_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_connection, world, call)


@params(ENHANCED)
@given(value=hostile)
def test_a_connection_and_what_comes(world: World, call: Call, value: object) -> None:
    check_connection(world, call, value)


MODULE: dict[str, Call] = {
    "enhanced_api.include_dir": lambda w, x: enhanced_api.include_dir(x),  # type: ignore[call-arg]
}


@params(MODULE)
def test_the_module_and_each_odd_value(world: World, call: Call) -> None:
    with_each_value(check_module, world, call)


@params(MODULE)
@given(value=hostile)
def test_the_module_and_what_comes(world: World, call: Call, value: object) -> None:
    check_module(world, call, value)
