"""How the end of a connection or subflow is given and written."""

from __future__ import annotations

from typing import Any, TypeAlias

Address: TypeAlias = "str | tuple[str, int] | tuple[str, int, int, int]"


def endpoint(address: tuple[Any, ...]) -> str:
    """An end's address and port, as they are written."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
