"""The thread that calls one policy."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from ._connection import PolicyConnection
from ._policy import Policy

LOGGER = logging.getLogger("mptcp.policy")


class Callbacks:
    """Calls the methods of one policy, in order, from a thread of its own."""

    def __init__(self, policy: Policy, has_ended: Callable[[PolicyConnection], bool]) -> None:
        self.policy = policy
        self._has_ended = has_ended
        # What is called next; None ends the thread. Written in C: waking the thread by a Condition takes twice as long.
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._stopping = False
        # Calls of on_tick() that are queued: set by who puts them while it is 0, and counted down by the thread alone.
        self._ticks = 0
        self._thread = threading.Thread(target=self._run, name=f"mptcp-policy-{type(policy).__name__}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wants(self, method: str) -> bool:
        """Return whether the policy overrides a method; others are never called."""
        return getattr(type(self.policy), method) is not getattr(Policy, method)

    def put(self, method: str, *arguments: Any) -> None:
        if self.wants(method):
            self._queue.put((method, arguments))

    def put_ticks(self, rounds: list[tuple[Any, ...]]) -> None:
        """Call on_tick() for each, unless the previous round is not over yet."""
        if self._ticks == 0:
            self._ticks = len(rounds)
            for arguments in rounds:
                self._queue.put(("on_tick", arguments))

    def stop(self, seconds: float) -> bool:
        """Make no more calls; return False if a running callback did not return in time."""
        self._stopping = True
        self._queue.put(None)
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None and not self._stopping:
            method, arguments = call
            self._ticks -= method == "on_tick"
            try:
                getattr(self.policy, method)(*arguments)
            except Exception as error:
                self._report(method, arguments, error)

    def _report(self, method: str, arguments: tuple[Any, ...], error: Exception) -> None:
        conn = arguments[0] if arguments else None
        if isinstance(error, OSError) and isinstance(conn, PolicyConnection) and self._has_ended(conn):
            return  # whatever it wanted of the connection is too late
        LOGGER.error("%s.%s() failed", type(self.policy).__name__, method, exc_info=error)
