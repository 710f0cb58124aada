from __future__ import annotations

from typing import TYPE_CHECKING

from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


class FullMesh(PathPolicy):
    """Open a subflow from every local address to every address of the peer, on the side that opened the connection.

    The peer's addresses are the connection's own and those that it announces. New interfaces are used as soon as
    they are up; a subflow that was lost or that failed is opened again.
    """

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        there = {(subflow.local[0], subflow.remote[0]) for subflow in subflows}
        for subflow in subflows:
            self.keep(conn, subflow)
        there |= {(one.local[0], one.remote[0]) for one in opening}
        for local in self.addresses():
            if self.is_excluded(local):
                continue
            for remote in self.remotes(conn, local):
                if (local.address, remote[0]) not in there and self.may_try(conn, local):
                    self.open(conn, local, remote)
