"""Printing lines that may contain text chosen by another user, the name of a process for example."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

SCHEMA = 1
"""The version of what --json prints. It changes with the meaning of a name, and when one goes; not when one comes."""


def printable(line: str) -> str:
    r"""Return a line for a terminal, with control and other unprintable characters written \xNN or \uNNNN."""
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def show(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, with everything escaped that a terminal would obey or the stream cannot encode."""
    stream = sys.stdout if file is None else file
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{printable(line)}\n" for line in lines)
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def as_json(report: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return what --json prints: the report, and the version of its schema (docs/schemas)."""
    return json.dumps({"schema": SCHEMA, **report}, indent=indent)
