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


def series_of(flows: Sequence[Flow]) -> list[Series]:
    """Return the subflows as at most eight series, in the order in which they appeared; the others come last.

    Up to seven subflows are a series each. More are grouped by their path, if that is known of all. If there are more
    than seven series even so, those that carried least are one, the others.
    """
    groups = [(flow.label, [flow]) for flow in flows]
    if len(groups) > len(LOOKS) and all(flow.path is not None for flow in flows):
        paths: dict[str, list[Flow]] = {}
        for flow in flows:
            paths.setdefault(str(flow.path), []).append(flow)
        groups = [(_counted(path, members), members) for path, members in paths.items()]
    if len(groups) <= len(LOOKS):
        return [Series(label, look, members) for (label, members), look in zip(groups, LOOKS, strict=False)]
    carried = [sum(flow.carried("sent") + flow.carried("received") for flow in members) for _, members in groups]
    largest = sorted(sorted(range(len(groups)), key=lambda index: -carried[index])[: len(LOOKS)])
    rest = [flow for index, (_, members) in enumerate(groups) if index not in largest for flow in members]
    shown = [Series(*groups[index][:1], look, groups[index][1]) for index, look in zip(largest, LOOKS, strict=True)]
    return [*shown, Series(f"{len(rest)} others", OTHERS, rest)]


def _counted(path: str, members: Sequence[Flow]) -> str:
    return path if len(members) == 1 else f"{path} ({len(members)} subflows)"
