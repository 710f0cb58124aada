"""What the runtime of policies has of the kernel: a network namespace, or in a test a bench that stands for one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .. import _connection, _core, _proc
from .._core import Event, Subflow


class Kernel(Protocol):
    """A network namespace, as the runtime sees it. Connections are known by their native companions and tokens."""

    def now(self) -> float:
        """Return the time in seconds."""

    @property
    def watcher(self) -> _core.Watcher | None:
        """What calls policies and opens subflows itself; None on a bench."""

    def report(
        self, timeout: float, owners: Mapping[int, Any], at_once: Mapping[str, Any], later: list[Any]
    ) -> tuple[Any, ...] | None:
        """Return the next report, as _core.Watcher.get() does."""

    def links(self) -> list[Event]:
        """Return LINK_UP and ADDRESS_ADDED of the links that are up and the addresses there are."""

    def close(self) -> None:
        """Give no more reports."""

    def stand_by(self) -> bool:
        """Wait until it is the calling thread's turn to take reports; return False if it is not needed."""

    def carries_out(self) -> bool:
        """Return whether the thread that takes reports carries out a command at this moment."""

    def has_interface(self, name: str) -> bool: ...
    def interface_of_route(self, local: str, remote: str) -> str | None: ...
    def check_subflow_options(self) -> None: ...

    def subflows_at(self, asked: list[Any], /) -> Sequence[Subflow | None]:
        """Return the subflows of these natives, with these owners and ends; None for each that does not exist."""

    def subflows_of(self, connections: Sequence[Any]) -> Sequence[Sequence[Subflow] | None]:
        """Return the subflows of each connection, by one reading; None for one that has ended."""

    # Commands. What is wrong in itself is raised, what fails afterwards a report with the number.

    def open(
        self,
        conn: Any,
        local: Any,
        remote: Any,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
        number: int,
    ) -> None: ...
    def close_subflow(self, conn: Any, subflow: Subflow, force: bool, number: int) -> None: ...
    def set_backup(self, conn: Any, subflow: Subflow, backup: bool, number: int) -> None: ...
    def when_lost(
        self, conn: Any, what: Any, local: Any, remote: Any, backup: bool, interface: str | None, number: int
    ) -> int | None:
        """Leave a standing order; return the number of one that it replaces."""

    def take_back(self, conn: Any, what: Any) -> int | None:
        """Take a standing order back; return its number."""

    def holders(self) -> Mapping[int, int]:
        """Return the process that holds each socket, by inode number."""

    def program(self, pid: int | None) -> str | None:
        """Return the name of a process."""


class NetworkNamespace:
    """The network namespace that the socket ``fd`` belongs to."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.watcher = watcher = _core.Watcher(fd)
        self.report = watcher.get
        self.links = watcher.links
        self.close = watcher.close
        self.stand_by = watcher.stand_by
        self.carries_out = watcher.carries_out
        self.subflows_at = _core.subflows_at
        self.open = watcher.open
        self.close_subflow = watcher.close_subflow
        self.set_backup = watcher.set_backup
        self.when_lost = watcher.when_lost
        self.take_back = watcher.take_back

    def now(self) -> float:
        return time.monotonic()

    def has_interface(self, name: str) -> bool:
        return _core.has_interface(self._fd, name)

    def interface_of_route(self, local: str, remote: str) -> str | None:
        return _core.interface_of_route(self._fd, local, remote)

    def check_subflow_options(self) -> None:
        _core.probe_subflow_options(self._fd)

    def subflows_of(self, connections: Sequence[Any]) -> Sequence[Sequence[Subflow] | None]:
        return _connection.subflows_of(list(connections))

    def holders(self) -> Mapping[int, int]:
        return _proc.holders()

    def program(self, pid: int | None) -> str | None:
        return _proc.program(pid)
