"""What a path is, and what policies over paths have in common."""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from .._policy import LocalAddress, Policy

if TYPE_CHECKING:
    from .._connections import Connection
    from .._core import Event, Subflow
    from ..lab import Link

PathName: TypeAlias = "str | Link | ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress._BaseNetwork"

# Seconds before a path is tried again after a failure: the first time, and at most.
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0


class Path:
    """One path: which local addresses are on it."""

    def __init__(self, name: Any) -> None:
        self.name = name
        self._interface: str | None = None
        self._networks: list[Any] = []
        if isinstance(name, (str, ipaddress._BaseAddress, ipaddress._BaseNetwork)):
            try:
                self._networks = [ipaddress.ip_network(name)]
            except ValueError:
                if not isinstance(name, str) or "/" in name or not name:
                    raise ValueError(f"a network has no bits behind its prefix: {name!r}") from None
                self._interface = name
        elif hasattr(name, "hosts") and hasattr(name, "address"):
            self._networks = [ipaddress.ip_network(address) for host in name.hosts for address in name._addresses(host)]
        else:
            raise TypeError(f"a path is an interface, a local address, a network or a link of a lab, not {name!r}")

    def __repr__(self) -> str:
        return f"Path({self.name!r})"

    def __contains__(self, local: LocalAddress) -> bool:
        if self._interface is not None:
            return local.interface == self._interface
        try:
            address = ipaddress.ip_address(local.address)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


class PathPolicy(Policy):
    """A policy that has a subflow on some paths of every connection that was opened here.

    A subclass says which, in wanted(), and is asked again whenever something has changed. Opens that failed are
    tried again after a while.
    """

    def __init__(self) -> None:
        self._retries: dict[tuple[int, LocalAddress], tuple[float, float]] = {}

    def wanted(self, conn: Connection, subflows: list[Subflow]) -> None:
        """Open and close what the connection needs, by ensure() and conn.close_subflow()."""
        raise NotImplementedError

    def local_of(self, subflow: Subflow) -> LocalAddress:
        return LocalAddress(subflow.local[0], self.interface_of(subflow.local[0]) or "")

    def on_path(self, path: Path, subflows: list[Subflow]) -> list[Subflow]:
        return [subflow for subflow in subflows if self.local_of(subflow) in path]

    def is_up(self, subflow: Subflow) -> bool:
        """Whether its local address is on an interface that is up."""
        return subflow.local[0] in {local.address for local in self.addresses()}

    def addresses_on(self, path: Path, conn: Connection) -> list[LocalAddress]:
        """The local addresses of a path that are of the connection's family and were not tried in vain lately."""
        is_ipv6 = ":" in conn.remote[0]
        return [
            local
            for local in self.addresses()
            if local in path and (":" in local.address) == is_ipv6 and self.may_try(conn, local)
        ]

    def ensure(self, conn: Connection, subflows: list[Subflow], path: Path, *, backup: bool = False) -> bool:
        """Whether the path has a working subflow or one on its way; opens one where it has none."""
        if any(self.is_up(subflow) for subflow in self.on_path(path, subflows)):
            return True
        for local in self.addresses_on(path, conn):
            if not self.is_opening(conn, local):
                conn.open_subflow(local.address, backup=backup)
            return True
        return False

    def is_opening(self, conn: Connection, local: LocalAddress) -> bool:
        return any(opening.local[0] == local.address for opening in self.opening(conn))

    def may_try(self, conn: Connection, local: LocalAddress) -> bool:
        """Whether no subflow from there failed lately."""
        return self._retries.get((conn.token, local), (0.0, 0.0))[0] <= time.monotonic()

    # When to look again

    def _look(self, conn: Connection) -> None:
        if conn.server_side is not True:
            self.wanted(conn, conn.subflows())

    def _look_at_all(self) -> None:
        for conn in self.connections():
            try:
                self._look(conn)
            except OSError:
                continue  # it has ended

    def on_connection(self, conn: Connection) -> None:
        self._look(conn)

    def on_closed(self, conn: Connection) -> None:
        self._retries = {key: value for key, value in self._retries.items() if key[0] != conn.token}

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        self._retries.pop((conn.token, self.local_of(subflow)), None)
        self._look(conn)

    def on_subflow_failed(self, conn: Connection, event: Event) -> None:
        if event.local is not None:
            local = LocalAddress(event.local[0], self.interface_of(event.local[0]) or "")
            _, pause = self._retries.get((conn.token, local), (0.0, _FIRST_RETRY / 2))
            pause = min(2 * pause, _LAST_RETRY)
            self._retries[conn.token, local] = (time.monotonic() + pause, pause)
        self._look(conn)

    def on_subflow_lost(self, conn: Connection, event: Event) -> None:
        self._look(conn)

    def on_link_up(self, event: Event) -> None:
        self._look_at_all()

    def on_link_down(self, event: Event) -> None:
        self._look_at_all()

    def on_address(self, event: Event) -> None:
        self._look_at_all()

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        # What failed is tried again.
        if any(token == conn.token for token, _ in self._retries) and conn.server_side is not True:
            self.wanted(conn, subflows)
