from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._policy import LocalAddress
from ._paths import PathPolicy

if TYPE_CHECKING:
    from .._connections import Connection
    from .._core import Event, Subflow


class FullMesh(PathPolicy):
    """A subflow from every local address to every address of the peer, on the side that opened the connection.

    The peer's addresses are the connection's own and those that it announces. New interfaces are used as soon as
    they are there; a subflow that was lost or failed is opened again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._announced: dict[int, dict[int, tuple[Any, ...]]] = {}

    def wanted(self, conn: Connection, subflows: list[Subflow]) -> None:
        there = {(subflow.local[0], subflow.remote[0]) for subflow in subflows}
        there |= {(opening.local[0], opening.remote[0]) for opening in self.opening(conn)}
        remotes = [conn.remote[:2], *self._announced.get(conn.token, {}).values()]
        for local in self.addresses():
            for host, port in remotes:
                is_same_family = (":" in local.address) == (":" in host)
                if is_same_family and (local.address, host) not in there and self.may_try(conn, local):
                    conn.open_subflow(local.address, (host, port))

    def on_address_announced(self, conn: Connection, event: Event) -> None:
        if event.remote is not None and event.remote_id is not None:
            end = (event.remote[0], event.remote[1] or conn.remote[1])
            self._announced.setdefault(conn.token, {})[event.remote_id] = end
            self._look(conn)

    def on_address_removed(self, conn: Connection, event: Event) -> None:
        if event.remote_id is not None:
            self._announced.get(conn.token, {}).pop(event.remote_id, None)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._announced.pop(conn.token, None)
