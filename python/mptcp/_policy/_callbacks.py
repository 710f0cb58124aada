"""The thread that calls one policy."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from typing import Any

from ._connection import PolicyConnection
from ._policy import Policy

LOGGER = logging.getLogger("mptcp.policy")


class Callbacks:
    """Calls the methods of one policy, in order, by a thread of its own."""

    def __init__(self, policy: Policy, has_ended: Callable[[PolicyConnection], bool]) -> None:
        self.policy = policy
        self._has_ended = has_ended
        self._queue: collections.deque[tuple[str, tuple[Any, ...]]] = collections.deque()
        self._ready = threading.Condition()
        self._stopping = False
        self._ticks = 0
        self._thread = threading.Thread(target=self._run, name=f"mptcp-policy-{type(policy).__name__}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wants(self, method: str) -> bool:
        """Whether the policy overrides a method; what it does not is never called."""
        return getattr(type(self.policy), method) is not getattr(Policy, method)

    def put(self, method: str, *arguments: Any) -> None:
        if not self.wants(method):
            return
        with self._ready:
            self._queue.append((method, arguments))
            self._ready.notify()

    def put_ticks(self, rounds: list[tuple[Any, ...]]) -> None:
        """Calls on_tick() for each, unless the last round is not over yet."""
        with self._ready:
            if self._ticks == 0:
                self._ticks = len(rounds)
                self._queue.extend(("on_tick", arguments) for arguments in rounds)
                self._ready.notify()

    def stop(self, seconds: float) -> bool:
        """Calls no more; False if a callback that is running did not return in time."""
        with self._ready:
            self._stopping = True
            self._queue.clear()
            self._ready.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._stopping)
                if self._stopping:
                    return
                method, arguments = self._queue.popleft()
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
