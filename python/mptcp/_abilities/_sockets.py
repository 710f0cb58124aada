"""Multipath TCP and its socket options."""

from __future__ import annotations

from mptcp import _core

from ._ground import Ground, Lack, absent


def multipath(ground: Ground) -> None:
    # The error of a socket that cannot be created says what to do.
    if not ground.connection().is_mptcp:
        raise Lack("a connection over loopback fell back to TCP: a packet filter here removes the MPTCP options")


def mptcp_info(ground: Ground) -> None:
    with absent("this kernel is older than 5.16: neither a connection's token nor its subflows can be read"):
        ground.multipath_connection().info()


def full_info(ground: Ground) -> None:
    sock = ground.multipath_connection()
    with absent(
        "nothing is lost: MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS are read instead, and subflow ids are counted here "
        "(Linux 6.5)"
    ):
        _core.probe_full_info(sock.fileno())


def is_mptcp(ground: Ground) -> None:
    with absent("nothing is lost: MPTCP_INFO is read instead (Linux 6.10)"):
        _core.probe_is_mptcp(ground.multipath_connection().fileno())


def inet_diag(ground: Ground) -> None:
    subflows = ground.multipath_connection().subflows()
    if not subflows or subflows[0].cookie is None:
        raise Lack(
            "subflows can be opened without it, but not be seen to be accepted: modprobe tcp_diag mptcp_diag as root "
            "(CONFIG_INET_DIAG, CONFIG_INET_MPTCP_DIAG)"
        )
    if subflows[0].local_id is None:
        raise Lack(
            "before Linux 6.15 the kernel shows subflows' ids and flags, and connections of other programs, only with "
            "CAP_NET_ADMIN over this network namespace: run as root, or work in a lab"
        )
