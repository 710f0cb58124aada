"""The ends of connections and subflows: the type of an argument, and the text of one."""

from __future__ import annotations

from typing import Any, TypeAlias

Address: TypeAlias = "str | tuple[str, int] | tuple[str, int, int, int]"


def endpoint(address: tuple[Any, ...]) -> str:
    """Return an end as text: ADDRESS:PORT, or [ADDRESS]:PORT for IPv6."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
