"""Fixtures with a broker: see brokered.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from brokered import Brokered, brokered_hosts
from support import ROOT


@pytest.fixture(scope="module")
def make_brokered() -> Iterator[Callable[[], Brokered]]:
    if not ROOT:
        pytest.skip("needs root")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(brokered_hosts())


@pytest.fixture(scope="module")
def brokered(make_brokered: Callable[[], Brokered]) -> Brokered:
    found = make_brokered()
    found.start()
    return found
