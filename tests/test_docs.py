"""The README's example runs and prints what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mptcp.lab
import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("mptcp_lab")
def test_the_example_prints_what_the_readme_says() -> None:
    [program], [output] = blocks("python"), blocks("text")[:1]
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout == output


def test_every_public_name_has_a_docstring() -> None:
    for module in (mptcp, mptcp.lab):
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name}"
