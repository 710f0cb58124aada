"""docs/path-managers.md: its table names tests that exist, and everything in it has a call or a reason."""

from __future__ import annotations

import re
from pathlib import Path

import mptcp
from mptcp import _control

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "path-managers.md"


def rows() -> list[list[str]]:
    table = PAGE.read_text().partition("| there | here | test |")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_test_that_the_table_names_exists() -> None:
    defined = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set()
    for _, _, tests in rows():
        for file, names in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", tests):
            named |= {(file, name) for name in re.findall(r"`(\w+)`", names)}
    assert len(named) > 15
    assert named - defined == set()


def test_every_row_has_a_call_with_a_test_or_a_reason() -> None:
    assert len(rows()) > 40
    for there, here, tests in rows():
        assert here, there
        if not tests:
            assert here.startswith("none"), there


def test_the_calls_of_the_table_are_ours() -> None:
    called = {name for _, here, _ in rows() for name in re.findall(r"`(\w+)\(", here)}
    known = {*dir(mptcp), *dir(_control.Control), *dir(mptcp.Policy)}
    assert called - known == set()
