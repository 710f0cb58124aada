"""What finds circles and arrows that point upwards, tried on copies of the package with an import that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CIRCLES = ROOT / ".ci" / "imports"
LAYERS = Path(sys.executable).parent / "lint-imports"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's sources."""
    source = ROOT / "python" / "mptcp"
    if not CIRCLES.exists() or not source.exists():
        pytest.skip("needs a checkout: .ci/imports and python/mptcp")
    return shutil.copytree(source, tmp_path / "mptcp", ignore=shutil.ignore_patterns("*.so", "__pycache__"))


def add(package: Path, file: str, line: str) -> None:
    with (package / file).open("a") as text:
        text.write(f"{line}\n")


def circles(package: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, CIRCLES, package], capture_output=True, text=True, timeout=60)


def layers(package: Path) -> subprocess.CompletedProcess[str]:
    if not LAYERS.exists():
        pytest.skip("needs import-linter, of the extra dev")
    shutil.copy(ROOT / "pyproject.toml", package.parent)
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [LAYERS, "--no-cache"]
    return subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, timeout=60)


def test_the_package_has_no_circle(package: Path) -> None:
    done = circles(package)
    assert done.returncode == 0, done.stdout


def test_the_package_keeps_its_layers(package: Path) -> None:
    done = layers(package)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "circle"),
    [
        ("_events.py", "from ._socket import Socket", {"mptcp._events", "mptcp._socket"}),
        # For an annotation alone.
        ("_rows.py", "if TYPE_CHECKING:\n    from .plot._draw import rtt", {"mptcp._rows", "mptcp.plot._draw"}),
        # In a function.
        ("_tables.py", "def late() -> None:\n    from . import _connection", {"mptcp._connection", "mptcp._tables"}),
        # Not _panels itself, but the package's __init__ before it.
        ("measures.py", "from .plot import _panels", {"mptcp.measures", "mptcp.plot"}),
        # By the stub of the native module.
        ("_core.pyi", "from ._socket import Socket", {"mptcp._core", "mptcp._socket"}),
    ],
)
def test_a_circle_is_found(package: Path, file: str, line: str, circle: set[str]) -> None:
    add(package, file, line)
    done = circles(package)
    assert done.returncode == 1
    assert "circle of" in done.stdout
    found = {text.split()[0] for text in done.stdout.splitlines() if text.startswith("  ")}
    assert circle <= found


@pytest.mark.parametrize("line", ["import mptcp", "from mptcp import Socket", "from . import Socket"])
def test_the_top_package_is_imported_by_nobody_inside(package: Path, line: str) -> None:
    add(package, "aio.py", line)
    done = circles(package)
    assert (done.returncode, done.stdout) == (1, "mptcp.aio imports mptcp, which imports every module\n")


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("_events.py", "from mptcp._socket import Socket", "mptcp._events -> mptcp._socket"),
        ("_socket.py", "from mptcp import lab", "mptcp._socket -> mptcp.lab"),
        ("measures.py", "if TYPE_CHECKING:\n    from mptcp import _recording", "mptcp.measures -> mptcp._recording"),
        ("policies/_path.py", "from mptcp.lab import Link", "mptcp.policies._path -> mptcp.lab"),
    ],
)
def test_an_arrow_that_points_upwards_is_found(package: Path, file: str, line: str, broken: str) -> None:
    add(package, file, line)
    done = layers(package)
    assert done.returncode == 1
    assert broken in done.stdout


def test_a_module_of_no_layer_is_found(package: Path) -> None:
    (package / "_new.py").write_text('"""A module that nobody gave a layer."""\n')
    done = layers(package)
    assert done.returncode == 1
    assert "_new" in done.stdout
