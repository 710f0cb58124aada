"""Docstrings for what cannot have one in its source: the fields of records, the members of enumerations."""

from __future__ import annotations

from types import MemberDescriptorType


def document(cls: type, **texts: str) -> None:
    """Give each field or member the text that help() and Shift-Tab show."""
    for name, text in texts.items():
        member = getattr(cls, name)
        if isinstance(member, MemberDescriptorType):
            # The slot of a dataclass, whose docstring cannot be set.
            setattr(cls, name, property(member.__get__, member.__set__, doc=text))
        else:
            member.__doc__ = text
