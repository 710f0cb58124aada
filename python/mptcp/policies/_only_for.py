from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._policy import LocalAddress
from ._base import is_over_loopback
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


_LOGGER = logging.getLogger("mptcp.policy")


class OnlyFor(PathPolicy):
    """Reserve a path for some connections: open a subflow on it for them, and let no policy open one for others.

    These are the connections of the ``programs`` (by name, as Connection.program), those whose local or remote port is
    in ``ports``, and those of the users in ``uids``; one match is enough.

    The name of another user's program can be read only with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. The first
    connection whose program cannot be read is logged as a warning, as ``programs`` cannot match it.
    """

    def __init__(
        self,
        path: PathName,
        *,
        programs: Iterable[str] = (),
        ports: Iterable[int] = (),
        uids: Iterable[int] = (),
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.path: Path = Path(path)
        self.programs: frozenset[str] = _set(programs, str)
        self.ports: frozenset[int] = _set(ports, int)
        self.uids: frozenset[int] = _set(uids, int)
        self._warned = False
        if not (self.programs or self.ports or self.uids):
            raise ValueError("OnlyFor() needs programs, ports or uids")

    def is_for(self, conn: Connection) -> bool:
        """Return whether the connection may use the path: whether its program, a port or its user is listed."""
        return (
            conn.uid in self.uids
            or not self.ports.isdisjoint((conn.local[1], conn.remote[1]))
            or (bool(self.programs) and self._program(conn) in self.programs)
        )

    def _program(self, conn: Connection) -> str | None:
        name = conn.program
        if name is None and conn.inode and not self._warned:
            self._warned = True
            _LOGGER.warning(
                "OnlyFor(programs=...) cannot read which program holds the connection %s -> %s of uid %s: that needs "
                "the same user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, in the same PID namespace",
                conn.local,
                conn.remote,
                conn.uid,
            )
        return name

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        is_free = local not in self.path or is_over_loopback(self, conn) or self.is_for(conn)
        return is_free and super().allows(conn, local, remote)

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        if self.is_for(conn):
            self.ensure(conn, subflows, opening, self.path)


_A = {str: "a str", int: "an int"}


def _set(values: Iterable[Any], kind: type) -> frozenset[Any]:
    if isinstance(values, (str, bytes)):
        raise TypeError(f"programs, ports and uids must be iterables, not {type(values).__name__}")
    found = frozenset(values)
    for value in found:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"each of programs, ports and uids must be {_A[kind]}, not {type(value).__name__}")
    return found
