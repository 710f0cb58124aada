"""Which subflows have a look of their own, and which share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._flows import Flow
from ._style import LOOKS, OTHERS, Look


@dataclass(frozen=True, eq=False)
class Series:
    """Subflows that are drawn as one: with one look, under one name."""

    label: str
    look: Look
    flows: list[Flow]


@dataclass(frozen=True)
class Group:
    """The same before it is known what the subflows are: their numbers."""

    label: str
    look: Look
    members: list[int]


def series_of(flows: Sequence[Flow]) -> list[Series]:
    """Return the subflows as groups() groups them."""
    found = groups(
        [flow.label for flow in flows],
        [flow.path for flow in flows],
        [flow.carried("sent") + flow.carried("received") for flow in flows],
    )
    return [Series(group.label, group.look, [flows[index] for index in group.members]) for group in found]


def groups(labels: Sequence[str], paths: Sequence[str | None], carried: Sequence[float]) -> list[Group]:
    """Return subflows as at most eight series, in the order in which they appeared; the others come last.

    Up to seven subflows are a series each. More are grouped by their path, if that is known of all. If there are more
    than seven series even so, those that carried least are one, the others.
    """
    found = [(label, [index]) for index, label in enumerate(labels)]
    if len(found) > len(LOOKS) and None not in paths:
        by_path: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            by_path.setdefault(str(path), []).append(index)
        found = [(_counted(path, members), members) for path, members in by_path.items()]
    if len(found) <= len(LOOKS):
        return [Group(label, look, members) for (label, members), look in zip(found, LOOKS, strict=False)]
    total = [sum(carried[index] for index in members) for _, members in found]
    largest = sorted(sorted(range(len(found)), key=lambda number: -total[number])[: len(LOOKS)])
    rest = [index for number, (_, members) in enumerate(found) if number not in largest for index in members]
    shown = [Group(*found[number][:1], look, found[number][1]) for number, look in zip(largest, LOOKS, strict=True)]
    return [*shown, Group(f"{len(rest)} others", OTHERS, rest)]


def _counted(path: str, members: Sequence[int]) -> str:
    return path if len(members) == 1 else f"{path} ({len(members)} subflows)"
