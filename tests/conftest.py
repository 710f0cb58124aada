"""Fixtures of our own tests, beside those that the package ships."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mptcp.lab import Host, Link
from support import Connection, connected

pytest_plugins = ["mptcp.pytest_plugin"]


@pytest.fixture
def connection(mptcp_two_paths: tuple[Host, Host, tuple[Link, Link]]) -> Iterator[Connection]:
    """An IPv4 connection over the first of two paths, under the userspace path manager at both ends."""
    with connected(*mptcp_two_paths) as made:
        yield made
