"""What is recorded or traced: connections by sockets or by tokens."""

from __future__ import annotations

from collections.abc import Iterable

from . import _core
from ._connection import Connection
from ._socket import Socket

Source = Socket | Connection


def check_sources(sources: object, verb: str) -> list[Source] | None:
    """Return the sources as a list, or None for the whole network namespace. ``verb`` is what is done with them."""
    if sources is None:
        return None
    if isinstance(sources, Socket | Connection):
        return [sources]
    if not isinstance(sources, Iterable) or isinstance(sources, str | bytes):
        raise TypeError(f"sources must be a Socket, a Connection, an iterable of them or None, not {sources!r}")
    found: list[Source] = []
    for source in sources:
        if not isinstance(source, Socket | Connection):
            raise TypeError(f"each source must be a Socket or a Connection, not {source!r}")
        found.append(source)
    if not found:
        raise ValueError(f"sources must not be empty: pass None to {verb} the whole network namespace")
    return found


def native(source: Source) -> int | _core.ByToken:
    """Return what the core takes for a source."""
    return source.fileno() if isinstance(source, Socket) else source._native
