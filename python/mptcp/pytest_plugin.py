"""The pytest plugin: fixtures for tests that need several hosts, and a marker for abilities that a test needs.

pytest loads it wherever this package is installed. See docs/testing.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest

# Every pytest run in an environment imports this, so what only its users need is imported when they do.
if TYPE_CHECKING:
    from mptcp.lab import Host, Lab, Link

_MARKER = "mptcp_needs"
_OPTION, _INI = "--mptcp-require", "mptcp_require"


@pytest.fixture
def mptcp_lab(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """An empty lab, closed after the test.

    Where namespaces are denied the test is skipped, or fails with ``--mptcp-require``.
    """
    from mptcp.lab import Lab

    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(Lab())
        except PermissionError as error:
            _stop(pytestconfig, str(error))
        yield lab


@pytest.fixture
def mptcp_two_paths(pytestconfig: pytest.Config) -> Iterator[tuple[Host, Host, tuple[Link, Link]]]:
    """A client, a server and two links of 20 and 10 Mbit/s between them, as mptcp.lab.two_paths creates them.

    Where namespaces are denied, and on a kernel without Multipath TCP, the test is skipped, or fails with
    ``--mptcp-require``.
    """
    from mptcp._errors import UnsupportedError
    from mptcp.lab import two_paths

    with contextlib.ExitStack() as stack:
        try:
            hosts_and_links = stack.enter_context(two_paths())
        except (PermissionError, UnsupportedError) as error:
            _stop(pytestconfig, str(error))
        yield hosts_and_links


def pytest_addoption(parser: pytest.Parser) -> None:
    what = f"fail tests that need something of {_MARKER} or of the lab fixtures that is missing, instead of skipping"
    parser.getgroup("mptcp").addoption(_OPTION, dest=_INI, action="store_true", default=None, help=f"{what} them")
    parser.addini(_INI, f"{what} them ({_OPTION})", type="bool", default=False)


def _stop(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the running test, or fail it where nothing may be missing."""
    if config.getoption(_INI) or config.getini(_INI):
        pytest.fail(f"{reason} ({_OPTION})", pytrace=False)
    # The summary shows the test's location, as with pytest's own marks, rather than this line's.
    raise pytest.skip.Exception(reason, _use_item_location=True)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(*abilities): skip the test where one of these abilities is missing, as `mptcp doctor --json` "
        f"names them; with {_OPTION} it fails instead",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse unknown abilities: a test that is skipped because of a typing error would never run."""
    marked = [(item, mark) for item in items for mark in item.iter_markers(_MARKER)]
    if not marked:
        return
    from mptcp._abilities import ABILITIES

    names = [ability.name for ability in ABILITIES]
    for item, mark in marked:
        if not mark.args or mark.kwargs:
            raise pytest.UsageError(
                f'{item.nodeid}: {_MARKER} must have names of abilities as arguments, like {_MARKER}("links")'
            )
        for name in mark.args:
            if name not in names:
                raise pytest.UsageError(
                    f"{item.nodeid}: {_MARKER}({name!r}): an ability must be one of {', '.join(names)}"
                )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [name for mark in item.iter_markers(_MARKER) for name in mark.args]
    if not needed:
        return
    from mptcp._abilities import lack

    for name in needed:
        if reason := lack(name):
            _stop(item.config, reason)
