"""Links as they are emulated: frames of real hosts pass from one network namespace to another."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mptcp._core import LinkLimits, LinkTrace
from mptcp.lab import _namespaces
from support import PATIENCE, ROOT, SO_TIMESTAMPNS, eventually, held, holds_no_more_than, needs

from tests.emulation.wire import LINK, UNLIMITED, Wire

MS = 1_000_000
#: Ethernet, IPv4 and UDP headers of a datagram.
HEADERS = 14 + 20 + 8
#: The payload of a datagram that fills a frame.
FULL = 1514 - HEADERS

ETH_P_ALL = 3  # <linux/if_ether.h>
# <linux/if_packet.h>
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 1 << 4

pytestmark = [needs("ip", "tc")]
needs_namespaces = pytest.mark.skipif(
    not _namespaces.may_make_network_namespaces(), reason="needs CAP_SYS_ADMIN and CAP_NET_ADMIN, as under unshare -Ur"
)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    try:
        yield made
    finally:
        made.close()


def numbered(count: int, size: int) -> Iterator[bytes]:
    for number in range(count):
        yield struct.pack("=I", number) + bytes(size - 4)


def receive(sock: socket.socket) -> list[int]:
    """The numbers of the datagrams that are there."""
    received = []
    while select.select([sock], [], [], 0)[0]:
        received.append(struct.unpack_from("=I", sock.recv(2048))[0])
    return received


def sent(wire: Wire, count: int) -> Callable[[], bool]:
    """Whether so many frames have passed the link from a to b since it was added, or are gone."""
    return lambda: sum(wire.emulator.stats(LINK)[0][name] for name in ("frames", "dropped", "lost")) >= count


def send_all(wire: Wire, count: int, size: int, at_once: int = 200) -> list[int]:
    """Send numbered datagrams from a to b, a few at a time, and return the numbers of those received.

    A few, because a kernel's default for the most that a socket may hold (net.core.rmem_max) is some 400 datagrams.
    """
    one, other = wire.datagrams()
    start = wire.emulator.stats(LINK)[0]
    gone = start["frames"] + start["dropped"] + start["lost"]
    with one, other:
        received: list[int] = []
        for number, datagram in enumerate(numbered(count, size), 1):
            one.send(datagram)
            if number % at_once == 0 or number == count:
                assert eventually(sent(wire, gone + number), 20)
                received += receive(other)
        # The last ones are counted when they leave, and are to be received a moment later.
        passed = wire.emulator.stats(LINK)[0]["frames"] - start["frames"]
        eventually(lambda: bool(received.extend(receive(other))) or len(received) >= passed)
        return received


def times(sock: socket.socket, count: int) -> list[tuple[int, int]]:
    """The numbers of so many datagrams and when the kernel received them, ns."""
    received = []
    for _ in range(count):
        data, ancillary, _, _ = sock.recvmsg(2048, 64)
        ((_, _, stamp),) = ancillary
        seconds, nanoseconds = struct.unpack("=qq", stamp)
        received.append((struct.unpack_from("=I", data)[0], seconds * 10**9 + nanoseconds))
    return received


def transfer(wire: Wire, size: int) -> float:
    """Send bytes by TCP from a to b; return how long their receipt took from the first one on, s."""
    with wire.stream() as (client, server):
        sender = threading.Thread(target=client.sendall, args=(bytes(size),))
        sender.start()
        left = size - len(server.recv(1 << 16))
        start = time.monotonic()
        while left:
            left -= len(server.recv(1 << 20))
        took = time.monotonic() - start
        sender.join()
        return took


@needs_namespaces
def test_a_frame_takes_the_delay_of_its_direction(wire: Wire) -> None:
    wire.add(LinkLimits(delay=20 * MS), LinkLimits(delay=5 * MS))
    one, other = wire.datagrams()
    with one, other:
        forth, back = [], []
        for _ in range(20):
            start = time.monotonic_ns()
            one.send(b"forth")
            other.recv(10)
            middle = time.monotonic_ns()
            other.send(b"back")
            one.recv(10)
            forth.append(middle - start)
            back.append(time.monotonic_ns() - middle)
    assert 20 * MS <= min(forth) <= 20 * MS + MS * PATIENCE
    assert 5 * MS <= min(back) <= 5 * MS + MS * PATIENCE
    for stats in wire.emulator.stats(LINK):
        assert stats["frames"] == 20
        assert 0 < stats["late_p50_ns"] <= stats["late_p99_ns"] <= stats["late_max_ns"]


@needs_namespaces
def test_frames_leave_at_the_rate(wire: Wire) -> None:
    rate, count = 20_000_000, 200
    wire.add(LinkLimits(rate=rate, queue=("packets", count)))
    one, other = wire.datagrams()
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        for datagram in numbered(count, FULL):
            one.send(datagram)
        received = times(other, count)
    assert [number for number, _ in received] == list(range(count))
    # Those in the middle: one that was late is late by itself.
    spans = [received[count - 50 + n][1] - received[n][1] for n in range(50)]
    expected = (count - 50) * 1514 * 8 * 10**9 / rate
    assert sorted(spans)[25] == pytest.approx(expected, rel=0.02)
    stats = wire.emulator.stats(LINK)[0]
    assert (stats["frames"], stats["bytes"], stats["dropped"]) == (count, count * 1514, 0)


@needs_namespaces
@pytest.mark.parametrize(("rate", "size"), [(10_000_000, 2 << 20), (200_000_000, 16 << 20)])
def test_tcp_has_what_headers_leave_of_the_rate(wire: Wire, rate: int, size: int) -> None:
    limits = LinkLimits(rate=rate)
    assert limits.gso_max_segs == (1 if rate < 20_000_000 else 16)
    wire.add(limits, LinkLimits(rate=rate))
    took = transfer(wire, size)
    # 1448 bytes of each frame of 1514 are payload. Slow start, and what was there when the clock started.
    assert size * 8 / took == pytest.approx(rate * 1448 / 1514, rel=0.05 * PATIENCE)


@needs_namespaces
def test_large_frames_pass_a_link_without_limits(wire: Wire) -> None:
    wire.add(LinkLimits(delay=1))
    with wire.stream() as (client, server):
        data = random.Random(1).randbytes(32 << 20)
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += server.recv(1 << 20)
        sender.join()
        assert received == data
    stats = wire.emulator.stats(LINK)[0]
    # Counted as on the wire, whatever the host has handed over as one.
    assert stats["frames"] > len(data) // 1448
    assert stats["bytes"] > len(data) // 1448 * 1514


@needs_namespaces
@pytest.mark.parametrize(("queue", "room"), [(("packets", 30), 30), (("bytes", 30 * 1514), 30), (("ns", 240 * MS), 19)])
def test_a_full_queue_drops_what_comes(wire: Wire, queue: tuple[str, int], room: int) -> None:
    # A frame takes 12 ms.
    wire.add(LinkLimits(rate=1_000_000, queue=queue))
    received = send_all(wire, 200, FULL, 200)
    stats = wire.emulator.stats(LINK)[0]
    # One is sent while the others wait, and more are if sending them took long.
    assert received[: room + 1] == list(range(room + 1))
    assert room + 1 <= len(received) <= room + 1 + 10 * PATIENCE
    assert stats["dropped"] == 200 - len(received)


@needs_namespaces
def test_losses_are_those_of_the_seed() -> None:
    def run(seed: int, loss: float) -> list[int]:
        wire = Wire(seed)
        try:
            wire.add(LinkLimits(loss=loss))
            received = send_all(wire, 20_000, 10)
            assert wire.emulator.stats(LINK)[0]["lost"] == 20_000 - len(received)
            return received
        finally:
            wire.close()

    first = run(5, 0.01)
    # Three standard errors: 3 * sqrt(20,000 * 0.01 * 0.99).
    assert abs(20_000 - len(first) - 200) <= 42
    assert run(5, 0.01) == first
    assert run(6, 0.01) != first


@needs_namespaces
def test_jitter_reorders_only_if_it_may(wire: Wire) -> None:
    wire.add(LinkLimits(delay=10 * MS, jitter=5 * MS))
    assert send_all(wire, 500, 10) == list(range(500))
    wire.set(LinkLimits(delay=10 * MS, jitter=5 * MS, reorder=True))
    received = send_all(wire, 500, 10)
    assert received != list(range(500))


@needs_namespaces
def test_a_trace_delivers_a_packet_at_each_opportunity(wire: Wire) -> None:
    # Two packets each 10 ms.
    wire.add(LinkLimits(trace=LinkTrace(b"3\n10\n"), queue=("packets", 100)))
    one, other = wire.datagrams()
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        for datagram in numbered(40, FULL):
            one.send(datagram)
        stamps = [stamp for _, stamp in times(other, 40)]
    gaps = [(after - before) / MS for before, after in itertools.pairwise(stamps)]
    # Whether the burst met the 3 or the 10 first.
    even, odd = sorted(statistics.median(gaps[parity::2]) for parity in (0, 1))
    # Frames that left late came so much later than others.
    allowed = PATIENCE + wire.emulator.stats(LINK)[0]["late_max_ns"] / MS
    assert (even, odd) == (pytest.approx(3, abs=allowed), pytest.approx(7, abs=allowed))


@needs_namespaces
def test_a_change_under_traffic_loses_and_reorders_nothing(wire: Wire) -> None:
    every = [
        UNLIMITED,
        LinkLimits(delay=20 * MS),
        LinkLimits(rate=50_000_000, queue=("packets", 100_000)),
        LinkLimits(rate=200_000_000, queue=("packets", 100_000), delay=3 * MS),
        LinkLimits(trace=LinkTrace(b"1\n1\n1\n"), queue=("packets", 100_000), delay=10 * MS, jitter=5 * MS),
    ]
    wire.add(every[0])
    one, other = wire.datagrams()
    count, received = 10_000, []
    with one, other:

        def send() -> None:
            for number, datagram in enumerate(numbered(count, 200)):
                # Not more than the receiving socket may hold, should all arrive at once.
                if number % 20 == 0 and not eventually(lambda number=number: number - len(received) < 200):
                    return
                one.send(datagram)

        sender = threading.Thread(target=send)
        sender.start()
        choice = random.Random(3)
        while sender.is_alive():
            wire.emulator.set(LINK, choice.choice(every), UNLIMITED)
            received += receive(other)
        sender.join()
        wire.emulator.set(LINK, UNLIMITED, UNLIMITED)
        assert wire.emulator.wait_passed(LINK, 0, 10)
        assert eventually(lambda: bool(received.extend(receive(other))) or len(received) >= count)
    assert received == list(range(count))


@needs_namespaces
def test_what_is_held_has_passed_though_more_comes(wire: Wire) -> None:
    """Who waits for one direction waits neither for what comes later nor for the other direction."""
    wire.add(LinkLimits(delay=50 * MS), LinkLimits(delay=10_000 * MS))
    one, other = wire.datagrams()
    with one, other:
        other.send(b"x")
        stop = threading.Event()

        def flood() -> None:
            while not stop.wait(0.001):
                one.send(b"x")

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            assert eventually(lambda: wire.emulator.stats(LINK)[0]["flying_frames"] > 5)
            before = wire.emulator.stats(LINK)[0]["frames"]
            assert wire.emulator.wait_passed(LINK, 0, 20)
            stats = wire.emulator.stats(LINK)
            assert stats[0]["frames"] > before
            assert stats[0]["flying_frames"] > 0
            assert not wire.emulator.wait_passed(LINK, 1, 0.01)
            assert stats[1]["flying_frames"] == 1
        finally:
            stop.set()
            sender.join()


@needs_namespaces
def test_a_cut_link_loses_what_it_holds(wire: Wire) -> None:
    wire.add(LinkLimits(rate=1_000_000, delay=10_000 * MS, queue=("packets", 100)))
    one, other = wire.datagrams()
    with one, other:
        for datagram in numbered(10, FULL):
            one.send(datagram)

        def held_frames() -> int:
            stats = wire.emulator.stats(LINK)[0]
            return stats["waiting_frames"] + stats["flying_frames"]

        assert eventually(lambda: held_frames() == 10)
        assert not wire.emulator.wait_passed(LINK, 0, 0.01)
        wire.emulator.cut(LINK)
        assert wire.emulator.wait_passed(LINK, 0, 0)
        assert wire.emulator.stats(LINK)[0]["cut"] == 10
        # It goes on as if nothing had been.
        wire.set()
        one.send(b"after")
        assert other.recv(10) == b"after"


@needs_namespaces
def test_a_receiver_that_is_down_gets_nothing(wire: Wire) -> None:
    wire.add()
    wire.middle.ip("link set dev b down")
    one, other = wire.datagrams()
    with one, other:
        one.send(b"nowhere")
        assert eventually(lambda: wire.emulator.stats(LINK)[0]["failed"] == 1)
        assert wire.emulator.stats(LINK)[0]["frames"] == 0
        wire.middle.ip("link set dev b up")
        one.send(b"there")
        assert other.recv(10) == b"there"


@needs_namespaces
def test_it_goes_on_while_python_stands_still(wire: Wire) -> None:
    wire.add(LinkLimits(delay=100 * MS))
    one, other = wire.datagrams()
    with one, other:
        other.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        start = time.time_ns()
        one.send(struct.pack("=I", 0))
        # Keeps the interpreter's lock, as a call of ctypes.CDLL does not.
        ctypes.PyDLL(None).usleep(500_000)
        ((_, stamp),) = times(other, 1)
    assert 100 * MS <= stamp - start <= 100 * MS + 50 * MS * PATIENCE


@needs_namespaces
def test_a_vlan_tag_passes_with_its_frame(wire: Wire) -> None:
    wire.add()
    eth = ("eth", ETH_P_ALL)
    with wire.a.packet_socket(eth) as one, wire.b.packet_socket(eth) as other:
        other.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        payload = b"with a tag" * 10
        one.send(bytes(12) + b"\x81\x00" + b"\x00\x05" + b"\x88\xb5" + payload)
        while True:
            data, ancillary, _, _ = other.recvmsg(2048, 64)
            if data[12:14] == b"\x88\xb5":
                break
        # struct tpacket_auxdata: the kernel has taken the tag out of the frame again.
        status, _, _, _, _, tag, protocol = struct.unpack("=IIIHHHH", ancillary[0][2])
        assert status & TP_STATUS_VLAN_VALID
        assert (tag, protocol, data[14:]) == (5, 0x8100, payload)


def redirect(wire: Wire, on: bool) -> None:
    """What stands in for the emulator from a to b."""
    if not on:
        wire.middle.tc("qdisc", "del", "dev", "a", "ingress")
        return
    wire.middle.tc("qdisc", "add", "dev", "a", "ingress")
    everything = ["protocol", "all", "u32", "match", "u32", "0", "0"]
    to_b = ["action", "mirred", "egress", "redirect", "dev", "b"]
    wire.middle.tc("filter", "add", "dev", "a", "parent", "ffff:", *everything, *to_b)


@needs_namespaces
def test_the_kernel_takes_over_and_gives_back(wire: Wire) -> None:
    wire.add()
    one, other = wire.datagrams()
    rounds, frames = 6, 0
    with one, other:
        stop = threading.Event()
        count, received = 0, []

        def send() -> None:
            nonlocal count, received
            while not stop.is_set():
                one.send(struct.pack("=I", count))
                count += 1
                received += receive(other)
                time.sleep(0.0001)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            for _ in range(rounds):
                redirect(wire, True)
                wire.emulator.attach(LINK, False, True)
                # What had come before is still forwarded.
                assert wire.emulator.wait_passed(LINK, 0, 10)
                frames, seen = wire.emulator.stats(LINK)[0]["frames"], count
                assert eventually(lambda seen=seen: count > seen + 100)
                assert wire.emulator.stats(LINK)[0]["frames"] == frames
                wire.emulator.attach(LINK, True, True)
                redirect(wire, False)
                assert eventually(lambda frames=frames: wire.emulator.stats(LINK)[0]["frames"] > frames + 100)
        finally:
            stop.set()
            sender.join()
        eventually(lambda: bool(received.extend(receive(other))) or bool(received and received[-1] == count - 1))
    assert set(received) == set(range(count))
    # Only what came between the two steps of a change is there twice: some milliseconds, as tc is a program.
    assert len(received) - count < count / 2


@needs_namespaces
def test_a_link_that_is_removed_is_forgotten(wire: Wire) -> None:
    wire.add(LinkLimits(delay=10_000 * MS))
    one, other = wire.datagrams()
    with one, other:
        one.send(b"lost")
        assert eventually(lambda: wire.emulator.stats(LINK)[0]["flying_frames"] == 1)
        wire.emulator.remove(LINK)
        with pytest.raises(ValueError, match="no link 7"):
            wire.emulator.stats(LINK)
        wire.add()
        one.send(b"again")
        assert other.recv(10) == b"again"


@needs_namespaces
def test_many_links_take_one_thread_and_no_more_descriptors(wire: Wire) -> None:
    wire.add()
    before = held()
    for number in range(100, 131):
        wire.middle.ip(f"link add name x{number} type veth peer name y{number}")
        ends = wire.middle.index(f"x{number}"), wire.middle.index(f"y{number}")
        wire.emulator.add(number, *ends, LinkLimits(rate=10**6), LinkLimits(delay=MS))
    assert holds_no_more_than(before)
    assert send_all(wire, 100, 100) == list(range(100))
    (thread,) = (task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text() == "mptcp-links\n")
    # A real-time thread, where this user may have one.
    code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    may = subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert wire.emulator.status()["real_time"] is may
    assert (os.sched_getscheduler(int(thread.name)) & ~os.SCHED_RESET_ON_FORK) == (
        os.SCHED_FIFO if may else os.SCHED_OTHER
    )


@needs_namespaces
def test_what_is_not_there_is_refused(wire: Wire) -> None:
    emulator, (a, b) = wire.emulator, wire.indexes
    with pytest.raises(OSError, match="no interface 99") as caught:
        emulator.add(1, a, 99, UNLIMITED, UNLIMITED)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(ValueError, match="different interfaces"):
        emulator.add(1, a, a, UNLIMITED, UNLIMITED)
    wire.add()
    with pytest.raises(ValueError, match="link 7 already"):
        emulator.add(LINK, a, b, UNLIMITED, UNLIMITED)
    with pytest.raises(ValueError, match="belongs to link 7"):
        emulator.add(1, a, b, UNLIMITED, UNLIMITED)
    for number in (-1, 65536, 10**30):
        with pytest.raises(ValueError, match="link must be from 0 to 65535"):
            emulator.stats(number)
    with pytest.raises(TypeError, match="link must be an int"):
        emulator.stats("7")  # type: ignore[arg-type]
    for call in (emulator.cut, emulator.remove, emulator.stats):
        with pytest.raises(ValueError, match="no link 8"):
            call(8)
    emulator.close()
    emulator.close()
    with pytest.raises(OSError, match="closed") as caught:
        emulator.stats(LINK)
    assert caught.value.errno == errno.EBADF


@needs_namespaces
def test_a_forked_child_leaves_it_alone(wire: Wire) -> None:
    wire.add()
    pid = os.fork()
    if pid == 0:
        try:
            wire.emulator.close()
            wire.emulator.stats(LINK)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EBADF
    assert send_all(wire, 10, 10) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"rate": 0}, "rate must be"),
        ({"rate": -1}, "rate must be from 0"),
        ({"rate": 10**30}, "rate must be from 0"),
        ({"rate": 10**6, "trace": LinkTrace(b"1\n")}, "not both"),
        ({"queue": ("bytes", 1000)}, "needs a rate"),
        ({"rate": 10**6, "queue": ("bytes", 0)}, "queue must be"),
        ({"rate": 10**6, "queue": ("miles", 10)}, "queue must be"),
        ({"rate": 10**6, "aqm": "red"}, "aqm must be"),
        ({"aqm": "codel"}, "aqm needs a rate"),
        ({"loss": 1.5}, "probability"),
        ({"loss": -0.1}, "probability"),
        ({"loss": float("nan")}, "probability"),
        ({"loss": (0.1, 0.0, 1.0, 0.0)}, "stay bad"),
        ({"loss": (0.1, 2.0, 1.0, 0.0)}, "probability"),
        ({"delay": 241 * 10**9}, "delay must be"),
        ({"delay": MS, "jitter": 2 * MS}, "jitter must not"),
    ],
)
def test_limits_that_no_link_can_have_are_refused(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LinkLimits(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"rate": "fast"}, {"delay": 0.5}, {"loss": "some"}, {"loss": (0.1, 0.2)}])
def test_limits_of_another_type_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        LinkLimits(**arguments)  # type: ignore[arg-type]


def test_limits_tell_what_follows_from_them() -> None:
    assert UNLIMITED.unlimited
    assert (UNLIMITED.queue_bytes, UNLIMITED.gso_max_segs) == (None, 65535)
    limits = LinkLimits(rate=100_000_000)
    assert (limits.unlimited, limits.queue_bytes, limits.gso_max_segs) == (False, 1_250_000, 8)
    assert LinkLimits(rate=100_000_000, loss=0.1).gso_max_segs == 1
    assert LinkLimits(rate=100_000_000, queue=("packets", 10)).queue_bytes is None


def test_a_trace_is_read_or_its_line_is_named() -> None:
    trace = LinkTrace(b"1\n2\n10\n")
    assert (trace.opportunities, trace.duration_ms, trace.rate) == (3, 10, 3.6e6)
    with pytest.raises(ValueError, match="line 2 of the trace has 1 after 5"):
        LinkTrace(b"5\n1\n")


def test_it_needs_privileges(prefix: list[str]) -> None:
    if ROOT and not prefix:
        pytest.skip("needs a user without privileges")
    code = "from mptcp._core import LinkEmulator; LinkEmulator(seed=1)"
    done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True)
    assert "PermissionError: [Errno 1] emulating links needs CAP_NET_RAW" in done.stderr


@needs("unshare")
def test_an_ordinary_user_has_it_all(prefix: list[str]) -> None:
    """Runs the tests of this file in a user namespace of our own."""
    if ROOT and not prefix:
        pytest.skip("needs a user without privileges: root already runs them")
    command = [*prefix, "unshare", "-Urn", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run([*command, "-k", "not ordinary_user and not privileges"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
