"""The requests of rtnetlink that a lab makes: links, addresses, neighbours, routes, rules and redirections."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence

from mptcp.lab._netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request, attribute, attributes, nested

# linux/rtnetlink.h
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR = 20
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH = 28
_NEWRULE = 32
_NEWQDISC = 36
_NEWTFILTER, _DELTFILTER = 44, 45

# linux/if_link.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE = 1, 3, 4, 16
_IFLA_LINKINFO, _IFLA_NET_NS_PID, _IFLA_STATS64, _IFLA_GSO_MAX_SEGS = 18, 19, 23, 40
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IF_OPER_UP = 6
_IFF_UP = 1

# linux/if_addr.h: no duplicate address detection, and no route of the kernel's own making.
_IFA_LOCAL, _IFA_ADDRESS, _IFA_FLAGS = 2, 1, 8
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE, _RTAX_CC_ALGO = 8, 9, 15, 16
_RTN_UNICAST, _RTN_LOCAL, _RTN_UNREACHABLE = 1, 2, 7
_RTPROT_STATIC = 4
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_HOST = 0, 253, 254
MAIN, LOCAL = 254, 255
_RTNH_F_ONLINK = 4

# linux/neighbour.h
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80

# linux/fib_rules.h
_FRA_SRC, _FRA_PRIORITY, _FRA_TABLE, _FR_ACT_TO_TBL = 2, 6, 15, 1

# linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h
_TC_H_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT, _TC_U32_TERMINAL = 5, 7, 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS = 1, 2, 2
_TC_ACT_STOLEN, _TCA_EGRESS_REDIR = 4, 1
_FILTER_INFO = 1 << 16 | socket.htons(3)  # priority 1, ETH_P_ALL

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_TC = struct.Struct("=BxxxiIII")
_U32_SELECTOR = struct.Struct("=BBBxHHhhI")
_U32_KEY = struct.Struct("=IIii")
_MIRRED = struct.Struct("=IIiiiiI")
_STATS64 = struct.Struct("=4Q")  # packets received, sent; bytes received, sent


def add_veth(name: str, mtu: int, *, peer: str, peer_mac: str, peer_pid: int) -> Request:
    """A veth pair, one end here and the other in the network namespace of a process, both down."""
    return Request(
        _NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(_IFLA_IFNAME, name)
        + attribute(_IFLA_MTU, mtu)
        + nested(
            _IFLA_LINKINFO,
            attribute(_IFLA_INFO_KIND, "veth"),
            nested(
                _IFLA_INFO_DATA,
                attribute(
                    _VETH_INFO_PEER,
                    _LINK.pack(0, 0, 0, 0, 0)
                    + attribute(_IFLA_IFNAME, peer)
                    + attribute(_IFLA_ADDRESS, _mac(peer_mac))
                    + attribute(_IFLA_MTU, mtu)
                    + attribute(_IFLA_NET_NS_PID, peer_pid),
                ),
            ),
        ),
        f"veth {peer}",
    )


def delete_link(index: int, name: str) -> Request:
    return Request(_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0), f"removing {name}")


def set_link(
    index: int, name: str, *, up: bool | None = None, mtu: int | None = None, gso_max_segs: int | None = None
) -> Request:
    payload = _LINK.pack(0, 0, index, _IFF_UP if up else 0, _IFF_UP if up is not None else 0)
    if mtu is not None:
        payload += attribute(_IFLA_MTU, mtu)
    if gso_max_segs is not None:
        payload += attribute(_IFLA_GSO_MAX_SEGS, gso_max_segs)
    return Request(_NEWLINK, 0, payload, f"setting {name}")


def get_link(index: int, name: str) -> Request:
    return Request(_GETLINK, 0, _LINK.pack(0, 0, index, 0, 0), name)


def is_operational(payload: bytes) -> bool:
    """Return whether a reply to get_link() says that packets pass."""
    return attributes(payload[_LINK.size :]).get(_IFLA_OPERSTATE) == bytes([_IF_OPER_UP])


def mtu(payload: bytes) -> int:
    """Return the MTU in an answer to get_link()."""
    (found,) = struct.unpack("=I", attributes(payload[_LINK.size :])[_IFLA_MTU])
    return int(found)


def received(payload: bytes) -> tuple[int, int]:
    """Return how many packets and bytes an interface has received, from an answer to get_link()."""
    packets, _, size, _ = _STATS64.unpack_from(attributes(payload[_LINK.size :])[_IFLA_STATS64])
    return packets, size


def put_address(index: int, family: int, address: str, length: int) -> Request:
    packed = socket.inet_pton(family, address)
    return Request(
        _NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        _ADDRESS.pack(family, length, 0, 0, index)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
        + attribute(_IFA_FLAGS, _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE),
        f"address {address}",
    )


def put_neighbour(index: int, family: int, address: str, mac: str) -> Request:
    return Request(
        _NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        _NEIGHBOUR.pack(family, index, _NUD_PERMANENT, 0, 0)
        + attribute(_NDA_DST, socket.inet_pton(family, address))
        + attribute(_NDA_LLADDR, _mac(mac)),
        f"neighbour {address}",
    )


def put_route(
    destination: str,
    interfaces: Sequence[int],
    source: str,
    *,
    gateway: str | None = None,
    table: int = MAIN,
    metric: int = 0,
    congestion_control: str | None = None,
) -> Request:
    """A route by one or several interfaces, in place of one to the same destination with the same metric."""
    return _route(
        _NEWROUTE,
        NLM_F_CREATE | NLM_F_REPLACE,
        destination,
        interfaces,
        gateway,
        table,
        metric,
        source,
        congestion_control,
    )


def delete_route(destination: str, interfaces: Sequence[int], gateway: str | None) -> Request:
    return _route(_DELROUTE, 0, destination, interfaces, gateway, MAIN, 0, None, None)


def _route(
    kind: int,
    flags: int,
    destination: str,
    interfaces: Sequence[int],
    gateway: str | None,
    table: int,
    metric: int,
    source: str | None,
    congestion_control: str | None,
) -> Request:
    network = ipaddress.ip_network(destination)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    scope = _RT_SCOPE_LINK if family == socket.AF_INET and gateway is None else _RT_SCOPE_UNIVERSE
    hop_flags = 0 if gateway is None else _RTNH_F_ONLINK
    via = b"" if gateway is None else attribute(_RTA_GATEWAY, socket.inet_pton(family, gateway))
    several = len(interfaces) > 1
    payload = _ROUTE.pack(
        family,
        network.prefixlen,
        0,
        0,
        table if table < 256 else 0,
        _RTPROT_STATIC,
        scope,
        _RTN_UNICAST,
        0 if several else hop_flags,
    )
    payload += _destination(network) + attribute(_RTA_TABLE, table)
    if several:
        hops = (_NEXT_HOP.pack(_NEXT_HOP.size + len(via), hop_flags, 0, index) + via for index in interfaces)
        payload += attribute(_RTA_MULTIPATH, b"".join(hops))
    else:
        payload += attribute(_RTA_OIF, interfaces[0]) + via
    if metric:
        payload += attribute(_RTA_PRIORITY, metric)
    if source is not None:
        payload += attribute(_RTA_PREFSRC, socket.inet_pton(family, source))
    if congestion_control is not None:
        payload += nested(_RTA_METRICS, attribute(_RTAX_CC_ALGO, congestion_control))
    return Request(kind, flags, payload, f"route to {destination}")


def put_unreachable(destination: str, table: int, metric: int) -> Request:
    """A route that rejects packets that match no other route of the table."""
    network = ipaddress.ip_network(destination)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    payload = _ROUTE.pack(family, network.prefixlen, 0, 0, 0, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNREACHABLE, 0)
    payload += _destination(network) + attribute(_RTA_TABLE, table) + attribute(_RTA_PRIORITY, metric)
    return Request(_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, payload, f"no route to {destination}")


def keep_local(address: str, loopback: int) -> Request:
    """An entry of the local table that keeps an address this host's own while its interface is down."""
    network = ipaddress.ip_network(address)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    payload = _ROUTE.pack(family, network.prefixlen, 0, 0, LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    payload += _destination(network) + attribute(_RTA_OIF, loopback)
    return Request(_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, payload, f"local route to {address}")


def get_local_routes(family: int) -> Request:
    return Request(_GETROUTE, 0, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "local routes")


def local_address(payload: bytes, family: int) -> tuple[int, str] | None:
    """Return the interface and the address of an answer to get_local_routes() that is a local one's."""
    _, length, _, _, table, _, _, _, _ = _ROUTE.unpack_from(payload)
    found = attributes(payload[_ROUTE.size :])
    size = 4 if family == socket.AF_INET else 16
    if table != LOCAL or length != 8 * size or _RTA_OIF not in found or len(found.get(_RTA_DST, b"")) != size:
        return None
    return struct.unpack("=I", found[_RTA_OIF])[0], socket.inet_ntop(family, found[_RTA_DST])


def add_rule(source: str, table: int, priority: int) -> Request:
    """A rule by which packets from an address are routed by a table of their own."""
    network = ipaddress.ip_network(source)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return Request(
        _NEWRULE,
        NLM_F_CREATE | NLM_F_EXCL,
        _ROUTE.pack(family, 0, network.prefixlen, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
        + attribute(_FRA_SRC, network.network_address.packed)
        + attribute(_FRA_PRIORITY, priority)
        + attribute(_FRA_TABLE, table),
        f"rule from {source}",
    )


def add_ingress(index: int, name: str) -> Request:
    """The queueing discipline that a redirection needs on the interface."""
    return Request(
        _NEWQDISC,
        NLM_F_CREATE | NLM_F_EXCL,
        _TC.pack(0, index, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + attribute(_TCA_KIND, "ingress"),
        f"qdisc ingress on {name} (CONFIG_NET_SCH_INGRESS)",
    )


def add_redirect(index: int, name: str, to: int) -> Request:
    """A redirection: packets that enter by one interface leave by another, without passing through the namespace."""
    selector = _U32_SELECTOR.pack(_TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _U32_KEY.pack(0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, to)
    return Request(
        _NEWTFILTER,
        NLM_F_CREATE | NLM_F_EXCL,
        _TC.pack(0, index, 0, _INGRESS_HANDLE, _FILTER_INFO)
        + attribute(_TCA_KIND, "u32")
        + nested(
            _TCA_OPTIONS,
            attribute(_TCA_U32_SEL, selector),
            nested(
                _TCA_U32_ACT,
                nested(
                    1,
                    attribute(_TCA_ACT_KIND, "mirred"),
                    nested(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, mirred)),
                ),
            ),
        ),
        f"redirection of {name} (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)",
    )


def delete_redirect(index: int, name: str) -> Request:
    return Request(_DELTFILTER, 0, _TC.pack(0, index, 0, _INGRESS_HANDLE, _FILTER_INFO), f"redirection of {name}")


def _destination(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bytes:
    return attribute(_RTA_DST, network.network_address.packed) if network.prefixlen else b""


def _mac(address: str) -> bytes:
    return bytes.fromhex(address.replace(":", ""))
