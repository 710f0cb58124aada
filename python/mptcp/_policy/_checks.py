"""What is refused when policies start: callbacks that could never be called, or would always fail."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from typing import Any

from ._policy import Policy

CALLBACKS = tuple(name for name in vars(Policy) if name.startswith("on_"))

# What the runtime calls by name.
_CALLED = (*CALLBACKS, "allows")

# How much a name has to be like another to be a misspelling of it; "allow" is 0.91 like "allows".
_ALIKE = 0.85


def check(policies: tuple[Policy, ...]) -> None:
    """Refuse what is not a policy, one that runs already, and what check_callbacks() refuses."""
    if not policies:
        raise ValueError("run_policy() needs a policy")
    for policy in policies:
        if isinstance(policy, type) or not isinstance(policy, Policy):
            what = f"the class {policy.__name__}" if isinstance(policy, type) else type(policy).__name__
            raise TypeError(f"a policy must be an instance of a class derived from mptcp.Policy, not {what}")
        if policy._runtime is not None or policies.count(policy) > 1:
            raise ValueError(f"{policy!r} already runs: an instance cannot run twice at a time")
        check_callbacks(policy)
        for name in ("tick", "open_timeout", "rto_threshold"):
            _check_seconds(policy, name)


def check_callbacks(policy: Policy) -> None:
    """Refuse misspelt callbacks, callbacks that cannot be called as such, and coroutines. TypeError."""
    for name in _names(policy):
        meant = _misspelt(policy, name)
        if meant is not None:
            hint = f": {meant} is" if meant else ""
            raise TypeError(f"{type(policy).__name__}.{name} is not a callback of mptcp.Policy{hint}")
    for name in _CALLED:
        if name in vars(policy):
            raise TypeError(
                f"{type(policy).__name__}.{name} must be defined in the class: as an attribute of the instance it "
                "would not be called"
            )
        if getattr(type(policy), name) is not getattr(Policy, name):
            _check_callback(policy, name)


def _names(policy: Policy) -> Iterable[str]:
    """The names of callables that the user's own Policy classes define, and those of the instance."""
    for of in type(policy).__mro__:
        if issubclass(of, Policy) and not _is_ours(of):
            yield from (name for name, value in vars(of).items() if _is_callable(value))
    yield from (name for name, value in vars(policy).items() if callable(value))


def _is_callable(value: object) -> bool:
    return callable(value) or hasattr(value, "__func__")


def _misspelt(policy: Policy, name: str) -> str | None:
    """The callback that a name is likely to mean, "" for none in particular; None for a name of its own."""
    if name in _CALLED or name.startswith("_") or any(name in vars(of) for of in type(policy).__mro__ if _is_ours(of)):
        return None
    plain = name.lower().replace("_", "")
    for one in CALLBACKS if plain.startswith("on") else ("allows",):
        if difflib.SequenceMatcher(None, plain, one.replace("_", "")).ratio() >= _ALIKE:
            return one
    return "" if name.startswith("on_") else None


def _is_ours(cls: type) -> bool:
    return issubclass(cls, Policy) and cls.__module__.partition(".")[0] == "mptcp"


def _check_callback(policy: Policy, name: str) -> None:
    callback = getattr(policy, name)
    what = f"{type(policy).__name__}.{name}"
    if not callable(callback):
        raise TypeError(f"{what} must be a method, not {type(callback).__name__}")
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_of_kind(callback) for is_of_kind in kinds):
        raise TypeError(f"{what} must be a plain function: nothing would await or iterate what it returns")
    expected = list(inspect.signature(getattr(Policy, name)).parameters)[1:]
    try:
        inspect.signature(callback).bind(*expected)
    except TypeError:
        raise TypeError(f"{what}() must take ({', '.join(expected)})") from None
    except ValueError:
        pass  # a callable written in C that does not tell its signature


def _check_seconds(policy: Policy, name: str) -> None:
    seconds: Any = getattr(policy, name)
    what = f"{type(policy).__name__}.{name} must be a number of seconds above 0"
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what}, not {type(seconds).__name__}")
    if not seconds > 0 or math.isinf(seconds):
        raise ValueError(f"{what}, not {seconds}")
