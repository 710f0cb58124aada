"""Deferring SIGINT while something is created that an exception half-way would leak."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Run the handler of SIGINT, which usually raises KeyboardInterrupt, only at the end of the block.

    By then what the block created has an owner, which cleans up on the exception. Only the main thread runs signal
    handlers: in other threads this has no effect.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[-1])


def made(make: Callable[[], T], undo: Callable[[T], object]) -> T:
    """Return what ``make`` makes. If SIGINT came meanwhile, undo that and let its handler raise.

    The frames of the exception would hold what was made for as long as somebody holds the exception.
    """
    stack = contextlib.ExitStack()
    with stack:
        with put_off():
            result = make()
            stack.callback(undo, result)
        stack.pop_all()
    return result
