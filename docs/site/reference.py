"""For the reference: each public name's kernel interface and privilege, by docs/interfaces.toml, and cross-references.

An extension of griffe, which reads the package's sources and the stub of its native core without importing them.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import griffe

INTERFACES = Path(__file__).parents[1] / "interfaces.toml"
MODULES = ("", "aio", "enhanced_api", "lab", "measures", "plot", "policies", "testing")
ROLE = re.compile(r":(?:meth|class|func|attr|mod):`~?([\w.]+)`")


class Interfaces(griffe.Extension):
    """Append to each public docstring the kernel interface and the privilege behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, list[dict[str, Any]]] = {}
        for section in tomllib.loads(INTERFACES.read_text())["section"]:
            for row in section["row"]:
                for name in row["names"]:
                    self._rows.setdefault(f"{section['module']}.{name}", []).append(row)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        # Once for each object, by whichever of its public names comes first.
        done: set[int] = set()
        for name in MODULES:
            module = pkg[name] if name else pkg
            for public in module.exports or ():
                self._document(module, str(public), f"{module.path}.{public}", done)

    def _document(self, parent: griffe.Module, name: str, path: str, done: set[int]) -> None:
        member = parent.members.get(name)
        if member is None:
            return
        thing = member.final_target if isinstance(member, griffe.Alias) else member
        self._add(thing, path, done)
        if isinstance(thing, griffe.Class):
            _join_overloads(thing)
            for each, below in thing.all_members.items():
                if not each.startswith("_"):
                    target = below.final_target if isinstance(below, griffe.Alias) else below
                    self._add(target, f"{path}.{each}", done)

    def _add(self, thing: Any, path: str, done: set[int]) -> None:
        if id(thing) in done:
            return
        done.add(id(thing))
        text = _markdown(thing.docstring.value) if thing.docstring else ""
        for row in self._rows.get(path, ()):
            when = f" {_plain(row['when'])}" if "when" in row else ""
            privilege = _plain(row.get("privilege", "none"))
            text += f"\n\n*Kernel interface{when}:* {_plain(row['kernel'])}. *Privilege:* {privilege}."
        if text:
            thing.docstring = griffe.Docstring(text, parent=thing)


def _join_overloads(cls: griffe.Class) -> None:
    """Have a method that a stub only overloads, without an implementation, among the members."""
    for name, overloads in cls.overloads.items():
        if name not in cls.members and overloads:
            method = overloads[-1]
            method.docstring = next((each.docstring for each in overloads if each.docstring), None)
            method.overloads = list(overloads)
            cls.set_member(name, method)


def _markdown(text: str) -> str:
    r"""Return a docstring as Markdown: a code block after a line of ``::``, and roles as plain code."""
    text = re.sub(r"^::$\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return ROLE.sub(r"`\1`", text)


def _plain(text: str) -> str:
    # A link between pages of docs/ would be relative to the page of interfaces.
    return re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text)
