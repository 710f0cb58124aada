"""Fixtures with a broker: see brokered.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokered import Brokered, echo
from mptcp.lab import two_paths
from support import ROOT


@pytest.fixture(scope="module")
def make_brokered() -> Iterator[Callable[[], Brokered]]:
    if not ROOT:
        pytest.skip("needs root")
    with ExitStack() as stack:

        def make() -> Brokered:
            client, server, paths = stack.enter_context(two_paths())
            # Everybody may connect, which pytest's own folders do not allow.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mptcp-broker-")))
            folder.chmod(0o755)
            client.set_path_manager("kernel")
            found = Brokered(client, server, (paths[0], paths[1]), folder / "broker.sock")
            stack.callback(lambda: found.broker and found.stop())
            # The subscription has joins accepted.
            stack.enter_context(server.events())
            stack.enter_context(echo(server))
            return found

        yield make


@pytest.fixture(scope="module")
def brokered(make_brokered: Callable[[], Brokered]) -> Brokered:
    found = make_brokered()
    found.start()
    return found
