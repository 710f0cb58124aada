"""Fixtures of our own tests, beside those that the package ships."""

from __future__ import annotations

from collections.abc import Iterator

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import Connection, connected, exchange

pytest_plugins = ["mptcp.pytest_plugin"]


@pytest.fixture
def connection(mptcp_two_paths: tuple[Host, Host, tuple[Link, Link]]) -> Iterator[Connection]:
    """An IPv4 connection over the first of two paths, under the userspace path manager at both ends."""
    with connected(*mptcp_two_paths) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    """Both ends of a connection over loopback, under whatever path manager the host has."""
    with (
        mptcp.create_server(("127.0.0.1", 0)) as listener,
        mptcp.create_connection(listener.getsockname(), timeout=10) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            exchange(sock, peer)
            yield sock, peer
