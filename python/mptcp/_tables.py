"""HTML tables, as notebooks show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; None is an empty cell."""
    top = f"<thead><tr>{_cells('th', head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _cells(tag: str, values: Iterable[object]) -> str:
    import html  # here, because importing it takes longer than most of this package

    return "".join(f"<{tag}>{'' if value is None else html.escape(str(value))}</{tag}>" for value in values)
