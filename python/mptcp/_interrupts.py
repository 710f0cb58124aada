"""Deferring SIGINT while something is created that an exception half-way would leak."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
