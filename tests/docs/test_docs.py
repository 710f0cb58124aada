"""The README's examples run and print what the README says, and the table of names is complete."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import mptcp.aio
import mptcp.cli
import mptcp.enhanced_api
import mptcp.lab
import mptcp.measures
import mptcp.policies
import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DESIGN = ROOT / "docs" / "design.md"
MODULES = (mptcp, mptcp.aio, mptcp.enhanced_api, mptcp.lab, mptcp.measures, mptcp.plot, mptcp.policies)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def examples() -> list[object]:
    """Each program with its output, which is the next block of text."""
    pairs = zip(blocks("python"), blocks("text"), strict=True)
    return [
        pytest.param(*pair, marks=pytest.mark.mptcp_needs("bpf") if "set_subflow_options" in pair[0] else ())
        for pair in pairs
    ]


@pytest.mark.usefixtures("mptcp_lab")
@pytest.mark.parametrize(("program", "output"), examples())
def test_an_example_prints_what_the_readme_says(program: str, output: str) -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout == output


def test_every_public_name_has_a_docstring() -> None:
    for module in MODULES:
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name}"


def public_names() -> set[str]:
    """Every name of our modules, the members of their classes, and the commands."""
    names = {f"mptcp {module.name}" for module in pkgutil.iter_modules(mptcp.cli.__path__) if module.name[0] != "_"}
    for module in MODULES:
        for name in module.__all__:
            names.add(name)
            thing = getattr(module, name)
            # The fields of structures have docstrings of their own, and those of tuples are fields too.
            # The policies that ship have the members of Policy.
            has_own = thing not in (mptcp.Info, mptcp.TcpInfo) and module is not mptcp.policies
            if inspect.isclass(thing) and has_own:
                names |= {f"{name}.{member}" for member in vars(thing) if not member.startswith("_")}
    return names


def test_every_public_name_has_its_interface_and_privilege() -> None:
    rows = re.findall(r"^\| (`.+?|the .+?) \|", DESIGN.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w. ]+)`", row)}
    assert public_names() - named == set()
    headings = {module.__name__ for module in MODULES}
    inherited = {"Socket.close"}
    assert named - public_names() == headings | inherited, "names that are not there"
