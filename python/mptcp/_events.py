"""Streams of events: of a network namespace, or of one connection."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING

from . import _core
from ._core import Event

if TYPE_CHECKING:
    import asyncio


class Events:
    """The events of the calling thread's network namespace from now on, or of the connection with a token.

    Where they come from the broker, those that were on the way from it when this was created are included.

    ::

        with mptcp.Events() as events:
            for event in events:
                print(event.kind, event.token)

    It is an iterator, which waits; an asynchronous iterator, for asyncio; and has a descriptor that select, poll, epoll
    and other event loops can wait on. Threads can share it: each event goes to one of them.

    With ``token``, or from Socket.events() and Connection.events(), there are only that connection's events. CLOSED is
    the last: iteration ends, get() returns None at once and the descriptor stays readable.

    One native thread for each network namespace of a process reads the events, however many streams there are. It
    subscribes to the multicast group mptcp_pm_events, which needs CAP_NET_ADMIN in the user namespace that owns the
    network namespace, and, for the events of a whole namespace, to links and addresses by rtnetlink. Without the
    privilege ``source`` is "polling": the thread compares dumps of inet_diag, every 50 ms or every twenty times what
    a dump takes, and whenever a subflow ends (SKNLGRP_INET_TCP_DESTROY). Polling reports CREATED, ESTABLISHED,
    CLOSED, SUB_ESTABLISHED, SUB_CLOSED and SUB_PRIORITY, without ``error`` and ``reset_reason``, and misses what
    begins and ends between two dumps. Links and addresses do not depend on the privilege.

    Events that are not taken are queued: 16,384 here, and in the kernel as many as the socket's buffer holds. When more
    arrive, OVERRUN takes the place of those that were lost. The current state follows, read from the kernel, as the
    events that would have led to it; they have the same ``time_ns`` as OVERRUN, and the first event with another ends
    them. For a namespace they are LINK_UP and ADDRESS_ADDED for each link that is up and each address, and
    LISTENER_CREATED for each listener. For each connection they are CREATED, ESTABLISHED if it is, SUB_CLOSED if its
    initial subflow is gone, and SUB_ESTABLISHED for each further subflow; for a single connection that has ended,
    CLOSED. What does not appear in them no longer exists, except addresses that peers have announced, which the kernel
    does not report. Later events may repeat what they have reported.

    A forked child cannot use its parent's, which raises OSError (EBADF): it must create its own.

    Raises OSError (ENOTCONN) for a token that no connection has, PermissionError without the privilege if the kernel
    evidently hides subflows that exist, TypeError and ValueError for what cannot be a token.
    """

    def __init__(self, *, token: int | None = None) -> None:
        self._native = _core.EventStream(None, token)

    @classmethod
    def _of(cls, native: _core.EventStream) -> Events:
        events = cls.__new__(cls)
        events._native = native
        return events

    @property
    def source(self) -> str:
        """Where the events come from: "netlink", or "polling" without the privilege."""
        return self._native.source

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is an event to take, and once no more will come.

        It is level-triggered: wait until it is readable, then call get(0) until that returns None.
        """
        return self._native.fileno()

    def get(self, timeout: float | None = None) -> Event | None:
        """Return the next event, waiting up to ``timeout`` seconds for it: None waits forever, 0 not at all.

        Returns None when the time has passed, and at once when no more events will come. Raises ValueError if this
        stream is closed, or another thread closes it meanwhile.
        """
        return self._native.get(timeout, False)

    def close(self) -> None:
        """End the stream. Iterations that wait end, also in other threads. Calling it again has no effect."""
        self._native.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        event = self._native.get(None, True)
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        while (event := self._native.get(0, True)) is None:
            if self._native.is_over():
                raise StopAsyncIteration
            await until_readable(self._native.fileno())
        return event


async def until_readable(fd: int, timeout: float | None = None) -> None:
    """Wait in asyncio for a descriptor, which several tasks may wait for and which may be closed meanwhile."""
    import asyncio  # here, because importing it takes longer than this whole package

    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    duplicate = os.dup(fd)
    timer = None if timeout is None else loop.call_later(timeout, finish, readable)
    try:
        loop.add_reader(duplicate, finish, readable)
        try:
            await readable
        finally:
            loop.remove_reader(duplicate)
    finally:
        os.close(duplicate)
        if timer is not None:
            timer.cancel()


def finish(future: asyncio.Future[None]) -> None:
    """Give a future its result, unless it has one or was cancelled."""
    if not future.done():
        future.set_result(None)


Events.__module__ = "mptcp"
