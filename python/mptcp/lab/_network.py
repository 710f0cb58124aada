"""Links, addresses and routes of one host, by rtnetlink. Runs in the host's process, inside its namespace.

The first host of a link routes by source: what comes from its address on the link takes the link, whatever its
destination, or does not leave at all. The second host routes by destination and keeps all its addresses whatever
link is down. So the link of a subflow is that of its address at the link's first host, in both directions.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mptcp.lab import _rtnetlink, _sysctls
from mptcp.lab._netlink import Netlink, Request

# linux/rtnetlink.h
_RTMGRP_LINK = 1
_RTMGRP_IPV6_ROUTE = 0x400

# Before the main table's rule (32766), after the local one's (0).
_RULE_PRIORITY = 1000
# The metric of a route that any other goes before.
_LAST_METRIC = 0xFFFFFFFF
# Routes to the other end's other addresses, in the order of the links, for when their own links are down.
_FALLBACK_METRIC = 1024

_USABLE_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """The addresses of a link in one family, as one of its hosts sees them."""

    family: int
    local: str
    #: Its prefix length.
    length: int
    peer: str
    #: What the link leads to directly.
    network: str
    #: Whether that goes for what has no source address yet, too: not if another link leads there first.
    in_main: bool


@dataclass(frozen=True)
class Member:
    """One of the equal interfaces of a link; mostly it has only one."""

    name: str
    index: int
    peer_mac: str


@dataclass
class _Link:
    """What this host's end of a link is to have; the kernel forgets part of it when the link goes down."""

    number: int
    members: list[Member]
    addresses: list[Address]
    is_first: bool
    link_local: tuple[str, str] | None
    table: int
    congestion_control: str | None = None
    # Addresses behind the other end, which the main table sends this way.
    remote: set[str] = field(default_factory=set)
    # Networks of other links to the same host, which it sends this way while those are down.
    fallback: list[str] = field(default_factory=list)
    up: bool = False

    @property
    def indexes(self) -> list[int]:
        return [member.index for member in self.members]

    @property
    def name(self) -> str:
        return self.members[0].name

    def address(self, family: int) -> Address:
        return next(address for address in self.addresses if address.family == family)

    def gateway(self, address: Address) -> str:
        """Return the other end as the next hop of routes. In IPv6 two links may share no other address than this."""
        return address.peer if self.link_local is None or address.family == socket.AF_INET else self.link_local[1]


class Network:
    """The links of this namespace, as they should be."""

    def __init__(self) -> None:
        self._netlink = Netlink(socket.NETLINK_ROUTE)
        self._links: dict[int, _Link] = {}
        self._loopback = socket.if_nametoindex("lo")
        self._netlink.do([_rtnetlink.set_link(self._loopback, "lo", up=True)])

    def attach(
        self,
        number: int,
        members: list[dict[str, Any]],
        addresses: list[dict[str, Any]],
        is_first: bool,
        link_local: list[str] | None,
        table: int,
        gso_max_segs: int,
        congestion_control: str | None,
    ) -> None:
        """Take charge of the new interfaces of a link, and bring them up."""
        link = _Link(
            number,
            [Member(index=socket.if_nametoindex(member["name"]), **member) for member in members],
            [Address(**address) for address in addresses],
            is_first,
            (link_local[0], link_local[1]) if link_local else None,
            table,
            congestion_control,
        )
        requests = [
            _rtnetlink.set_link(member.index, member.name, gso_max_segs=gso_max_segs) for member in link.members
        ]
        for address in link.addresses:
            host = _host_network(address.local)
            if is_first:
                # When the link is down its routes are gone. What leaves by it must not leave by another then.
                requests.append(_rtnetlink.add_rule(host, table, _RULE_PRIORITY))
                requests.append(_rtnetlink.put_unreachable(_everything(address.family), table, _LAST_METRIC))
            else:
                requests.append(_rtnetlink.keep_local(host, self._loopback))
                requests.append(_rtnetlink.put_unreachable(address.network, _rtnetlink.MAIN, _LAST_METRIC))
        self._netlink.do(requests)
        self._links[number] = link
        self.up(number)

    def detach(self, number: int) -> None:
        """Forget a link whose interfaces are gone or about to go. Its other settings are harmless without them."""
        self._links.pop(number, None)

    def up(self, number: int) -> None:
        """Bring a link up and restore its addresses, neighbours and routes."""
        link = self._links[number]
        requests = [_rtnetlink.set_link(member.index, member.name, up=True) for member in link.members]
        has_ipv6 = self._has_ipv6(link)
        for member in link.members:
            if has_ipv6 and link.link_local is not None:
                local, peer = link.link_local
                requests.append(_rtnetlink.put_address(member.index, socket.AF_INET6, local, 64))
                requests.append(_rtnetlink.put_neighbour(member.index, socket.AF_INET6, peer, member.peer_mac))
            for address in self._addresses(link):
                requests.append(_rtnetlink.put_address(member.index, address.family, address.local, address.length))
                # Known beforehand: a link's delay and loss are for what is sent over it, not for asking who is there.
                requests.append(_rtnetlink.put_neighbour(member.index, address.family, address.peer, member.peer_mac))
        link.up = True
        self._netlink.do([*requests, *self._routes(link)])

    def down(self, number: int) -> None:
        """Take a link down. The kernel drops its routes, its neighbours and its IPv6 addresses."""
        link = self._links[number]
        self._netlink.do([_rtnetlink.set_link(member.index, member.name, up=False) for member in link.members])
        link.up = False

    def wait_until_usable(self, number: int) -> None:
        """Wait until packets pass both ways: for the carrier, and for IPv6 addresses to become usable.

        The kernel does both itself a little later, and reports it by link and route events.
        """
        link = self._links[number]
        deadline = time.monotonic() + _USABLE_SECONDS
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as events:
            # Listening first and looking then, no change is missed.
            events.bind((0, _RTMGRP_LINK | _RTMGRP_IPV6_ROUTE))
            while not self._is_usable(link):
                if not select.select([events], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(errno.ETIMEDOUT, f"{link.name} was not usable after {_USABLE_SECONDS:g} s")
                # The events themselves do not matter, nor that some may have been lost (ENOBUFS).
                with contextlib.suppress(OSError):
                    while True:
                        events.recv(1 << 16)

    def set_gso_max_segs(self, number: int, segments: int) -> None:
        """Set how many TCP segments may leave by a link as one frame."""
        link = self._links[number]
        self._netlink.do(
            [_rtnetlink.set_link(member.index, member.name, gso_max_segs=segments) for member in link.members]
        )

    def set_mtu(self, number: int, mtu: int) -> None:
        """Say how many bytes the longest IP packet of a link has."""
        link = self._links[number]
        self._netlink.do([_rtnetlink.set_link(member.index, member.name, mtu=mtu) for member in link.members])

    def require_congestion_control(self, name: str) -> None:
        """Raise ENOENT if the kernel has no such congestion control and cannot load it."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as probe:
            try:
                probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except FileNotFoundError:
                text = f"the kernel has no congestion control {name!r}, or may not load it for us"
                raise OSError(errno.ENOENT, text) from None

    def set_congestion_control(self, number: int, congestion_control: str | None) -> None:
        """Set the congestion control of this link's routes; None is the namespace's default."""
        link = self._links[number]
        link.congestion_control = congestion_control
        self._netlink.do(list(self._routes(link)))

    def set_remote(self, remote: dict[str, list[str]], fallback: dict[str, list[str]]) -> None:
        """Set which addresses are behind which link, and which networks are while their own links are down.

        Addresses that are not named are taken out of the main table.
        """
        gone: list[Request] = []
        for link in self._links.values():
            wanted = set(remote.get(str(link.number), ()))
            if link.up:
                gone += [self._remote_route(link, destination, add=False) for destination in link.remote - wanted]
            link.remote, link.fallback = wanted, fallback.get(str(link.number), [])
        # All deletions first: an address may have moved from one link to another.
        for request in gone:
            # Those of IPv6 are gone, or were never there, where a sysctl switched it off.
            with contextlib.suppress(ProcessLookupError):
                self._netlink.do([request])
        self._netlink.do([route for link in self._links.values() for route in self._remote_routes(link)])

    def _has_ipv6(self, link: _Link) -> bool:
        """Return whether the link has IPv6: a sysctl may have switched it off."""
        return link.link_local is not None and all(
            _sysctls.read(f"net/ipv6/conf/{member.name}/disable_ipv6") == "0" for member in link.members
        )

    def _addresses(self, link: _Link) -> list[Address]:
        has_ipv6 = self._has_ipv6(link)
        return [address for address in link.addresses if has_ipv6 or address.family == socket.AF_INET]

    def _is_usable(self, link: _Link) -> bool:
        for member in link.members:
            ((_, answer),) = self._netlink.get(_rtnetlink.get_link(member.index, member.name))
            if not _rtnetlink.is_operational(answer):
                return False
        if link.link_local is None or not self._has_ipv6(link):
            return True
        wanted = {address.local for address in link.addresses if address.family == socket.AF_INET6}
        wanted.add(link.link_local[0])
        routes = self._netlink.get(_rtnetlink.get_local_routes(socket.AF_INET6), dump=True)
        local = {_rtnetlink.local_address(payload, socket.AF_INET6) for _, payload in routes}
        return all((member.index, address) in local for member in link.members for address in wanted)

    def _routes(self, link: _Link) -> Iterator[Request]:
        """Yield the requests that add a link's missing routes, and set the congestion control of the others."""
        if not link.up:
            return
        several = len(link.members) > 1
        for address in self._addresses(link):
            everything = _everything(address.family)
            common: dict[str, Any] = {
                "interfaces": link.indexes,
                "source": address.local,
                "congestion_control": link.congestion_control,
            }
            gateway = link.gateway(address)
            # Routes without a gateway cannot be equal-cost routes in IPv6.
            direct: dict[str, Any] = {"gateway": gateway} if several else {}
            if address.in_main:
                yield _rtnetlink.put_route(address.network, **common, **direct)
            if link.is_first:
                yield _rtnetlink.put_route(address.network, table=link.table, **common, **direct)
                yield _rtnetlink.put_route(everything, table=link.table, gateway=gateway, **common)
        yield from self._remote_routes(link)

    def _remote_routes(self, link: _Link) -> Iterator[Request]:
        if not link.up:
            return
        families = {address.family for address in self._addresses(link)}
        for destination in sorted(link.remote):
            if _family(destination) in families:
                yield self._remote_route(link, destination, add=True)
        for network in link.fallback:
            if _family(network) not in families:
                continue
            address = link.address(_family(network))
            yield _rtnetlink.put_route(
                network,
                link.indexes,
                address.local,
                gateway=link.gateway(address),
                metric=_FALLBACK_METRIC + link.number,
                congestion_control=link.congestion_control,
            )

    def _remote_route(self, link: _Link, destination: str, *, add: bool) -> Request:
        address = link.address(_family(destination))
        host = _host_network(destination)
        if not add:
            return _rtnetlink.delete_route(host, link.indexes, link.gateway(address))
        return _rtnetlink.put_route(
            host,
            link.indexes,
            address.local,
            gateway=link.gateway(address),
            congestion_control=link.congestion_control,
        )


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _everything(family: int) -> str:
    return "0.0.0.0/0" if family == socket.AF_INET else "::/0"


def _host_network(address: str) -> str:
    return str(ipaddress.ip_network(address))
