"""What the benchmarks share: contestants that take turns, and the rows that say by how much one is ahead."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import statistics
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from mptcp.lab import Host

#: One round of a contestant: the nanoseconds of one call, or another figure; several of them by their names.
Round: TypeAlias = Callable[[], float | Mapping[str, float]]

#: What each contestant had in each round.
Figures: TypeAlias = Mapping[str, Sequence[float]]

#: A file that publish() adds its rows to, as JSON, a line each: all.py makes docs/benchmarks.md of it.
ROWS = "MPTCP_BENCHMARK_ROWS"


@dataclass(frozen=True)
class Missing:
    """A contestant that cannot be had here, and why."""

    reason: str


@dataclass(frozen=True)
class Row:
    """Ours beside a peer: both medians, and the median and the quartiles of the ratios of the rounds."""

    ours: str
    peer: str
    figure: float | None = None
    peer_figure: float | None = None
    ratio: float | None = None
    lower: float | None = None
    upper: float | None = None
    unit: str = "ns"
    aim: float | None = None
    missing: str | None = None
    #: The aim is met, too, if our figure is at most so much larger.
    margin: float | None = None


def calls(count: int, function: Callable[[], object]) -> Round:
    """A round of so many calls in a row, after some that are not counted."""
    timer = timeit.Timer(function)

    def run() -> float:
        timer.timeit(count // 10)
        return timer.timeit(count) * 1e9 / count

    return run


def take_turns(contestants: Mapping[str, Round | Missing], rounds: int) -> dict[str, list[float]]:
    """So many rounds in which each contestant has one turn, in an order that chance decides.

    The figures with the same number are of the same round: whatever else the machine did then met all of them.
    """
    present = {name: contestant for name, contestant in contestants.items() if not isinstance(contestant, Missing)}
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in random.sample(list(present), len(present)):
            taken = present[name]()
            for key, figure in taken.items() if isinstance(taken, Mapping) else [(name, taken)]:
                figures.setdefault(key, []).append(figure)
    return figures


def compare(
    figures: Figures,
    ours: str,
    peer: str,
    *,
    aim: float | None = None,
    margin: float | None = None,
    unit: str = "ns",
    contestants: Mapping[str, object] | None = None,
) -> Row:
    """The row of two contestants that took turns; of one that is Missing among ``contestants`` the reason."""
    missing = (contestants or {}).get(peer)
    if isinstance(missing, Missing):
        return Row(ours, peer, statistics.median(figures[ours]), unit=unit, missing=missing.reason)
    ratios = [one / other for one, other in zip(figures[ours], figures[peer], strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = statistics.median(figures[ours]), statistics.median(figures[peer])
    return Row(ours, peer, *medians, middle, lower, upper, unit, aim, margin=margin)


def publish(title: str, rows: Iterable[Row]) -> None:
    """Print a table, and add it to the file that the environment names."""
    rows = list(rows)
    if path := os.environ.get(ROWS):
        with Path(path).open("a") as file:
            print(json.dumps({"title": title, "rows": [asdict(row) for row in rows]}), file=file)
    cells = [["", "", "beside", "", "ratio", "quartiles", "at most"], *map(texts, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def texts(row: Row) -> list[str]:
    """The cells of a row: ours, its figure, the peer, its figure, the ratio, its quartiles, the aim."""
    ours = [row.ours, amount(row.figure, row.unit), row.peer]
    if row.ratio is None or row.lower is None or row.upper is None:
        return [*ours, "", "-", row.missing or "", ""]
    quartiles = f"{fraction(row.lower)} to {fraction(row.upper)}"
    aim = ""
    if row.aim is not None:
        wanted, is_met = fraction(row.aim), row.ratio <= row.aim
        if row.margin is not None and row.figure is not None and row.peer_figure is not None:
            wanted += f" or {amount(row.margin, row.unit)} more"
            is_met = is_met or row.figure - row.peer_figure <= row.margin
        aim = f"{wanted}: {'met' if is_met else 'MISSED'}"
    return [*ours, amount(row.peer_figure, row.unit), fraction(row.ratio), quartiles, aim]


def amount(figure: float | None, unit: str) -> str:
    if figure is None:
        return ""
    if unit != "ns":
        return f"{figure:.3g} {unit}"
    return f"{figure / 1e6:.2f} ms" if figure >= 1e6 else f"{figure / 1e3:.2f} µs"


def fraction(ratio: float) -> str:
    if ratio < 0.1:
        return f"1/{1 / ratio:.0f}"
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"


@contextlib.contextmanager
def within(host: Host) -> Iterator[None]:
    """This thread in the network namespace of a host."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net") as here, open(f"/proc/{host.pid}/ns/net") as there:
        move(setns, there.fileno())
        try:
            yield
        finally:
            move(setns, here.fileno())


def move(setns: Callable[[int, int], int], namespace: int) -> None:
    clone_newnet = 0x40000000
    if setns(namespace, clone_newnet) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
