from __future__ import annotations

from typing import TYPE_CHECKING

from .._policy import Policy

if TYPE_CHECKING:
    from .._connections import Connection


class NDiffPorts(Policy):
    """``n`` subflows between the two addresses of the connection, from different local ports."""

    def __init__(self, n: int = 2) -> None:
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an int, not {type(n).__name__}")
        if not 1 <= n <= 8:
            raise ValueError(f"n must be from 1 to 8, not {n}")
        self.n = n

    def on_connection(self, conn: Connection) -> None:
        if conn.server_side is not True:
            for _ in range(self.n - len(conn.subflows())):
                conn.open_subflow(conn.local[0])
