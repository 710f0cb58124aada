"""The pages that teach: their programs run in order, in an empty folder, and print what the page says.

A block of Python begins with a comment that names its file. A block of sh runs what was written so far; the next block
of text, if there is one, is its output, with ``...`` for what differs from run to run.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "index",
    "lab",
    "new-user",
    "ci",
    "sweeps",
    "tutorials/researcher",
    "tutorials/tester",
    "tutorials/application",
)
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# It needs a package index; .ci/run installs the wheel.
INSTALLS = "pip install"


def blocks(page: str) -> Iterator[tuple[str, str]]:
    for match in BLOCK.finditer((DOCS / f"{page}.md").read_text()):
        yield match[1], match[2]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    unwanted = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    # On a busy machine a lab warns that frames were late, which pytest would add to what it prints.
    return {**kept, "PATH": path, "PYTEST_ADDOPTS": "-p no:warnings"}


@pytest.mark.mptcp_needs("in_lab", "links", "user_notification")
@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(page: str, tmp_path: Path) -> None:
    steps = list(blocks(page))
    plots = any(re.search(r"\.plot\(|\.png", text) for _, text in steps)
    if plots and importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib: pip install 'mptcp[plot]'")
    ran = 0
    for number, (language, text) in enumerate(steps):
        if language == "python":
            name = re.match(r"# ([\w-]+\.py)\n", text)
            assert name, f"the program has no name: {text[:60]}"
            (tmp_path / name[1]).write_text(text)
        elif language == "sh" and INSTALLS not in text:
            result = subprocess.run(
                ["bash", "-ec", text], cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment()
            )
            assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
            ran += 1
            following = steps[number + 1] if number + 1 < len(steps) else ("", "")
            if following[0] == "text":
                expected = ".*".join(re.escape(part) for part in following[1].split("..."))
                assert re.fullmatch(expected, result.stdout, re.DOTALL), result.stdout
    assert ran
    commands = "".join(text for language, text in steps if language == "sh")
    for file in sorted(tmp_path.glob("*.py")):
        # One that no command of the page runs is whole, too. That for dask is run by test_sweeps.py.
        if file.name not in commands and "from distributed" not in file.read_text():
            result = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=100)
            assert result.returncode == 0, f"{file.name}: {result.stderr}"


def test_every_output_follows_a_command() -> None:
    for page in PAGES:
        languages = [language for language, _ in blocks(page)]
        assert all(before == "sh" for before, after in itertools.pairwise(languages) if after == "text")


def test_the_workflows_run_what_the_page_runs() -> None:
    """The services of others cannot be tried here, but each command of their files is one that ran above."""
    page = (DOCS / "ci.md").read_text()
    ran = {line for language, text in blocks("ci") if language == "sh" for line in text.splitlines()}
    ran |= {re.sub(r"^python -m (pytest) -q (.*) test_links\.py$", r"\1 \2", line) for line in ran}
    workflows = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = [
        command for text in workflows for command in re.findall(r"- (?:run: )?((?:mptcp|pytest) .*)$", text, re.M)
    ]
    assert len(workflows) == 2
    assert len(commands) == 4
    assert set(commands) <= ran
