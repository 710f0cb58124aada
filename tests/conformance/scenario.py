"""What the scenarios share: two hosts, a connection with an end that acts, what both count, commands as they are."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import mptcp
import pytest
from mptcp import Event, EventKind, Events
from mptcp.lab import Host, Lab
from support import KERNEL, PORT, eventually, exchange

NEW_PORT = 10100
"""One that is not the connection's."""

# <linux/mptcp_pm.h>
GET_ADDR, ANNOUNCE, REMOVE, SUBFLOW_CREATE = 3, 8, 9, 10
_ADDR, _TOKEN, _LOC_ID, _ADDR_REMOTE = 1, 4, 5, 6
_FAMILY, _ID, _ADDR4, _ADDR6, _PORT, _FLAGS = 1, 2, 3, 4, 5, 6
SIGNAL, SUBFLOW = 1, 2
_NESTED = 0x8000
_ATTRIBUTE = struct.Struct("=HH")
_NETLINK_GENERIC = 16

# <linux/netlink.h>, <linux/genetlink.h>
_MESSAGE, _GENERIC = struct.Struct("=IHHII"), struct.Struct("=BBH")
_NLMSG_ERROR, _NLM_F_REQUEST_ACK = 2, 1 | 4
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2


@dataclass(frozen=True)
class End:
    """One end of a connection: its host and its socket."""

    host: Host
    sock: mptcp.Socket

    def subflow(self) -> mptcp.Subflow:
        """The one subflow that is not the initial one, once this end is through with its join."""

        def joined() -> list[mptcp.Subflow]:
            return [subflow for subflow in self.sock.subflows() if not subflow.initial]

        assert eventually(lambda: len(joined()) == 1, 10)
        return joined()[0]


@dataclass(frozen=True)
class Pair:
    """The ends of a connection, which is fully established: ``here`` is the one that does what is looked at."""

    here: End
    there: End

    def exchange(self) -> None:
        """Afterwards either end has what the other sent on the initial subflow before."""
        exchange(self.here.sock, self.there.sock)
        exchange(self.there.sock, self.here.sock)

    def subflows(self, count: int) -> None:
        """Waits until both ends have so many subflows."""
        found: list[int] = []

        def equal() -> bool:
            found[:] = [len(end.sock.subflows()) for end in (self.here, self.there)]
            return found == [count, count]

        eventually(equal, 10)
        assert found == [count, count]


class Network:
    """A client and a server with as many paths between them as are asked for, before any connection."""

    def __init__(self, lab: Lab, family: int) -> None:
        self.family = family
        self.lab = lab
        self.client, self.server = lab.host("client"), lab.host("server")
        for host in (self.client, self.server):
            # ADD_ADDR is sent again where no echo comes in time, as on a busy machine: it would be counted twice.
            host.sysctl("net.mptcp.add_addr_timeout", 0)
            if family == socket.AF_INET6:
                # Beside them an IPv6 address with a port has no room in a header.
                host.sysctl("net.ipv4.tcp_timestamps", 0)

    def address(self, host: Host, path: int, family: int | None = None) -> str:
        """The address on a path, which are counted from 1; the connection goes over the first."""
        while len(self.lab.links) < path:
            self.lab.link(self.client, self.server)
        return self.lab.links[path - 1].address(host, family or self.family)

    def other(self, host: Host) -> Host:
        return self.server if host is self.client else self.client

    def host(self, side: str) -> Host:
        return self.client if side == "client" else self.server

    @contextlib.contextmanager
    def connection(self, side: str = "client") -> Iterator[Pair]:
        """One to a server that listens on every address. ``side`` says which end is ``here``."""
        any_address = "" if self.family == socket.AF_INET else "::"
        with (
            self.server.create_server(
                (any_address, PORT), family=self.family, dualstack_ipv6=self.family == socket.AF_INET6
            ) as listener,
            self.client.create_connection((self.address(self.server, 1), PORT), timeout=10) as sock,
            listener.accept()[0] as peer,
        ):
            peer.settimeout(10)
            exchange(sock, peer)
            ends = End(self.client, sock), End(self.server, peer)
            yield Pair(*(ends if side == "client" else reversed(ends)))


def in_kernel(host: Host, *, subflows: int, add_addr_accepted: int = 0) -> None:
    """The host's connections from now on are under the in-kernel path manager, with these limits."""
    host.set_path_manager("kernel")
    host.set_limits(subflows=subflows, add_addr_accepted=add_addr_accepted)


# Counters that older kernels lack.
_SINCE = {"MPCurrEstab": (6, 8)}


def counted(host: Host, **expected: int) -> None:
    """Waits until these MPTcpExt counters of the host, which are from its beginning on, have these values."""
    found: dict[str, int] = {}
    expected = {name: value for name, value in expected.items() if _SINCE.get(name, KERNEL) <= KERNEL}

    def equal() -> bool:
        counters = host.counters()
        # One that has never counted may be left out.
        found.update({name: counters.get(name, 0) for name in expected})
        return found == expected

    eventually(equal, 10)
    assert found == expected, f"{host.name} counted {found}, not {expected}"


def told(events: Events, kind: EventKind) -> Event:
    """The next event of a kind, which must come."""
    deadline = time.monotonic() + 10
    while event := events.get(max(0.0, deadline - time.monotonic())):
        if event.kind == kind:
            return event
    raise AssertionError(f"{kind} did not come")


def joins(joining: Host, accepting: Host, syn: int, syn_ack: int, ack: int) -> None:
    """Waits until so many subflows were asked for, answered and accepted."""
    counted(accepting, MPJoinSynRx=syn, MPJoinAckRx=ack, MPJoinAckHMacFailure=0)
    counted(joining, MPJoinSynAckRx=syn_ack, MPJoinSynAckHMacFailure=0)


def announced(announcing: Host, told: Host, addresses: int, echoes: int, ports: int = 0) -> None:
    """Waits until so many ADD_ADDR have come, so many of them with a port, and so many echoes have come back."""
    counted(told, AddAddr=addresses, PortAdd=ports)
    counted(announcing, EchoAdd=echoes)


def removed(removing: Host, told: Host, addresses: int, subflows: int) -> None:
    """Waits until so many RM_ADDR have come and so many subflows were closed by the one who sent them."""
    counted(told, RmAddr=addresses)
    counted(removing, RmSubflow=subflows)


def priorities(host: Host, sent: int, received: int) -> None:
    counted(host, MPPrioTx=sent, MPPrioRx=received)


def no_resets(*hosts: Host) -> None:
    for host in hosts:
        counted(host, MPRstTx=0, MPRstRx=0)


def extra_subflows(pair: Pair, count: int) -> None:
    """Waits until struct mptcp_info has so many subflows beside the initial one at both ends."""
    for end in (pair.here, pair.there):
        assert eventually(lambda end=end: end.sock.info().subflows == count, 10), described(pair)


def total_subflows(pair: Pair, count: int) -> None:
    """Waits until struct mptcp_info has so many subflows in all at both ends."""
    for end in (pair.here, pair.there):
        if end.sock.info().subflows_total is not None:
            assert eventually(lambda end=end: end.sock.info().subflows_total == count, 10), described(pair)


def described(pair: Pair) -> str:
    """What tells a count that is wrong from a subflow too many: for the message of a failed test."""
    return "\n".join(
        f"{end.host.name}: {end.sock.info()}, {list(end.sock.subflows())}, {nonzero(end.host)}"
        for end in (pair.here, pair.there)
    )


def nonzero(host: Host) -> dict[str, int]:
    return {name: count for name, count in host.counters().items() if count}


def endpoint_of(host: Host, address: str) -> mptcp.Endpoint:
    """The endpoint of the in-kernel path manager at an address."""
    [found] = [endpoint for endpoint in host.endpoints() if endpoint.address == address]
    return found


def delete_id_0(host: Host, address: str) -> None:
    """Removes the address of the initial subflow from every connection, for which the package has no call."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip of iproute2")
    host.run(["ip", "mptcp", "endpoint", "delete", "id", "0", address], check=True)


def command(
    host: Host,
    number: int,
    token: int,
    *,
    local_id: int | None = None,
    local: tuple[str, int] | None = None,
    remote: tuple[str, int] | None = None,
    flags: int = 0,
) -> bytes:
    """Gives a path manager command as it is, where the package would choose another id or refuse; returns the reply.

    Raises the OSError that the kernel answers.
    """
    attributes = _attribute(_TOKEN, struct.pack("=I", token))
    if number == REMOVE:
        attributes += _attribute(_LOC_ID, struct.pack("=B", local_id))
    elif number == GET_ADDR:
        attributes += _attribute(_ADDR | _NESTED, _attribute(_ID, struct.pack("=B", local_id)))
    else:
        assert local is not None
        attributes += _attribute(_ADDR | _NESTED, _endpoint(*local, local_id, flags))
    if remote is not None:
        attributes += _attribute(_ADDR_REMOTE | _NESTED, _endpoint(*remote, None, 0))
    with host.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as netlink:
        netlink.settimeout(10)
        return _request(netlink, _family(netlink), number, attributes)


def _request(netlink: socket.socket, family: int, number: int, attributes: bytes) -> bytes:
    """Send a command of a generic netlink family, and return the attributes of its reply; raise the error in it."""
    payload = _GENERIC.pack(number, 1, 0) + attributes
    netlink.send(_MESSAGE.pack(_MESSAGE.size + len(payload), family, _NLM_F_REQUEST_ACK, 1, 0) + payload)
    reply = b""
    while True:
        message = netlink.recv(1 << 16)
        if _MESSAGE.unpack_from(message)[1] != _NLMSG_ERROR:
            reply = message[_MESSAGE.size + _GENERIC.size :]
            continue
        error = -struct.unpack_from("=i", message, _MESSAGE.size)[0]
        if error:
            raise OSError(error, os.strerror(error))
        return reply


def _family(netlink: socket.socket) -> int:
    name = _attribute(_CTRL_ATTR_FAMILY_NAME, b"mptcp_pm\0")
    reply = _request(netlink, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, name)
    return int.from_bytes(dict(_attributes(reply))[_CTRL_ATTR_FAMILY_ID], sys.byteorder)


def address_of(host: Host, token: int, local_id: int) -> tuple[str, int] | None:
    """The address and the flags that the kernel keeps for an id of a connection; None if it has none."""
    try:
        reply = command(host, GET_ADDR, token, local_id=local_id)
    except OSError:
        return None
    [(_, endpoint)] = _attributes(reply)
    parts = dict(_attributes(endpoint))
    packed = parts[_ADDR4] if _ADDR4 in parts else parts[_ADDR6]
    family = socket.AF_INET if _ADDR4 in parts else socket.AF_INET6
    return socket.inet_ntop(family, packed), int.from_bytes(parts[_FLAGS], "little") & (SIGNAL | SUBFLOW)


def _endpoint(address: str, port: int, number: int | None, flags: int) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = _attribute(_FAMILY, struct.pack("=H", family))
    packed += _attribute(_ADDR6 if family == socket.AF_INET6 else _ADDR4, socket.inet_pton(family, address))
    if port:
        packed += _attribute(_PORT, struct.pack("=H", port))
    if number is not None:
        packed += _attribute(_ID, struct.pack("=B", number))
    return packed + _attribute(_FLAGS, struct.pack("=I", flags))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]
