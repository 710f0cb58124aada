"""The page of the benchmarks, which several runs may write at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
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


def test_what_live_costs_is_what_was_measured() -> None:
    """The sentence of docs/measuring.md, and the rows of docs/benchmarks.md that it is about."""
    rows = re.findall(
        r"^every (\S+) ms \((\w+), \w+\), (no live\(\)|live\(0\.[15]\)) +(\d+) of +(\d+) +(\d+) µs .* (\d+)%$",
        (DOCS / "benchmarks.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 12
    found = {
        (interval, method, live): (int(missed) / int(ticks), int(wait), int(processor) / 100)
        for interval, method, live, missed, ticks, wait, processor in rows
    }
    more_wait: list[int] = []
    processor: dict[str, list[float]] = {"live(0.5)": [], "live(0.1)": []}
    for (interval, method, live), (_, wait, used) in found.items():
        _, wait_without, used_without = found[interval, method, "no live()"]
        if live in processor:
            more_wait.append(wait - wait_without)
            processor[live].append(used - used_without)
    text = " ".join((DOCS / "measuring.md").read_text().split())
    assert f"(`wait_ns`) is at most {max(more_wait)} µs longer" in text
    assert "about a third of a processor at its default interval and two thirds at the shortest" in text
    assert all(abs(more - 1 / 3) < 0.07 for more in processor["live(0.5)"])
    assert all(abs(more - 2 / 3) < 0.07 for more in processor["live(0.1)"])
    with_it, without = (found["1", "bpf", live][0] for live in ("live(0.5)", "no live()"))
    assert f"at 1 ms {with_it:.2%} were with it and {without:.2%} without".replace("%", " %") in text
    with_it, without = (found["1", "inet_diag", live][0] for live in ("live(0.5)", "no live()"))
    assert f"{with_it:.1%} instead of {without:.1%}.".replace("%", " %") in text
