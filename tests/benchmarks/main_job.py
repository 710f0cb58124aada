"""What the main job costs: each operation of the package beside the same work done by other means.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/main_job.py

It needs cargo, for the bare system calls of bare_calls.rs; no privilege, since it runs in a lab of its own. It prints
tables within a minute. A benchmark, not a test: nothing fails for being slow.

Everything is measured in one run on one connection with two subflows, in its network namespace. turns.py says how.

- ss and mptcplib start processes, and that is in their time. mptcplib can tell whether a socket is Multipath TCP and
  how many subflows it has, and no more.
- pyroute2 reads all TCP sockets of the namespace: its inet_diag request has no way to name one. For the commands that
  open and close subflows it has no message; peers.py adds theirs to its own.
- Its turn of opening is two milliseconds of Python in the process that ours runs in, after which ours finds nothing in
  the processor's caches; the bare calls are another process, and little code. So there are two tables of opening: ours
  beside the bare calls alone, as a program that opens one subflow after another, and all three.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mptcp
import pure_python
from mptcp.lab import Host, two_paths
from peers import Pyroute2, Tool, mptcplib, ss_text
from turns import Missing, Round, calls, compare, publish, take_turns, within

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT = 5000


class Contest(NamedTuple):
    """Contestants that take turns, and who is compared with whom: ours, the peer, and what we want of the ratio."""

    title: str
    contestants: dict[str, Round | Missing]
    comparisons: list[tuple[str, str, float | None]]
    rounds: int
    #: An aim is met, too, if ours takes at most so many nanoseconds more.
    margin: float | None = None

    def publish(self) -> None:
        figures = take_turns(self.contestants, self.rounds)
        publish(
            self.title,
            [
                compare(figures, ours, peer, aim=aim, margin=self.margin, contestants=self.contestants)
                for ours, peer, aim in self.comparisons
            ],
        )


def main() -> None:
    with connection(build_bare_calls()) as made:
        for contest in (reading(made), *opening(made), importing()):
            contest.publish()


@dataclass(frozen=True)
class Connection:
    """A connection with two subflows, the ends for a third, and the others that can read it."""

    sock: mptcp.Socket
    local: str
    remote: str
    bare: BareCalls
    pure_python: pure_python.Reader
    pyroute2: Pyroute2


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
        stack.enter_context(within(client))
        pyroute2 = stack.enter_context(contextlib.closing(Pyroute2(sock)))
        yield Connection(sock, local, remote, bare, pure_python.Reader(sock, diag), pyroute2)


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

    def __call__(self, *command: object) -> list[float]:
        """The nanoseconds of one call; of `open` those of opening and of closing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*command, file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"bare_calls ended at {command}")
        return [float(word) for word in reply.split()]


def build_bare_calls() -> str:
    command = ["cargo", "build", "--quiet", "--release", "--example", "bare_calls", "--message-format=json"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = (json.loads(line) for line in output.splitlines())
    program: str = next(message["executable"] for message in built if message.get("executable"))
    return program


def reading(made: Connection) -> Contest:
    """info(), subflows() and is_mptcp."""
    sock, bare, python = made.sock, made.bare, made.pure_python
    check(made)
    rust_info, rust_subflows = "getsockopt(MPTCP_INFO), bare in Rust", "its system calls, bare in Rust"
    getsockopt, by_struct = "socket.getsockopt(284, 1, 96)", "by socket and struct"
    by_ctypes, ss, ss_parsed = "by ctypes, socket and struct", "ss -tinO", "ss -tinO, read in Python"
    pyroute2 = "pyroute2, all of the namespace"
    is_mptcp, number = "mptcplib.is_socket_mptcp()", "mptcplib.get_nb_used_subflows()"
    program, in_text = shutil.which("ss"), ss_text("-tinO")
    contestants: dict[str, Round | Missing] = {
        "info()": calls(200, sock.info),
        "info().asdict()": calls(200, lambda: sock.info().asdict()),
        "is_mptcp": calls(200, lambda: sock.is_mptcp),
        "subflows()": calls(20, sock.subflows),
        "subflows(), every field": calls(20, lambda: [every_field(subflow) for subflow in sock.subflows()]),
        rust_info: lambda: bare("info", 200)[0],
        rust_subflows: lambda: bare("subflows", 20)[0],
        getsockopt: calls(200, lambda: sock.getsockopt(pure_python.SOL_MPTCP, pure_python.MPTCP_INFO, 96)),
        by_struct: calls(200, python.info),
        by_ctypes: calls(20, python.subflows),
        pyroute2: calls(1, made.pyroute2.subflows),
        ss: Missing("ss is not installed") if program is None else lambda: bare("run", program, "-tinO")[0],
        ss_parsed: once(in_text),
        is_mptcp: once(mptcplib("is_socket_mptcp", sock)),
        number: once(mptcplib("get_nb_used_subflows", sock)),
    }
    return Contest(
        "Reading a connection with two subflows",
        contestants,
        [
            ("info()", rust_info, 2),
            ("info()", getsockopt, None),
            ("info()", by_struct, None),
            ("info()", ss, None),
            ("info().asdict()", by_struct, None),
            ("is_mptcp", is_mptcp, None),
            ("subflows()", rust_subflows, 1.5),
            ("subflows()", getsockopt, None),
            ("subflows()", by_ctypes, None),
            ("subflows()", ss, 1 / 100),
            ("subflows()", ss_parsed, None),
            ("subflows()", pyroute2, None),
            ("subflows()", number, None),
            ("subflows(), every field", by_ctypes, None),
        ],
        rounds=100,
    )


def once(tool: Tool) -> Round | Missing:
    return tool if isinstance(tool, Missing) else calls(1, tool)


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


def check(made: Connection) -> None:
    """The contestants do the same work: all read two subflows, and the same of them."""
    ours, others = made.sock.subflows(), made.pure_python.subflows()
    assert len(ours) == len(made.pyroute2.subflows()) == 2
    assert [every_field(subflow)[:-1] for subflow in ours] == [subflow[:-1] for subflow in others]
    assert made.sock.token in made.pure_python.info()


def opening(made: Connection) -> list[Contest]:
    """open_subflow() from a chosen port, to the peer's acceptance, and the end of that subflow."""
    # A four-tuple that was closed stays in TIME_WAIT, so each one is used once.
    ports = iter(range(10_000, 65_536))
    remote = made.remote, PORT

    create, destroy = "SUBFLOW_CREATE to FULLY_ESTABLISHED, bare in Rust", "SUBFLOW_DESTROY, bare in Rust"
    pyroute2, pyroute2_destroy = "the same by pyroute2", "SUBFLOW_DESTROY by pyroute2"

    def ours() -> dict[str, float]:
        local = (made.local, next(ports))
        start = time.perf_counter_ns()
        subflow = made.sock.open_subflow(local, made.remote)
        opened = time.perf_counter_ns()
        subflow.close()
        return {"open_subflow()": opened - start, "close()": time.perf_counter_ns() - opened}

    def in_rust() -> dict[str, float]:
        opened, closed = made.bare("open", f"{made.local}:{next(ports)}", f"{made.remote}:{PORT}")
        return {create: opened, destroy: closed}

    def by_pyroute2() -> dict[str, float]:
        local = (made.local, next(ports))
        return {pyroute2: made.pyroute2.open(local, remote), pyroute2_destroy: made.pyroute2.destroy(local, remote)}

    contestants: dict[str, Round | Missing] = {"open_subflow()": ours, create: in_rust}
    bare = [("open_subflow()", create, 1.3), ("close()", destroy, 1.3)]
    others = [("open_subflow()", pyroute2, None), ("close()", pyroute2_destroy, None)]
    return [
        Contest("Opening and closing a subflow", contestants, bare, 1000, 15_000),
        Contest(
            "Opening and closing a subflow, in turns with pyroute2",
            {**contestants, pyroute2: by_pyroute2},
            [*bare, *others],
            1000,
            15_000,
        ),
    ]


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
    return Contest(
        "Importing, in an interpreter of its own",
        {code: interpreter(code) for code in (ours, other)},
        [(ours, other, 1.5)],
        rounds=50,
    )


if __name__ == "__main__":
    main()
