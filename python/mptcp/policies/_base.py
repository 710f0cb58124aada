"""What every policy of this package has: paths that are never used, and subflows that are bound to their interface."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._errors import UnsupportedError
from .._policy import LocalAddress, Policy
from ._path import Path, PathName, paths, paths_in

if TYPE_CHECKING:
    from .._connection import Connection
    from .._policy._interface import Runtime

_LOGGER = logging.getLogger("mptcp.policy")


class Base(Policy):
    """Takes ``exclude`` and ``bind``, and opens subflows as they say.

    ``exclude`` is a path or several that are never used: no policy that runs beside opens a subflow on them either.
    ``bind`` True binds every subflow to the interface that has its local address, False none. None, the default, binds
    those on a path that was named by an interface. Where the packets of a subflow that is not bound leave by another
    interface than that of its local address, a warning is logged: routing by source address is missing.
    """

    def __init__(self, *, exclude: PathName | Iterable[PathName] = (), bind: bool | None = None) -> None:
        if bind is not None and not isinstance(bind, bool):
            raise TypeError(f"bind must be True, False or None, not {type(bind).__name__}")
        self.exclude: tuple[Path, ...] = paths(exclude)
        self.bind: bool | None = bind
        self._cannot_bind = False
        # Local and remote addresses whose route was checked.
        self._routes: set[tuple[str, str]] = set()

    def _check_place(self, runtime: Runtime) -> None:
        for path in paths_in(vars(self).values()):
            if not path._exists(runtime):
                raise ValueError(
                    f"{type(self).__name__}: path {path.name!r} does not exist: the network namespace has no such "
                    "interface or address"
                )

    def allows(self, conn: Connection, local: LocalAddress, remote: tuple[Any, ...] | None) -> bool:
        return not self.is_excluded(local) or is_over_loopback(self, conn)

    def is_excluded(self, local: LocalAddress) -> bool:
        """Return whether a local address is on a path that is never used."""
        return any(local in path for path in self.exclude)

    def open(
        self,
        conn: Connection,
        local: LocalAddress,
        remote: tuple[Any, ...] | None = None,
        *,
        backup: bool = False,
        path: Path | None = None,
    ) -> None:
        """Open a subflow from a local address, on a path if one is given, bound to its interface as ``bind`` says."""
        if self._is_bound(local, path):
            try:
                conn.open_subflow(local.address, remote, backup=backup, interface=local.interface, timeout=0)
                return
            except UnsupportedError as error:
                # Only known after the first one, since the kernel ignores what it does not know.
                self._cannot_bind = True
                what = "opens no subflows that are bound" if self.bind else "does not bind subflows"
                _LOGGER.warning("%s %s to interfaces: %s", type(self).__name__, what, error.strerror)
        if self._cannot_open:
            return
        conn.open_subflow(local.address, remote, backup=backup, timeout=0)
        self._warn_of_route(local, (remote or conn.remote)[0])

    @property
    def _cannot_open(self) -> bool:
        """Whether all subflows are to be bound, which the kernel cannot do."""
        return self._cannot_bind and self.bind is True

    def _is_bound(self, local: LocalAddress, path: Path | None) -> bool:
        """Return whether a subflow from a local address is bound to its interface."""
        is_named = path is not None and path.interface is not None
        return bool(local.interface) and not self._cannot_bind and bool(self.bind or (self.bind is None and is_named))

    def _warn_of_route(self, local: LocalAddress, remote: str) -> None:
        if local.interface and not self.leaves_by_own_interface(local, remote):
            _LOGGER.warning(
                "%s: what is sent from %s, an address of %s, to %s leaves by another interface: pass bind=True, or add "
                "a rule (ip rule add from %s table ...) and a route for this address",
                type(self).__name__,
                local.address,
                local.interface,
                remote,
                local.address,
            )

    def leaves_by_own_interface(self, local: LocalAddress, remote: str) -> bool:
        """Return whether packets from a local address leave by its interface; True where that was checked before."""
        if self._runtime is None or (local.address, remote) in self._routes:
            return True
        self._routes.add((local.address, remote))
        return self._runtime.interface_of_route(local.address, remote) in (None, local.interface)


def is_over_loopback(policy: Policy, conn: Connection) -> bool:
    """Return whether both ends of the connection are in this network namespace: no other path would help."""
    remote = conn.remote[0].partition("%")[0]
    return remote.startswith("127.") or remote == "::1" or policy.interface_of(remote) is not None
