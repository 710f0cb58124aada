"""An open lab, as its hosts and links know it."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import weakref
from typing import Any, Protocol

from mptcp.lab import _channel


class Closeable(Protocol):
    def close(self) -> None: ...


class State:
    """What the hosts and links of a lab share. :class:`mptcp.lab.Lab` is one."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.RLock()
        # Until there is something to close.
        self._closed = True
        self._own_user_namespace = False
        self._middle_client: _channel.Client | None = None
        # Held here, so that a program may be started and left to itself until the lab ends it.
        self._programs: list[subprocess.Popen[Any]] = []
        self._captures: weakref.WeakSet[Closeable] = weakref.WeakSet()

    @property
    def _middle(self) -> _channel.Client:
        """The middle of the links. There is one as soon as there is a link."""
        if self._middle_client is None:
            raise OSError(errno.EBADF, "this lab has no links")
        return self._middle_client

    def _arrange(self) -> None:
        """Tell the hosts what has changed with the links."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "this lab is closed")
        if self._owner != os.getpid():
            raise OSError(errno.EBADF, "this lab belongs to the process that made it, not to its forked children")
