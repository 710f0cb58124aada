"""Every scenario in both families, and where either end can do it from both."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from mptcp.lab import Lab
from scenario import Network, Pair


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    if request.param == socket.AF_INET6 and not os.path.exists("/proc/sys/net/ipv6"):
        pytest.skip("needs IPv6 in the kernel")
    return int(request.param)


@pytest.fixture(params=["client", "server"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(mptcp_lab: Lab, family: int) -> Network:
    return Network(mptcp_lab, family)


@pytest.fixture
def pair(network: Network, side: str) -> Iterator[Pair]:
    """A connection whose ends are both under the userspace path manager, with one side that acts."""
    with network.connection(side) as made:
        yield made
