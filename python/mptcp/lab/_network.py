"""Links, addresses, routes and queueing disciplines of one network namespace, by rtnetlink.

Runs in a host's process, inside its namespace. Loading pyroute2 takes longer than all the rest of starting a
lab, so the helper process loads this file once, before it forks the hosts.
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

from pyroute2.iproute.linux import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

# linux/if_addr.h: no duplicate address detection, and no route of the kernel's own making.
_IFA_F_NODAD = 0x02
_IFA_F_NOPREFIXROUTE = 0x200
# linux/rtnetlink.h
_RT_SCOPE_LINK = 253
_RT_TABLE_LOCAL = 255
_RTMGRP_LINK = 1
_RTMGRP_IPV6_ROUTE = 0x400
# linux/pkt_sched.h
_TC_H_ROOT = 0xFFFFFFFF
_NETEM_HANDLE = 0x10000  # 1:
_NETEM_CHILD = 0x10001  # 1:1
_TBF_HANDLE = 0x20000  # 2:
# linux/netdevice.h: as many as any packet has.
_GSO_MAX_SEGS = 65535

# Before the main table's rule (32766), after the local one's (0).
_RULE_PRIORITY = 1000

# The metric of a route that any other goes before.
_LAST_METRIC = 0xFFFFFFFF

_FRAME = 1514
# tbf makes up for a late timer only up to its burst: on a busy machine some milliseconds. And four frames
# keep a slow link from waiting for a timer at every one.
_BURST_SECONDS = 0.008
_BURST_FRAMES = 4
# netem drops what exceeds its limit. The queue of a link is tbf's; what netem holds is on its way.
_NETEM_LIMIT = 1_000_000

_USABLE_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """An address of an interface and that of the link's other end."""

    family: int
    local: str
    peer: str
    #: With its prefix length, as in "10.0.1.0/24".
    network: str


@dataclass
class _Interface:
    """What this host's end of a link is to have; the kernel forgets part of it when the link goes down."""

    name: str
    index: int
    addresses: list[Address]
    link_local: str | None
    table: int
    congestion_control: str | None = None
    # Addresses behind the other end, which the main table sends this way.
    remote: set[str] = field(default_factory=set)
    up: bool = False


@contextlib.contextmanager
def kernel_errors(what: str) -> Iterator[None]:
    """Turn pyroute2's error into an OSError that keeps the errno and says what was asked for."""
    try:
        yield
    except NetlinkError as error:
        # Its text is the kernel's extended acknowledgement where there is one.
        raise OSError(error.code, f"{what}: {error.args[1]}") from error


class Network:
    """The links of this namespace, as they are meant to be."""

    def __init__(self) -> None:
        self._route = IPRoute()
        self._interfaces: dict[str, _Interface] = {}
        with kernel_errors("lo"):
            self._route.link("set", index=socket.if_nametoindex("lo"), state="up")

    def add_pair(self, name: str, peer_pid: int) -> None:
        """Make a veth pair, one end here and the other in that process's namespace, both of this name and down."""
        with kernel_errors(f"veth {name}"):
            peer = {"ifname": name, "net_ns_pid": peer_pid}
            self._route.link("add", ifname=name, kind="veth", peer=peer)

    def remove(self, name: str) -> None:
        """Remove an interface, and with it the link's other end."""
        with kernel_errors(name):
            self._route.link("del", index=socket.if_nametoindex(name))
        self._interfaces.pop(name, None)

    def configure(self, name: str, addresses: list[Address], link_local: str | None, table: int) -> None:
        """Take charge of a new interface: its addresses, its table's number and the rules that lead to it."""
        interface = _Interface(name, socket.if_nametoindex(name), addresses, link_local, table)
        for address in addresses:
            with kernel_errors(f"rule from {address.local}"):
                self._route.rule(
                    "add",
                    family=address.family,
                    src=address.local,
                    src_len=_host_length(address.family),
                    table=table,
                    priority=_RULE_PRIORITY,
                )
                # When the link is down its routes are gone. What leaves by it must not leave by another then.
                self._route.route(
                    "add", family=address.family, dst="default", type="unreachable", table=table, priority=_LAST_METRIC
                )
        self._interfaces[name] = interface

    def up(self, name: str) -> None:
        """Take the interface up and give it what it had: addresses and routes."""
        interface = self._interfaces[name]
        with kernel_errors(name):
            self._route.link("set", index=interface.index, state="up")
        if interface.link_local is not None:
            # Neighbour discovery for forwarded packets speaks from a link-local address.
            self._put_address(interface, socket.AF_INET6, interface.link_local, 64, _IFA_F_NODAD)
        for address in interface.addresses:
            flags = _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE
            length = int(address.network.partition("/")[2])
            self._put_address(interface, address.family, address.local, length, flags)
        interface.up = True
        self._put_routes(interface)

    def down(self, name: str) -> None:
        """Take the interface down. The kernel drops its routes and its IPv6 addresses."""
        interface = self._interfaces[name]
        with kernel_errors(name):
            self._route.link("set", index=interface.index, state="down")
        interface.up = False

    def wait_until_usable(self, name: str) -> None:
        """Wait until packets pass, both ways: for the carrier, and for IPv6 addresses to be taken into service.

        The kernel does both by itself a little later, and tells by link and route events.
        """
        interface = self._interfaces[name]
        deadline = time.monotonic() + _USABLE_SECONDS
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as events:
            # Listening first and looking then, no change is missed.
            events.bind((0, _RTMGRP_LINK | _RTMGRP_IPV6_ROUTE))
            while not self._is_usable(interface):
                if not select.select([events], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(errno.ETIMEDOUT, f"{name} was not usable after {_USABLE_SECONDS:g} s")
                # The events themselves do not matter, nor that some may have been lost (ENOBUFS).
                with contextlib.suppress(OSError):
                    while True:
                        events.recv(1 << 16)

    def require_congestion_control(self, name: str) -> None:
        """Raise ENOENT if the kernel has no such congestion control and cannot load it."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as probe:
            try:
                probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except FileNotFoundError:
                text = f"the kernel has no congestion control {name!r}, or may not load it for us"
                raise OSError(errno.ENOENT, text) from None

    def set_congestion_control(self, name: str, congestion_control: str | None) -> None:
        """Name the congestion control of what leaves by this link's routes; None: the namespace's default."""
        interface = self._interfaces[name]
        interface.congestion_control = congestion_control
        self._put_routes(interface)

    def set_remote(self, remote: dict[str, list[str]]) -> None:
        """Say which addresses lie behind which interface; everything not named is taken out of the main table."""
        for interface in self._interfaces.values():
            wanted = set(remote.get(interface.name, ()))
            gone, interface.remote = interface.remote - wanted, wanted
            for destination in gone if interface.up else ():
                with kernel_errors(f"route to {destination}"):
                    self._route.route("del", **self._remote_route(interface, destination))
        # After all deletions: an address may have moved from one interface to another.
        for interface in self._interfaces.values():
            self._put_routes(interface)

    def require_netem(self) -> None:
        """Raise ENOSYS if this kernel has no netem. Tried on lo, which carries nothing of a lab's."""
        lo = socket.if_nametoindex("lo")
        try:
            self._route.tc("add", "netem", index=lo, handle=_NETEM_HANDLE, parent=_TC_H_ROOT, delay=0)
        except NetlinkError as error:
            raise OSError(
                errno.ENOSYS,
                "delay, loss and jitter need the kernel's sch_netem (CONFIG_NET_SCH_NETEM), which this one has "
                f"not, or may not load for us ({error.args[1]}); rate and queue do without",
            ) from error
        self._route.tc("del", index=lo, parent=_TC_H_ROOT)

    def shape(
        self,
        name: str,
        rate: int | None,
        queue: int,
        delay: float | None,
        jitter: float | None,
        loss: float | None,
    ) -> None:
        """Shape what leaves by this interface: bits a second, bytes of queue, seconds, a fraction; None is without.

        netem is the root and tbf its child, so that packets are first on their way for the delay and then
        queue for the rate: the queue is then tbf's alone, in bytes, whatever the delay.
        """
        index = self._interfaces[name].index
        burst = round(max((rate or 0) / 8 * _BURST_SECONDS, _BURST_FRAMES * _FRAME))
        netem = delay is not None or loss is not None
        kinds = {message.get_attr("TCA_KIND") for message in self._route.get_qdiscs(index=index) if message["handle"]}
        wanted = {kind for kind, there in (("netem", netem), ("tbf", rate is not None)) if there}
        with kernel_errors(f"shaping {name}"):
            # Changing parameters leaves the queued packets where they are; another structure loses them.
            command = "change"
            if kinds & {"netem", "tbf"} != wanted:
                if kinds & {"netem", "tbf"}:
                    self._route.tc("del", index=index, parent=_TC_H_ROOT)
                command = "add"
            if netem:
                self._route.tc(
                    command,
                    "netem",
                    index=index,
                    handle=_NETEM_HANDLE,
                    parent=_TC_H_ROOT,
                    delay=round((delay or 0.0) * 1e6),
                    jitter=round((jitter or 0.0) * 1e6),
                    loss=(loss or 0.0) * 100,
                    limit=_NETEM_LIMIT,
                )
            if rate is not None:
                self._route.tc(
                    command,
                    "tbf",
                    index=index,
                    handle=_TBF_HANDLE,
                    parent=_NETEM_CHILD if netem else _TC_H_ROOT,
                    rate=rate // 8,
                    burst=burst,
                    limit=max(queue, _FRAME),
                )
            # How many segments of TCP may come as one packet. One loss is to be one frame's. And tbf cuts up
            # what exceeds its burst, of which netem as its parent loses count in kernels before 6.13.
            segments = 1 if loss else burst // _FRAME if netem else _GSO_MAX_SEGS
            self._route.link("set", index=index, gso_max_segs=segments)

    def _is_usable(self, interface: _Interface) -> bool:
        with kernel_errors(interface.name):
            (link,) = self._route.link("get", index=interface.index)
            if link.get_attr("IFLA_OPERSTATE") != "UP":
                return False
            local = {
                route.get_attr("RTA_DST")
                for route in self._route.get_routes(family=socket.AF_INET6, table=_RT_TABLE_LOCAL)
                if route.get_attr("RTA_OIF") == interface.index
            }
        wanted = {address.local for address in interface.addresses if address.family == socket.AF_INET6}
        if interface.link_local is not None:
            wanted.add(interface.link_local)
        return {ipaddress.ip_address(address) for address in wanted} <= {
            ipaddress.ip_address(address) for address in local if address is not None
        }

    def _put_address(self, interface: _Interface, family: int, address: str, length: int, flags: int) -> None:
        with kernel_errors(f"address {address} on {interface.name}"):
            self._route.addr(
                "replace", index=interface.index, family=family, address=address, prefixlen=length, flags=flags
            )

    def _put_routes(self, interface: _Interface) -> None:
        """Put the interface's routes where they are not, and their congestion control in those that are."""
        if not interface.up:
            return
        for address in interface.addresses:
            to_link: dict[str, Any] = {"dst": address.network, "prefsrc": address.local}
            if address.family == socket.AF_INET:
                to_link["scope"] = _RT_SCOPE_LINK
            to_peer: dict[str, Any] = {"dst": "default", "gateway": address.peer, "prefsrc": address.local}
            for route in (to_link, {**to_link, "table": interface.table}, {**to_peer, "table": interface.table}):
                self._put_route(interface, {"family": address.family, "oif": interface.index, **route})
        for destination in sorted(interface.remote):
            self._put_route(interface, self._remote_route(interface, destination))

    def _put_route(self, interface: _Interface, route: dict[str, Any]) -> None:
        metrics = {}
        if interface.congestion_control is not None:
            metrics = {"metrics": {"cc_algo": interface.congestion_control}}
        with kernel_errors(f"route to {route['dst']} by {interface.name}"):
            self._route.route("replace", **route, **metrics)

    def _remote_route(self, interface: _Interface, destination: str) -> dict[str, Any]:
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        address = next(address for address in interface.addresses if address.family == family)
        return {
            "family": family,
            "dst": f"{destination}/{_host_length(family)}",
            "oif": interface.index,
            "gateway": address.peer,
            "prefsrc": address.local,
        }


def _host_length(family: int) -> int:
    return 32 if family == socket.AF_INET else 128
