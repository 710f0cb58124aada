"""What it costs to reach one subflow, beside setsockopt on the whole socket.

    .venv/bin/maturin develop --release
    sudo .venv/bin/python tests/benchmarks/subflow_options.py

Needs CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN in the initial user namespace, and runs in a lab of its own. It prints two
tables after some 20 seconds: with no other connections in the namespace, and with 2,000. A benchmark, not a test:
nothing fails for being slow.

One connection with eight subflows. The contestants take turns in short rounds, and a time is the median of its rounds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mptcp
from mptcp.lab import Host, two_paths

PORT = 5000
SUBFLOWS = 8
OTHERS = 2000
ROUNDS = 40
CLONE_NEWNET = 0x40000000

TCP = socket.IPPROTO_TCP
ONE = (TCP, socket.TCP_KEEPIDLE)

#: Sixteen options that every kernel sets on a subflow, and values that harm nothing.
SIXTEEN = {
    ONE: 7200,
    (TCP, socket.TCP_KEEPINTVL): 75,
    (TCP, socket.TCP_KEEPCNT): 9,
    (TCP, socket.TCP_SYNCNT): 6,
    (TCP, socket.TCP_NODELAY): 0,
    (TCP, socket.TCP_USER_TIMEOUT): 0,
    (TCP, socket.TCP_NOTSENT_LOWAT): 1 << 20,
    (TCP, socket.TCP_CONGESTION): b"reno",
    (TCP, 16): 0,  # TCP_THIN_LINEAR_TIMEOUTS
    (TCP, 27): 0,  # TCP_SAVE_SYN
    (socket.SOL_SOCKET, socket.SO_MARK): 0,
    (socket.SOL_SOCKET, socket.SO_PRIORITY): 0,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 0,
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): 0,
    (socket.SOL_SOCKET, 47): 1 << 30,  # SO_MAX_PACING_RATE
    (socket.IPPROTO_IP, socket.IP_TOS): 0,
}


@dataclass(frozen=True)
class Contestant:
    name: str
    calls: int
    """Calls in a round."""
    options: int
    """Options that one call sets or reads."""
    call: Callable[[], object]
    inside: bool = True
    """Whether the caller is in the socket's network namespace."""


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with two_paths(rate=None) as (client, server, paths), contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server(("", PORT)))
        sock = stack.enter_context(client.create_connection((paths[0].address(server), PORT), timeout=10))
        peer, _ = listener.accept()
        stack.enter_context(peer)
        for sender, receiver in ((sock, peer), (peer, sock)):
            sender.sendall(b"x")
            receiver.recv(1)
        for _ in range(SUBFLOWS - 1):
            sock.open_subflow(paths[1].address(client), paths[1].address(server))
        start = time.perf_counter()
        sock.subflows()[1].setsockopt(*ONE, 7200)
        print(f"first call in a process, which loads the program: {(time.perf_counter() - start) * 1e3:.1f} ms\n")
        print("no other connections in the namespace")
        run(client, sock)
        with others(client):
            print(f"\n{OTHERS} other connections in the namespace")
            run(client, sock)


@contextlib.contextmanager
def others(host: Host) -> Iterator[None]:
    """TCP connections within a host, two sockets each."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(host.socket(proto=TCP))
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        for _ in range(OTHERS):
            stack.enter_context(host.socket(proto=TCP)).connect(listener.getsockname())
            stack.enter_context(listener.accept()[0])
        yield


def run(client: Host, sock: mptcp.Socket) -> None:
    subflows = sock.subflows()
    assert len(subflows) == SUBFLOWS
    one = subflows[1]
    all_of_all = {subflow: SIXTEEN for subflow in subflows}

    def one_by_one() -> None:
        for subflow in subflows:
            for (level, optname), value in SIXTEEN.items():
                subflow.setsockopt(level, optname, value)

    contestants = [
        Contestant("setsockopt on the whole socket", 200, 1, lambda: sock.setsockopt(*ONE, 7200)),
        Contestant("Subflow.setsockopt", 10, 1, lambda: one.setsockopt(*ONE, 7200)),
        Contestant("  from another namespace", 10, 1, lambda: one.setsockopt(*ONE, 7200), inside=False),
        Contestant("Subflow.getsockopt by BPF", 10, 1, lambda: one.getsockopt(*ONE)),
        Contestant("Subflow.getsockopt by inet_diag", 50, 1, lambda: one.getsockopt(TCP, socket.TCP_CONGESTION, 16)),
        Contestant("16 options on 8 subflows at once", 5, 128, lambda: sock.set_subflow_options(all_of_all)),
        Contestant("16 options on 8 subflows one by one", 1, 128, one_by_one),
    ]
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(ROUNDS):
        for contestant in random.sample(contestants, len(contestants)):
            with within(client) if contestant.inside else contextlib.nullcontext():
                start = time.perf_counter_ns()
                for _ in range(contestant.calls):
                    contestant.call()
                times[contestant.name].append((time.perf_counter_ns() - start) / contestant.calls / 1e3)
    whole = statistics.median(times[contestants[0].name])
    print(f"{'':40}{'a call':>12}{'ratio':>9}{'an option':>12}{'ratio':>9}")
    for contestant in contestants:
        call = statistics.median(times[contestant.name])
        each = call / contestant.options
        print(f"{contestant.name:40}{call:>9.1f} us{call / whole:>9.1f}{each:>9.1f} us{each / whole:>9.1f}")


@contextlib.contextmanager
def within(host: Host) -> Iterator[None]:
    """This thread in the network namespace of a host."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net") as here, open(f"/proc/{host.pid}/ns/net") as there:
        for namespace in (there, here):
            if setns(namespace.fileno(), CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if namespace is there:
                yield


if __name__ == "__main__":
    main()
