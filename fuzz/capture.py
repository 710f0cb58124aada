"""Captures the kernel's own bytes in a lab, for fuzz/corpus: what fuzzing starts from.

    .venv/bin/python fuzz/capture.py fuzz/corpus

A connection of each family is opened over two links, subflows come and go, addresses are announced. What the kernel
answered is written as it was, one file a reply, in the form that the targets in fuzz_targets/ say at their beginning.
Files that are there already and have other names, those of what fuzzing found, are left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mptcp
from mptcp.lab import Host, Link, two_paths

SOL_MPTCP, MPTCP_INFO, MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS, MPTCP_FULL_INFO = 284, 1, 2, 3, 4
NETLINK_SOCK_DIAG, NETLINK_GENERIC, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK = (
    4,
    16,
    270,
    1,
    10,
    11,
)
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
SUBFLOW_INFO_SIZE, SOCKADDR_STORAGE, PORT = 264, 128, 5000
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 15, 23, 3
SOL_UDP, UDP_SEGMENT = 17, 103

libc = ctypes.CDLL(None, use_errno=True)


def getsockopt(sock: socket.socket, option: int, buffer: bytearray) -> bytes:
    length = ctypes.c_uint(len(buffer))
    place = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    if libc.getsockopt(sock.fileno(), SOL_MPTCP, option, place, ctypes.byref(length)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return bytes(buffer[: length.value])


def full_info(sock: socket.socket, tcp_info_size: int) -> bytes:
    """MPTCP_FULL_INFO in the form of fuzz_targets/getsockopt.rs."""
    count = len(sock.subflows())  # type: ignore[attr-defined]
    subflows = ctypes.create_string_buffer(count * SUBFLOW_INFO_SIZE)
    tcp_infos = ctypes.create_string_buffer(count * tcp_info_size)
    head = struct.pack(
        "=IIIIIIQQ",
        0,
        tcp_info_size,
        0,
        SUBFLOW_INFO_SIZE,
        0,
        count,
        ctypes.addressof(subflows),
        ctypes.addressof(tcp_infos),
    )
    header = bytearray(getsockopt(sock, MPTCP_FULL_INFO, bytearray(head) + bytearray(96)))
    header[24:40] = bytes(16)  # addresses in this process's memory
    return struct.pack("=BBH", len(header), count, tcp_info_size) + header + subflows.raw + tcp_infos.raw


def array(sock: socket.socket, option: int, element: int) -> bytes:
    """MPTCP_TCPINFO or MPTCP_SUBFLOW_ADDRS, behind the head that fuzz_targets/getsockopt.rs takes."""
    head = bytearray(struct.pack("=IIII", 16, 0, 0, element))
    return struct.pack("=BBH", 0, 0, element) + getsockopt(sock, option, head + bytearray(4 * element))


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class Netlink:
    """A netlink socket in a host, and what it read."""

    def __init__(self, host: Host, protocol: int) -> None:
        self.socket = host.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            self.socket.setsockopt(SOL_NETLINK, option, 1)
        self.socket.bind((0, 0))  # what is not bound gets no events
        self.socket.settimeout(2)

    def ask(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        """The datagrams of the answer, which is one message or a dump."""
        self.socket.send(struct.pack("=IHHII", 16 + len(payload), kind, NLM_F_REQUEST | flags, 1, 0) + payload)
        datagrams = [self.socket.recv(1 << 16)]
        while flags & NLM_F_DUMP and struct.unpack_from("=H", datagrams[-1], 4)[0] not in (2, 3):
            datagrams.append(self.socket.recv(1 << 16))
        return datagrams


def inet_diag(family: int, protocol: int, *, token: int = 0, states: int = 0xFFFFFFFF, extensions: int = 0) -> bytes:
    """struct inet_diag_req_v2"""
    request = bytearray(struct.pack("=BBBxI", family, min(protocol, 255), extensions, states) + bytes(48))
    struct.pack_into("=I", request, 48, token)
    return bytes(request) + (attribute(3, struct.pack("=I", protocol)) if protocol > 255 else b"")


@contextlib.contextmanager
def connection(client: Host, server: Host, address: str, family: int) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    with (
        server.create_server(("" if family == socket.AF_INET else "::", PORT), family=family) as listener,
        client.create_connection((address, PORT), timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        for sender, receiver in ((sock, peer), (peer, sock)):
            sender.sendall(b"x")
            receiver.recv(1)
        yield sock, peer


def enhanced_api() -> Iterator[tuple[str, bytes]]:
    """What a program passes to the enhanced socket API: buffers, since no kernel of today answers it."""
    for name, head in (("kernel", 1), ("draft", 2), ("header", 4)):
        for family, ends in ((socket.AF_INET, ("10.0.2.1", "10.0.2.2")), (socket.AF_INET6, ("fd00::1", "fd00::2"))):
            addresses = b"".join(
                struct.pack("=H", family)
                + struct.pack("!H", PORT)
                + (bytes(4) if family == socket.AF_INET6 else b"")
                + socket.inet_pton(family, end)
                + bytes(8 if family == socket.AF_INET else 4)
                for end in ends
            )
            yield f"tuple-{name}-{family.name}", bytes([1]) + bytes(head - 1) + addresses
    yield "sockopt", struct.pack("=B3xiiIQQ", 1, socket.IPPROTO_TCP, socket.TCP_CONGESTION, 0, 4096, 8192)
    yield "close", struct.pack("=B3xi", 1, socket.SHUT_RDWR)


def captures() -> Iterator[tuple[str, bytes]]:
    """Small captures: of one end and of both, with each option that the path manager sends, in both formats."""
    with tempfile.TemporaryDirectory() as folder, two_paths(rate=None) as (client, server, (one, two)):
        files = {"pcapng-both-ends": (one, "both"), "pcap-one-end": (two, client)}
        with contextlib.ExitStack() as stack:
            for name, (link, host) in files.items():
                stack.enter_context(link.capture(Path(folder, name), host=host))
            address = one.address(server)
            sock, peer = stack.enter_context(connection(client, server, address, socket.AF_INET))
            local, remote = two.address(client), two.address(server)
            sock.open_subflow(local=(local, 0), remote=(remote, PORT), timeout=10)
            sock.subflows()[1].set_backup(True)
            announced = peer.announce_address(remote)
            peer.remove_address(announced, force=True)
            for _ in range(3):
                sock.sendall(bytes(100))
                peer.recv(100)
        for name in files:
            yield name, Path(folder, name).read_bytes()


def small_btf() -> bytes:
    """The kernel's BTF with its first types and the names that lie near its beginning, some kilobytes of megabytes."""
    btf = Path("/sys/kernel/btf/vmlinux").read_bytes()
    length, types, types_size, names, _ = struct.unpack_from("=IIIII", btf, 4)
    types_size, names_size = min(types_size, 1200), 400
    head = btf[:4] + struct.pack("=IIIII", length, 0, types_size, types_size, names_size)
    return head + btf[length + types :][:types_size] + btf[length + names :][:names_size]


def frames(client: Host, server: Host, link: Link) -> Iterator[tuple[str, bytes]]:
    """What the server's end of a link without limits receives, each with its virtio header: TCP and UDP, segmented."""
    with contextlib.ExitStack() as stack:
        packets = stack.enter_context(server.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        for option in (PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING):
            packets.setsockopt(SOL_PACKET, option, 1)
        packets.bind((link.interface(server), ETH_P_ALL))
        packets.settimeout(2)
        for family in (socket.AF_INET, socket.AF_INET6):
            address = link.address(server, family=family)
            sock, _ = stack.enter_context(connection(client, server, address, family))
            datagrams = stack.enter_context(client.socket(family, socket.SOCK_DGRAM, 0))
            datagrams.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
            datagrams.sendto(bytes(2500), (address, PORT))
            for size in (100, 5000):
                sock.sendall(bytes(size))
        kinds: set[tuple[int, int, bool]] = set()
        with contextlib.suppress(TimeoutError):
            while frame := packets.recv(1 << 17):
                # By segmentation and protocol.
                kind = (frame[1], int.from_bytes(frame[22:24], "big"), len(frame) > 200)
                if kind not in kinds:
                    kinds.add(kind)
                    yield "gso-{}-{:x}-{}".format(*kind), frame


#: mahimahi's format, as users have it in files.
TRACES = {
    "rate": b"1\n2\n2\n3\n",
    "pause": b"5\r\n1000\r\n",
    "one": b" 10",
    "unsorted": b"5\n3\n",
    "word": b"1\nfast\n",
}


def main(folder: Path) -> None:
    def save(target: str, name: str, content: bytes) -> None:
        (folder / target).mkdir(parents=True, exist_ok=True)
        (folder / target / re.sub(r"\W+", "-", name)).write_bytes(content)

    with two_paths(rate=None) as (client, server, paths):
        generic, diag, route = (Netlink(client, n) for n in (NETLINK_GENERIC, NETLINK_SOCK_DIAG, 0))
        (description,) = generic.ask(16, 0, struct.pack("=BBH", 3, 2, 0) + attribute(2, b"mptcp_pm\0"))
        save("mptcp_pm", "family", description)
        number = int.from_bytes(description[description.index(struct.pack("=HH", 6, 1)) + 4 :][:2], sys.byteorder)
        at = description.index(b"mptcp_pm_events\0")
        group = struct.unpack_from("=I", description, description.rindex(struct.pack("=HH", 8, 2), 0, at) + 4)[0]
        events = Netlink(client, NETLINK_GENERIC)
        events.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

        for family, name in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
            ends = [[path.address(host, family=family) for host in (client, server)] for path in paths]
            with connection(client, server, ends[0][1], family) as (sock, peer):
                for backup in (False, True):
                    sock.open_subflow(ends[1][0], (ends[1][1], PORT), backup=backup)
                sock.announce_address(ends[1][0])
                for size in (232, 280):
                    save("getsockopt", f"full-info-{name}-{size}", full_info(sock, size))
                save("getsockopt", f"tcpinfo-{name}", array(sock, MPTCP_TCPINFO, 280))
                save("getsockopt", f"subflow-addrs-{name}", array(sock, MPTCP_SUBFLOW_ADDRS, 2 * SOCKADDR_STORAGE))
                save("getsockopt", f"info-{name}", bytes(4) + getsockopt(sock, MPTCP_INFO, bytearray(96)))
                asked = {
                    "subflows": inet_diag(family, 6, extensions=0xFF),
                    "connections": inet_diag(family, 262, extensions=2),
                }
                for what, request in asked.items():
                    for index, datagram in enumerate(diag.ask(20, NLM_F_DUMP, request)):
                        save("inet_diag", f"{what}-{name}-{index}", datagram)
                for what, token in (("token", sock.token), ("no-token", 1)):
                    (datagram,) = diag.ask(20, 0, inet_diag(family, 262, token=token, extensions=2))
                    save("inet_diag", f"{what}-{name}", datagram)
                    request = struct.pack("=BBH", 3, 1, 0) + attribute(4, struct.pack("=I", token))
                    for index, datagram in enumerate(generic.ask(number, NLM_F_DUMP, request)):
                        save("mptcp_pm", f"addresses-{what}-{name}-{index}", datagram)
                request = struct.pack("=BBH", 10, 1, 0) + attribute(4, struct.pack("=I", 1))
                (datagram,) = generic.ask(number, NLM_F_ACK, request)
                save("netlink", "refused", datagram)
                for what, address in (("remote", ends[0][1]), ("own", ends[0][0])):
                    octets = socket.inet_pton(family, address)
                    request = struct.pack("=BB", family, 8 * len(octets)) + bytes(10) + attribute(1, octets)
                    (datagram,) = route.ask(26, 0, request)
                    save("rtnetlink", f"{what}-{name}", datagram)
                    save("netlink", f"route-{what}-{name}", datagram)
                announced = peer.announce_address(ends[1][1])
                for subflow in sock.subflows()[1:]:
                    subflow.close()
                    with contextlib.suppress(mptcp.SubflowError):  # another one that is open still uses it
                        peer.remove_address(announced)
        for kind, what, size in ((18, "links", 16), (22, "addresses", 8)):  # RTM_GETLINK, RTM_GETADDR
            for index, datagram in enumerate(route.ask(kind, NLM_F_DUMP, bytes(size))):
                save("rtnetlink", f"{what}-{index}", datagram)
        (datagram,) = route.ask(26, 0, struct.pack("=BB", socket.AF_INET, 32) + bytes(10) + attribute(1, b"\xc0\0\2\1"))
        save("netlink", "unreachable", datagram)
        deadline = time.monotonic() + 10
        kinds: set[tuple[int, int]] = set()
        events.socket.settimeout(1)
        while time.monotonic() < deadline:
            try:
                datagram = events.socket.recv(1 << 16)
            except TimeoutError:
                break
            if (kind := (datagram[16], len(datagram))) not in kinds:
                kinds.add(kind)
                save("mptcp_pm", "event-{}-{}".format(*kind), datagram)
        for netlink in (generic, diag, route, events):
            netlink.socket.close()
    with two_paths(rate=None) as (client, server, (link, _)):
        for name, frame in frames(client, server, link):
            save("frame", name, frame)
    for name, text in TRACES.items():
        save("trace", name, text)
    for name, content in captures():
        save("capture", name, content)
    save("btf", "first-types", small_btf())
    for name, buffer in enhanced_api():
        save("enhanced_api", name, buffer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
