"""Policies made with arguments that they were not made for: refused when they are made, not later in a callback.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mptcp
import pytest
from hostile import KNOWN, Theirs, hostile
from hypothesis import given
from mptcp.policies import (
    Announce,
    Backup,
    Budget,
    Deadline,
    FullMesh,
    Handover,
    NDiffPorts,
    OnlyFor,
    Prefer,
    Refresh,
    Split,
    WhenLong,
)

Make = Callable[[Any], object]

MAKE: dict[str, Make] = {
    "Announce": lambda x: Announce(x),
    "Backup(rto)": lambda x: Backup("eth0", "eth1", rto=x),
    "Budget(path)": lambda x: Budget(x, 1e6),
    "Budget(bytes_per_hour)": lambda x: Budget("eth0", x),
    "Deadline(size)": lambda x: Deadline("eth0", size=x, seconds=1),
    "Deadline(seconds)": lambda x: Deadline("eth0", size=1, seconds=x),
    "FullMesh(exclude)": lambda x: FullMesh(exclude=x),
    "FullMesh(bind)": lambda x: FullMesh(bind=x),
    "Handover(rto)": lambda x: Handover("eth0", "eth1", rto=x),
    "Refresh(every)": lambda x: Refresh(every=x),
    "Split": lambda x: Split(x),
    "Split(share)": lambda x: Split({"eth0": 1, "eth1": x}),
    "Backup(primary)": lambda x: Backup(x, "eth0"),
    "Backup(backup)": lambda x: Backup("eth0", x),
    "FullMesh": lambda x: FullMesh(x),  # type: ignore[call-arg]
    "Handover": lambda x: Handover("eth0", x),
    "Handover(rtt)": lambda x: Handover("eth0", "eth1", rtt=x),
    "Handover(loss)": lambda x: Handover("eth0", "eth1", loss=x),
    "Handover(patience)": lambda x: Handover("eth0", "eth1", patience=x),
    "NDiffPorts": lambda x: NDiffPorts(x),
    "OnlyFor(path)": lambda x: OnlyFor(x, ports=[1]),
    "OnlyFor(programs)": lambda x: OnlyFor("eth0", programs=x),
    "OnlyFor(ports)": lambda x: OnlyFor("eth0", ports=x),
    "OnlyFor(uids)": lambda x: OnlyFor("eth0", uids=x),
    "OnlyFor(port)": lambda x: OnlyFor("eth0", ports=[x]),
    "Prefer": lambda x: Prefer(x),
    "Refresh": lambda x: Refresh(x),
    "WhenLong(path)": lambda x: WhenLong(x, after_bytes=1),
    "WhenLong(after_bytes)": lambda x: WhenLong("eth0", after_bytes=x),
    "WhenLong(after_seconds)": lambda x: WhenLong("eth0", after_seconds=x),
    "run_policy": lambda x: mptcp.run_policy(x).__enter__(),
    "run_policy of two": lambda x: mptcp.run_policy(FullMesh(), x).__enter__(),
}
# What the callbacks do arithmetic with.
NUMBERS = (
    "rtt",
    "loss",
    "patience",
    "n",
    "after",
    "after_bytes",
    "after_seconds",
    "rto",
    "every",
    "size",
    "seconds",
    "bytes_per_hour",
)
every = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in MAKE.items()])


def check(make: Make, value: object) -> None:
    """Only TypeError and ValueError, and what is accepted can be calculated with."""
    try:
        made = make(value)
    except (TypeError, ValueError, Theirs):
        return
    assert repr(made)
    for name in NUMBERS:
        number = getattr(made, name, None)
        # NaN is no limit: nothing is above it.
        assert number is None or (isinstance(number, int | float) and number >= 0), name


@every
def test_a_policy_and_each_odd_value(make: Make) -> None:
    for number, value in enumerate(KNOWN):
        try:
            check(make, value)
        except BaseException as error:
            error.add_note(f"with KNOWN[{number}]")  # which may be too large or too odd to print
            raise


@every
@given(value=hostile)
def test_a_policy_and_what_comes(make: Make, value: object) -> None:
    check(make, value)
