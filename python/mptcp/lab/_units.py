"""Rates, traces, times, losses and queues as people write them."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from mptcp import _core

#: A rate: ``"20mbit"`` or a number of bits a second.
Rate = str | float
#: A time: ``"10ms"`` or a number of seconds.
Time = str | float
#: A queue: a time at the link's rate such as ``"100ms"``, packets such as ``"100p"``, or an int: bytes.
Queue = str | int


@dataclass(frozen=True)
class GilbertElliott:
    """Losses in bursts: a link is in a good or a bad state, and may change it at each frame.

    ``p`` is the probability of changing from good to bad, ``r`` from bad to good. ``loss_bad`` and ``loss_good`` are
    the fractions of frames that are lost in each state. All are from 0 to 1. In the long run the link is in the bad
    state for ``p / (p + r)`` of all frames, for ``1 / r`` frames at a time on average. Raises ValueError for values
    outside that range, TypeError for other types.
    """

    p: float
    r: float
    loss_bad: float = 1.0
    loss_good: float = 0.0

    def __post_init__(self) -> None:
        for name in ("p", "r", "loss_bad", "loss_good"):
            object.__setattr__(self, name, _fraction(getattr(self, name), name))


@dataclass(frozen=True)
class Trace:
    """A trace of the moments at which a link can send, in mahimahi's packet-delivery format."""

    path: str
    data: bytes
    native: Any

    def __repr__(self) -> str:
        return repr(self.path)


#: A loss: ``"0.1%"``, a fraction from 0 to 1, or a GilbertElliott.
Loss = str | float | GilbertElliott
#: The path of a trace.
TracePath = str | os.PathLike[str]

_NUMBER = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]*)?|-?\.[0-9]+)\s*([a-z%]*)\s*", re.IGNORECASE)
_PACKETS = re.compile(r"\s*(-?[0-9]+)\s*p\s*", re.IGNORECASE)
_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

# Below the lower end one frame takes over ten seconds; above the upper end nothing here can send.
_LOWEST_RATE, _HIGHEST_RATE = 10**3, 100 * 10**9
_LONGEST_TIME = 240.0
_LARGEST_QUEUE = 2**31 - 1
# An opportunity of 12 Gbit/s takes 8 bytes: this is minutes of it.
_LARGEST_TRACE = 1 << 28


def _split(value: object, what: str, example: str) -> tuple[float, str]:
    """Split ``"20mbit"`` into 20.0 and ``"mbit"``; a plain number has the unit ``""``."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{what} must be a string like {example} or a number, not {type(value).__name__}")
    if not isinstance(value, str):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError(f"{what} must be a finite number: this int is too large") from None
        if not math.isfinite(number):
            raise ValueError(f"{what} must be a finite number, not {value!r}")
        return number, ""
    match = _NUMBER.fullmatch(value)
    if match is None or not match[2]:
        raise ValueError(f"{what} must be a number with its unit, like {example}, not {value!r}")
    return float(match[1]), match[2].lower()


def _scaled(value: object, units: dict[str, float], what: str, example: str) -> float:
    number, unit = _split(value, what, example)
    if not unit:
        return number
    if unit not in units:
        raise ValueError(f"{what} {value!r} has an unknown unit: use one of {', '.join(units)}")
    return number * units[unit]


def parse_rate(value: Rate, what: str = "rate") -> int:
    """Return a rate in bits per second."""
    rate = _scaled(value, {**_RATE_UNITS}, what, '"20mbit"')
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise ValueError(f"{what} must be from 1kbit to 100gbit, not {value!r}")
    return round(rate)


def parse_time(value: Time, what: str) -> float:
    """Return a time in seconds."""
    seconds = _scaled(value, _TIME_UNITS, what, '"10ms"')
    if not 0 <= seconds <= _LONGEST_TIME:
        raise ValueError(f"{what} must be from 0 to {_LONGEST_TIME:g} seconds, not {value!r}")
    return seconds


def parse_loss(value: Loss, what: str = "loss") -> float | GilbertElliott | None:
    """Return a fraction from 0 to 1, or the model; None for a loss of 0."""
    return value if isinstance(value, GilbertElliott) else _fraction(value, what) or None


def _fraction(value: object, what: str) -> float:
    fraction = _scaled(value, {"%": 0.01}, what, '"0.1%"')
    if not 0 <= fraction <= 1:
        raise ValueError(f"{what} must be from 0% to 100% (0 to 1 as a number), not {value!r}")
    return fraction


def parse_queue(value: Queue, what: str = "queue") -> tuple[str, int]:
    """Return ``"ns"``, ``"packets"`` or ``"bytes"``, and how many."""
    if isinstance(value, float):
        raise TypeError(f'{what} must be a time like "100ms", packets like "100p" or an int of bytes, not a float')
    if isinstance(value, int) and not isinstance(value, bool):
        number, unit = value, "bytes"
    elif isinstance(value, str) and (match := _PACKETS.fullmatch(value)):
        number, unit = int(match[1]), "packets"
    else:
        number, unit = round(parse_time(value, what) * 1e9), "ns"
        if not number:
            raise ValueError(f"{what} must be longer than 0 seconds")
        return unit, number
    if not 0 < number <= _LARGEST_QUEUE:
        raise ValueError(f"{what} must be from 1 to {_LARGEST_QUEUE} {unit}, not {value!r}")
    return unit, number


def parse_aqm(value: str) -> str:
    """Return the name of an active queue management."""
    if not isinstance(value, str):
        raise TypeError(f'aqm must be "codel" or None, not {type(value).__name__}')
    if value != "codel":
        raise ValueError(f'aqm must be "codel" or None, not {value!r}')
    return value


def parse_trace(value: TracePath) -> Trace:
    """Read a trace. Raises ValueError, naming file and line, for what is not one, and OSError."""
    if isinstance(value, Trace):
        return value
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"trace must be the path of a file, not {type(value).__name__}")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"trace must be the path of a file as a str, not {type(path).__name__}")
    with open(path, "rb") as file:
        data = file.read(_LARGEST_TRACE + 1)
    if len(data) > _LARGEST_TRACE:
        raise ValueError(f"trace {path!r} is larger than {_LARGEST_TRACE >> 20} MiB")
    try:
        return Trace(path, data, _core.LinkTrace(data))
    except ValueError as error:
        raise ValueError(f"trace {path!r}: {error}") from None
