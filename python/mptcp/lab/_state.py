"""An open lab, as its hosts and links know it."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import weakref
from typing import Any, Protocol


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
        # Held here, so that a program may be started and left to itself until the lab ends it.
        self._programs: list[subprocess.Popen[Any]] = []
        self._captures: weakref.WeakSet[Closeable] = weakref.WeakSet()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "this lab is closed")
        if self._owner != os.getpid():
            raise OSError(errno.EBADF, "this lab belongs to the process that made it, not to its forked children")
