"""The notebooks as they are committed: short cells, and the outputs of one run. .ci/run runs them anew."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

if not NOTEBOOKS:
    pytest.skip("needs the notebooks beside the tests", allow_module_level=True)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    notebook = json.loads(request.param.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def lines_of_logic(source: str) -> int:
    """Lines of code but imports."""
    lines: set[int] = set()
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            lines |= set(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return sum(bool(line.strip()) and number in lines for number, line in enumerate(source.splitlines(), 1))


def test_no_logic_over_ten_lines(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        source = "".join(cell["source"])
        assert lines_of_logic(source.removesuffix(";")) <= 10, source


def test_outputs_are_of_one_run(cells: list[dict[str, Any]]) -> None:
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]


def test_plots_are_there(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        draws = any(word in "".join(cell["source"]) for word in (".plot(", "plot.share(", "plt.subplots("))
        images = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(images) == draws, "".join(cell["source"])


def test_no_output_is_red(cells: list[dict[str, Any]]) -> None:
    """Neither warnings nor progress bars, which notebooks show on standard error."""
    for cell in cells:
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"], "".join(cell["source"])
