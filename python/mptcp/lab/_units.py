"""Rates, times, losses and queues as people write them, checked before anything is asked of the kernel."""

from __future__ import annotations

import math
import re

#: A rate: ``"20mbit"`` or a number of bits a second.
Rate = str | float
#: A time: ``"10ms"`` or a number of seconds.
Time = str | float
#: A loss: ``"0.1%"`` or a fraction from 0 to 1.
Loss = str | float
#: A queue: a time at the link's rate such as ``"100ms"``, or an int: bytes.
Queue = str | int

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z%]*)\s*", re.IGNORECASE)
_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

# tbf keeps its rate in bytes a second in 32 bits; below the lower end one frame takes over ten seconds.
_LOWEST_RATE, _HIGHEST_RATE = 10**3, 32 * 10**9
# netem keeps its times in 64 ns ticks in 32 bits: 274 seconds.
_LONGEST_TIME = 240.0
_LARGEST_QUEUE = 2**31 - 1


def _split(value: object, what: str, example: str) -> tuple[float, str]:
    """Split ``"20mbit"`` into 20.0 and ``"mbit"``; a plain number has the unit ``""``."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{what} must be a string like {example} or a number, not {type(value).__name__}")
    if not isinstance(value, str):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError(f"{what} is too large an int") from None
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
    """Return bits a second."""
    rate = _scaled(value, {**_RATE_UNITS}, what, '"20mbit"')
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise ValueError(f"{what} must be from 1kbit to 32gbit, not {value!r}")
    return round(rate)


def parse_time(value: Time, what: str) -> float:
    """Return seconds."""
    seconds = _scaled(value, _TIME_UNITS, what, '"10ms"')
    if not 0 <= seconds <= _LONGEST_TIME:
        raise ValueError(f"{what} must be from 0 to {_LONGEST_TIME:g} seconds, not {value!r}")
    return seconds


def parse_loss(value: Loss, what: str = "loss") -> float:
    """Return a fraction from 0 to 1."""
    fraction = _scaled(value, {"%": 0.01}, what, '"0.1%"')
    if not 0 <= fraction <= 1:
        raise ValueError(f"{what} must be from 0% to 100% (0 to 1 as a number), not {value!r}")
    return fraction


def parse_queue(value: Queue, what: str = "queue") -> float | int:
    """Return seconds as a float, or bytes as an int."""
    if isinstance(value, float):
        raise TypeError(f'{what} must be a time like "100ms" or an int, a number of bytes, not a float')
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 < value <= _LARGEST_QUEUE:
            raise ValueError(f"{what} must be from 1 to {_LARGEST_QUEUE} bytes, not {value!r}")
        return value
    seconds = parse_time(value, what)
    if not seconds:
        raise ValueError(f"{what} must be longer than 0 seconds")
    return seconds
