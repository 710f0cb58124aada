"""The README's examples run and print what the README says; the table of interfaces is complete; no link is dead."""

from __future__ import annotations

import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import mptcp.aio
import mptcp.cli
import mptcp.enhanced_api
import mptcp.lab
import mptcp.measures
import mptcp.policies
import mptcp.testing
import pytest
from support import STRICT

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
INTERFACES = DOCS / "interfaces.toml"
MODULES = (
    mptcp,
    mptcp.aio,
    mptcp.enhanced_api,
    mptcp.lab,
    mptcp.measures,
    mptcp.plot,
    mptcp.policies,
    mptcp.testing,
)


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
    result = subprocess.run([*STRICT, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout == output


def test_every_public_name_has_a_docstring() -> None:
    for module in MODULES:
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name}"


def public_names() -> dict[str, set[str]]:
    """Every name of our modules with the members of its class, by module, and the commands."""
    commands = {f"mptcp {module.name}" for module in pkgutil.iter_modules(mptcp.cli.__path__) if module.name[0] != "_"}
    names = {"commands": commands}
    for module in MODULES:
        names[module.__name__] = found = set()
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                continue  # has a section of its own
            found.add(name)
            # The fields of structures have docstrings of their own, and those of tuples are fields too.
            # The policies that ship have the members of Policy.
            has_own = thing not in (mptcp.Info, mptcp.TcpInfo) and module is not mptcp.policies
            if inspect.isclass(thing) and has_own:
                # What a class has from a mixin of ours is its own; a public base has rows of its own.
                mixins = [
                    base
                    for base in thing.__mro__
                    if re.match(r"mptcp\.(lab\.)?_", base.__module__) and base is not thing
                ]
                for part in (thing, *(base for base in mixins if not hasattr(mptcp, base.__name__))):
                    found |= {f"{name}.{member}" for member in vars(part) if not member.startswith("_")}
    return names


def sections() -> list[dict[str, Any]]:
    sections: list[dict[str, Any]] = tomllib.loads(INTERFACES.read_text())["section"]
    return sections


def test_every_public_name_has_its_interface_and_privilege() -> None:
    """No other name has, but those that a class inherits and that do more here."""
    named = {
        section["module"]: {
            name for row in section["row"] for name in row["names"] + re.findall(r"`([\w.]+)`", row.get("when", ""))
        }
        for section in sections()
    }
    assert named == public_names()


def test_references_between_interfaces_lead_somewhere() -> None:
    names = {name for found in public_names().values() for name in found}
    names |= {module.__name__.removeprefix("mptcp.") for module in MODULES}
    for section in sections():
        for row in section["row"]:
            text = f"{row['kernel']} {row.get('privilege', '')}"
            for name in re.findall(r"`([\w. ]+)`", text):
                assert name.removeprefix("mptcp.") in names, f"{row['names'][0]}: {name}"


def test_the_page_of_interfaces_is_what_its_program_writes(tmp_path: Path) -> None:
    for name in ("interfaces.py", "interfaces.toml"):
        shutil.copy(DOCS / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "interfaces.py"], check=True, timeout=60)
    assert (DOCS / "interfaces.md").read_text() == (tmp_path / "interfaces.md").read_text(), "run docs/interfaces.py"


def test_every_command_is_on_the_page_of_tasks() -> None:
    page = (DOCS / "how-to.md").read_text()
    assert [command for command in public_names()["commands"] if not re.search(rf"\b{command}\b", page)] == []
