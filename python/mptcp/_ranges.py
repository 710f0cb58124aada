"""What integers may be as arguments."""

from __future__ import annotations


def check_range(value: object, what: str, lowest: int, highest: int) -> None:
    """Raise TypeError or ValueError, which say what it is, unless it is an int in the range or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise ValueError(f"{what} must be from {lowest} to {highest}, not {value}")
