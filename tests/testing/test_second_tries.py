"""A failed test is tried once more if tests/second_tries.txt lists it, and in no other case."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import second_tries

ROOT = Path(__file__).parents[2]

# Each test fails when it is run for the first time.
PROJECT = """
import pytest
from second_tries import pytest_collection_modifyitems, pytest_terminal_summary

tried = set()

@pytest.fixture
def first(request):
    name = request.node.name
    yield name not in tried and not tried.add(name)
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_listed(first, number):
    assert not first

def test_other(first):
    assert not first
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "tests").mkdir()
    (folder / "tests" / "second_tries.txt").write_text(text)
    (folder / "tests" / "conftest.py").write_text(PROJECT)
    (folder / "tests" / "test_it.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", ".", "tests"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_only_a_listed_test_is_tried_again(tmp_path: Path) -> None:
    done = run(tmp_path, "# why\n\ntests/test_it.py::test_listed waits for nothing that the kernel tells\n")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "1 failed, 2 passed, 2 rerun" in done.stdout
    assert "FAILED tests/test_it.py::test_other" in done.stdout
    assert "tried twice: tests/test_it.py::test_listed[1]" in done.stdout
    assert "tried twice: tests/test_it.py::test_other" not in done.stdout


def test_a_file_may_be_listed(tmp_path: Path) -> None:
    done = run(tmp_path, "tests/test_it.py waits for nothing that the kernel tells\n")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "3 passed, 3 rerun" in done.stdout


def test_a_reason_is_required(tmp_path: Path) -> None:
    done = run(tmp_path, "tests/test_it.py::test_listed \n")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert "test_listed needs a reason" in done.stderr


def test_what_is_listed_exists() -> None:
    for test in second_tries.listed((ROOT / second_tries.LIST).read_text()):
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        if not name:
            continue
        names = {
            node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert name in names, test
