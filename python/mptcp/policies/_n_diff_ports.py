from __future__ import annotations

from typing import TYPE_CHECKING

from .._policy import Policy
from .._ranges import check_range
from ._paths import is_over_loopback

if TYPE_CHECKING:
    from .._connection import Connection


class NDiffPorts(Policy):
    """Have ``n`` subflows, 1 to 8, between the two addresses of the connection, from different local ports.

    Raises TypeError and ValueError if ``n`` is not such a number.
    """

    def __init__(self, n: int = 2) -> None:
        check_range(n, "n", 1, 8)
        self.n = n

    def on_connection(self, conn: Connection) -> None:
        if conn.server_side is not True and not conn.deny_join_initial and not is_over_loopback(self, conn):
            for _ in range(self.n - len(conn.subflows())):
                conn.open_subflow(conn.local[0])
