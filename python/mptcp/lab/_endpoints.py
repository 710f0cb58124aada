"""The in-kernel path manager of one network namespace: endpoints and limits, by generic netlink ``mptcp_pm``.

Runs in a host's process, inside its namespace.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from mptcp.lab._netlink import Netlink, Request, attribute, attributes, nested

# linux/genetlink.h
_NETLINK_GENERIC = 16
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
_HEADER = struct.Struct("=BBxx")  # command, version

# linux/mptcp_pm.h
_ADD_ADDR, _DEL_ADDR, _GET_ADDR, _SET_LIMITS, _GET_LIMITS = 1, 2, 3, 5, 6
_ATTR_ADDR, _ATTR_RCV_ADD_ADDRS, _ATTR_SUBFLOWS = 1, 2, 3
_ADDR_FAMILY, _ADDR_ID, _ADDR_4, _ADDR_6, _ADDR_PORT, _ADDR_FLAGS = 1, 2, 3, 4, 5, 6


def add_endpoint(address: str, flags: int, id: int | None, port: int | None) -> None:
    more = [attribute(_ADDR_FLAGS, flags)]
    if id is not None:
        more.append(attribute(_ADDR_ID, bytes([id])))
    if port is not None:
        more.append(attribute(_ADDR_PORT, struct.pack("=H", port)))
    try:
        with _path_manager() as path_manager:
            path_manager.do(_ADD_ADDR, f"endpoint {address}", nested(_ATTR_ADDR, *_address(address), *more))
    except OSError as error:
        # What is EEXIST today was EINVAL in Linux 6.1.
        known = {ipaddress.ip_address(endpoint["address"]) for endpoint in endpoints()}
        if error.errno == errno.EINVAL and ipaddress.ip_address(address) in known:
            raise OSError(errno.EEXIST, f"endpoint {address}: {os.strerror(errno.EEXIST)}") from None
        raise


def remove_endpoint(address: str, id: int) -> None:
    # The kernel finds it by the id; the address it wants for an id of 0 only, and ignores else.
    with _path_manager() as path_manager:
        attribute_of_id = attribute(_ADDR_ID, bytes([id]))
        path_manager.do(_DEL_ADDR, f"endpoint {id}", nested(_ATTR_ADDR, *_address(address), attribute_of_id))


def endpoints() -> list[dict[str, Any]]:
    with _path_manager() as path_manager:
        answers = path_manager.get(_GET_ADDR, "endpoints", dump=True)
    found = []
    for answer in answers:
        endpoint = attributes(answer[_ATTR_ADDR])
        packed = endpoint.get(_ADDR_4) or endpoint[_ADDR_6]
        flags, port = endpoint.get(_ADDR_FLAGS), endpoint.get(_ADDR_PORT)
        found.append(
            {
                "address": str(ipaddress.ip_address(packed)),
                "id": endpoint[_ADDR_ID][0],
                "flags": struct.unpack("=I", flags)[0] if flags else 0,
                "port": struct.unpack("=H", port)[0] or None if port else None,
            }
        )
    return found


def set_limits(subflows: int | None, add_addr_accepted: int | None) -> dict[str, int]:
    """Set those limits that are not None, and return the previous ones."""
    with _path_manager() as path_manager:
        (answer,) = path_manager.get(_GET_LIMITS, "limits")
        before = {
            name: struct.unpack("=I", answer[kind])[0]
            for name, kind in (("subflows", _ATTR_SUBFLOWS), ("add_addr_accepted", _ATTR_RCV_ADD_ADDRS))
        }
        given = [(_ATTR_SUBFLOWS, subflows), (_ATTR_RCV_ADD_ADDRS, add_addr_accepted)]
        wanted = [attribute(kind, value) for kind, value in given if value is not None]
        if wanted:
            path_manager.do(_SET_LIMITS, "limits", *wanted)
    return before


class _PathManager:
    def __init__(self, netlink: Netlink, family: int) -> None:
        self._netlink = netlink
        self._family = family

    def do(self, command: int, what: str, *payload: bytes) -> None:
        self._netlink.do([Request(self._family, 0, _HEADER.pack(command, 1) + b"".join(payload), what)])

    def get(self, command: int, what: str, *, dump: bool = False) -> list[dict[int, bytes]]:
        request = Request(self._family, 0, _HEADER.pack(command, 1), what)
        return [attributes(payload[_HEADER.size :]) for _, payload in self._netlink.get(request, dump=dump)]


@contextlib.contextmanager
def _path_manager() -> Iterator[_PathManager]:
    with contextlib.closing(Netlink(_NETLINK_GENERIC)) as netlink:
        name = attribute(_CTRL_ATTR_FAMILY_NAME, "mptcp_pm")
        request = Request(_GENL_ID_CTRL, 0, _HEADER.pack(_CTRL_CMD_GETFAMILY, 1) + name, "mptcp_pm")
        ((_, answer),) = netlink.get(request)
        (family,) = struct.unpack("=H", attributes(answer[_HEADER.size :])[_CTRL_ATTR_FAMILY_ID])
        yield _PathManager(netlink, family)


def _address(address: str) -> list[bytes]:
    family, kind = (socket.AF_INET6, _ADDR_6) if ":" in address else (socket.AF_INET, _ADDR_4)
    return [attribute(_ADDR_FAMILY, struct.pack("=H", family)), attribute(kind, socket.inet_pton(family, address))]
