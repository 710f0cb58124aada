"""Paths: what a policy's arguments name, and which local addresses and subflows are on them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .._policy import LocalAddress

if TYPE_CHECKING:
    from .._core import Subflow
    from .._policy._interface import Runtime


class Link(Protocol):
    """A link of a lab, as a path: the hosts at its ends, and the addresses that each has there."""

    @property
    def hosts(self) -> tuple[Any, Any]: ...
    def address(self, host: Any) -> str: ...
    def _addresses(self, host: Any) -> list[str]: ...


Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network
PathName: TypeAlias = "str | Ip | Link"


class Path:
    """One path: the local addresses of an interface, one local address, a network, or a link of a lab.

    ``name`` is what it was created with. ``local in path`` tells whether a LocalAddress is on the path.

    Raises TypeError and ValueError for what cannot be a path. Whether the path exists is checked when a policy that has
    it starts.
    """

    def __init__(self, name: PathName) -> None:
        self.name = name
        self._interface: str | None = None
        self._networks: list[Any] = []
        # Of a link, its first host's addresses: a subflow that has one of them, at either end, is on the link.
        self._first: list[Any] = []
        if isinstance(name, str | Ip):
            try:
                self._networks = [ipaddress.ip_network(name)]
            except ValueError:
                if not isinstance(name, str) or "/" in name or not name:
                    raise ValueError(f"a network must have no bits set behind its prefix: {name!r}") from None
                self._interface = name
        elif hasattr(name, "hosts") and hasattr(name, "address"):
            self._networks = [ipaddress.ip_network(address) for host in name.hosts for address in name._addresses(host)]
            self._first = [ipaddress.ip_address(address) for address in name._addresses(name.hosts[0])]
        else:
            kind = type(name).__name__
            raise TypeError(f"a path must be an interface, a local address, a network or a link of a lab, not {kind}")

    def __repr__(self) -> str:
        return f"Path({self.name!r})"

    @property
    def interface(self) -> str | None:
        """The interface that the path was named by; None for a path that was named in another way."""
        return self._interface

    def _exists(self, runtime: Runtime) -> bool:
        """Return whether the network namespace has the interface, or an address on the path, up or down."""
        if self._interface is not None:
            return runtime.has_interface(self._interface)
        return any(local in self for local in runtime.known_addresses())

    def __contains__(self, local: LocalAddress) -> bool:
        if self._interface is not None:
            return local.interface == self._interface
        try:
            address = ipaddress.ip_address(local.address)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def carries(self, subflow: Subflow, local: LocalAddress) -> bool:
        """Return whether a subflow is on the path, where ``local`` is its local address with the interface.

        It is if its local address is; on a link of a lab, if it has an address of the link's first host at either end.
        """
        if not self._first:
            return local in self
        ends = [ipaddress.ip_address(end[0].partition("%")[0]) for end in (subflow.local, subflow.remote)]
        # An IPv4 subflow of an IPv6 socket has IPv4-mapped addresses.
        return any((getattr(end, "ipv4_mapped", None) or end) in self._first for end in ends)


def paths(names: Any) -> tuple[Path, ...]:
    """Return the paths that an argument names: one, or an iterable of several. TypeError for anything else."""
    if isinstance(names, str | Ip) or hasattr(names, "hosts"):
        return (Path(names),)
    if not isinstance(names, Iterable):
        raise TypeError(f"exclude must be a path or an iterable of paths, not {type(names).__name__}")
    return tuple(Path(name) for name in names)


def paths_in(values: Iterable[Any]) -> Iterator[Path]:
    """Return the paths among the attributes of a policy, those in lists and mappings too."""
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, list | tuple | Mapping):
            yield from paths_in(value)
