#!/usr/bin/env python3
"""Write docs/interfaces.md from docs/interfaces.toml: python docs/interfaces.py"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".toml")
PAGE = Path(__file__).with_suffix(".md")


def page() -> str:
    """Return the page as interfaces.toml has it now."""
    return "\n".join(lines(tomllib.loads(SOURCE.read_text())))


def lines(source: dict[str, Any]) -> Iterator[str]:
    yield "# Interfaces and privileges"
    yield ""
    yield "<!-- Written by docs/interfaces.py from interfaces.toml: change that file, not this one. -->"
    yield ""
    yield source["introduction"].strip()
    yield ""
    for section in source["section"]:
        module = section["module"]
        yield f"## {module}"
        yield ""
        if "introduction" in section:
            yield section["introduction"].strip()
            yield ""
        has_privileges = any("privilege" in row for row in section["row"])
        titles = ["name", "kernel interface", "privilege"][: 3 if has_privileges else 2]
        yield row_of(titles)
        yield f"|{'---|' * len(titles)}"
        for row in section["row"]:
            names = ", ".join(f"`{name}`" for name in row["names"])
            cells = [f"{names} {row.get('when', '')}".rstrip(), row["kernel"], row.get("privilege", "none")]
            yield row_of(cells[: len(titles)])
        yield ""


def row_of(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
