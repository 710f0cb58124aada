"""The least that Python can replace a subflow with: one loop over two netlink sockets, and nothing of the package.

    policies_bare.py NAME=ADDRESS...

in the network namespace of the client, with CAP_NET_ADMIN. It opens a subflow from the first of these IPv4 addresses
for each connection, again when that is lost, and from the next when its interface NAME goes down. No check, no error
handled, no IPv6: what policies.py compares the package with.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Iterator

NETLINK_GENERIC, SOL_NETLINK, ADD_MEMBERSHIP, GENL_ID_CTRL, RTMGRP_LINK, IFF_UP = 16, 270, 1, 16, 1, 1
ESTABLISHED, CLOSED, SUB_CLOSED, SUBFLOW_CREATE = 2, 3, 11, 10
TOKEN, SADDR4, DADDR4, DPORT = 1, 5, 7, 10
NESTED = 0x8000


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    while start + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, start)
        yield kind & 0x3FFF, data[start + 4 : start + length]
        start += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def request(kind: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 5, 1, 0) + payload  # NLM_F_REQUEST | NLM_F_ACK


def resolve(commands: socket.socket) -> tuple[int, int]:
    """The numbers of the generic netlink family mptcp_pm and of its multicast group of events."""
    commands.send(request(GENL_ID_CTRL, struct.pack("=BBH", 3, 1, 0) + attribute(2, b"mptcp_pm\0")))
    reply = commands.recv(65536)
    found = dict(attributes(reply, 20, struct.unpack_from("=I", reply)[0]))
    groups = (dict(attributes(group, 0, len(group))) for _, group in attributes(found[7], 0, len(found[7])))
    (events,) = (group[2] for group in groups if group[1] == b"mptcp_pm_events\0")
    commands.recv(65536)  # the acknowledgement
    return struct.unpack("=H", found[1])[0], struct.unpack("=I", events)[0]


def main() -> None:
    paths = [argument.split("=") for argument in sys.argv[1:]]
    names, addresses = [name for name, _ in paths], [socket.inet_aton(address) for _, address in paths]
    commands = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    family, group = resolve(commands)
    links.bind((0, RTMGRP_LINK))
    events.bind((0, 0))
    events.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
    ids = {address: bytes([number]) for number, address in enumerate(addresses, 1)}
    remotes: dict[bytes, tuple[bytes, bytes]] = {}
    in_use = 0

    def open_subflow(token: bytes, local: bytes) -> None:
        address, port = remotes[token]
        from_end = attribute(1, struct.pack("=H", 2)) + attribute(3, local) + attribute(2, ids[local])
        to_end = attribute(1, struct.pack("=H", 2)) + attribute(3, address) + attribute(5, port)
        payload = attribute(1 | NESTED, from_end) + attribute(6 | NESTED, to_end) + attribute(4, token)
        commands.send(request(family, struct.pack("=BBH", SUBFLOW_CREATE, 1, 0) + payload))
        commands.recv(4096)

    poll = select.poll()
    for sock in (events, links):
        poll.register(sock, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == links.fileno():
                message = links.recv(65536)
                flags = struct.unpack_from("=I", message, 24)[0]
                name = dict(attributes(message, 32, len(message))).get(3, b"")[:-1].decode()
                if not flags & IFF_UP and name == names[in_use]:
                    in_use = (in_use + 1) % len(names)
                    for token in remotes:
                        open_subflow(token, addresses[in_use])
                continue
            message = events.recv(65536)
            command = message[16]
            if command not in (ESTABLISHED, CLOSED, SUB_CLOSED):
                continue
            found = dict(attributes(message, 20, len(message)))
            token = found[TOKEN]
            if command == ESTABLISHED:
                # The event has the port in network byte order, the command wants it in the host's.
                remotes[token] = found[DADDR4], found[DPORT][::-1]
                open_subflow(token, addresses[in_use])
            elif command == CLOSED:
                remotes.pop(token, None)
            elif token in remotes:
                open_subflow(token, found[SADDR4])


if __name__ == "__main__":
    main()
