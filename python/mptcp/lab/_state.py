"""What a lab's hosts and links know of their lab."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from mptcp.lab import _channel


class Closeable(Protocol):
    def close(self) -> None: ...


class State:
    """What the hosts and links of a lab share: the base class of :class:`mptcp.lab.Lab`."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.RLock()
        # Until there is something to close.
        self._closed = True
        self._own_user_namespace = False
        self._middle_client: _channel.Client | None = None
        # Held here, so that a program can be started and forgotten until the lab ends it.
        self._programs: list[subprocess.Popen[Any]] = []
        self._captures: weakref.WeakSet[Closeable] = weakref.WeakSet()

    @property
    def _middle(self) -> _channel.Client:
        """The middle of the links, which exists as soon as there is a link."""
        if self._middle_client is None:
            raise OSError(errno.EBADF, "this lab has no links")
        return self._middle_client

    def _arrange(self) -> None:
        """Tell the hosts what has changed about the links."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of a lab that is open."""
        # Before the lock: in a forked child, a thread that only the parent has may hold it.
        self._check_open()
        with self._lock:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "this lab is closed")
        if self._owner != os.getpid():
            raise OSError(
                errno.EBADF, "a lab cannot be used in a forked child of the process that created it: create another"
            )
