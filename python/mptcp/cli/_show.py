"""Printing lines in which there may be what another user has chosen, the name of a process for example."""

from __future__ import annotations

import sys
from typing import TextIO


def printable(line: str) -> str:
    r"""Return a line for a terminal: control characters and what else cannot be seen read \xNN or \uNNNN."""
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def show(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, and nothing in them that a terminal would obey or that the stream cannot encode."""
    stream = sys.stdout if file is None else file
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{printable(line)}\n" for line in lines)
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
