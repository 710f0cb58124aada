"""How many bytes of small requests go over the slower of two paths, by how the paths are emulated.

    .venv/bin/maturin develop --release
    sudo .venv/bin/python tests/benchmarks/small_requests.py
    sudo .ci/kernel --icount 6.12 -- .venv/bin/python tests/benchmarks/small_requests.py --requests 50  # with netem

A client sends requests of 10 kB to a server over paths with round-trip times of 40 and 80 ms and 10 Mbit/s each, one
after the other's answer, or one every 25 or 10 ms. The kernel's scheduler distributes them over two subflows, by what
each has queued and not yet acknowledged. Where a shaper is on the sending host, what waits in it belongs to its socket,
so the scheduler can see something else than in a network. Three arrangements exist at once and take turns, in random
order, each turn with a new connection: a lab's links; netem on a forwarding host in each path, as in a network; and
netem on the hosts' own interfaces, as it is often done by hand. All have the same congestion control, buffers, segments
and room in queues, and no memory of earlier connections. What is compared are the differences within turns: their mean,
with a 95 % interval (bootstrap over turns). Where the kernel lacks netem only the lab's links are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mptcp
from mptcp.lab import Host, Lab

SIZE = 10_000
RATE = "10mbit"
DELAYS = ("20ms", "40ms")
#: Between two requests, seconds; None: each waits for the answer to the one before.
GAPS = {None: "one by one", 0.025: "one every 25 ms", 0.01: "one every 10 ms"}
PORT = 5000
DEADLINE = 60.0
CONGESTION_CONTROL = "reno"
#: What arrangements are compared, and by how many percentage points their shares may differ.
OURS, NETWORK = "the lab's links", "netem behind a forwarding host"
AGREEMENT = 5.0
RESAMPLES = 10_000
#: More than ever wait.
QUEUE_PACKETS = 1000
SYSCTLS: dict[str, str | int] = {
    "net.ipv4.tcp_congestion_control": CONGESTION_CONTROL,
    # Otherwise a connection begins with what an earlier one has learnt of the path.
    "net.ipv4.tcp_no_metrics_save": 1,
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
}


class Ends(NamedTuple):
    """A client, a server, and their addresses on each path: the fast one first."""

    client: Host
    server: Host
    addresses: list[tuple[str, str]]


class Measured(NamedTuple):
    share: float  # of the bytes, on the slow path
    seconds: float  # median, from a request to its answer


def lab_links(lab: Lab) -> Ends:
    client, server = lab.host("client"), lab.host("server")
    links = [lab.link(client, server, rate=RATE, delay=delay, queue=f"{QUEUE_PACKETS}p") for delay in DELAYS]
    return Ends(client, server, [(link.address(client), link.address(server)) for link in links])


def behind_a_router(lab: Lab) -> Ends:
    client, server = lab.host("client"), lab.host("server")
    addresses = []
    for number, delay in enumerate(DELAYS):
        router = lab.host(f"router{number}", forwarding=True)
        near, far = lab.link(client, router), lab.link(router, server)
        for link in (near, far):
            netem(router, link.interface(router), delay)
        for host, link in ((client, near), (server, far)):
            one_by_one(host, link.interface(host))
        addresses.append((near.address(client), far.address(server)))
    return Ends(client, server, addresses)


def at_the_sender(lab: Lab) -> Ends:
    client, server = lab.host("client"), lab.host("server")
    links = [lab.link(client, server) for _ in DELAYS]
    for host in (client, server):
        for link, delay in zip(links, DELAYS, strict=True):
            netem(host, link.interface(host), delay)
            one_by_one(host, link.interface(host))
    return Ends(client, server, [(link.address(client), link.address(server)) for link in links])


def netem(host: Host, interface: str, delay: str) -> None:
    rate = ("rate", RATE, "limit", str(QUEUE_PACKETS))
    host.run(["tc", "qdisc", "add", "dev", interface, "root", "netem", "delay", delay, *rate], check=True)


def one_by_one(host: Host, interface: str) -> None:
    """Have a host send single segments, as it does over a lab's links of this rate."""
    host.run(["ip", "link", "set", interface, "gso_max_segs", "1"], check=True)


ARRANGEMENTS: dict[str, Callable[[Lab], Ends]] = {
    OURS: lab_links,
    NETWORK: behind_a_router,
    "netem at the sender": at_the_sender,
}


@contextlib.contextmanager
def connected(ends: Ends) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    """A connection with a subflow on each path, the first on the fast one."""
    (own, remote), slow = ends.addresses
    with (
        ends.server.create_server(("", PORT)) as listener,
        ends.client.create_connection((remote, PORT), DEADLINE, (own, 0)) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            for one, other in ((sock, peer), (peer, sock)):
                one.sendall(b"x")
                assert other.recv(1) == b"x"
            sock.open_subflow(*slow, timeout=DEADLINE)
            for end in (sock, peer):
                end.settimeout(DEADLINE)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield sock, peer


def measure(ends: Ends, requests: int, gap: float | None) -> Measured:
    with connected(ends) as (sock, peer):
        (_, _), (slow, _) = ends.addresses

        def sent() -> dict[str, int]:
            return {each.local[0]: each.tcp_info.bytes_sent or 0 for each in sock.subflows()}

        def answer() -> None:
            for _ in range(requests):
                left = SIZE
                while left:
                    left -= len(peer.recv(left))
                peer.sendall(b"x")

        server = threading.Thread(target=answer)
        server.start()
        before = sent()
        times, answers = [], []
        begin = time.perf_counter()

        def listen() -> None:
            for _ in range(requests):
                assert sock.recv(1) == b"x"
                answers.append(time.perf_counter())

        if gap is None:
            for _ in range(requests):
                times.append(time.perf_counter())
                sock.sendall(bytes(SIZE))
                assert sock.recv(1) == b"x"
                answers.append(time.perf_counter())
        else:
            client = threading.Thread(target=listen)
            client.start()
            for number in range(requests):
                time.sleep(max(0.0, begin + number * gap - time.perf_counter()))
                times.append(time.perf_counter())
                sock.sendall(bytes(SIZE))
            client.join()
        server.join()
        after = sent()
    grown = {address: after[address] - before[address] for address in after}
    durations = [end - start for start, end in zip(times, answers, strict=True)]
    return Measured(grown[slow] / sum(grown.values()), statistics.median(durations))


def excess(ends: Ends, count: int) -> list[float]:
    """By how much the round trips of datagrams over the fast path, one after the other, took longer than 40 ms; ms."""
    own, remote = ends.addresses[0]
    with (
        ends.client.socket(type=socket.SOCK_DGRAM, proto=0) as near,
        ends.server.socket(type=socket.SOCK_DGRAM, proto=0) as far,
    ):
        near.bind((own, 0))
        far.bind((remote, PORT))
        near.connect((remote, PORT))
        for end in (near, far):
            end.settimeout(DEADLINE)

        def echo() -> None:
            for _ in range(count):
                far.sendto(*far.recvfrom(100))

        server = threading.Thread(target=echo)
        server.start()
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            near.send(b"x")
            near.recv(100)
            times.append(1e3 * (time.perf_counter() - begin) - 40)
        server.join()
    return times


def has_netem() -> bool:
    with Lab() as lab:
        host = lab.host("a")
        done = host.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"], capture_output=True)
        return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="of each turn")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the order of turns and of the intervals")
    arguments = parser.parse_args()
    chosen = ARRANGEMENTS if has_netem() else {OURS: lab_links}
    found: dict[tuple[str, float | None], list[Measured]] = {}
    late: dict[str, list[float]] = {name: [] for name in chosen}
    order = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        ends = {}
        for name, make in chosen.items():
            lab = stack.enter_context(Lab())
            ends[name] = make(lab)
            for host, (sysctl, value) in itertools.product(lab.hosts.values(), SYSCTLS.items()):
                host.sysctl(sysctl, value)
        for _ in range(arguments.turns):
            for name in order.sample(list(chosen), len(chosen)):
                late[name] += excess(ends[name], min(arguments.requests, 50))
                for gap in GAPS:
                    found.setdefault((name, gap), []).append(measure(ends[name], arguments.requests, gap))

    print(
        f"Linux {platform.release()}, {os.cpu_count()} processors, {CONGESTION_CONTROL}, the kernel's default "
        f"scheduler, {arguments.turns} turns of {arguments.requests} requests"
    )
    print(f"{'share of the slow path, %':32}" + "".join(f"{what:>26}" for what in GAPS.values()))
    for name in chosen:
        print(f"{name:32}" + "".join(f"{figures(found[name, gap]):>26}" for gap in GAPS))
    print(f"\n{'round trips above 40 ms':32}{'p50':>26}{'p99':>26}")
    for name, times in late.items():
        hundredths = statistics.quantiles(times, n=100)
        print(f"{name:32}" + "".join(f"{hundredths[percent - 1]:>23.2f} ms" for percent in (50, 99)))
    print()
    if len(chosen) == 1:
        print("This kernel has no netem to compare with.")
        return
    print(f"beside {NETWORK}, percentage points within a turn: mean and 95 % interval")
    for name in chosen:
        if name == NETWORK:
            continue
        for gap, what in GAPS.items():
            pairs = zip(found[name, gap], found[NETWORK, gap], strict=True)
            differences = [100 * (one.share - other.share) for one, other in pairs]
            low, high = interval(differences, order)
            text = f"{name:32}{what:18}{statistics.mean(differences):+6.2f} ({low:+.2f} to {high:+.2f})"
            if name == OURS:
                if low >= -AGREEMENT and high <= AGREEMENT:
                    verdict = "agree"
                elif low > AGREEMENT or high < -AGREEMENT:
                    verdict = "DISAGREE"
                else:
                    verdict = "undecided"
                text += f": {verdict}, to {AGREEMENT:g} points"
            print(text)


def interval(values: list[float], random: random.Random) -> tuple[float, float]:
    """The 95 % interval of the mean, by resampling."""
    means = sorted(statistics.fmean(random.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[RESAMPLES * 25 // 1000], means[RESAMPLES * 975 // 1000 - 1]


def figures(turns: list[Measured]) -> str:
    shares = sorted(100 * each.share for each in turns)
    middle = statistics.median(shares)
    seconds = statistics.median(each.seconds for each in turns)
    return f"{middle:.1f} ({shares[0]:.0f}-{shares[-1]:.0f}), {1000 * seconds:.0f} ms"


if __name__ == "__main__":
    main()
