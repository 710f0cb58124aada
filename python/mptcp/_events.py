"""Streams of events: of a network namespace, or of one connection."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING

from . import _core
from ._core import Event
from ._ranges import check_optional_range

if TYPE_CHECKING:
    import asyncio

_LAST_TOKEN = 2**32 - 1


class Events:
    """The events of the calling thread's network namespace from now on, or of the connection with a token.

    Events that were on their way when it was made are told too.

    ::

        with mptcp.Events() as events:
            for event in events:
                print(event.kind, event.token)

    It is an iterator, which waits; an asynchronous iterator, for asyncio; and has a descriptor that select, poll, epoll
    and other event loops can wait on. Threads may share it: each event goes to one of them.

    Of one connection, by ``token`` or from Socket.events() and Connection.events(), there are the events that carry its
    token. After CLOSED they are over: iteration ends, get() returns None at once and the descriptor stays readable.

    However many there are, one native thread a network namespace and process reads the events. It subscribes to the
    multicast group mptcp_pm_events, which needs CAP_NET_ADMIN in the user namespace that owns the network namespace,
    and as long as somebody wants the events of a whole namespace to links and addresses by rtnetlink. Without the
    privilege ``source`` is "polling": the thread compares dumps of inet_diag, at intervals of 50 ms or of twenty
    times what a dump takes, and when a subflow dies (SKNLGRP_INET_TCP_DESTROY). CREATED, ESTABLISHED, CLOSED,
    SUB_ESTABLISHED, SUB_CLOSED and SUB_PRIORITY are told so, without ``error`` and ``reset_reason``, and what begins
    and ends between two dumps is not; links and addresses as ever.

    Events are queued for whoever does not take them: 16,384 here, and in the kernel what the socket's buffer holds.
    When more come, OVERRUN is in the place of those that were lost. What there is follows it, read back from the
    sockets, as the events by which it came about and with OVERRUN's own ``time_ns``, by which the end of it is told:
    of a namespace LINK_UP and ADDRESS_ADDED of what is up and there, and LISTENER_CREATED of each listener; of each
    connection CREATED, ESTABLISHED if it is, SUB_CLOSED if its initial subflow is gone, and SUB_ESTABLISHED of each
    further subflow; of one connection that has ended CLOSED. What is not told again is no more, but for addresses
    that peers have announced, which the kernel does not tell. Events after that may repeat what it has told already.

    A forked child has to make its own: its parent's raises OSError (EBADF).

    Raises OSError (ENOTCONN) for a token that no connection has, PermissionError without the privilege where the
    kernel is seen to tell nothing of the subflows that there are, TypeError and ValueError for what cannot be a token.
    """

    def __init__(self, *, token: int | None = None) -> None:
        check_optional_range(token, "a token", 0, _LAST_TOKEN)
        self._native = _core.EventStream(None, token)

    @classmethod
    def _of(cls, native: _core.EventStream) -> Events:
        events = cls.__new__(cls)
        events._native = native
        return events

    @property
    def source(self) -> str:
        """Where the events come from: "netlink", or "polling" without privilege."""
        return self._native.source

    def fileno(self) -> int:
        """A descriptor that is readable while there is an event to take, and once no more will come.

        It is level-triggered: wait until it is readable, then take events by get(0) until that returns None.
        """
        return self._native.fileno()

    def get(self, timeout: float | None = None) -> Event | None:
        """Take the next event, waiting for it ``timeout`` seconds: None waits without end, 0 not at all.

        Returns None when the time has passed, and at once when no more will come. Raises ValueError for an Events
        that is closed, or that another thread closes meanwhile.
        """
        return self._native.get(timeout, False)

    def close(self) -> None:
        """End it. Iterations that wait, in other threads too, end; a closed one may be closed again."""
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
    """Wait in asyncio for a descriptor, of which several tasks may wait and which may be closed meanwhile."""
    import asyncio  # here, as importing it takes longer than all of this package

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
    """Give a future its result, if it waits for one."""
    if not future.done():
        future.set_result(None)


Events.__module__ = "mptcp"
