"""The site: its navigation has every page, its reference every public name. `mkdocs build --strict` is in .ci/run."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIGURATION = ROOT / "mkdocs.yml"
PARTS = ("aio", "enhanced_api", "lab", "measures", "plot", "policies", "testing")
# Pages of the site that are made from elsewhere, by docs/site/hooks.py.
ELSEWHERE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "report.md"}


def test_the_reference_has_every_public_name_once() -> None:
    named = [
        name for page in DOCS.glob("reference/*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    public = {
        f"{module.__name__}.{name}"
        for module in map(importlib.import_module, ("mptcp", *(f"mptcp.{part}" for part in PARTS)))
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name))
    }
    assert sorted(named) == sorted(public)


def test_the_navigation_has_every_page_once() -> None:
    if not CONFIGURATION.exists():
        pytest.skip("needs a checkout: mkdocs.yml")
    navigation = CONFIGURATION.read_text().partition("\nnav:\n")[2]
    named = re.findall(r"([\w/-]+\.(?:md|ipynb))$", navigation, re.MULTILINE)
    decisions = {path for path in DOCS.glob("decisions/*.md") if path.name != "README.md"}
    pages = {path.relative_to(DOCS).as_posix() for path in set(DOCS.glob("**/*.md")) - decisions}
    notebooks = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb")}
    assert sorted(named) == sorted(pages | notebooks | set(ELSEWHERE.values()) | {"messages.md"})


def test_docstrings_and_messages_name_pages_that_exist() -> None:
    """Also in the native core, and in the sources of the package where they are beside the tests."""
    sources = [path for top in ("python", "src") for path in (ROOT / top).rglob("*") if path.suffix in (".py", ".rs")]
    if not sources:
        pytest.skip("needs a checkout: python/ and src/")
    named = {
        (path.name, page)
        for path in [*sources, *(ROOT / "python").rglob("*.pyi")]
        for page in re.findall(r"docs/[\w./-]+\.md", path.read_text())
    }
    assert named
    assert [(name, page) for name, page in sorted(named) if not (ROOT / page).exists()] == []
