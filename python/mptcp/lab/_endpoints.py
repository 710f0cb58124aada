"""The in-kernel path manager and the packet scheduler of a lab's host: these methods of the class Host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mptcp import _core, _endpoints, _interrupts
from mptcp._endpoints import Endpoint, Limits


class InKernelPathManager:
    """The methods of Host for endpoints, limits and the packet scheduler."""

    def _in_namespace(self) -> contextlib.AbstractContextManager[int]:
        """Return a context that yields the descriptor of a socket of the host's network namespace."""
        raise NotImplementedError

    def _request(self, call: str, **arguments: Any) -> tuple[Any, list[int]]:
        raise NotImplementedError

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of this host, as mptcp.endpoints() does for the caller's namespace."""
        with self._in_namespace() as fd:
            return _endpoints.list_endpoints(fd)

    def add_endpoint(
        self,
        address: str,
        *,
        id: int | None = None,
        port: int | None = None,
        interface: str | None = None,
        subflow: bool = False,
        signal: bool = False,
        backup: bool = False,
        fullmesh: bool = False,
        laminar: bool = False,
    ) -> Endpoint:
        """Add an endpoint to this host, as mptcp.add_endpoint() does in the caller's namespace.

        Endpoints are for connections under the in-kernel path manager, so call ``set_path_manager("kernel")`` first.
        """
        flags = _endpoints.bits(subflow=subflow, signal=signal, backup=backup, fullmesh=fullmesh, laminar=laminar)
        with self._in_namespace() as fd:
            return _endpoints.add_to(fd, address, id, port, interface, flags)

    def change_endpoint(
        self, endpoint: Endpoint | int, *, backup: bool | None = None, fullmesh: bool | None = None
    ) -> Endpoint:
        """Change flags of an endpoint of this host, as mptcp.change_endpoint() does in the caller's namespace."""
        with self._in_namespace() as fd:
            return _endpoints.change_in(fd, endpoint, backup, fullmesh)

    def remove_endpoint(self, endpoint: Endpoint | int) -> None:
        """Remove an endpoint of this host, as mptcp.remove_endpoint() does in the caller's namespace."""
        with self._in_namespace() as fd:
            _endpoints.remove_from(fd, endpoint)

    def flush_endpoints(self) -> None:
        """Remove all endpoints of this host, as mptcp.flush_endpoints() does in the caller's namespace."""
        with self._in_namespace() as fd:
            _core.flush_endpoints(fd)

    def get_limits(self) -> Limits:
        """Return the limits of this host, as mptcp.get_limits() does for the caller's namespace."""
        with self._in_namespace() as fd:
            return Limits(*_core.get_limits(fd))

    def set_limits(self, *, subflows: int | None = None, add_addr_accepted: int | None = None) -> Limits:
        """Set limits of this host and return those before, as mptcp.set_limits() does in the caller's namespace."""
        with self._in_namespace() as fd:
            return _endpoints.set_limits_in(fd, subflows, add_addr_accepted)

    def get_scheduler(self) -> str:
        """Return the packet scheduler of this host, as mptcp.get_scheduler() does for the caller's namespace."""
        name: str = self._request("get_scheduler")[0]
        return name

    def set_scheduler(self, name: str) -> str:
        """Set the packet scheduler of this host, as mptcp.set_scheduler() does in the caller's namespace."""
        reply: dict[str, str] = self._request("set_scheduler", name=_core.check_scheduler(name))[0]
        if "refused" in reply:
            raise ValueError(reply["refused"])
        return reply["before"]

    def available_schedulers(self) -> list[str]:
        """Return the packet schedulers that the kernel has, as mptcp.available_schedulers() does."""
        names: list[str] = self._request("available_schedulers")[0]
        return names

    @contextlib.contextmanager
    def use_endpoints(
        self,
        *addresses: str | Endpoint,
        id: int | None = None,
        port: int | None = None,
        interface: str | None = None,
        subflow: bool = False,
        signal: bool = False,
        backup: bool = False,
        fullmesh: bool = False,
        laminar: bool = False,
    ) -> Iterator[list[Endpoint]]:
        """Have these endpoints too within the block, as mptcp.use_endpoints() does in the caller's namespace."""
        flags = _endpoints.bits(subflow=subflow, signal=signal, backup=backup, fullmesh=fullmesh, laminar=laminar)
        with (
            self._in_namespace() as fd,
            _endpoints.endpoints_in(fd, addresses, id, port, interface, flags) as added,
        ):
            yield added

    @contextlib.contextmanager
    def use_limits(self, *, subflows: int | None = None, add_addr_accepted: int | None = None) -> Iterator[Limits]:
        """Set limits within the block, as mptcp.use_limits() does in the caller's namespace."""
        with self._in_namespace() as fd, _endpoints.limits_in(fd, subflows, add_addr_accepted) as limits:
            yield limits

    @contextlib.contextmanager
    def use_scheduler(self, name: str) -> Iterator[None]:
        """Have new connections of this host get this packet scheduler within the block, as mptcp.use_scheduler()."""
        with contextlib.ExitStack() as stack:
            with _interrupts.put_off():
                stack.callback(self.set_scheduler, self.set_scheduler(name))
            yield
