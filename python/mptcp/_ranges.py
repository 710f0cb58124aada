"""Checks of integer arguments."""

from __future__ import annotations


def check_range(value: object, what: str, lowest: int, highest: int) -> None:
    """Raise TypeError or ValueError, naming the argument, unless it is an int in the range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise ValueError(f"{what} must be from {lowest} to {highest}, not {value}")


def check_optional_range(value: object, what: str, lowest: int, highest: int) -> None:
    """Do the same for an argument that may be None: not given."""
    if value is not None:
        check_range(value, what, lowest, highest)
