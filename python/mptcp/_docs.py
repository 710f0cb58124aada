"""Docstrings for what cannot have one in its source: the fields of named tuples, the members of enumerations."""

from __future__ import annotations


def document(cls: type, **texts: str) -> None:
    """Give each field or member the text that help() and Shift-Tab show."""
    for name, text in texts.items():
        getattr(cls, name).__doc__ = text
