"""What the package says of itself agrees: its version, its metadata, its citation."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import mptcp
import pytest

ROOT = Path(__file__).parents[2]


def test_the_version_is_that_of_the_metadata() -> None:
    assert mptcp.__version__ == importlib.metadata.version("mptcp")
    assert re.fullmatch(r"\d+\.\d+\.\d+", mptcp.__version__)


def test_the_citation_and_the_changes_have_the_version_that_is_built() -> None:
    cargo = ROOT / "Cargo.toml"
    if not cargo.exists():
        pytest.skip("needs a checkout: Cargo.toml")
    version = tomllib.loads(cargo.read_text())["package"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == version


def test_the_classifiers_name_the_versions_of_python_from_the_lowest_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    minors = [int(each.rpartition(".")[2]) for each in project["classifiers"] if re.search(r":: 3\.\d+$", each)]
    lowest = int(project["requires-python"].rpartition(".")[2])
    assert minors == list(range(lowest, lowest + len(minors)))


@pytest.mark.parametrize("name", ["", "aio", "lab", "measures", "plot", "policies", "testing"])
def test_every_public_name_is_in_the_changes(name: str) -> None:
    """But those of the enhanced socket API, which are the constants of its header."""
    module = importlib.import_module(f"mptcp.{name}".rstrip("."))
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert [public for public in module.__all__ if not re.search(rf"\b{public}\b", changes)] == []
