"""What emulated links cost, and how precise they are: the emulator by itself, between two hosts; and a lab's start.

    .venv/bin/maturin develop --release
    sudo .venv/bin/python tests/benchmarks/links.py [--seconds 5]
    unshare -Ur .venv/bin/python tests/benchmarks/links.py      # as an ordinary user: without SCHED_FIFO

Costs are processor time of the emulator's thread, which includes what the kernel does in it: handing each frame to the
receiving host, that host's TCP, and interrupts. So they depend on the congestion control: the aims for throughput are
for Reno, and the figures for BBR follow where it is the kernel's default. BBR paces frames by a timer of the sending
host, which expires once for each frame, often on the thread's processor; a virtual machine pays more for such an
interrupt than for the frame. (Reno with SO_MAX_PACING_RATE costs the same as BBR.) Delays are those of datagrams, from
before send() to the kernel's time of receipt.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mptcp._core import LinkLimits
from mptcp.lab import two_paths

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.emulation.wire import LINK, Wire

MS = 1_000_000
DELAY = 10 * MS
PROBES_PER_SECOND = 1000
CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>

#: What is measured, its unit, and the aim: at least, or at most.
AIMS = {
    "frames of 1514 bytes, one by one, reno": ("Gbit/s a processor second", 1.0, True),
    "frames of up to 64 KiB, reno": ("Gbit/s a processor second", 10.0, True),
    "frames of 1514 bytes, one by one, bbr": ("Gbit/s a processor second", None, True),
    "frames of up to 64 KiB, bbr": ("Gbit/s a processor second", None, True),
    "error of a delay of 10 ms, idle, p50": ("µs", 50.0, False),
    "error of a delay of 10 ms, idle, p99": ("µs", 1000.0, False),
    "error beside two busy loops, p50": ("µs", None, False),
    "error beside two busy loops, p99": ("µs", None, False),
    "beside a transfer at 100 Mbit/s, reno": ("% of a core", 15.0, False),
    "beside a transfer at 100 Mbit/s, bbr": ("% of a core", 15.0, False),
    "starting two_paths(), median of 7": ("ms", 120.0, False),
}


@contextlib.contextmanager
def link(a_to_b: LinkLimits, b_to_a: LinkLimits, control: str = "reno") -> Iterator[Wire]:
    wire = Wire()
    try:
        wire.add(a_to_b, b_to_a)
        for host in (wire.a, wire.b):
            host.set_sysctl("net/ipv4/tcp_congestion_control", control)
        yield wire
    finally:
        wire.close()


def processor_time(wire: Wire) -> int:
    return int(wire.emulator.status()["cpu_ns"])


def transfer(wire: Wire, seconds: float) -> tuple[int, int, float, float]:
    """Send by TCP from a to b for so long; return the frames and bytes, as on the wire, and s of processor and wall."""
    with wire.stream() as (client, server):
        # The reader is woken up in the emulator's thread; once for many frames, its cost does not hide that of frames.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 18)
        stop = threading.Event()

        def send() -> None:
            data = bytes(1 << 20)
            while not stop.is_set():
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        def receive() -> None:
            buffer = bytearray(1 << 20)
            while server.recv_into(buffer):
                pass

        threads = [threading.Thread(target=each) for each in (send, receive)]
        for thread in threads:
            thread.start()
        time.sleep(min(1.0, seconds / 2))
        before, cpu, start = wire.emulator.stats(LINK)[0], processor_time(wire), time.monotonic()
        time.sleep(seconds)
        after = wire.emulator.stats(LINK)[0]
        taken = (processor_time(wire) - cpu) / 1e9, time.monotonic() - start
        stop.set()
        for thread in threads:
            thread.join()
        return after["frames"] - before["frames"], after["bytes"] - before["bytes"], *taken


def delay_errors(seconds: float) -> tuple[float, float, bool]:
    """By how much a datagram took longer than 10 ms, p50 and p99, µs, and whether the thread has real-time priority."""
    with link(LinkLimits(delay=DELAY), LinkLimits(delay=DELAY)) as wire:
        one, other = wire.datagrams()
        with one, other:
            other.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            other.setblocking(False)
            errors = []
            for _ in range(int(seconds * PROBES_PER_SECOND)):
                one.send(struct.pack("=q", time.time_ns()))
                time.sleep(1 / PROBES_PER_SECOND)
                while True:
                    try:
                        data, ancillary, _, _ = other.recvmsg(64, 64)
                    except BlockingIOError:
                        break
                    after, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                    (before,) = struct.unpack("=q", data)
                    errors.append((after * 10**9 + nanoseconds - before - DELAY) / 1e3)
        hundredths = statistics.quantiles(errors, n=100)
        return hundredths[49], hundredths[98], wire.emulator.status()["real_time"]


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def starts(count: int) -> list[float]:
    """How long each start of a lab with two links took, ms."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        with two_paths():
            times.append(1e3 * (time.perf_counter() - begin))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is measured")
    seconds = parser.parse_args().seconds
    figures: dict[str, float] = {}
    rest: dict[str, str] = {}

    # A loss of nothing has hosts send each segment by itself, as every loss does.
    one_by_one, large = LinkLimits(loss=0.0, delay=MS), LinkLimits(delay=MS)
    for control in ["reno", *{"bbr"}.intersection([CONTROL.read_text().strip()])]:
        for what, limits in (("frames of 1514 bytes, one by one", one_by_one), ("frames of up to 64 KiB", large)):
            name = f"{what}, {control}"
            with link(limits, limits, control) as wire:
                frames, size, processor, wall = transfer(wire, seconds)
            figures[name] = size * 8 / processor / 1e9
            rest[name] = (
                f"{frames / processor / 1e3:,.0f} thousand segments a processor second; "
                f"{size * 8 / wall / 1e9:.2f} Gbit/s with {100 * processor / wall:.0f} % of a core"
            )
        limits, name = LinkLimits(rate=100_000_000), f"beside a transfer at 100 Mbit/s, {control}"
        with link(limits, limits, control) as wire:
            _, size, processor, wall = transfer(wire, seconds)
            figures[name] = 100 * processor / wall
            rest[name] = f"{size * 8 / wall / 1e6:.1f} Mbit/s"
    p50, p99, real_time = delay_errors(seconds)
    figures |= {"error of a delay of 10 ms, idle, p50": p50, "error of a delay of 10 ms, idle, p99": p99}
    with busy_loops(2):
        p50, p99, _ = delay_errors(seconds)
    figures |= {"error beside two busy loops, p50": p50, "error beside two busy loops, p99": p99}

    times = starts(7)
    figures["starting two_paths(), median of 7"] = statistics.median(times)
    rest["starting two_paths(), median of 7"] = f"{min(times):.0f} to {max(times):.0f}"

    print(f"thread under SCHED_FIFO: {'yes' if real_time else 'no'}")
    for name, (unit, aim, at_least) in AIMS.items():
        if name not in figures:
            continue
        figure = figures[name]
        line = f"{name:42}{figure:8.2f} {unit}"
        if aim is not None:
            met = figure >= aim if at_least else figure <= aim
            line += f" (at {'least' if at_least else 'most'} {aim:g}: {'met' if met else 'MISSED'})"
        print(line + (f"; {rest[name]}" if name in rest else ""))


if __name__ == "__main__":
    main()
