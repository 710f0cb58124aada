"""What a recording costs, against the obvious alternatives, all in one run.

    .venv/bin/maturin develop --release && cargo build --release --example bare_sampler
    .venv/bin/python tests/benchmarks/recorder.py [rows] [load] [missed] [programs] [sender] [memory]

It needs ss; no privilege, since it runs in labs of its own, except for BPF. Without a word it does all but memory, in
some minutes. A benchmark, not a test: nothing fails for being slow. The contestants take turns.

- rows: processor time a row, and rows that a processor second gives, of the Recorder, of the same system calls in Rust
  that do nothing with what they read (bare), of a Python loop of MPTCP_FULL_INFO and struct, and of a loop over
  `ss -tinO`. Recorder and bare read on the same clock.
- load: `wait_ns` of each method beside a sender that writes 1 MB at a time at full speed, at 2 and 8 subflows; as
  root, of BPF too. Receive buffers are as large as they can become from the start: with smaller ones the sender of 8
  subflows overruns the receiver's window and stops for seconds (docs/kernel-bugs.md), and nobody waits for a sender
  that does not send. In a round each method has a turn. A round counts if the sender was at full speed in every turn
  of it, which is at least half as fast as in the fastest turn; rounds that do not count are repeated and printed.
- missed: ticks missed at 1 kHz while Python is busy, against the bare loop beside the same.
- programs: the processor time of the BPF programs themselves, at 1 kHz, by BPF_ENABLE_STATS. As root.
- sender: the processor time of a sender on a shaped link, sampled and not.
- memory: ten million rows with path=, and the resident memory meanwhile. Takes 7 GB in /tmp at most.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import mptcp
import numpy as np
from mptcp.lab import Lab, two_paths
from sender import Sender, at_full_speed

ROOT = Path(__file__).parents[2]
BARE = ROOT / "target" / "release" / "examples" / "bare_sampler"
SETTINGS = [(1, 1), (4, 1), (32, 1), (1, 100), (1, 2000)]
METHODS = ("inet_diag", "full_info")
ROUNDS = 5
LOAD_ROUNDS = 3
RECEIVE_BUFFER = 32 << 20  # bytes
SENDER_TURNS = 50


def main() -> None:
    if "--inside" in sys.argv:
        parts: dict[str, Callable[[], None]] = {
            "rows": rows,
            "load": load,
            "missed": missed,
            "programs": programs,
            "memory": memory,
        }
        parts[sys.argv[-1]]()
        return
    for part in sys.argv[1:] or ["rows", "load", "missed", "programs", "sender"]:
        if part == "sender":
            sender()
            continue
        inside = [sys.executable, "-W", "ignore", __file__, "--inside", part]
        if part == "programs" and os.geteuid() != 0:
            print("\nprograms: needs root")
            continue
        if part in ("load", "missed", "programs") and os.geteuid() == 0:
            # BPF needs the initial user namespace, which a lab leaves.
            subprocess.run(
                ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *inside], check=True
            )
            continue
        with Lab() as lab:
            lab.host("host").run(inside, check=True)


@contextlib.contextmanager
def connections(subflows: int, count: int) -> Iterator[list[mptcp.Socket]]:
    """So many connections over loopback, each with so many subflows: their clients' ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mptcp.use_path_manager("userspace"))
        listener = stack.enter_context(mptcp.create_server(("", 5000), backlog=128))
        clients = []
        for _ in range(count):
            sock = stack.enter_context(mptcp.create_connection(("127.0.0.1", 5000)))
            peer = stack.enter_context(listener.accept()[0])
            sock.sendall(b"x")
            peer.sendall(peer.recv(1))
            sock.recv(1)
            for number in range(1, subflows):
                sock.open_subflow(f"127.0.0.{number + 1}", "127.0.0.1")
            clients.append(sock)
        yield clients


def bare(method: str, interval: float, ticks: int, socks: list[mptcp.Socket]) -> tuple[int, int, int, int]:
    fds = [sock.fileno() for sock in socks]
    command = [str(BARE), method, str(round(interval * 1e9)), str(ticks), *map(str, fds)]
    output = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, check=True).stdout
    rows, cpu, whole, missed = map(int, output.split())
    return rows, cpu, whole, missed


def recorded(method: str, interval: float, seconds: float, sources: object) -> tuple[int, int, mptcp.Recorder]:
    # The callers name sources and methods of every kind.
    with mptcp.Recorder(sources, interval, method=method, connection_interval=10.0) as recorder:  # type: ignore[arg-type]
        time.sleep(seconds)
    return len(recorder.samples), recorder.metadata["cpu_ns"], recorder


def by_python(socks: list[mptcp.Socket]) -> int:
    """MPTCP_FULL_INFO of each, and every field of tcp_info as a number."""
    import ctypes

    found = 0
    subflows, tcp_infos = ctypes.create_string_buffer(72 * 264), ctypes.create_string_buffer(72 * 280)
    fields = struct.Struct("=8B24I4Q4I2I1I1Q3Q2I2Q4I2I2HI7I4x")
    for sock in socks:
        pointers = (ctypes.addressof(subflows), ctypes.addressof(tcp_infos))
        header = bytearray(struct.pack("=6I2Q", 0, 280, 0, 264, 0, 72, *pointers) + bytes(96))
        length = ctypes.c_uint32(len(header))
        view = (ctypes.c_char * len(header)).from_buffer(header)
        if ctypes.CDLL(None).getsockopt(sock.fileno(), 284, 4, view, ctypes.byref(length)):
            raise OSError("getsockopt")
        count = struct.unpack_from("=I", header, 16)[0]
        data = tcp_infos.raw
        for index in range(count):
            fields.unpack_from(data, index * 280)
            identity = struct.unpack_from("=I", subflows.raw, index * 264)
            found += bool(identity)
    return found


def rows() -> None:
    head = f"{'subflows':>9}{'connections':>12}{'method':>11}"
    print(f"{head}{'us/row':>9}{'rows/s':>10}{'bare us':>9}{'ratio':>7}{'Python us':>11}{'ss -tinO us':>13}")
    for subflows, count in SETTINGS:
        with connections(subflows, count) as socks:
            total = subflows * count
            # Read for a quarter of the time at most.
            interval = max(0.001, total * 20e-6)
            seconds = max(1.0, 20 * interval)
            python = cost(lambda s=socks: by_python(s), seconds / 2)
            # Both ends of each connection are in this namespace.
            through_ss = cost(lambda: len(ss().splitlines()) or 1, seconds / 2, children=True)
            for method in METHODS:
                ours, theirs = [], []
                for _ in range(ROUNDS):
                    found, cpu, _ = recorded(method, interval, seconds, socks)
                    ours.append(cpu / found / 1e3)
                    found, cpu, *_ = bare(method, interval, round(seconds / interval), socks)
                    theirs.append(cpu / found / 1e3)
                us, bare_us = statistics.median(ours), statistics.median(theirs)
                print(
                    f"{subflows:9}{count:12}{method:>11}{us:9.2f}{1e6 / us:10.0f}{bare_us:9.2f}{us / bare_us:7.2f}"
                    f"{python:11.1f}{through_ss:13.1f}",
                    flush=True,
                )
    print(
        "\nprocessor time; the median of", ROUNDS, "turns; ss lists both ends of each connection, and so twice the rows"
    )


def ss() -> str:
    return subprocess.run(["ss", "-tinOH"], capture_output=True, text=True, check=True).stdout


def cost(call: Callable[[], int], seconds: float, *, children: bool = False) -> float:
    """Microseconds of processor time a row."""

    def now() -> float:
        used = [resource.getrusage(resource.RUSAGE_SELF)]
        if children:
            used.append(resource.getrusage(resource.RUSAGE_CHILDREN))
        return sum(each.ru_utime + each.ru_stime for each in used)

    begin, cpu, found = time.monotonic(), now(), 0
    while time.monotonic() - begin < seconds:
        found += call()
    return (now() - cpu) / found * 1e6


def load() -> None:
    # With a timeout the attached socket, and so the sender's too, would not block.
    socket.setdefaulttimeout(None)
    Path("/proc/sys/net/ipv4/tcp_rmem").write_text(f"4096 {RECEIVE_BUFFER} {RECEIVE_BUFFER}")
    processors = os.sched_getaffinity(0)
    print(f"\nwait_ns beside a sender of 1 MB at a time, us, of {len(processors)} processors; {LOAD_ROUNDS} rounds")
    names = "".join(f"{name:>10}" for name in ("p50", "p99", "best p99", "most", "rows"))
    print(f"{'sender on':>11}{'subflows':>9}{'method':>11}{names}  MB/s of each round")
    for taken in (processors, {max(processors)}):
        for subflows in (2, 8):
            beside_a_sender(taken, subflows)


class Turn(NamedTuple):
    """How fast the sender was, bytes a second, and how long each row waited, microseconds."""

    rate: float
    waits: np.ndarray


def beside_a_sender(processors: set[int], subflows: int) -> None:
    """With the sender and the receiver, and so the softirqs of what they send, on these processors."""
    methods = (*(["bpf"] if os.geteuid() == 0 else []), *METHODS)
    played: list[dict[str, Turn]] = []
    rounds: list[dict[str, Turn]] = []
    with (
        mptcp.use_path_manager("userspace"),
        at_full_speed(processors) as sender,
        mptcp.attach(sender.pid, sender.fd) as sock,
    ):
        for number in range(2, subflows + 1):
            sender.connection.open_subflow(f"127.0.0.{number}", "127.0.0.1")
        assert len(sock.subflows()) == subflows
        while len(rounds) < LOAD_ROUNDS and len(played) < 3 * LOAD_ROUNDS:
            played.append({method: one_turn(method, sender, sock) for method in methods})
            rounds = at_speed(played)
    if len(rounds) < LOAD_ROUNDS:
        raise SystemExit(f"the sender was at full speed in {len(rounds)} of {len(played)} rounds only")
    for turns in played:
        if not any(turns is each for each in rounds):
            rates = ", ".join(f"{method} {turn.rate / 1e6:.0f}" for method, turn in turns.items())
            print(f"{len(processors):11}{subflows:9} does not count, MB/s: {rates}")
    best = {}
    for method in methods:
        joined = np.concatenate([turns[method].waits for turns in rounds])
        best[method] = min(float(np.percentile(turns[method].waits, 99)) for turns in rounds)
        middle, high, most = np.percentile(joined, [50, 99, 100])
        figures = "".join(f"{figure:10.1f}" for figure in (middle, high, best[method], most))
        rates = " ".join(f"{turns[method].rate / 1e6:.0f}" for turns in rounds)
        print(f"{len(processors):11}{subflows:9}{method:>11}{figures}{len(joined):10}  {rates}", flush=True)
    for method in methods[:-1]:
        print(f"p99 of full_info is {best['full_info'] / best[method]:.1f} times that of {method}, best rounds")


def one_turn(method: str, sender: Sender, sock: mptcp.Socket) -> Turn:
    sent, begin = sender.bytes_sent(), time.monotonic()
    *_, recorder = recorded(method, 0.005, 3.0, sock if method == "full_info" else sender.connection)
    rate = (sender.bytes_sent() - sent) / (time.monotonic() - begin)
    samples = recorder.samples
    return Turn(rate, samples["wait_ns"][~samples["final"]] / 1e3)


def at_speed(played: list[dict[str, Turn]]) -> list[dict[str, Turn]]:
    """Return the rounds that count."""
    fastest = max(turn.rate for turns in played for turn in turns.values())
    return [turns for turns in played if min(turn.rate for turn in turns.values()) >= fastest / 2]


def missed() -> None:
    methods = ("inet_diag", *(["bpf"] if os.geteuid() == 0 else []))
    shares: dict[str, list[float]] = {**{f"Recorder, {method}": [] for method in methods}, "bare, inet_diag": []}
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=busy)
    thread.start()
    with connections(2, 1) as socks:
        for _ in range(ROUNDS):
            for method in methods:
                *_, recorder = recorded(method, 0.001, 5.0, socks)
                share = recorder.missed / (recorder.missed + recorder.metadata["ticks"])
                shares[f"Recorder, {method}"].append(share)
            *_, count = bare("inet_diag", 0.001, 5000, socks)
            shares["bare, inet_diag"].append(count / 5000)
        scheduler = recorder.metadata["scheduler"]
    stop.set()
    thread.join()
    print(f"\nticks missed at 1 kHz while Python is busy, {scheduler}, of {ROUNDS} turns of 5 s each")
    for name, values in shares.items():
        print(f"{name:>20}: {statistics.mean(values):.3%} (each: {', '.join(f'{value:.3%}' for value in values)})")


# linux/bpf.h; asm/unistd.h of x86-64, and asm-generic/unistd.h.
BPF_ENABLE_STATS, BPF_STATS_RUN_TIME = 32, 0
NR_BPF = 321 if os.uname().machine == "x86_64" else 280


def programs() -> None:
    """Beside connections with 2 and 8 subflows, and beside subflows that are replaced all the time."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    kind = ctypes.c_uint32(BPF_STATS_RUN_TIME)
    stats = libc.syscall(NR_BPF, BPF_ENABLE_STATS, ctypes.byref(kind), ctypes.sizeof(kind))
    if stats < 0:
        raise OSError(ctypes.get_errno(), "BPF_ENABLE_STATS")
    print("\nBPF programs at 1 kHz, by BPF_ENABLE_STATS, in turns of 5 s")
    print(f"{'subflows':>9}{'program':>13}{'runs':>8}{'ns each':>9}{'of a processor':>16}")
    for subflows in (2, 8):
        with connections(subflows, 1) as socks:
            for replaced in (False, True):
                report(socks[0], subflows, replaced)
    os.close(stats)


def report(sock: mptcp.Socket, subflows: int, replaced: bool) -> None:
    with mptcp.Recorder(sock, 0.001, method="bpf") as recorder:
        begin = time.monotonic()
        while (seconds := time.monotonic() - begin) < 5:
            if replaced:
                sock.close_subflow(sock.open_subflow("127.0.0.9", "127.0.0.1"))
            else:
                time.sleep(0.1)
        found = list(of_programs())
    kind = f"{subflows}, replaced" if replaced else str(subflows)
    for name, count, run_ns in found:
        if count:
            share = run_ns / 1e9 / seconds
            print(f"{kind:>12}{name:>11}{count:>8}{run_ns / count:>9.0f}{share:>16.3%}", flush=True)
    assert recorder.metadata["failure"] is None


def of_programs() -> Iterator[tuple[str, int, int]]:
    """Return the kind of each BPF program of this process, how often it ran, and for how many nanoseconds in all."""
    kinds = {"3": "find", "26": "end", "31": "read"}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:bpf-prog":
                lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
                info = dict(line.split(":", 1) for line in lines)
                kind = info["prog_type"].strip()
                yield kinds.get(kind, kind), int(info["run_cnt"]), int(info["run_time_ns"])


ENDLESS = """
import sys, mptcp
sock = mptcp.Socket(fileno=int(sys.argv[1]))
data = bytes(1 << 16)
while True:
    sock.sendall(data)
"""


def sender() -> None:
    costs: dict[bool, list[float]] = {True: [], False: []}
    with two_paths(rate=("100mbit", "100mbit")) as (client, server, _):
        listener = server.create_server(("", 5000))
        sock = client.create_connection(("10.0.1.2", 5000))
        peer, _ = listener.accept()
        sock.sendall(b"x")
        peer.sendall(peer.recv(1))
        sock.recv(1)
        sock.open_subflow("10.0.2.1", "10.0.2.2")
        # The child process sends through this descriptor, which is to be a blocking one.
        sock.settimeout(None)
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: peer.recv(1 << 20), b"")])
        reader.start()
        [connection] = client.connections()
        command = [sys.executable, "-W", "ignore", "-c", ENDLESS, str(sock.fileno())]
        with subprocess.Popen(command, pass_fds=[sock.fileno()]) as process:
            # Its start, and the slow start of both subflows.
            time.sleep(2)
            for turn in range(2 * SENDER_TURNS):
                sampled = turn % 2 == 0
                with mptcp.Recorder(connection, 0.01) if sampled else contextlib.nullcontext():
                    before = used_by(process.pid), connection.info().bytes_sent or 0
                    time.sleep(0.5)
                    cpu_ns = used_by(process.pid) - before[0]
                    sent = (connection.info().bytes_sent or 0) - before[1]
                costs[sampled].append(cpu_ns / sent)
            process.kill()
        sock.close()
        reader.join()
        peer.close()
        listener.close()
    print("\nprocessor time of a sender over two paths of 100 Mbit/s, ns a byte,", SENDER_TURNS, "turns of 0.5 s each")
    for sampled, values in costs.items():
        low, median, high = statistics.quantiles(values, n=4)
        name = "sampled at 100 Hz" if sampled else "not sampled"
        print(f"{name:>20}: median {median:.4f} (quartiles {low:.4f} and {high:.4f})")
    print(f"{'ratio':>20}: {statistics.median(costs[True]) / statistics.median(costs[False]):.3f}")


def used_by(pid: int) -> int:
    """The processor time of a process with one thread, nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def memory() -> None:
    with connections(1, 100) as socks, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.arrow"
        print("\nrows        rows/s  resident MB  file MB  dropped")
        with mptcp.Recorder(socks, 0.001, path=path) as recorder:
            begin = time.monotonic()
            for target in range(1_000_000, 10_000_001, 1_000_000):
                while recorder.metadata["ticks"] * len(socks) < target:
                    time.sleep(0.05)
                status = Path("/proc/self/status").read_text()
                resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
                rate = target / (time.monotonic() - begin)
                size = os.path.getsize(path) / 1e6
                print(f"{target:8}{rate:10.0f}{resident:13.0f}{size:9.0f}{recorder.metadata['dropped']:9}", flush=True)
        print(f"{recorder.missed} ticks missed")


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    main()
