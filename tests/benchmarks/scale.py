"""Measure what a connection costs when there are many: 100 to 10,000 of them, with two subflows each.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/scale.py [--counts 100 300 1000 3000 10000] [--report docs/scale.md]

It runs in its own lab, without privilege. The peers' ends belong to another process, so each process needs one
descriptor per connection; the soft limit is raised. It takes several minutes. This is a benchmark, not a test: it does
not fail when it is slow.

Costs are processor time of this process or of the policy's, including the kernel's work for it; other programs that run
at the same time hardly change them.

For each count the connections are created, `mptcp policy --builtin fullmesh` opens a second subflow for each of them,
everything is read in each of the possible ways, and finally all connections are closed while a Recorder runs. The slope
is that of a straight line through the logarithms of count and cost: at 1 the cost grows with the count, at 2 with its
square.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import platform
import resource
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mptcp
import numpy as np
from mptcp._connection import subflows_of
from mptcp.lab import Host, Lab
from policy_scale import PORT, end, start, usage, wait_until_accepted

COUNTS = (100, 300, 1000, 3000, 10_000)
SPARE = 200
CALLS = 5
TICKS = 5
SAMPLE = 10
DEADLINE = 120.0

POLICY = "policy: a second subflow"
POLICY_CLOSE = "policy: the end of it"
LIST = "connections()"
BATCH = "subflows of all Connections, one dump"
SOCKETS = "Socket.subflows() of each"
ONE = f"Connection.subflows() of {SAMPLE}"
TICK = "Recorder: a tick"
TICK_CONNECTIONS = "Recorder: reading the connections"
CLOSE = "Recorder: the end of them"


def measure(count: int) -> dict[str, float]:
    """Seconds for all connections."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        links = [lab.link(client, server) for _ in range(2)]
        # What accepts takes no process.
        server.set_path_manager("kernel")
        server.set_limits(subflows=8)
        connections = stack.enter_context(contextlib.ExitStack())
        peers = server.popen([sys.executable, __file__, "--accept", str(count)], stdout=subprocess.PIPE, text=True)
        stack.callback(peers.wait)
        stack.callback(peers.terminate)
        assert peers.stdout is not None
        stack.enter_context(peers.stdout)
        peers.stdout.readline()  # it listens
        sockets = connect(client, links[0].address(server), count, connections)
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        idle = start(server)
        before = usage(idle.pid)[1]
        end(idle)
        policy = start(client, wait=False)
        wait_until_accepted(client, links, count)
        costs = {POLICY: usage(policy.pid)[1] - before}
        costs.update(read(client, sockets))
        before = usage(policy.pid)[1]
        costs[CLOSE] = close(client, connections, count)
        wait_until_idle(policy.pid)
        costs[POLICY_CLOSE] = usage(policy.pid)[1] - before
        end(policy)
    return costs


def accept(count: int) -> None:
    """The peers' process: accepts so many connections, answers a byte on each, and closes it when the client does."""
    peers, poll = {}, select.poll()
    with mptcp.create_server(("", PORT), backlog=4096) as listener:
        print("listening", flush=True)
        for _ in range(count):
            peer, _ = listener.accept()
            peer.sendall(peer.recv(1))
            peers[peer.fileno()] = peer
            poll.register(peer, select.POLLIN)
        while peers:
            for descriptor, _ in poll.poll():
                poll.unregister(descriptor)
                peers.pop(descriptor).close()


def connect(client: Host, address: str, count: int, stack: contextlib.ExitStack) -> list[mptcp.Socket]:
    sockets = []
    for _ in range(count):
        sock = stack.enter_context(client.create_connection((address, PORT), timeout=30))
        sock.sendall(b"x")
        sock.recv(1)
        sockets.append(sock)
    return sockets


def read(client: Host, sockets: list[mptcp.Socket]) -> dict[str, float]:
    handles = client.connections()
    read_all = subflows_of(handles)
    assert [len(subflows or ()) for subflows in read_all] == [2] * len(sockets), "two subflows each"
    costs = {
        LIST: median(client.connections),
        BATCH: median(lambda: subflows_of(handles)),
        SOCKETS: median(lambda: [sock.subflows() for sock in sockets]),
        ONE: median(lambda: [handle.subflows() for handle in handles[:: len(handles) // SAMPLE][:SAMPLE]]),
    }
    with client.socket() as inside, contextlib.closing(record(handles, 0.5)) as recorder:
        assert inside
        wait_for(lambda: recorder.metadata["ticks"] > TICKS)
    status = recorder.metadata
    costs[TICK] = status["cpu_ns"] / status["ticks"] / 1e9
    readings = len(np.unique(recorder.connections["time_ns"]))
    costs[TICK_CONNECTIONS] = status["connections_cpu_ns"] / readings / 1e9
    return costs


def record(handles: list[mptcp.Connection], interval: float) -> mptcp.Recorder:
    return mptcp.Recorder(handles, interval, connection_interval=interval)


def close(client: Host, connections: contextlib.ExitStack, count: int) -> float:
    """Processor seconds of the thread that tells of the end of every subflow, and of one tick without any."""
    with contextlib.closing(record(client.connections(), 1000)) as recorder:
        connections.close()
        wait_for(lambda: int(recorder.samples["final"].sum()) >= 2 * count)
    return recorder.metadata["cpu_ns"] / 1e9


def median(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(CALLS):
        begin = time.process_time()
        result = call()
        taken.append(time.process_time() - begin)
        del result
    return statistics.median(taken)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"it took more than {DEADLINE:.0f} s")
        # A look costs something, which the others lack.
        time.sleep(0.02)


def wait_until_idle(pid: int) -> None:
    """Until a process has done nothing for a fifth of a second."""

    def is_idle() -> bool:
        before = usage(pid)[1]
        time.sleep(0.2)
        return usage(pid)[1] == before

    wait_for(is_idle)


def exponent(counts: list[int], costs: list[float]) -> tuple[float, float]:
    """The slope of the line through the logarithms, and how far the costs are from it at most, as a ratio less one."""
    x, y = np.log(counts), np.log(costs)
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(np.exp(np.abs(y - slope * x - offset).max()) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--report", type=Path, help="a page for the table, beside which the plot is written")
    parser.add_argument("--accept", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if arguments.accept:
        accept(arguments.accept)
        return
    counts = [count for count in arguments.counts if fits(count)]
    measured = []
    for count in counts:
        # Where there are few, how often a thread wakes has a part in it.
        turns = [measure(count) for _ in range(3 if count < 1000 else 1)]
        measured.append({name: statistics.median(turn[name] for turn in turns) for name in turns[0]})
        print(f"{count} connections", flush=True)
        for name, cost in measured[-1].items():
            print(f"  {name:62}{cost / count * 1e6:10.1f} us each", flush=True)
    table = [
        f"| {name} | "
        + " | ".join(f"{costs[name] / count * 1e6:,.1f}" for count, costs in zip(counts, measured, strict=True))
        + " | {:.2f} | {:.0%} |".format(*exponent(counts, [costs[name] for costs in measured]))
        for name in measured[0]
    ]
    print("\n".join(table))
    if arguments.report:
        draw(counts, measured, arguments.report.with_suffix(".svg"))
        write(counts, table, arguments.report)


def fits(count: int) -> bool:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + SPARE > most:
        print(f"left out: {count} connections take {count + SPARE} descriptors, and RLIMIT_NOFILE is {most}")
    return count + SPARE <= most


def draw(counts: list[int], measured: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mptcp"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for name in measured[0]:
        axes.plot(counts, [costs[name] for costs in measured], marker="o", markersize=4, label=name)
    axes.plot(counts, [count * 1e-5 for count in counts], color="gray", linestyle=":", label="10 us each")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="connections, of two subflows each",
        ylabel="seconds of processor time for all of them",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def write(counts: list[int], table: list[str], path: Path) -> None:
    command = f".venv/bin/python tests/benchmarks/scale.py --report docs/{path.name}"
    path.write_text(
        "\n".join(
            [
                "# Scale",
                "",
                "What a connection costs when there are many of them, each with two subflows, and both ends on one "
                "machine.",
                "`tests/benchmarks/scale.py` describes what is measured, and writes this page and the plot:",
                "",
                "```sh",
                command,
                "```",
                "",
                f"{datetime.date.today()}, Linux {platform.release()}, Python {platform.python_version()}. "
                "Microseconds of processor time per connection; the slope of a straight line through the logarithms of "
                "count and cost (1 means that the cost grows in proportion to the count); and the largest deviation "
                "from that line.",
                "",
                "| connections | " + " | ".join(f"{count:,}" for count in counts) + " | slope | deviation |",
                "|---|" + "--:|" * (len(counts) + 2),
                *table,
                "",
                f"![Seconds for all connections, by their number]({path.stem}.svg)",
                "",
                "A `Connection` has no descriptor, and without one the kernel reports a connection's subflows only in "
                f"a dump of all: `{ONE}` costs {SAMPLE} dumps, so reading the subflows of every connection in this "
                "way grows with the square of their number. To read all of them use a Recorder, a policy's "
                "`on_tick()`, or `mptcp list`: each needs only one dump. A `Socket` reads through its descriptor.",
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
