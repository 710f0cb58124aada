"""A server that answers the programs under ``mptcp run``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from programs import Echo, Paths


@pytest.fixture
def echo(mptcp_two_paths: Paths) -> Iterator[Echo]:
    server = Echo(mptcp_two_paths[1])
    yield server
    server.close()
