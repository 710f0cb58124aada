"""The README's examples run and print what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mptcp.lab
import pytest
from support import needs_bpf

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def examples() -> list[object]:
    """Each program with its output, which is the next block of text."""
    pairs = zip(blocks("python"), blocks("text"), strict=True)
    return [pytest.param(*pair, marks=needs_bpf if "set_subflow_options" in pair[0] else ()) for pair in pairs]


@pytest.mark.usefixtures("mptcp_lab")
@pytest.mark.parametrize(("program", "output"), examples())
def test_an_example_prints_what_the_readme_says(program: str, output: str) -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout == output


def test_every_public_name_has_a_docstring() -> None:
    for module in (mptcp, mptcp.lab):
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name}"
