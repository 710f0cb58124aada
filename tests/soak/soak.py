"""Transfer data while faults happen, for as long as you like.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/soak/soak.py --rounds 10000 [--seed 1] [--minutes 30] [--report docs/soak.md]

A round is a transfer of 16 KiB to 1 MiB in one direction over a connection between two hosts of a lab, hashed with
SHA-256 at both ends, during which one to three of the faults in faults.py happen. What a round does follows from the
seed, which is printed, and the round's number; the timing is up to the machine. The run stops at the first hash that
differs, the first transfer that does not end, the first unexpected error, or the first leak.

It runs in its own lab and needs no privilege.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: F401  its threads are there from the first on, not from the first recording
from faults import DEADLINE, Faults
from mptcp.lab import two_paths
from support import eventually, held, holds_no_more_than, sysctls
from transfer import Server, Transfer

RATE = ("100mbit", "50mbit")
SIZES = (1 << 14, 1 << 16, 1 << 18, 1 << 20)

# After every so many rounds everything is closed and counted.
CHECKED = 100

# A process that has run for a while may have so much more memory of its own than at its first count.
GROWTH = 32 << 20


@dataclass
class Held:
    rounds: int
    descriptors: int
    threads: int
    memory: int


@dataclass
class Outcome:
    seed: int
    rounds: int = 0
    seconds: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    overruns: int = 0
    refused: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)


def soak(rounds: int, seed: int, seconds: float = float("inf")) -> Outcome:
    outcome = Outcome(seed)
    begin = time.monotonic()
    with leaving_nothing(outcome), contextlib.ExitStack() as stack:
        client, server, paths = stack.enter_context(two_paths(rate=RATE))
        service = stack.enter_context(Server(server))
        faults = stack.enter_context(Faults(client, server, paths, service))
        stack.callback(faults.disconnect)
        try:
            run(rounds, begin + seconds, outcome, faults, service)
        except BaseException as error:
            mismatches = server.counters().get("DSSNotMatching", 0), client.counters().get("DSSNotMatching", 0)
            error.add_note(f"in round {outcome.rounds} of seed {seed}; MPTcpExtDSSNotMatching {mismatches}")
            error.add_note(f"done last: {', '.join(faults.lately)}")
            error.add_note(f"errors so far: {dict(faults.errors)}; at the server: {service.failures}")
            raise
        outcome.counters = {
            f"{host.name}: {name}": value
            for host in (client, server)
            for name, value in host.counters().items()
            if value and ("Join" in name or "DSS" in name or "MPFail" in name or "Fallback" in name)
        }
    outcome.faults, outcome.errors, outcome.overruns = faults.done, faults.errors, faults.overruns
    outcome.refused, outcome.seconds = service.refused, time.monotonic() - begin
    return outcome


def run(rounds: int, end: float, outcome: Outcome, faults: Faults, service: Server) -> None:
    # What the first connection has made for all, as the netlink sockets of the hosts, stays.
    faults.connect(random.Random(outcome.seed))
    faults.disconnect()
    assert eventually(lambda: not service.is_busy, DEADLINE)
    before = held()
    for number in range(rounds):
        outcome.rounds = number
        if time.monotonic() > end and number % CHECKED == 0:
            break
        numbers = random.Random(f"{outcome.seed}/{number}")
        if faults.sock is None or numbers.random() < 0.1:
            faults.connect(numbers)
            outcome.connections += 1
        transfer = Transfer(numbers.random() < 0.5, numbers.choice(SIZES), number)
        with faults.transferring(transfer) as sock:
            for _ in range(numbers.randint(1, 3)):
                faults.act(sock, numbers)
        outcome.sent["uploaded" if transfer.upload else "downloaded"] += transfer.size
        assert not service.failures, service.failures
        if (number + 1) % CHECKED == 0 or number + 1 == rounds:
            faults.disconnect()
            assert eventually(lambda: not service.is_busy, DEADLINE), (
                f"the server has not heard of an end: {faults.there()}"
            )
            assert holds_no_more_than(before), f"{what_is_held()}, and {before} before"
            faults.check_picture()
            assert faults.client.get_path_manager() == "userspace"
            assert "Error" not in faults.policy_errors(), faults.policy_errors()
            gc.collect()
            outcome.held.append(Held(number + 1, *held(), memory()))
            first = outcome.held[0].memory
            assert outcome.held[-1].memory < first + GROWTH, f"memory has grown: {outcome.held}"
        outcome.rounds = number + 1
        if outcome.rounds % 1000 == 0:
            print(f"{outcome.rounds:,} rounds", file=sys.stderr, flush=True)


def what_is_held() -> str:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return f"{held()} descriptors and threads are held: {names}"


def memory() -> int:
    """Bytes of this process's own."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


@contextlib.contextmanager
def leaving_nothing(outcome: Outcome) -> Iterator[None]:
    """Fails if descriptors, threads, processes, changed sysctls or network namespaces are left."""
    before = held(), children(), namespaces(), sysctls()
    yield
    # Where the end fails, this tells what was measured until then.
    print(f"{outcome.rounds:,} rounds over {outcome.connections:,} connections: {outcome.held[-1:]}", file=sys.stderr)
    assert holds_no_more_than(before[0]), f"{held()} descriptors and threads are left, and {before[0]} were before"
    left = children() - before[1]
    assert not left, f"processes are left: {left}"
    assert eventually(lambda: namespaces() <= before[2]), f"network namespaces are left: {namespaces() - before[2]}"
    changed = {str(name): value for name, value in sysctls().items() if before[3].get(name, value) != value}
    assert not changed, f"sysctls were changed: {changed}"


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


def namespaces() -> set[str]:
    """Network namespaces that a process of ours or one below it is in, or that we hold a descriptor of."""
    found, todo = set(), [os.getpid()]
    while todo:
        process = Path(f"/proc/{todo.pop()}")
        with contextlib.suppress(OSError):
            found.add(os.readlink(process / "ns/net"))
            for name in os.listdir(process / "fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(process / "fd" / name)
                    if target.startswith("net:"):
                        found.add(target)
            for task in (process / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def write_report(outcome: Outcome, path: Path) -> None:
    first, last = outcome.held[0], outcome.held[-1]
    rows = [
        "# Soak",
        "",
        "Written by `tests/soak/soak.py`, which describes what a round is:",
        "",
        "```sh",
        f".venv/bin/python tests/soak/soak.py --rounds {outcome.rounds} --seed {outcome.seed} --report docs/soak.md",
        "```",
        "",
        f"{datetime.date.today()}, Linux {platform.release()}, Python {platform.python_version()}: "
        f"{outcome.rounds:,} rounds in {outcome.seconds:,.0f} s over {outcome.connections:,} connections. "
        f"{outcome.sent['uploaded'] / 1e6:,.1f} MB were uploaded and {outcome.sent['downloaded'] / 1e6:,.1f} MB "
        "downloaded, with the same SHA-256 at both ends in every round.",
        "",
        f"Events were lost and the state was read again {outcome.overruns:,} times; accept() failed for lack of "
        f"descriptors {outcome.refused:,} times. No process, network namespace or changed sysctl was left behind.",
        "",
        "| resource | after the first rounds | at the end |",
        "|---|---|---|",
        f"| rounds | {first.rounds:,} | {last.rounds:,} |",
        f"| descriptors | {first.descriptors} | {last.descriptors} |",
        f"| threads | {first.threads} | {last.threads} |",
        f"| memory, MiB | {first.memory / 2**20:.1f} | {last.memory / 2**20:.1f} |",
    ]
    for title, counted in (
        ("action | times", outcome.faults),
        ("error, all expected with these faults | times", outcome.errors),
        ("MPTcpExt counter | count", Counter(outcome.counters)),
    ):
        rows += ["", f"| {title} |", "|---|---|"]
        rows += [f"| {name} | {count:,} |" for name, count in sorted(counted.items())]
    path.write_text("\n".join(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no more rounds after this time")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    outcome = soak(arguments.rounds, arguments.seed, arguments.minutes * 60)
    print(json.dumps({**vars(outcome), "held": [vars(one) for one in outcome.held]}, indent=1))
    if arguments.report:
        write_report(outcome, arguments.report)


if __name__ == "__main__":
    main()
