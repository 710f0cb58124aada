"""Whether listing connections waits for a busy one: connections() among 2,000 beside a full-speed sender.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/connections.py [--connections 2000] [--calls 1000]

It needs ss; no privilege, since it runs in a lab of its own. It prints a table after some minutes. A benchmark, not a
test: nothing fails for being slow.

The sender writes 1 MB at a time over loopback, to another process, and holds its connection's lock most of the time.
The contestants take turns, call by call, so that whatever else the machine does meets all of them alike. `ss -M` lists
connections without asking them, as connections() does, and starts a process to do so; `ss -Mi` and Connection.info()
ask for INET_DIAG_INFO, and so wait for the lock.

On a machine with more to do than processors the slowest call tells who had to wait for a processor. "slept" does not:
it is the share of calls in which the thread gave its processor up by itself, as it does to wait for a lock.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import mptcp
from mptcp.lab import Lab
from peers import Tool, pyroute2_connections, ss_text
from sender import at_full_speed
from turns import Missing, compare, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        measure(arguments.connections, arguments.calls)
        return
    with Lab() as lab:
        lab.host("host").run([sys.executable, __file__, "--inside", *sys.argv[1:]], check=True)


def measure(number: int, calls: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        # Both ends of a connection are in this namespace: each is one.
        for _ in make(number // 2, stack):
            pass
        idle = run({"connections(), no sender": mptcp.connections}, calls)
        sender = stack.enter_context(at_full_speed())
        busy = sender.connection
        sent, begin = sender.bytes_sent(), time.monotonic()
        contestants: dict[str, Tool] = {
            "connections()": mptcp.connections,
            "connections(token=)": lambda: mptcp.connections(token=busy.token),
            "ss -M": lambda: ss("-HMn"),
            "ss -M, read in Python": ss_text("-HMn"),
            "ss -Mi": lambda: ss("-HMni"),
            "Connection.info()": busy.info,
            "pyroute2": pyroute2_connections(),
        }
        present = {name: call for name, call in contestants.items() if not isinstance(call, Missing)}
        times = {**idle, **run(present, calls)}
        rate = (sender.bytes_sent() - sent) / (time.monotonic() - begin)
        listed = len(mptcp.connections())
    print(f"{listed} connections; the sender sends {rate / 1e6:.0f} MB/s meanwhile; {calls} calls of each, in turns\n")
    print(f"{'ms':26}{'median':>10}{'99 %':>10}{'slowest':>10}{'slept':>10}{'slowest, of that of ss -M':>30}")
    reference = max(times["ss -M"][0])
    for name, (taken, slept) in times.items():
        ordered = sorted(taken)
        figures = (statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1])
        columns = "".join(f"{figure * 1e3:10.2f}" for figure in figures)
        # Who starts a process waits for its end.
        share = "" if name.startswith("ss") else f"{slept:.1%}"
        print(f"{name:26}{columns}{share:>10}{ordered[-1] / reference:30.3f}")
    nanoseconds = {name: [second * 1e9 for second in taken] for name, (taken, _) in times.items()}
    pairs = [
        ("connections()", "ss -M"),
        ("connections()", "ss -M, read in Python"),
        ("connections()", "ss -Mi"),
        ("connections()", "pyroute2"),
        ("connections(token=)", "ss -M"),
    ]
    publish(
        f"{listed} connections, one of which sends at full speed",
        [compare(nanoseconds, ours, peer, contestants=contestants) for ours, peer in pairs],
    )


def make(pairs: int, stack: contextlib.ExitStack) -> Iterator[None]:
    listener = stack.enter_context(mptcp.create_server(("127.0.0.1", 0), backlog=128))
    for _ in range(pairs):
        stack.enter_context(mptcp.create_connection(listener.getsockname()))
        peer, _ = listener.accept()
        stack.enter_context(peer)
        yield


def ss(options: str) -> None:
    subprocess.run(["ss", options], stdout=subprocess.DEVNULL, check=True)


def run(contestants: dict[str, Callable[[], object]], calls: int) -> dict[str, tuple[list[float], float]]:
    """The seconds of each call of each contestant, and the share of calls that slept."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    slept = dict.fromkeys(contestants, 0)
    gc.disable()
    for _ in range(calls):
        for name, call in contestants.items():
            switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            begin = time.perf_counter()
            result = call()
            times[name].append(time.perf_counter() - begin)
            slept[name] += resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > switches
            del result
    gc.enable()
    return {name: (times[name], slept[name] / calls) for name in contestants}


if __name__ == "__main__":
    main()
