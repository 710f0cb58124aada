"""A terminal: lines that stay and, below them, an area that is redrawn in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

from mptcp.cli._show import printable


class Screen:
    """The live area of one terminal. Nothing else may be written to the terminal while it is in use."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._height = 0

    @staticmethod
    def fits(stream: TextIO) -> bool:
        """Return whether the stream is a terminal that can move its cursor."""
        return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def draw(self, area: Sequence[str], *, above: Sequence[str] = ()) -> None:
        """Redraw the live area, with new lines above it that stay."""
        # A line of the area that wraps would take two rows, and the next drawing would start too low.
        width = shutil.get_terminal_size().columns
        lines = [*map(printable, above), *(printable(line)[:width] for line in area)]
        # Carriage return and CUU take the cursor to the first row of the old area, ED erases from there.
        erase = f"\r\x1b[{self._height}A\x1b[J" if self._height else ""
        # In one write, or the terminal might show the area erased and not yet redrawn.
        self._terminal.write(erase + "".join(f"{line}\n" for line in lines))
        self._terminal.flush()
        self._height = len(area)
