"""What the main job costs: each operation of the package beside the same work done by other means.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/main_job.py

It needs cargo, for the bare system calls of bare_calls.rs, and ss; no privilege, since it runs in a lab of its own.
It prints a table after some 20 seconds. A benchmark, not a test: nothing fails for being slow.

Everything is measured in one run on one connection with two subflows. The contestants take turns in short rounds, so
that whatever else the machine does meets all of them alike, and a time is the median of its rounds.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mptcp
import pure_python
from mptcp.lab import Host, two_paths

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 5000

#: One round of a contestant: the nanoseconds of one call.
Round = Callable[[], float]


class Comparison(NamedTuple):
    """Two contestants by name, and what we want of the ratio of the first one's time to the second's."""

    ours: str
    other: str
    aim: float | None = None


class Contest(NamedTuple):
    """Contestants that take turns."""

    contestants: dict[str, Round]
    comparisons: list[Comparison]
    rounds: int

    def run(self) -> dict[str, float]:
        """The median time of each contestant, in nanoseconds."""
        times: dict[str, list[float]] = {name: [] for name in self.contestants}
        for _ in range(self.rounds):
            for name in random.sample(list(self.contestants), len(self.contestants)):
                times[name].append(self.contestants[name]())
        return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    with connection(build_bare_calls()) as made:
        print(f"{'':30}{'time':>10}   {'compared with':42}{'time':>10}{'ratio':>8}   aim")
        for contest in (reading(made), opening(made), importing()):
            times = contest.run()
            last = None
            for comparison in contest.comparisons:
                if comparison.other in times:
                    print(row(comparison, times, repeat=comparison.ours != last))
                    last = comparison.ours


def row(comparison: Comparison, times: dict[str, float], repeat: bool) -> str:
    ours, other, aim = comparison
    ratio = times[ours] / times[other]
    left = f"{ours:30}{duration(times[ours]):>10}" if repeat else " " * 40
    line = f"{left}   {other:42}{duration(times[other]):>10}{fraction(ratio):>8}"
    if aim is not None:
        line += f"   at most {fraction(aim)}: {'met' if ratio <= aim else 'MISSED'}"
    return line


def duration(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.2f} ms" if nanoseconds >= 1e6 else f"{nanoseconds / 1e3:.2f} us"


def fraction(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"1/{1 / ratio:.0f}"


@dataclass(frozen=True)
class Connection:
    """A connection with two subflows, the ends for a third, and the others that can read it."""

    sock: mptcp.Socket
    local: str
    remote: str
    bare: BareCalls
    pure_python: pure_python.Reader


@contextlib.contextmanager
def connection(program: str) -> Iterator[Connection]:
    with contextlib.ExitStack() as stack:
        # Links without a rate: only the kernel takes time, and no queue.
        client, server, paths = stack.enter_context(two_paths(rate=None))
        listener = stack.enter_context(server.create_server(("", PORT)))
        sock = stack.enter_context(client.create_connection((paths[0].address(server), PORT), timeout=10))
        peer, _ = listener.accept()
        stack.enter_context(peer)
        for sender, receiver in ((sock, peer), (peer, sock)):
            sender.sendall(b"x")
            receiver.recv(1)
        local, remote = paths[1].address(client), paths[1].address(server)
        sock.open_subflow(local, remote)
        bare = stack.enter_context(BareCalls(client, program, sock))
        diag = stack.enter_context(client.socket(socket.AF_NETLINK, socket.SOCK_RAW, pure_python.NETLINK_SOCK_DIAG))
        yield Connection(sock, local, remote, bare, pure_python.Reader(sock, diag))


class BareCalls:
    """The program of bare_calls.rs, running in a host."""

    def __init__(self, host: Host, program: str, sock: mptcp.Socket) -> None:
        fd = sock.fileno()
        self._process: subprocess.Popen[str] = host.popen(
            [program, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> BareCalls:
        return self

    def __exit__(self, *_: object) -> None:
        # At the end of its input it ends.
        self._process.communicate()

    def __call__(self, *command: object) -> float:
        """The nanoseconds of one call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*command, file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"bare_calls ended at {command}")
        return float(reply)


def build_bare_calls() -> str:
    command = ["cargo", "build", "--quiet", "--release", "--example", "bare_calls", "--message-format=json"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = (json.loads(line) for line in output.splitlines())
    program: str = next(message["executable"] for message in built if message.get("executable"))
    return program


def calls(count: int, function: Callable[[], object]) -> Round:
    """A round of so many calls in a row, after some that are not counted."""
    timer = timeit.Timer(function)

    def run() -> float:
        timer.timeit(count // 10)
        return timer.timeit(count) * 1e9 / count

    return run


def reading(made: Connection) -> Contest:
    """info() and subflows()."""
    sock, bare, python = made.sock, made.bare, made.pure_python
    check(sock, python)
    rust_info, rust_subflows = "getsockopt(MPTCP_INFO), bare in Rust", "its system calls, bare in Rust"
    getsockopt, by_struct = "socket.getsockopt(284, 1, 96)", "by socket and struct"
    by_ctypes, ss = "by ctypes, socket and struct", "ss -tinO"
    contestants: dict[str, Round] = {
        "info()": calls(200, sock.info),
        "info().asdict()": calls(200, lambda: sock.info().asdict()),
        "subflows()": calls(20, sock.subflows),
        "subflows(), every field": calls(20, lambda: [every_field(subflow) for subflow in sock.subflows()]),
        rust_info: lambda: bare("info", 200),
        rust_subflows: lambda: bare("subflows", 20),
        getsockopt: calls(200, lambda: sock.getsockopt(pure_python.SOL_MPTCP, pure_python.MPTCP_INFO, 96)),
        by_struct: calls(200, python.info),
        by_ctypes: calls(20, python.subflows),
    }
    if program := shutil.which("ss"):
        contestants[ss] = lambda: bare("run", program, "-tinO")
    return Contest(
        contestants,
        [
            Comparison("info()", rust_info, aim=2),
            Comparison("info()", getsockopt),
            Comparison("info()", by_struct),
            Comparison("info()", ss),
            Comparison("info().asdict()", by_struct),
            Comparison("subflows()", rust_subflows, aim=1.5),
            Comparison("subflows()", getsockopt),
            Comparison("subflows()", by_ctypes),
            Comparison("subflows()", ss, aim=1 / 100),
            Comparison("subflows(), every field", by_ctypes),
        ],
        rounds=200,
    )


def every_field(subflow: mptcp.Subflow) -> tuple[object, ...]:
    """What pure_python decodes of a subflow."""
    return (
        subflow.id,
        subflow.cookie,
        subflow.local,
        subflow.remote,
        subflow.local_id,
        subflow.remote_id,
        subflow.initial,
        subflow.backup,
        subflow.peer_backup,
        subflow.tcp_info.asdict(),
    )


def check(sock: mptcp.Socket, python: pure_python.Reader) -> None:
    """The contestants do the same work: both read two subflows, and the same of them."""
    ours, others = sock.subflows(), python.subflows()
    assert len(ours) == 2
    assert [every_field(subflow)[:-1] for subflow in ours] == [subflow[:-1] for subflow in others]
    assert sock.token in python.info()


def opening(made: Connection) -> Contest:
    """open_subflow() from a chosen port, to the peer's acceptance."""
    # A four-tuple that was closed stays in TIME_WAIT, so each one is used once.
    ports = iter(range(10_000, 65_536))

    def ours() -> float:
        local = (made.local, next(ports))
        start = time.perf_counter_ns()
        subflow = made.sock.open_subflow(local, made.remote)
        taken = time.perf_counter_ns() - start
        assert subflow is not None
        subflow.close()
        return taken

    def other() -> float:
        return made.bare("open", f"{made.local}:{next(ports)}", f"{made.remote}:{PORT}")

    name = "command to FULLY_ESTABLISHED, bare in Rust"
    return Contest({"open_subflow()": ours, name: other}, [Comparison("open_subflow()", name, aim=1.3)], rounds=200)


def importing() -> Contest:
    """The package's import, in interpreters of their own."""
    # Nobody may have compiled it yet: PYTHONDONTWRITEBYTECODE may be set.
    compileall.compile_dir(os.path.dirname(mptcp.__file__), quiet=1)

    def interpreter(code: str) -> Round:
        def run() -> float:
            start = time.perf_counter_ns()
            subprocess.run([sys.executable, "-I", "-c", code], check=True)
            return time.perf_counter_ns() - start

        return run

    ours, other = "import mptcp", "import socket, ssl"
    return Contest({code: interpreter(code) for code in (ours, other)}, [Comparison(ours, other, aim=1.5)], rounds=50)


if __name__ == "__main__":
    main()
