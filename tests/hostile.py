"""Arguments that nothing was made for, and what may be raised of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from mptcp.lab import Capture


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
