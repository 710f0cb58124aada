"""What the policies' arguments have to be."""

from __future__ import annotations

from typing import Any


def number(name: str, value: Any) -> float:
    """A number of 0 or more, infinity too. Raises TypeError and ValueError with the argument's name."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, not {type(value).__name__}")
    if not value >= 0:  # nor is NaN
        raise ValueError(f"{name} is a number of 0 or more, not {value}")
    return value
