"""The pytest plugin: fixtures for tests that need several hosts, a marker for abilities that tests need, and captures.

pytest loads it wherever this package is installed. See docs/testing.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest

# Every pytest run in an environment imports this, so what only its users need is imported when they do.
if TYPE_CHECKING:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from mptcp.lab import Capture, Host, Lab, Link

_MARKER = "mptcp_needs"
_OPTION, _INI = "--mptcp-require", "mptcp_require"
_CAPTURE, _CAPTURE_INI = "--mptcp-capture", "mptcp_capture"
_FOLDER, _FOLDER_INI = "--mptcp-capture-dir", "mptcp_capture_dir"
_OFF, _ON_FAILURE = "off", "on-failure"
# What is kept of each link, in bytes, and of how many links at once.
_LIMIT, _LINKS = 32 << 20, 16


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
    what = "capture what passes on the links of labs, and keep it of tests that fail"
    choices = [_OFF, _ON_FAILURE]
    parser.getgroup("mptcp").addoption(_CAPTURE, dest=_CAPTURE_INI, choices=choices, default=None, help=what)
    parser.addini(_CAPTURE_INI, f"{what} ({_CAPTURE}): {_OFF} or {_ON_FAILURE}", default=_OFF)
    what = "where captures are kept, relative to the root directory"
    parser.getgroup("mptcp").addoption(_FOLDER, dest=_FOLDER_INI, metavar="DIR", default=None, help=what)
    parser.addini(_FOLDER_INI, f"{what} ({_FOLDER})", default="mptcp-captures")


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
    setting = config.getoption(_CAPTURE_INI) or config.getini(_CAPTURE_INI)
    if setting not in (_OFF, _ON_FAILURE):
        raise pytest.UsageError(f"{_CAPTURE_INI} must be {_OFF} or {_ON_FAILURE}, not {setting!r}")
    if setting == _ON_FAILURE:
        folder = config.getoption(_FOLDER_INI) or config.getini(_FOLDER_INI)
        config.pluginmanager.register(_Captures(config.rootpath / folder), "mptcp-captures")


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


class _Captures:
    """Captures of all links of the labs that are open while a test runs, whoever created them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place: TemporaryDirectory[str] | None = None
        self._running: list[tuple[Link, Capture, Path]] = []
        self._notes: list[str] = []
        self._kept: set[Path] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        from tempfile import TemporaryDirectory

        from mptcp.lab import _lab

        # Closed, and emptied, after the test's teardown.
        self._place = TemporaryDirectory(prefix="mptcp-captures-")
        _lab.link_created.append(self._begin)
        for link in _lab.open_links():
            self._begin(link)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        try:
            if report.failed:
                lines = [*self._keep(item.nodeid), *self._notes]
                if lines:
                    report.sections.append(("Captures of the links", "\n".join(lines)))
        finally:
            if call.when == "teardown":
                self._end()
        return report

    def _begin(self, link: Link) -> None:
        from pathlib import Path

        if self._place is None:
            return
        if len(self._running) == _LINKS:
            self._notes.append(f"{link.name} and later links were not captured: {_LINKS} are the most")
        if len(self._running) >= _LINKS:
            return
        path = Path(self._place.name, f"{len(self._running)}.pcapng")
        try:
            capture = link.capture(path, host="both", limit=_LIMIT)
        except OSError as error:
            # The test is not to fail by what would tell why it fails.
            self._notes.append(f"{link.name} was not captured: {error}")
        else:
            self._running.append((link, capture, path))

    def _keep(self, test: str) -> Iterator[str]:
        """End the captures and move them to where they are kept; yield a line for each."""
        import shutil

        for link, capture, path in self._running:
            try:
                # Complete already if the lab is closed.
                capture.close()
                kept = self._name(test, link)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, kept)
            except OSError as error:
                yield f"{link.name}: {error}"
            else:
                lost = f", {capture.dropped} more were lost" if capture.dropped else ""
                yield f"{link.name}: {kept} ({capture.packets} packets{lost})"
        self._running.clear()

    def _name(self, test: str, link: Link) -> Path:
        """Return where to keep the capture of a link. A file of an earlier run is replaced, one of this run is not."""
        plain = re.sub(r"[^A-Za-z0-9_.=]+", "-", f"{test}-{link.name}")[-200:]
        number = 1
        while (path := self._folder / f"{plain}{f'-{number}' if number > 1 else ''}.pcapng") in self._kept:
            number += 1
        self._kept.add(path)
        return path

    def _end(self) -> None:
        from mptcp.lab import _lab

        if self._begin in _lab.link_created:
            _lab.link_created.remove(self._begin)
        for _, capture, _ in self._running:
            with contextlib.suppress(OSError):
                capture.close()
        self._running.clear()
        self._notes.clear()
        if self._place is not None:
            self._place.cleanup()
            self._place = None
