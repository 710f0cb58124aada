"""Calling one policy: from a thread of its own, or from the runtime's where it is the only one."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable
from typing import Any

from ._connection import PolicyConnection
from ._journal import LOGGER, Journal
from ._policy import Policy

# What is done with the exception of a policy's method.
Reporter = Callable[[Policy, str, Exception], None]


def log(policy: Policy, method: str, error: Exception) -> None:
    # From the policy's own lines on, without those that called it.
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__package__") == __package__:
        trace = trace.tb_next
    told = (type(error), error, trace or error.__traceback__)
    LOGGER.error("%s.%s() failed", type(policy).__name__, method, exc_info=told)


class Callbacks:
    """Calls the methods of one policy, in order; on a bench from the caller's thread.

    Of several policies each has a thread. One alone is called by the runtime's own: waking another thread takes as long
    as the rest of what happens between an event and the decision.
    """

    def __init__(
        self,
        policy: Policy,
        has_ended: Callable[[PolicyConnection], bool],
        has_thread: bool,
        report: Reporter = log,
        journal: Journal | None = None,
    ) -> None:
        self.policy = policy
        self._has_ended = has_ended
        self._report_error = report
        self._journal = journal
        self._stopping = False
        # The methods that the policy overrides; others are never called.
        self._wanted = {name for name in vars(Policy) if getattr(type(policy), name) is not getattr(Policy, name)}
        # What is called next, in either way; None ends the thread. SimpleQueue is written in C: waking the thread by a
        # Condition takes twice as long.
        self._calls: collections.deque[tuple[str, tuple[Any, ...]]] = collections.deque()
        self._ticks: collections.deque[tuple[Any, ...]] = collections.deque()
        self._queue: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] | None = None
        self._thread: threading.Thread | None = None
        # Calls of on_tick() in the queue: set by who puts them while it is 0, and counted down by the thread alone.
        self._queued_ticks = 0
        if has_thread:
            self._queue = queue.SimpleQueue()
            name = f"mptcp-policy-{type(policy).__name__}"
            self._thread = threading.Thread(target=self._run, args=(self._queue,), name=name, daemon=True)

    def start(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def wants(self, method: str) -> bool:
        """Return whether the policy overrides a method; others are never called."""
        return method in self._wanted

    def put(self, method: str, *arguments: Any) -> None:
        if method not in self._wanted:
            return
        if self._queue is not None:
            self._queue.put((method, arguments))
        else:
            self._calls.append((method, arguments))

    def put_ticks(self, rounds: list[tuple[Any, ...]]) -> None:
        """Call on_tick() for each, unless the previous round is not over yet."""
        if self._queue is None:
            if not self._ticks:
                self._ticks.extend(rounds)
        elif self._queued_ticks == 0:
            self._queued_ticks = len(rounds)
            for arguments in rounds:
                self._queue.put(("on_tick", arguments))

    def call(self) -> bool:
        """Without a thread: make the calls so far, and one of on_tick(); return whether more of these are left."""
        while self._calls and not self._stopping:
            self._call(*self._calls.popleft())
        if self._ticks and not self._stopping:
            arguments = self._ticks.popleft()
            if not arguments[0].is_closed:
                self._call("on_tick", arguments)
        return bool(self._ticks)

    def stop(self, seconds: float) -> bool:
        """Make no more calls; return False if a running callback did not return in time."""
        self._stopping = True
        if self._queue is None or self._thread is None:
            return True
        self._queue.put(None)
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def call_queued(self) -> int:
        """Make the calls that wait, in the caller's thread; return how many they were."""
        count = 0
        if self._queue is None:
            while waiting := len(self._calls) + len(self._ticks):
                count += waiting
                self.call()
            return count
        while not self._queue.empty():
            if (call := self._queue.get()) is not None:
                self._queued_ticks -= call[0] == "on_tick"
                self._call(*call)
                count += 1
        return count

    def _run(self, calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None]) -> None:
        while (call := calls.get()) is not None and not self._stopping:
            self._queued_ticks -= call[0] == "on_tick"
            self._call(*call)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> None:
        if self._journal is not None:
            self._journal.calls(self.policy, method, arguments)
        try:
            getattr(self.policy, method)(*arguments)
        except Exception as error:
            self.failed(method, arguments, error)
        finally:
            if self._journal is not None:
                self._journal.returned()

    def failed(self, method: str, arguments: tuple[Any, ...], error: Exception) -> None:
        """A method that was called has raised an exception."""
        conn = arguments[0] if arguments else None
        if isinstance(error, OSError) and isinstance(conn, PolicyConnection) and self._has_ended(conn):
            return  # whatever it wanted of the connection is too late
        self._report_error(self.policy, method, error)
