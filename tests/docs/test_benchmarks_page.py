"""The page of the benchmarks, which several runs may write at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

WRITE = """
import sys
from pathlib import Path

import all as page

command = sys.argv[2]
result = {"surroundings": "here", "tables": [], "output": f"result of {command}", "failure": None}
sys.stdin.read()
page.replace(command, page.part(command, result), Path(sys.argv[1]))
"""


def test_runs_at_once_keep_each_others_parts(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    commands = ["main_job", "run", "recorder load", "recorder missed"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(page), command], cwd=BENCHMARKS, stdin=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()  # which they wait for
    assert [run.wait(60) for run in runs] == [0, 0, 0, 0]
    text = page.read_text()
    assert [command for command in commands if f"result of {command}\n" not in text] == []
