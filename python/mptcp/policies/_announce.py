from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._policy import LocalAddress
from ._base import Base, is_over_loopback
from ._path import Path, PathName

if TYPE_CHECKING:
    from .._connection import Connection
    from .._core import Event, Subflow

_LOGGER = logging.getLogger("mptcp.policy")


class Announce(Base):
    """Tell the peer of accepted connections which further addresses it may join: for servers, by ADD_ADDR.

    Announces the local addresses on ``paths``, all of them without any, to the peer of every connection that it opened;
    not the connection's own, nor those of the other family. What the peer does with them is up to its path manager. An
    address that appears later is announced then; one that disappears, or whose interface goes down, is withdrawn, and
    the peer closes its subflows to it.

    The subflows are the peer's, and cannot be bound from this side. With ``bind`` True an address is announced only if
    packets from it to the peer leave by its own interface; otherwise one that does not is announced with a warning.
    """

    tick: float = 1.0

    def __init__(self, *paths: PathName, exclude: PathName | Iterable[PathName] = (), bind: bool | None = None) -> None:
        super().__init__(exclude=exclude, bind=bind)
        self.paths: tuple[Path, ...] = tuple(Path(name) for name in paths)
        # By token: the ids of what was announced, and what could not be.
        self._announced: dict[int, dict[LocalAddress, int]] = {}
        self._refused: dict[int, set[LocalAddress]] = {}
        self._misrouted: set[tuple[LocalAddress, str]] = set()

    def _look(self, conn: Connection) -> None:
        if conn.server_side is not True or is_over_loopback(self, conn):
            return
        there = self.addresses()
        announced = self._announced.setdefault(conn.token, {})
        refused = self._refused.setdefault(conn.token, set())
        for local in [local for local in announced if local not in there]:
            self._withdraw(conn, local, announced.pop(local))
        refused.intersection_update(there)
        for local in there:
            if self._is_to_announce(conn, local) and local not in announced and local not in refused:
                try:
                    announced[local] = conn.announce_address(local.address)
                except OSError as error:
                    if error.errno == errno.ENOTCONN:
                        return  # not fully established yet: at the next tick; or it has ended
                    refused.add(local)
                    _LOGGER.warning("Announce: %s cannot be announced: %s", local.address, error.strerror)

    def _is_to_announce(self, conn: Connection, local: LocalAddress) -> bool:
        if local.address == conn.local[0] or (":" in local.address) != (":" in conn.local[0]):
            return False
        if self.is_excluded(local) or not (not self.paths or any(local in path for path in self.paths)):
            return False
        if (local, conn.remote[0]) not in self._misrouted:
            if self.leaves_by_own_interface(local, conn.remote[0]):
                return True
            self._misrouted.add((local, conn.remote[0]))
            _LOGGER.warning(
                "Announce: what is sent from %s, an address of %s, to %s leaves by another interface%s",
                local.address,
                local.interface,
                conn.remote[0],
                ": it is not announced" if self.bind else "",
            )
        return not self.bind

    def _withdraw(self, conn: Connection, local: LocalAddress, address_id: int) -> None:
        try:
            conn.remove_address(address_id, force=True)
        except OSError as error:
            # Where the address itself is gone the kernel has withdrawn it, or the connection has ended.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENOTCONN, errno.ESRCH):
                _LOGGER.warning("Announce: %s cannot be withdrawn: %s", local.address, error.strerror)

    def _look_at_all(self) -> None:
        for conn in self.connections():
            self._look(conn)

    def on_connection(self, conn: Connection) -> None:
        self._look(conn)

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        if conn.server_side is True:
            self._look(conn)

    def on_link_up(self, event: Event) -> None:
        self._look_at_all()

    def on_link_down(self, event: Event) -> None:
        self._look_at_all()

    def on_address(self, event: Event) -> None:
        self._look_at_all()

    def on_closed(self, conn: Connection) -> None:
        self._announced.pop(conn.token, None)
        self._refused.pop(conn.token, None)
