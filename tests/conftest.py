"""Fixtures of our own tests, beside those that the package ships."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator

import mptcp
import pytest
from hostile import World
from hypothesis import HealthCheck, settings
from mptcp.lab import Host, Link, two_paths
from second_tries import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401  hooks
from support import ROOT, Connection, Marked, connected, exchange

# Unless --hypothesis-profile=long asks for more, the same examples every time. A loaded machine is no failure.
settings.register_profile(
    "short", derandomize=True, database=None, deadline=None, max_examples=20, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", settings.get_profile("short"), derandomize=False, max_examples=300)
settings.load_profile("short")


# Shells start what runs in the background with SIGINT ignored, which programs that the tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not ROOT, reason="needs root")), False])
def prefix(request: pytest.FixtureRequest) -> list[str]:
    """The start of a command line that runs a program with our privileges, and of one without any over networks."""
    if request.param or not ROOT:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    # CAP_SETFCAP is what the kernel wants of root, not of others, for making its own user the root of a namespace.
    return ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", "--ambient-caps=-all"]


@pytest.fixture
def marked() -> Marked:
    return Marked()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """For what gets odd arguments: one of a test file's own."""
    with contextlib.ExitStack() as stack:
        try:
            client, server, paths = stack.enter_context(two_paths(rate=None))
        except PermissionError as error:
            pytest.skip(f"needs namespaces: {error}")
        made = World(client, server, paths)
        stack.callback(made.close)
        yield made
