"""Fixtures for tests that need more than one host: ``pytest_plugins = ["mptcp.pytest_plugin"]`` in a conftest.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from mptcp import UnsupportedError
from mptcp.lab import Host, Lab, Link, two_paths


@pytest.fixture
def mptcp_lab() -> Iterator[Lab]:
    """An empty lab, closed after the test, which is skipped where namespaces are denied."""
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(Lab())
        except PermissionError as error:
            pytest.skip(str(error))
        yield lab


@pytest.fixture
def mptcp_two_paths() -> Iterator[tuple[Host, Host, tuple[Link, Link]]]:
    """A client, a server and two links of 20 and 10 Mbit/s between them, as mptcp.lab.two_paths makes them.

    The test is skipped where namespaces are denied and on a kernel without Multipath TCP.
    """
    with contextlib.ExitStack() as stack:
        try:
            hosts_and_links = stack.enter_context(two_paths())
        except (PermissionError, UnsupportedError) as error:
            pytest.skip(str(error))
        yield hosts_and_links
