"""docs/run-tested.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "run-tested.md"


def test_every_test_that_the_page_names_exists() -> None:
    named = set()
    for file, tests in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", PAGE.read_text()):
        named |= {(file, name) for name in re.findall(r"`(\w+)`", tests)}
    assert len(named) > 50
    defined = {
        (path.name, node.name)
        for path in HERE.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert named - defined == set()
