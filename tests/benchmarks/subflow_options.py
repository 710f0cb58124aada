"""What it costs to reach one subflow, beside setsockopt on the whole socket.

    .venv/bin/maturin develop --release
    sudo .venv/bin/python tests/benchmarks/subflow_options.py

Needs CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN in the initial user namespace, and runs in a lab of its own. It prints
tables after some 20 seconds: with no other connections in the namespace, and with 2,000. A benchmark, not a test:
nothing fails for being slow. turns.py says how it is measured.

The whole socket is the one peer: nothing else reaches a single subflow.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import mptcp
from mptcp.lab import Host, two_paths
from turns import Round, calls, compare, publish, take_turns, within

PORT = 5000
SUBFLOWS = 8
OTHERS = 2000
ROUNDS = 40

TCP = socket.IPPROTO_TCP
ONE = (TCP, socket.TCP_KEEPIDLE)

#: Sixteen options that every kernel sets on a subflow, and values that harm nothing.
SIXTEEN: dict[tuple[int, int], int | bytes] = {
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
        print(f"first call in a process, which loads the program: {(time.perf_counter() - start) * 1e3:.1f} ms")
        run(client, sock, "no other connections in the namespace")
        with others(client):
            run(client, sock, f"{OTHERS} other connections in the namespace")


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


def run(client: Host, sock: mptcp.Socket, title: str) -> None:
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
        Contestant(
            "Subflow.setsockopt, from another namespace", 10, 1, lambda: one.setsockopt(*ONE, 7200), inside=False
        ),
        Contestant("Subflow.getsockopt by BPF", 10, 1, lambda: one.getsockopt(*ONE)),
        Contestant("Subflow.getsockopt by inet_diag", 50, 1, lambda: one.getsockopt(TCP, socket.TCP_CONGESTION, 16)),
        Contestant("16 options on 8 subflows at once", 5, 128, lambda: sock.set_subflow_options(all_of_all)),
        Contestant("16 options on 8 subflows one by one", 1, 128, one_by_one),
    ]
    figures = take_turns({contestant.name: one_round(contestant, client) for contestant in contestants}, ROUNDS)
    whole, *others = contestants
    publish(
        f"One connection with {SUBFLOWS} subflows, {title}",
        [compare(figures, contestant.name, whole.name) for contestant in others],
    )
    each = {
        contestant.name: [figure / contestant.options for figure in figures[contestant.name]] for contestant in others
    }
    publish(
        "The same, of each option that was set",
        [
            compare({**each, whole.name: figures[whole.name]}, contestant.name, whole.name)
            for contestant in others
            if contestant.options > 1
        ],
    )


def one_round(contestant: Contestant, client: Host) -> Round:
    run = calls(contestant.calls, contestant.call)

    def round() -> float | Mapping[str, float]:
        with within(client) if contestant.inside else contextlib.nullcontext():
            return run()

    return round


if __name__ == "__main__":
    main()
