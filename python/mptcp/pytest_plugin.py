"""The pytest plugin: fixtures for tests that need several hosts, and a marker for what a test needs of the kernel.

pytest loads it in every project in whose environment this package is installed: docs/testing.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# Every pytest run of an environment imports this: what it takes to use it is imported by who does.
if TYPE_CHECKING:
    from mptcp.lab import Host, Lab, Link

_MARKER = "mptcp_needs"


@pytest.fixture
def mptcp_lab() -> Iterator[Lab]:
    """An empty lab, closed after the test, which is skipped where namespaces are denied."""
    from mptcp.lab import Lab

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
    from mptcp._errors import UnsupportedError
    from mptcp.lab import two_paths

    with contextlib.ExitStack() as stack:
        try:
            hosts_and_links = stack.enter_context(two_paths())
        except (PermissionError, UnsupportedError) as error:
            pytest.skip(str(error))
        yield hosts_and_links


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(*abilities): skip the test where one of these abilities is lacking, as `mptcp doctor --json` "
        "names them",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse abilities that are none: a test that is skipped for a typing error would never run."""
    marked = [(item, mark) for item in items for mark in item.iter_markers(_MARKER)]
    if not marked:
        return
    from mptcp._abilities import ABILITIES

    names = [ability.name for ability in ABILITIES]
    for item, mark in marked:
        if not mark.args or mark.kwargs:
            raise pytest.UsageError(f'{item.nodeid}: {_MARKER} takes names of abilities: {_MARKER}("links")')
        for name in mark.args:
            if name not in names:
                raise pytest.UsageError(f"{item.nodeid}: {_MARKER}({name!r}): an ability is one of {', '.join(names)}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [name for mark in item.iter_markers(_MARKER) for name in mark.args]
    if not needed:
        return
    from mptcp._abilities import lack

    for name in needed:
        if reason := lack(name):
            # The summary shows where the test is, as with pytest's own marks, and not this line.
            raise pytest.skip.Exception(reason, _use_item_location=True)
