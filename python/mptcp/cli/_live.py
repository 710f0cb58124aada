"""A table that is redrawn in place on a terminal, by rich, which is an extra: pip install 'mptcp[live]'."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TextIO

from mptcp.cli._screen import Screen
from mptcp.cli._show import printable


class Row(NamedTuple):
    """The cells of one line, which belongs to the strong one above it unless it is strong itself."""

    cells: tuple[str, ...]
    strong: bool


def fits(stream: TextIO) -> bool:
    """Return whether the stream is a terminal that can move its cursor, and rich is installed."""
    return Screen.fits(stream) and importlib.util.find_spec("rich") is not None


@contextlib.contextmanager
def table(stream: TextIO, titles: Sequence[str] = (), *, numbers_from: int = 2**31) -> Iterator[Callable[..., None]]:
    """Yield what draws rows below their titles. Columns from ``numbers_from`` on are aligned to the right.

    The last table stays when the block ends. Lines that are too long for the terminal are cut, and so are tables that
    are too high.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream)
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def draw(rows: Iterable[Row]) -> None:
            rows = list(rows)
            shown = Table(box=None, show_header=bool(titles), pad_edge=False, header_style="dim")
            for number in range(max((len(row.cells) for row in rows), default=1)):
                title = titles[number] if titles else ""
                is_number = number >= numbers_from
                shown.add_column(title, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis")
            for row in rows:
                # Text, or rich would take an IPv6 address in brackets for a style.
                cells = (Text(printable(cell)) for cell in row.cells)
                shown.add_row(*cells, style="bold" if row.strong else None)
            live.update(shown, refresh=True)

        yield draw
