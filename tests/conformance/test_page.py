"""docs/conformance.md names every scenario's test, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.conformance

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "conformance.md"


def defined(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_page_lists_the_tests() -> None:
    listed = {}
    for section in PAGE.read_text().split("\n## "):
        if heading := re.search(r"^\| scenario \| test in `tests/conformance/(\w+\.py)` \|$", section, re.MULTILINE):
            rows = re.findall(r"^\| (.+) \| (`test_.+`) \|$", section, re.MULTILINE)
            named = [name for _, tests in rows for name in re.findall(r"`(\w+)`", tests)]
            assert len(named) == len(set(named)), "named twice"
            listed[heading[1]] = set(named)
    # Those two are about the page and the program of CPython's own tests.
    scenarios = [path for path in HERE.glob("test_*.py") if path.name not in ("test_page.py", "test_cpython.py")]
    files = {path.name: defined(path) for path in scenarios}
    assert listed == files


def test_every_test_has_the_marker() -> None:
    for path in HERE.glob("test_*.py"):
        assert "\npytestmark = pytest.mark.conformance\n" in path.read_text(), path.name
