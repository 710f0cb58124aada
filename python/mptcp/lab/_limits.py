"""The limits of a link, for each direction: as users write them, checked before any request to the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

from mptcp import _core
from mptcp.lab import _units
from mptcp.lab._units import GilbertElliott, Trace


@dataclass(frozen=True)
class Limits:
    """The limits of one direction of a link, in bits per second, seconds and fractions."""

    rate: int | None = None
    trace: Trace | None = None
    #: Its unit (bytes, packets, ns) and how many.
    queue: tuple[str, int] | None = None
    aqm: str | None = None
    loss: float | GilbertElliott | None = None
    delay: float | None = None
    jitter: float | None = None
    reorder: bool = False

    @property
    def bits_per_second(self) -> float:
        """The rate, of a trace the average; 0 if there is no limit."""
        return float(self.trace.native.rate if self.trace else self.rate or 0)

    def native(self, trace: Any = None) -> dict[str, Any]:
        """Return the arguments of the emulator's limits, with ``trace`` in place of the trace."""
        loss = self.loss
        return {
            "rate": self.rate,
            "trace": trace,
            "queue": self.queue,
            "aqm": self.aqm,
            "loss": (loss.p, loss.r, loss.loss_bad, loss.loss_good) if isinstance(loss, GilbertElliott) else loss,
            "delay": round((self.delay or 0.0) * 1e9),
            "jitter": round((self.jitter or 0.0) * 1e9),
            "reorder": self.reorder,
        }

    def checked(self) -> _core.LinkLimits:
        """Return the emulator's limits. Raises ValueError if they contradict each other."""
        return _core.LinkLimits(**self.native(self.trace and self.trace.native))


#: Those of what the first host sends, and of what the second host sends.
BothLimits = tuple[Limits, Limits]
UNLIMITED: BothLimits = (Limits(), Limits())


def changed(
    before: BothLimits,
    *,
    rate: Any = ...,
    trace: Any = ...,
    queue: Any = ...,
    aqm: Any = ...,
    loss: Any = ...,
    delay: Any = ...,
    jitter: Any = ...,
    reorder: Any = ...,
) -> BothLimits:
    """Return limits with these changed; ``...`` leaves one as it is, None removes it.

    A rate replaces a trace, and a trace replaces a rate. A single value of ``queue`` or ``aqm`` applies to the
    directions that have a rate or a trace. A direction that loses its rate or trace loses its queue and aqm as well.
    """
    if not isinstance(reorder, bool | EllipsisType):
        raise TypeError(f"reorder must be True or False, not {type(reorder).__name__}")
    parsed = [
        ("rate", _both(rate, "rate", _units.parse_rate)),
        ("trace", _both(trace, "trace", _units.parse_trace)),
        ("queue", _both(queue, "queue", _units.parse_queue)),
        ("loss", _both(loss, "loss", _units.parse_loss)),
        ("delay", _both(delay, "delay", lambda value: _units.parse_time(value, "delay") or None)),
        ("jitter", _both(jitter, "jitter", lambda value: _units.parse_time(value, "jitter") or None)),
        ("aqm", _both(aqm, "aqm", _units.parse_aqm)),
        ("reorder", (reorder,) * 2),
    ]
    after = []
    for direction, limits in enumerate(before):
        given = {name: values[direction] for name, values in parsed if values[direction] is not ...}
        if given.get("rate") is not None:
            given.setdefault("trace", None)
        if given.get("trace") is not None:
            given.setdefault("rate", None)
        new = replace(limits, **given)
        if new.rate is None and new.trace is None and (limits.rate is not None or limits.trace is not None):
            new = replace(new, queue=given.get("queue"), aqm=given.get("aqm"))
        after.append(new)
    paced = [each.rate is not None or each.trace is not None for each in after]
    if any(paced):
        for direction, (each, has_pace) in enumerate(zip(after, paced, strict=True)):
            if not has_pace:
                after[direction] = replace(
                    each,
                    queue=each.queue if _is_pair(queue) else None,
                    aqm=each.aqm if _is_pair(aqm) else None,
                )
    for sender, each in zip(("first", "second"), after, strict=True):
        try:
            each.checked()
        except ValueError as error:
            if after[0] == after[1]:
                raise
            raise ValueError(f"in what the link's {sender} host sends: {error}") from None
    return after[0], after[1]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _both(value: Any, what: str, parse: Any) -> tuple[Any, Any]:
    """Return the values of the two directions; ``...`` and None stay what they are."""
    values = value if _is_pair(value) else (value, value)
    if len(values) != 2:
        raise ValueError(
            f"{what} must be one value or two, for what the first and the second host sends, not {len(values)}"
        )
    first, second = (each if each is None or each is ... else parse(each) for each in values)
    return first, second


@contextlib.contextmanager
def sendable(limits: BothLimits) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    """Yield the limits in types of JSON, and descriptors from which their traces can be read."""
    traces = list({id(each.trace): each.trace for each in limits if each.trace is not None}.values())
    descriptors: list[int] = []
    try:
        for trace in traces:
            descriptors.append(descriptor := os.memfd_create("mptcp-trace", os.MFD_CLOEXEC))
            with open(descriptor, "wb", closefd=False) as file:
                file.write(trace.data)
        yield [each.native(None if each.trace is None else traces.index(each.trace)) for each in limits], descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def one_or_two(values: Sequence[Any]) -> Any:
    """Return the value that both directions have, or a pair if they differ."""
    first, second = values
    return first if first == second else (first, second)
