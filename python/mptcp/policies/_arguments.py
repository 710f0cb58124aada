"""Checks of the policies' arguments."""

from __future__ import annotations

from typing import Any


def number(name: str, value: Any) -> float:
    """Return a number of 0 or more, infinity included. Raises TypeError and ValueError with the argument's name."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not value >= 0:  # nor is NaN
        raise ValueError(f"{name} must be a number of 0 or more, not {value}")
    return value


def positive(name: str, value: Any) -> float:
    """Return a number above 0, infinity included. Raises TypeError and ValueError with the argument's name."""
    if number(name, value) == 0:
        raise ValueError(f"{name} must be a number above 0, not {value}")
    return number(name, value)
