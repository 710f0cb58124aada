"""The in-kernel path manager of one network namespace: endpoints and limits, by generic netlink ``mptcp_pm``.

Runs in a host's process, inside its namespace.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from typing import Any

from pyroute2.netlink.generic.mptcp import MPTCP  # type: ignore[import-untyped]

from mptcp.lab._network import kernel_errors


def add_endpoint(address: str, flags: int, id: int | None, port: int | None) -> None:
    attributes: dict[str, Any] = {_attribute(address): address, "flags": flags}
    if id is not None:
        attributes["id"] = id
    if port is not None:
        attributes["port"] = port
    try:
        with MPTCP() as netlink, kernel_errors(f"endpoint {address}"):
            netlink.endpoint("add", **attributes)
    except OSError as error:
        # What is EEXIST today was EINVAL in Linux 6.1.
        known = {ipaddress.ip_address(endpoint["address"]) for endpoint in endpoints()}
        if error.errno == errno.EINVAL and ipaddress.ip_address(address) in known:
            raise OSError(errno.EEXIST, f"endpoint {address}: {os.strerror(errno.EEXIST)}") from None
        raise


def remove_endpoint(address: str, id: int) -> None:
    # The kernel finds it by the id; the address it wants for an id of 0 only, and ignores else.
    with MPTCP() as netlink, kernel_errors(f"endpoint {id}"):
        netlink.endpoint("del", id=id, **{_attribute(address): address})


def endpoints() -> list[dict[str, Any]]:
    with MPTCP() as netlink, kernel_errors("endpoints"):
        messages = list(netlink.endpoint("show"))
    found = []
    for message in messages:
        attributes = message.get_attr("MPTCP_PM_ATTR_ADDR")
        get = attributes.get_attr
        found.append(
            {
                "address": get("MPTCP_PM_ADDR_ATTR_ADDR4") or get("MPTCP_PM_ADDR_ATTR_ADDR6"),
                "id": get("MPTCP_PM_ADDR_ATTR_ID"),
                "flags": get("MPTCP_PM_ADDR_ATTR_FLAGS") or 0,
                "port": get("MPTCP_PM_ADDR_ATTR_PORT") or None,
            }
        )
    return found


def set_limits(subflows: int | None, add_addr_accepted: int | None) -> dict[str, int]:
    """Set the limits that are given and return those before."""
    with MPTCP() as netlink, kernel_errors("limits"):
        (message,) = netlink.limits("show")
        before = {
            "subflows": message.get_attr("MPTCP_PM_ATTR_SUBFLOWS"),
            "add_addr_accepted": message.get_attr("MPTCP_PM_ATTR_RCV_ADD_ADDRS"),
        }
        given = {"subflows": subflows, "rcv_add_addrs": add_addr_accepted}
        wanted = {name: value for name, value in given.items() if value is not None}
        if wanted:
            netlink.limits("set", **wanted)
    return before


def _attribute(address: str) -> str:
    return "addr6" if ":" in address else "addr4"
