"""Printing lines that may contain text chosen by another user, the name of a process for example."""

from __future__ import annotations

import sys
from typing import TextIO


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
