from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._policy import LocalAddress
from .._ranges import check_range
from ._base import Base, is_over_loopback
from ._path import PathName

if TYPE_CHECKING:
    from .._connection import Connection

# As many as the in-kernel path manager allows (MPTCP_PM_ADDR_MAX), on either side of a connection.
_MOST = 8


class NDiffPorts(Base):
    """Have ``n`` subflows between the two addresses of the connection, from different local ports.

    ``n`` is from 1 to 8, the initial one included: 8 is the limit of Linux's own path manager, and a peer under that
    one, with its default limits, accepts 2 more than the initial subflow (``mptcp limits`` there raises it).

    Raises TypeError and ValueError if ``n`` is not such a number.
    """

    def __init__(self, n: int = 2, *, exclude: PathName | Iterable[PathName] = (), bind: bool | None = None) -> None:
        super().__init__(exclude=exclude, bind=bind)
        check_range(n, "n", 1, _MOST)
        self.n = n

    def on_connection(self, conn: Connection) -> None:
        if conn.server_side is not True and not conn.deny_join_initial and not is_over_loopback(self, conn):
            local = LocalAddress(conn.local[0], self.interface_of(conn.local[0]) or "")
            if not self.is_excluded(local):
                for _ in range(self.n - len(conn.subflows())):
                    self.open(conn, local)
