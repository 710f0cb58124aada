"""The pytest plugin: fixtures for tests that need several hosts, markers for what tests need, captures and recordings.

pytest loads it wherever this package is installed. See docs/testing.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pytest

# Every pytest run in an environment imports this, so what only its users need is imported when they do.
if TYPE_CHECKING:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from mptcp._recording import Recorder
    from mptcp.lab import Capture, Host, Lab, Link

    _TwoPaths = tuple[Host, Host, tuple[Link, Link]]

_MARKER = "mptcp_needs"
_LAB_MARKER = "mptcp_lab"
_FIXTURES = ("mptcp_lab", "mptcp_two_paths", "mptcp_module_lab", "mptcp_module_two_paths")
_OPTION, _INI = "--mptcp-require", "mptcp_require"
_CAPTURE, _CAPTURE_INI = "--mptcp-capture", "mptcp_capture"
_RECORD, _RECORD_INI = "--mptcp-record", "mptcp_record"
_FOLDER, _FOLDER_INI = "--mptcp-capture-dir", "mptcp_capture_dir"
_OFF, _ON_FAILURE = "off", "on-failure"
_COMPLAINT = pytest.StashKey[str]()
# What is kept of each link, in bytes, and of how many links, or hosts, at once.
_LIMIT, _MOST = 32 << 20, 16


@pytest.fixture
def mptcp_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An empty lab, closed after the test.

    Where namespaces are denied the test is skipped, or fails with ``--mptcp-require``.
    """
    yield from _lab(request)


@pytest.fixture(scope="module")
def mptcp_module_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The same, for all tests of a module that use it."""
    yield from _lab(request)


@pytest.fixture
def mptcp_two_paths(request: pytest.FixtureRequest) -> Iterator[_TwoPaths]:
    """A client, a server and two links of 20 and 10 Mbit/s between them, as mptcp.lab.two_paths creates them.

    The marker ``mptcp_lab`` has other arguments of two_paths(). Where namespaces are denied, and on a kernel without
    Multipath TCP, the test is skipped, or fails with ``--mptcp-require``.
    """
    yield from _two_paths(request)


@pytest.fixture(scope="module")
def mptcp_module_two_paths(request: pytest.FixtureRequest) -> Iterator[_TwoPaths]:
    """The same, for all tests of a module that use it."""
    yield from _two_paths(request)


def _lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    from mptcp.lab import Lab

    arguments = {name: value for name, value in _arguments(request.node).items() if name == "seed"}
    with contextlib.ExitStack() as stack:
        with _explained(request.config, arguments):
            lab = stack.enter_context(Lab(**arguments))
        yield lab


def _two_paths(request: pytest.FixtureRequest) -> Iterator[_TwoPaths]:
    from mptcp.lab import two_paths

    arguments = _arguments(request.node)
    with contextlib.ExitStack() as stack:
        with _explained(request.config, arguments):
            hosts_and_links = stack.enter_context(two_paths(**arguments))
        yield hosts_and_links


def _arguments(node: pytest.Item | pytest.Collector) -> dict[str, Any]:
    """Return the keywords of the node's markers, of which the closest one counts."""
    arguments: dict[str, Any] = {}
    for mark in node.iter_markers(_LAB_MARKER):
        arguments = {**mark.kwargs, **arguments}
    return arguments


@contextlib.contextmanager
def _explained(config: pytest.Config, arguments: dict[str, Any]) -> Iterator[None]:
    """Skip or fail the test where a lab cannot be had, and fail it if the marker's arguments are wrong."""
    from mptcp._errors import UnsupportedError

    try:
        yield
    except (PermissionError, UnsupportedError) as error:
        _stop(config, str(error))
    except (TypeError, ValueError, FileNotFoundError) as error:
        if not arguments:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        pytest.fail(f"{_LAB_MARKER}({given}): {error}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mptcp")
    what = f"fail tests that need something of {_MARKER} or of the lab fixtures that is missing, instead of skipping"
    group.addoption(_OPTION, dest=_INI, action="store_true", default=None, help=f"{what} them")
    parser.addini(_INI, f"{what} them ({_OPTION})", type="bool", default=False)
    choices = [_OFF, _ON_FAILURE]
    for option, ini, what in (
        (_CAPTURE, _CAPTURE_INI, "capture what passes on the links of labs, and keep it of tests that fail"),
        (_RECORD, _RECORD_INI, "record the subflows of the hosts of labs, and keep it of tests that fail"),
    ):
        group.addoption(option, dest=ini, choices=choices, default=None, help=what)
        parser.addini(ini, f"{what} ({option}): {_OFF} or {_ON_FAILURE}", default=_OFF)
    what = "where captures and recordings are kept, relative to the root directory"
    group.addoption(_FOLDER, dest=_FOLDER_INI, metavar="DIR", default=None, help=what)
    parser.addini(_FOLDER_INI, f"{what} ({_FOLDER})", default="mptcp-captures")


def _stop(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the running test, or fail it where nothing may be missing."""
    if config.getoption(_INI) or config.getini(_INI):
        pytest.fail(f"{reason} ({_OPTION})", pytrace=False)
    # The summary shows the test's location, as with pytest's own marks, rather than this line's.
    raise pytest.skip.Exception(reason, _use_item_location=True)


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        f"{_MARKER}(*abilities): skip the test where one of these abilities is missing, as `mptcp doctor --json` "
        f"names them; with {_OPTION} it fails instead",
        f"{_LAB_MARKER}(rate=..., delay=..., ...): the arguments of mptcp.lab.two_paths() for mptcp_two_paths, and in "
        "pytestmark of a module for mptcp_module_two_paths; of a lab without links only seed",
    ):
        config.addinivalue_line("markers", line)
    for ini, kind in ((_CAPTURE_INI, _Captures), (_RECORD_INI, _Recordings)):
        setting = config.getoption(ini) or config.getini(ini)
        if setting not in (_OFF, _ON_FAILURE):
            raise pytest.UsageError(f"{ini} must be {_OFF} or {_ON_FAILURE}, not {setting!r}")
        if setting == _ON_FAILURE:
            folder = config.getoption(_FOLDER_INI) or config.getini(_FOLDER_INI)
            config.pluginmanager.register(kind(config.rootpath / folder), ini)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse unknown abilities, and arguments without effect: such a test would not run, or not on these links."""
    for item in items:
        complaint = _wrong_abilities(item) or _wrong_arguments(item)
        if not complaint:
            continue
        # pytest-xdist loses what its workers raise here.
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(f"{item.nodeid}: {complaint}")
        item.stash[_COMPLAINT] = complaint


def _wrong_abilities(item: pytest.Item) -> str:
    """Return what is wrong with the markers of a test, or an empty string."""
    marks = list(item.iter_markers(_MARKER))
    if not marks:
        return ""
    from mptcp._abilities import ABILITIES

    names = [ability.name for ability in ABILITIES]
    for mark in marks:
        if not mark.args or mark.kwargs:
            return f'{_MARKER} must have names of abilities as arguments, like {_MARKER}("links")'
        for name in mark.args:
            if name not in names:
                return f"{_MARKER}({name!r}): an ability must be one of {', '.join(names)}"
    return ""


def _wrong_arguments(item: pytest.Item) -> str:
    """Return what is wrong with the arguments that markers have for a test's lab, or an empty string."""
    marks = list(item.iter_markers_with_node(_LAB_MARKER))
    if not marks:
        return ""
    known = _known_arguments()
    used = [name for name in _FIXTURES if name in getattr(item, "fixturenames", ())]
    for node, mark in marks:
        if mark.args or not mark.kwargs:
            return f'{_LAB_MARKER} must have keyword arguments, like {_LAB_MARKER}(rate="10mbit")'
        for name in mark.kwargs:
            if name not in known:
                return f"{_LAB_MARKER}({name}=...): an argument must be one of {', '.join(known)}"
        # What is said of a whole module may concern other tests of it.
        if not used or not isinstance(node, pytest.Item | pytest.Class):
            continue
        if all("_module_" in name for name in used):
            return (
                f"{_LAB_MARKER} has no effect on {used[0]}, which is created once for the module: put it into the "
                f"module's pytestmark, or use {used[0].replace('_module', '')}"
            )
        if node is item and not any("two_paths" in name for name in used) and (others := mark.kwargs.keys() - {"seed"}):
            return (
                f"{_LAB_MARKER}({min(others)}=...) has no effect on {used[0]}, whose links the test creates: pass it "
                f"to link(), or use {used[0].replace('lab', 'two_paths')}"
            )
    return ""


def _known_arguments() -> list[str]:
    """Return the arguments of two_paths(), with those of Lab.link() that it takes for both links."""
    from inspect import Parameter, signature

    from mptcp.lab import Lab, two_paths

    found = [*signature(two_paths).parameters.values(), *signature(Lab.link).parameters.values()]
    names = [each.name for each in found if each.kind is not Parameter.VAR_KEYWORD]
    return [name for name in dict.fromkeys(names) if name not in ("self", "a", "b", "name")]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if complaint := item.stash.get(_COMPLAINT, ""):
        pytest.fail(complaint, pytrace=False)
    needed = [name for mark in item.iter_markers(_MARKER) for name in mark.args]
    if not needed:
        return
    from mptcp._abilities import lack

    for name in needed:
        if reason := lack(name):
            _stop(item.config, reason)


class _Witness:
    """What is written about labs that are open while a test runs, whoever created them, and kept if it fails."""

    _TITLE: ClassVar[str]
    _SUFFIX: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes: list[str] = []
        self._kept: set[Path] = set()

    def _begin(self, link: Link) -> None:
        """Begin with a link that was created, or that was there before the test."""
        raise NotImplementedError

    def _keep(self, test: str) -> Iterator[str]:
        """End everything and keep it; yield a line for each."""
        raise NotImplementedError

    def _discard(self) -> None:
        """End everything that was not kept."""
        raise NotImplementedError

    def _hooks(self) -> list[tuple[list[Callable[[Any], None]], Callable[[Any], None]]]:
        from mptcp.lab import _lab

        return [(_lab.link_created, self._begin)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        from mptcp.lab import _lab

        for calls, call in self._hooks():
            calls.append(call)
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
                    report.sections.append((self._TITLE, "\n".join(lines)))
        finally:
            # After the test's teardown.
            if call.when == "teardown":
                for calls, one in self._hooks():
                    if one in calls:
                        calls.remove(one)
                self._discard()
                self._notes.clear()
        return report

    def _has_room(self, number: int, name: str) -> bool:
        if number == _MOST:
            self._notes.append(f"{name} and later ones were left out: {_MOST} are the most")
        return number < _MOST

    def _path(self, test: str, name: str) -> Path:
        """Return where to keep what is called so. A file of an earlier run is replaced, one of this run is not."""
        plain = re.sub(r"[^A-Za-z0-9_.=]+", "-", f"{test}-{name}")[-200:]
        number = 1
        while (path := self._folder / f"{plain}{f'-{number}' if number > 1 else ''}{self._SUFFIX}") in self._kept:
            number += 1
        self._kept.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _Captures(_Witness):
    """Captures of all links, at both ends."""

    _TITLE = "Captures of the links"
    _SUFFIX = ".pcapng"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._place: TemporaryDirectory[str] | None = None
        self._running: list[tuple[Link, Capture, Path]] = []
        self._number = 0

    def _begin(self, link: Link) -> None:
        from pathlib import Path
        from tempfile import TemporaryDirectory

        if not self._has_room(len(self._running), link.name):
            return
        if self._place is None:
            self._place = TemporaryDirectory(prefix="mptcp-captures-")
        self._number += 1
        path = Path(self._place.name, f"{self._number}.pcapng")
        try:
            capture = link.capture(path, host="both", limit=_LIMIT)
        except OSError as error:
            # The test is not to fail by what would tell why it fails.
            self._notes.append(f"{link.name} was not captured: {error}")
        else:
            self._running.append((link, capture, path))

    def _keep(self, test: str) -> Iterator[str]:
        import shutil

        for link, capture, path in self._running:
            try:
                # Complete already if the lab is closed.
                capture.close()
                kept = self._path(test, link.name)
                shutil.move(path, kept)
            except OSError as error:
                yield f"{link.name}: {error}"
            else:
                lost = f", {capture.dropped} more were lost" if capture.dropped else ""
                yield f"{link.name}: {kept} ({capture.packets} packets{lost})"
        self._running.clear()

    def _discard(self) -> None:
        for _, capture, _ in self._running:
            with contextlib.suppress(OSError):
                capture.close()
        self._running.clear()
        if self._place is not None:
            self._place.cleanup()
            self._place = None


class _Recordings(_Witness):
    """Recordings of all hosts that have links."""

    _TITLE = "Recordings of the hosts"
    _SUFFIX = ".npz"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._running: dict[Host, Recorder] = {}

    def _hooks(self) -> list[tuple[list[Callable[[Any], None]], Callable[[Any], None]]]:
        from mptcp.lab import _lab

        return [*super()._hooks(), (_lab.lab_closes, self._close)]

    def _begin(self, link: Link) -> None:
        from mptcp._recording import Recorder

        for host in link.hosts:
            if host in self._running or not self._has_room(len(self._running), host.name):
                continue
            try:
                with host._in_namespace() as fd:
                    self._running[host] = Recorder._of_namespace(fd)
            except OSError as error:
                self._notes.append(f"{host.name} was not recorded: {error}")

    def _close(self, lab: Lab | None = None) -> None:
        """End the recordings of a lab, before it is closed, or all."""
        for host, recorder in self._running.items():
            if lab is None or host.lab is lab:
                # The links were created after it began.
                recorder._describe_labs()
                recorder.close()

    def _keep(self, test: str) -> Iterator[str]:
        self._close()
        for host, recorder in self._running.items():
            if not len(recorder.samples):
                continue
            try:
                kept = self._path(test, host.name)
                recorder.save(kept)
            except OSError as error:
                yield f"{host.name}: {error}"
            else:
                yield f"{host.name}: {kept} ({len(recorder.samples)} samples)"
        self._running.clear()

    def _discard(self) -> None:
        self._close()
        self._running.clear()
