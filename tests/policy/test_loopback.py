"""Shipped policies leave connections over loopback alone: closing or adding subflows there helps nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import mptcp
import pytest
from mptcp.lab import Host, Link
from mptcp.policies import Backup, FullMesh, Handover, NDiffPorts, OnlyFor, Prefer, Refresh, WhenLong
from support import connected, eventually, exchange

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

SHIPPED: dict[str, Callable[[tuple[Link, Link]], mptcp.Policy]] = {
    "FullMesh": lambda paths: FullMesh(),
    "NDiffPorts": lambda paths: NDiffPorts(4),
    "Prefer": lambda paths: Prefer(paths[1], paths[0]),
    "OnlyFor": lambda paths: OnlyFor(paths[1], uids=range(70000)),
    "WhenLong": lambda paths: WhenLong(paths[1], after_seconds=0.0),
    "Backup": lambda paths: Backup(paths[1], paths[0]),
    "Handover": lambda paths: Handover(paths[0], paths[1], rtt=0.0, patience=1),
    "Refresh": lambda paths: Refresh(0.001),
}


class Opens(mptcp.Policy):
    """Says how many ticks there were, after which the others' have been given too."""

    tick = 0.1

    def __init__(self) -> None:
        self.ticks = 0

    def on_tick(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> None:
        self.ticks += 1


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "its own"])
def test_a_connection_over_loopback_is_left_alone(mptcp_two_paths: TwoPaths, name: str, address: str) -> None:
    client, _, paths = mptcp_two_paths
    address = paths[0].address(client) if address == "its own" else address
    family = 10 if ":" in address else 2
    others = Opens()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(client.create_server((address, 0), family=family))
        with client.run_policy(SHIPPED[name](paths), others):
            sock = stack.enter_context(client.create_connection(listener.getsockname()[:2]))
            peer = stack.enter_context(listener.accept()[0])
            exchange(sock, peer)
            before = [(one.local, one.remote) for one in sock.subflows()]
            assert len(before) == 1
            assert eventually(lambda: others.ticks > 4, 20)
            assert [(one.local, one.remote) for one in sock.subflows()] == before
            assert sock.subflows()[0].backup is False
            exchange(sock, peer)


def test_others_are_not(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with client.run_policy(FullMesh()), connected(client, server, paths) as made:
        assert eventually(lambda: len(made.sock.subflows()) == 2)
