"""The pytest plugin in another project, as a new user would have it: an empty directory and a test file."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mptcp
import pytest
from mptcp import _abilities
from support import STRICT, Marked

TESTING = Path(__file__).parents[2] / "docs" / "testing.md"
USAGE_ERROR = 4

# Beside busy programs each start of pytest takes some seconds, and some tests have four.
pytestmark = pytest.mark.timeout(400)


class Project:
    """Another project's directory, in which pytest is run with a command line's start."""

    def __init__(self, folder: Path, prefix: list[str], environment: dict[str, str]) -> None:
        self.folder = folder
        self._prefix = prefix
        self._environment = environment

    def write(self, text: str, name: str = "test_it.py") -> None:
        (self.folder / name).write_text(text)

    def pytest(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [*STRICT, "-m", "pytest", "--strict-markers", "--strict-config", "-rs"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(self.folder), *options]
        return subprocess.run(
            [*self._prefix, *command],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def doctor(self, name: str) -> dict[str, str]:
        """The finding of an ability, in a process of its own with the same privileges."""
        command = [*self._prefix, sys.executable, "-m", "mptcp", "doctor", "--json"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=100).stdout
        [finding] = [finding for finding in json.loads(found)["abilities"] if finding["name"] == name]
        return dict(finding)


@pytest.fixture
def project(tmp_path: Path, prefix: list[str], marked: Marked) -> Project:
    # Nothing of our own run reaches the other's.
    environment = {name: value for name, value in marked.environment.items() if not name.startswith("PYTEST")}
    environment |= {"COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"}
    return Project(tmp_path, prefix, environment)


@pytest.mark.usefixtures("mptcp_lab")
def test_what_the_page_shows(project: Project, marked: Marked) -> None:
    programs = re.findall(r"^```python\n(.*?)^```", TESTING.read_text(), re.M | re.S)
    tests = sum(len(re.findall(r"^def test_", program, re.M)) for program in programs)
    for number, program in enumerate(programs):
        project.write(program, f"test_{number}.py")
    done = project.pytest()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    passed = re.search(r"^=+ (\d+) passed in ", done.stdout, re.MULTILINE)
    assert passed, done.stdout
    assert int(passed[1]) >= tests
    assert marked.processes() == set()


def test_the_page_has_every_ability() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", TESTING.read_text(), re.MULTILINE)
    assert rows == [(ability.name, ability.what) for ability in _abilities.ABILITIES]


MARKED = """
import pytest

class TestAll:
    pytestmark = pytest.mark.mptcp_needs("multipath")

    @pytest.mark.mptcp_needs("bpf", "multipath")
    @pytest.mark.mptcp_needs("mptcp_info")
    def test_marked(self):
        pass

@pytest.mark.parametrize("case", [0, pytest.param(1, marks=pytest.mark.mptcp_needs("bpf"))])
def test_parameter(case):
    pass
"""


def test_the_reason_is_what_the_doctor_says(project: Project) -> None:
    project.write(MARKED)
    finding = project.doctor("bpf")
    done = project.pytest()
    assert done.returncode == 0, done.stdout
    if finding["available"]:
        assert "3 passed" in done.stdout
        assert "SKIPPED" not in done.stdout
        return
    reason = f"needs {finding['what']}: {finding['advice']}"
    assert "1 passed, 2 skipped" in done.stdout
    assert f"SKIPPED [1] test_it.py:7: {reason}" in done.stdout, "the place is the test's"
    assert f"SKIPPED [1] test_it.py:12: {reason}" in done.stdout


def test_a_missing_ability_fails_where_it_is_required(project: Project) -> None:
    project.write(MARKED)
    finding = project.doctor("bpf")
    done = project.pytest("--mptcp-require")
    assert "SKIPPED" not in done.stdout
    if finding["available"]:
        assert done.returncode == 0, done.stdout
        return
    assert done.returncode == 1, done.stdout
    assert re.search(r"^=+ 1 passed, 2 errors in ", done.stdout, re.MULTILINE), done.stdout
    assert f"needs {finding['what']}: {finding['advice']} (--mptcp-require)" in done.stdout


def test_namespaces_that_are_denied(tmp_path: Path) -> None:
    """The fixtures skip and say what to set, and so does the marker; where nothing may be missing all three fail."""
    deny = (
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"',
        "-",
    )
    if subprocess.run([*deny, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and setpriv of util-linux, and user namespaces")
    environment = {**os.environ, "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"}
    project = Project(tmp_path, list(deny), environment)
    project.write(
        "import pytest\n"
        "def test_lab(mptcp_lab): pass\n"
        "def test_two_paths(mptcp_two_paths): pass\n"
        "@pytest.mark.mptcp_needs('lab')\ndef test_marked(): pass\n"
    )
    done = project.pytest()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 skipped" in done.stdout
    assert done.stdout.count("user.max_user_namespaces") >= 2, done.stdout
    required = project.pytest("--mptcp-require")
    assert required.returncode == 1, required.stdout + required.stderr
    # A fixture's failure is an error of the test's setup.
    assert re.search(r"^=+ 3 errors in ", required.stdout, re.MULTILINE), required.stdout
    assert required.stdout.count("user.max_user_namespaces") >= 2, required.stdout
    project.write("[pytest]\nmptcp_require = true\n", "pytest.ini")
    assert project.pytest().returncode == 1


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        (
            'mptcp_needs("lab", "link")',
            r"mptcp_needs\('link'\): an ability must be one of multipath, mptcp_info, .*, links, ",
        ),
        ("mptcp_needs", "mptcp_needs must have names of abilities"),
        ("mptcp_needs(3)", r"mptcp_needs\(3\): an ability must be one of "),
    ],
)
def test_what_is_no_ability_is_an_error_of_the_collection(tmp_path: Path, mark: str, complaint: str) -> None:
    project = Project(tmp_path, [], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    project.write(f"import pytest\n\n@pytest.mark.{mark}\ndef test_it():\n    pass\n")
    done = project.pytest("--collect-only")
    assert done.returncode == USAGE_ERROR, done.stdout
    assert re.search(rf"^ERROR: test_it.py::test_it: {complaint}", done.stderr, re.MULTILINE), done.stderr


def test_who_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    """It may be named by hand, too, as earlier versions wanted it."""
    project = Project(tmp_path, [], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    project.write('pytest_plugins = ["mptcp.pytest_plugin"]\n', "conftest.py")
    project.write(
        "import sys\n\n"
        "def test_it():\n"
        "    assert not {'mptcp.lab', 'mptcp._abilities', 'pyroute2'} & sys.modules.keys()\n"
    )
    done = project.pytest("-p", "mptcp.pytest_plugin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mptcp_needs(*abilities)" in project.pytest("--markers").stdout


CAPTURED = """
import pytest
import mptcp.lab

def talk(client, server, link, port=5000):
    with server.create_server(("", port)) as listener:
        with client.create_connection((link.address(server), port), timeout=10) as sock, listener.accept()[0] as peer:
            sock.sendall(b"hello")
            assert peer.recv(5) == b"hello"

def test_passes(mptcp_two_paths):
    client, server, (first, second) = mptcp_two_paths
    talk(client, server, first)

def test_fails(mptcp_two_paths):
    client, server, (first, second) = mptcp_two_paths
    talk(client, server, first)
    assert False

@pytest.mark.parametrize("case", ["a/b"])
def test_lab_of_its_own(case):
    with mptcp.lab.Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        link = lab.link(a, b, name="only")
        talk(a, b, link)
        assert False

@pytest.fixture(scope="module")
def kept():
    with mptcp.lab.Lab() as lab:
        yield lab, lab.link(lab.host("a"), lab.host("b"), name="wide")

@pytest.mark.parametrize("number", [1, 2])
def test_lab_of_the_module(kept, number):
    lab, link = kept
    talk(lab.hosts["a"], lab.hosts["b"], link, 5000 + number)
    assert number == 1

@pytest.fixture
def broken(mptcp_two_paths):
    yield mptcp_two_paths
    raise ValueError("at the end")

def test_fails_at_its_end(broken):
    client, server, (first, second) = broken
    talk(client, server, first)
"""


@pytest.mark.usefixtures("mptcp_lab")
def test_captures_are_kept_of_tests_that_fail(project: Project, marked: Marked) -> None:
    """Also those of labs that the test creates, that are older than it, and that are closed by the time it fails."""
    project.write(CAPTURED)
    done = project.pytest("--mptcp-capture=on-failure", "--mptcp-capture-dir=kept")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^=+ 3 failed, 3 passed, 1 error in ", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.count("- Captures of the links -") == 4, done.stdout
    expected = {
        "test_it.py-test_fails-eth1",
        "test_it.py-test_fails-eth2",
        "test_it.py-test_lab_of_its_own-a-b-only",
        "test_it.py-test_lab_of_the_module-2-wide",
        "test_it.py-test_fails_at_its_end-eth1",
        "test_it.py-test_fails_at_its_end-eth2",
        # It stays open to the end of the module.
        "test_it.py-test_fails_at_its_end-wide",
    }
    kept = {path.stem: path for path in (project.folder / "kept").iterdir()}
    assert set(kept) == expected
    for path in kept.values():
        assert str(path) in done.stdout
        trace = mptcp.read_trace(path)
        is_used = not path.stem.endswith(("eth2", "its_end-wide"))
        assert trace.connections["bytes_0"].tolist() == ([5] if is_used else []), path
    assert marked.processes() == set()


@pytest.mark.usefixtures("mptcp_lab")
def test_captures_by_the_configuration_file(tmp_path: Path) -> None:
    project = Project(tmp_path, [], {**os.environ, "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"})
    project.write("[pytest]\nmptcp_capture = on-failure\n", "pytest.ini")
    project.write("def test_it(mptcp_two_paths): assert False\n")
    done = project.pytest("--mptcp-capture=off")
    assert done.returncode == 1
    assert "Captures of the links" not in done.stdout
    assert not (project.folder / "mptcp-captures").exists()
    done = project.pytest()
    assert "Captures of the links" in done.stdout
    assert len(list((project.folder / "mptcp-captures").iterdir())) == 2
    project.write("[pytest]\nmptcp_capture = always\n", "pytest.ini")
    done = project.pytest("--collect-only")
    assert done.returncode == USAGE_ERROR
    assert "mptcp_capture must be off or on-failure, not 'always'" in done.stderr


DESCRIBED = """
import pytest

pytestmark = pytest.mark.mptcp_lab(rate="8mbit", seed=7)

def rates(paths):
    return [path.rate for path in paths]

def test_of_the_module(mptcp_two_paths):
    client, server, paths = mptcp_two_paths
    assert rates(paths) == [8_000_000, 8_000_000]
    assert client.lab.seed == 7

@pytest.mark.mptcp_lab(rate=("16mbit", "4mbit"), delay="10ms", names=("wifi", "lte"))
class TestOfAClass:
    def test_of_the_class(self, mptcp_two_paths):
        client, server, paths = mptcp_two_paths
        assert rates(paths) == [16_000_000, 4_000_000]
        assert [path.name for path in paths] == ["wifi", "lte"]
        assert [path.delay for path in paths] == [0.01, 0.01]
        assert client.lab.seed == 7

    @pytest.mark.mptcp_lab(delay="20ms", queue="100ms", server_addresses=1)
    def test_of_its_own(self, mptcp_two_paths):
        client, server, paths = mptcp_two_paths
        assert rates(paths) == [16_000_000, 4_000_000]
        assert [path.delay for path in paths] == [0.02, 0.02]
        assert server.addresses[0] == paths[1].address(server)

@pytest.mark.parametrize(
    "expected", [pytest.param(each, marks=pytest.mark.mptcp_lab(rate=each)) for each in (1_000_000, 2_000_000)]
)
def test_of_a_parameter(mptcp_two_paths, expected):
    assert rates(mptcp_two_paths[2]) == [expected, expected]

def test_an_empty_lab_takes_the_seed(mptcp_lab):
    assert (mptcp_lab.seed, mptcp_lab.links) == (7, [])

seen = []

@pytest.mark.parametrize("number", [1, 2])
def test_one_for_the_module(mptcp_module_two_paths, mptcp_module_lab, number):
    client, server, paths = mptcp_module_two_paths
    assert rates(paths) == [8_000_000, 8_000_000]
    assert client.lab.seed == mptcp_module_lab.seed == 7
    seen.append((client, mptcp_module_lab))
    assert seen == [seen[0]] * number
"""


@pytest.mark.usefixtures("mptcp_lab")
@pytest.mark.mptcp_needs("links")
def test_a_marker_describes_the_links(tmp_path: Path) -> None:
    """The closest marker's keywords count, and those of wider ones remain. With xdist, too."""
    project = Project(tmp_path, [], {**os.environ, "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"})
    project.write(DESCRIBED)
    project.write(DESCRIBED, "test_other.py")
    options = ["-n2", "--dist=loadfile"] if importlib.util.find_spec("xdist") else []
    done = project.pytest(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^=+ 16 passed in ", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize(
    ("mark", "fixture", "complaint"),
    [
        (
            'mptcp_lab(rates="8mbit")',
            "mptcp_two_paths",
            r"mptcp_lab\(rates=...\): an argument must be one of rate, delay,",
        ),
        ('mptcp_lab(name="wifi")', "mptcp_two_paths", r"mptcp_lab\(name=...\): an argument must be one of .* names,"),
        (
            'mptcp_lab("8mbit")',
            "mptcp_two_paths",
            r'mptcp_lab must have keyword arguments, like mptcp_lab\(rate="10mbit"\)',
        ),
        ("mptcp_lab", "mptcp_two_paths", "mptcp_lab must have keyword arguments"),
        (
            'mptcp_lab(rate="8mbit")',
            "mptcp_lab",
            r"mptcp_lab\(rate=...\) has no effect on mptcp_lab, .* mptcp_two_paths$",
        ),
        ("mptcp_lab(seed=3)", "mptcp_module_lab", "mptcp_lab has no effect on mptcp_module_lab, .* or use mptcp_lab$"),
    ],
)
def test_arguments_without_effect_are_errors_of_the_collection(
    tmp_path: Path, mark: str, fixture: str, complaint: str
) -> None:
    project = Project(tmp_path, [], {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    project.write(f"import pytest\n\n@pytest.mark.{mark}\ndef test_it({fixture}):\n    pass\n")
    done = project.pytest("--collect-only")
    assert done.returncode == USAGE_ERROR, done.stdout
    assert re.search(rf"^ERROR: test_it.py::test_it: {complaint}", done.stderr, re.MULTILINE), done.stderr


@pytest.mark.usefixtures("mptcp_lab")
def test_a_wrong_value_names_the_marker(tmp_path: Path) -> None:
    project = Project(tmp_path, [], {**os.environ, "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"})
    project.write(
        "import pytest\n\n"
        "@pytest.mark.mptcp_lab(rate='fast')\ndef test_rate(mptcp_two_paths): pass\n"
        "@pytest.mark.mptcp_lab(seed=-1)\ndef test_seed(mptcp_lab): pass\n"
        "@pytest.mark.mptcp_lab(delay='10ms')\ndef test_later(mptcp_two_paths): raise ValueError('of its own')\n"
    )
    done = project.pytest()
    assert re.search(r"^=+ 1 failed, 2 errors in ", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^mptcp_lab\(rate='fast'\): .*rate", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^mptcp_lab\(seed=-1\): seed must be", done.stdout, re.MULTILINE), done.stdout
    assert not re.search(r"^mptcp_lab\(delay=", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.usefixtures("mptcp_lab")
def test_recordings_are_kept_of_tests_that_fail(project: Project, marked: Marked) -> None:
    """Of each host that had connections; also of labs that are older than the test, or closed by the time it fails."""
    project.write(CAPTURED)
    done = project.pytest("--mptcp-record=on-failure", "--mptcp-capture-dir=kept")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^=+ 3 failed, 3 passed, 1 error in ", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.count("- Recordings of the hosts -") == 4, done.stdout
    expected = {
        f"test_it.py-test_{test}-{host}"
        for test, hosts in {
            "fails": ("client", "server"),
            "lab_of_its_own-a-b": ("a", "b"),
            "lab_of_the_module-2": ("a", "b"),
            "fails_at_its_end": ("client", "server"),
        }.items()
        for host in hosts
    }
    kept = {path.stem: path for path in (project.folder / "kept").iterdir()}
    assert set(kept) == expected
    for name, path in kept.items():
        assert str(path) in done.stdout
        recording = mptcp.load(path)
        # A subflow of which an event told is in it, however short it lived.
        assert len({*recording.samples["token"]}) == 1, name
        [described] = [lab for lab in recording.metadata["labs"] if name.rpartition("-")[2] in lab["hosts"]]
        assert described["links"], "they were created after the recording began"
        assert len(recording.metadata["links"]) >= len(described["links"])
    assert marked.processes() == set()


@pytest.mark.usefixtures("mptcp_lab")
def test_several_processes(tmp_path: Path) -> None:
    """pytest-xdist: each process has labs of its own, and what is kept is in one directory and in one report."""
    pytest.importorskip("xdist", reason="needs pytest-xdist")
    project = Project(tmp_path, [], {**os.environ, "COLUMNS": "400", "PYTHONDONTWRITEBYTECODE": "1"})
    project.write(CAPTURED)
    done = project.pytest("-n2", "--mptcp-capture=on-failure", "--mptcp-record=on-failure", "--mptcp-require")
    assert re.search(r"^=+ 3 failed, 3 passed, 1 error in ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    kept = {path.name for path in (project.folder / "mptcp-captures").iterdir()}
    assert {"test_it.py-test_fails-eth1.pcapng", "test_it.py-test_fails-client.npz"} <= kept
    assert all(str(project.folder / "mptcp-captures" / name) in done.stdout for name in kept)
    project.write("import pytest\n\n@pytest.mark.mptcp_lab(rates=1)\ndef test_it(mptcp_two_paths): pass\n")
    done = project.pytest("-n1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "mptcp_lab(rates=...): an argument must be one of rate" in done.stdout
