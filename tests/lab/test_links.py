"""What a link does to frames: rate, queue, delay, jitter, loss, traces. With and without privilege."""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import GilbertElliott, Host, Lab, Link, two_paths
from support import PATIENCE, PORT, ROOT, connected, eventually, exchange, has_joined, needs

DEADLINE = 20.0 * PATIENCE
HEADERS = 14 + 20 + 8

needs_ipv6 = pytest.mark.skipif(not os.path.exists("/proc/sys/net/ipv6"), reason="this kernel has no IPv6")


@pytest.fixture
def pair(mptcp_lab: Lab) -> tuple[Host, Host]:
    return mptcp_lab.host("a"), mptcp_lab.host("b")


def datagrams(sender: Host, receiver: Host, link: Link, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return two connected UDP sockets at the ends of a link."""
    near = stack.enter_context(sender.socket(type=socket.SOCK_DGRAM, proto=0))
    far = stack.enter_context(receiver.socket(type=socket.SOCK_DGRAM, proto=0))
    far.bind((link.address(receiver), PORT))
    far.settimeout(DEADLINE)
    near.bind((link.address(sender), 0))
    near.connect(far.getsockname())
    return near, far


def packets(path: Path) -> Iterator[tuple[float, bytes]]:
    """Read a pcap file with nanosecond times."""
    data = path.read_bytes()
    position = 24
    while position < len(data):
        seconds, nanoseconds, captured, _ = struct.unpack_from("=4I", data, position)
        position += 16
        yield seconds + nanoseconds * 1e-9, data[position : position + captured]
        position += captured


def bulk(sender: Host, receiver: Host, address: str, size: int, control: str = "reno") -> float:
    """Send ``size`` bytes by TCP and return the seconds that it took."""
    with receiver.socket(proto=socket.IPPROTO_TCP) as listener, sender.socket(proto=socket.IPPROTO_TCP) as near:
        listener.bind((address, 0))
        listener.listen()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
        near.settimeout(DEADLINE)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far, ThreadPoolExecutor(1) as pool:
            far.settimeout(DEADLINE)
            start = time.perf_counter()
            sending = pool.submit(near.sendall, bytes(size))
            left = size
            while left:
                left -= len(far.recv(min(left, 1 << 18)))
            sending.result()
            return time.perf_counter() - start


# Delay


@pytest.mark.parametrize("milliseconds", [5, 40])
def test_round_trip_is_twice_the_delay(pair: tuple[Host, Host], mptcp_lab: Lab, milliseconds: int) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay=f"{milliseconds}ms")
    address = (link.address(b), PORT)
    with b.create_server(address) as listener, a.create_connection(address, DEADLINE) as near:
        far, _ = listener.accept()
        with far:
            for _ in range(20):
                exchange(near, far)
            least = near.subflows()[0].tcp_info.min_rtt
    assert 2000 * milliseconds <= least <= 2000 * milliseconds + 1000 * PATIENCE


def test_each_direction_has_its_own_delay(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay=("30ms", None))
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        start = time.perf_counter()
        near.send(b"x")
        far.recv(1)
        assert time.perf_counter() - start >= 0.03
        near.settimeout(DEADLINE)
        start = time.perf_counter()
        far.sendto(b"x", near.getsockname())
        near.recv(1)
        assert time.perf_counter() - start < 0.03 * PATIENCE


@pytest.mark.parametrize("reorder", [False, True])
def test_jitter(pair: tuple[Host, Host], mptcp_lab: Lab, reorder: bool, tmp_path: Path) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay="20ms", jitter="15ms", reorder=reorder)
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        for number in range(100):
            near.send(number.to_bytes(2, "big"))
        got = [int.from_bytes(far.recv(2), "big") for _ in range(100)]
    assert sorted(got) == list(range(100))
    assert (got != sorted(got)) is reorder


# Rate and queue


def test_reno_fills_the_queue_of_a_bottleneck(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    """Reno over 20 Mbit/s, 20 ms and a queue of 100 ms: the queue grows, overflows, and the drops are on the wire."""
    a, b = pair
    link = mptcp_lab.link(a, b, rate="20mbit", delay="10ms", queue="100ms", congestion_control="reno")
    address = (link.address(b), PORT)
    rtts: list[int] = []
    with (
        link.capture(tmp_path / "sent", host=a),
        b.create_server(address) as listener,
        a.create_connection(address, DEADLINE) as near,
    ):
        far, _ = listener.accept()
        with far, ThreadPoolExecutor(1) as pool:
            exchange(near, far)
            size = 20_000_000
            sending = pool.submit(near.sendall, bytes(size))
            left, asked = size, 0
            while left:
                left -= len(far.recv(min(left, 1 << 16)))
                if left < size / 2 and left < size / 2 - asked:
                    asked += 100_000
                    rtts.append(near.subflows()[0].tcp_info.rtt)
            sending.result()
            info = near.subflows()[0].tcp_info
    grown = [(rtt - 20_000) / 1000 for rtt in rtts]
    mean = sum(grown) / len(grown)
    assert 45 <= mean <= 110 * PATIENCE, grown
    assert info.total_retrans > 0
    # A capture at the sender sees each of them twice, by its sequence number.
    sequences = [
        struct.unpack_from("!I", frame, 38)[0]
        for _, frame in packets(tmp_path / "sent")
        if frame[23] == socket.IPPROTO_TCP and frame[26:30] == socket.inet_aton(link.address(a)) and len(frame) > 200
    ]
    again = len(sequences) - len(set(sequences))
    assert again == pytest.approx(info.total_retrans, rel=0.05, abs=2)
    dropped = link.stats()[0].dropped
    assert 0 < dropped <= info.total_retrans


@pytest.mark.parametrize("several", [False, True], ids=["one path", "two paths"])
def test_nothing_is_reinjected_in_a_plain_transfer(several: bool) -> None:
    """To the byte, though the queue drops: what a link drops is a retransmission of its subflow."""

    def counted(sock: mptcp.Socket) -> tuple[int, int]:
        infos = [subflow.tcp_info for subflow in sock.subflows()]
        once = sock.info().bytes_sent
        if once is None:
            pytest.skip("needs bytes_sent in struct mptcp_info (Linux 6.5)")
        return sum((info.bytes_sent or 0) - (info.bytes_retrans or 0) for info in infos), once

    with (
        two_paths(rate="20mbit", delay="5ms", queue="50ms", congestion_control="reno") as (client, server, paths),
        connected(client, server, paths) as made,
        ThreadPoolExecutor(1) as pool,
    ):
        if several:
            subflow = made.sock.open_subflow(*made.second)
            assert eventually(lambda: has_joined(made.peer, subflow))
        before = counted(made.sock)
        size = 8_000_000
        made.sock.settimeout(DEADLINE)
        made.peer.settimeout(DEADLINE)
        sending = pool.submit(made.sock.sendall, bytes(size))
        left = size
        while left:
            left -= len(made.peer.recv(min(left, 1 << 18)))
        sending.result()
        assert eventually(lambda: made.sock.info().bytes_acked == made.sock.info().bytes_sent)
        after = counted(made.sock)
        assert sum(path.stats()[0].dropped for path in paths) > 0
    assert after[1] - before[1] == size
    assert after[0] - before[0] == size


@pytest.mark.parametrize("direction", [0, 1])
def test_each_direction_has_its_own_rate(
    pair: tuple[Host, Host], mptcp_lab: Lab, direction: int, tmp_path: Path
) -> None:
    """Frame bytes by a capture at the receiver within 2 %, and payload at least 90 % of that."""
    link = mptcp_lab.link(*pair, rate=("20mbit", "2mbit"))
    assert link.rate == (20_000_000, 2_000_000)
    sender, receiver = pair if direction == 0 else pair[::-1]
    rate = (20e6, 2e6)[direction]
    size = round(rate / 8 * 3)
    with link.capture(tmp_path / "file", host=receiver):
        bulk(sender, receiver, link.address(receiver), size)
    frames = [
        (when, frame)
        for when, frame in packets(tmp_path / "file")
        if frame[26:30] == socket.inet_aton(link.address(sender)) and len(frame) > 200
    ]
    assert max(len(frame) for _, frame in frames) <= 1514
    # Without the start and the end.
    kept = [one for one in frames if frames[0][0] + 0.5 <= one[0] <= frames[-1][0] - 0.2]
    seconds = kept[-1][0] - kept[0][0]
    sent = sum(len(frame) for _, frame in kept[1:])
    assert sent * 8 / seconds == pytest.approx(rate, rel=0.02 * PATIENCE)
    payload = sum(len(frame) - 34 - (frame[46] >> 4) * 4 for _, frame in kept[1:])
    assert payload * 8 / seconds >= (0.92 - 0.02 * PATIENCE) * rate


def test_trace(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    """A link that can send 12 Mbit/s for half a second and nothing for the other half, and again."""
    a, b = pair
    (tmp_path / "trace").write_text("".join(f"{number}\n" for number in range(1, 501)) + "1000\n")
    link = mptcp_lab.link(a, b, trace=(tmp_path / "trace", None), queue=("600ms", None))
    assert link.trace == (str(tmp_path / "trace"), None)
    assert link.rate is None
    with link.capture(tmp_path / "file", host=b):
        bulk(a, b, link.address(b), 2_000_000)
    frames = [
        (when, len(frame) - 14)
        for when, frame in packets(tmp_path / "file")
        if frame[26:30] == socket.inet_aton(link.address(a)) and len(frame) > 200
    ]
    times = [when for when, _ in frames]
    # The second half of each period is empty, to some milliseconds.
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) == pytest.approx(
        0.5, abs=0.02 * PATIENCE
    )
    # Of whole periods: 501 opportunities of 1,500 bytes a second.
    whole = [one for one in frames if times[0] + 0.6 <= one[0]]
    start = next(later for earlier, later in itertools.pairwise(times) if later - earlier > 0.3)
    period = [size for when, size in whole if start <= when < start + 0.75]
    assert sum(period) == pytest.approx(500 * 1500, rel=0.02 * PATIENCE)


def test_queue_in_packets(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    # So slow that no more than one leaves while the queue is filled: a frame takes 0.2 s.
    link = mptcp_lab.link(a, b, rate=("5kbit", "100kbit"), queue=("5p", "100ms"))
    assert link.queue == ("5p", 1250)
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        for number in range(50):
            near.send(bytes([number]) * 100)
        assert eventually(lambda: link.stats()[0].waiting_frames == 0, 10)
        assert eventually(lambda: link.stats()[0].flying_frames == 0)
        far.setblocking(False)
        got = 0
        with suppress(BlockingIOError):
            while far.recv(200):
                got += 1
    # One that is being sent, and five that wait. The kernel may have sent something of its own.
    assert 4 <= got <= 7 * PATIENCE


def test_codel_drops_before_the_queue_is_full(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, rate="10mbit", delay="10ms", queue="1s", aqm="codel")
    assert link.aqm == "codel"
    bulk(a, b, link.address(b), 5_000_000)
    assert link.stats()[0].dropped > 0
    # With drop-tail Reno would stay below a second of queue for so few bytes.
    link.set(aqm=None)
    before = link.stats()[0].dropped
    bulk(a, b, link.address(b), 1_000_000)
    assert link.stats()[0].dropped == before


# Loss


def lost(a: Host, b: Host, link: Link, frames: int) -> list[bool]:
    """Send datagrams over a link and return which of them were lost."""
    came: set[int] = set()
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        far.setblocking(False)

        def drain() -> None:
            while True:
                try:
                    came.add(int.from_bytes(far.recv(64), "big"))
                except BlockingIOError:
                    return

        before = link.stats()[0]
        for number in range(frames):
            near.send(number.to_bytes(4, "big"))
            if number % 50 == 49:
                drain()
                # As many as the receiver's buffer holds are on their way at most.
                assert eventually(lambda: passed(link, before) >= number + 1)  # noqa: B023
                drain()
        assert eventually(lambda: passed(link, before) >= frames)
        assert eventually(lambda: drain() is None and len(came) + link.stats()[0].lost - before.lost >= frames)
    return [number not in came for number in range(frames)]


def passed(link: Link, before: mptcp.lab.LinkStats) -> int:
    now = link.stats()[0]
    return now.frames + now.lost - before.frames - before.lost


def test_loss_is_what_was_asked_for(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    frames, loss = 20_000, 0.05
    link = mptcp_lab.link(*pair, loss=(loss, None))
    assert link.loss == (loss, None)
    share = sum(lost(*pair, link, frames)) / frames
    assert abs(share - loss) <= 3 * math.sqrt(loss * (1 - loss) / frames)


def test_losses_in_bursts(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    model = GilbertElliott(p=0.01, r=0.25)
    link = mptcp_lab.link(*pair, loss=(model, None))
    assert link.loss == (model, None)
    which = lost(*pair, link, 20_000)
    bursts = sum(now and not before for before, now in zip([False, *which], which, strict=False))
    assert sum(which) / len(which) == pytest.approx(0.01 / 0.26, rel=0.25)
    assert sum(which) / bursts == pytest.approx(4, rel=0.25)


def join_groups(host: Host, stack: ExitStack, first: int, count: int) -> None:
    """Join IPv6 multicast groups on eth1: the kernel sends reports by itself, one at once and one a little later."""
    sock = stack.enter_context(host.socket(socket.AF_INET6, socket.SOCK_DGRAM, 0))
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as asking:
        # struct ifreq; SIOCGIFINDEX
        (index,) = struct.unpack_from("=16xi", fcntl.ioctl(asking.fileno(), 0x8933, struct.pack("=16s24x", b"eth1")))
    for number in range(first, first + count):
        group = socket.inet_pton(socket.AF_INET6, f"ff02::1:{number:x}")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("=i", index))


def multicast_reports(host: Host) -> int:
    """How many the kernel of the host has sent (MLD, version 2)."""
    counters = host.run(["cat", "/proc/net/snmp6"], capture_output=True, text=True, check=True).stdout.split()
    return int(counters[counters.index("Icmp6OutMLDv2Reports") + 1])


@needs_ipv6
def test_a_seed_makes_losses_the_same(tmp_path: Path) -> None:
    """To the datagram, whatever the hosts' kernels send by themselves."""

    def run(seed: int, groups: int) -> list[bool]:
        which: list[bool] = []
        with Lab(seed=seed) as lab, ExitStack() as stack:
            assert lab.seed == seed
            a, b = lab.host("a"), lab.host("b")
            link = lab.link(a, b, loss=("20%", None))
            with link.capture(tmp_path / "sent", host=a):
                for number in range(6):
                    before = multicast_reports(a)
                    join_groups(a, stack, number * groups, groups)
                    # They come by themselves, within a second or so.
                    assert not groups or eventually(lambda before=before: multicast_reports(a) > before)
                    which += lost(a, b, link, 50)
            assert link.stats()[0].frames + link.stats()[0].lost == 300
        reports = [frame for _, frame in packets(tmp_path / "sent") if frame[12:14] == b"\x86\xdd"]
        assert reports or not groups
        return which

    first = run(1, 1)
    assert 30 <= sum(first) <= 90
    assert run(1, 0) == run(1, 5) == first
    assert run(2, 1) != first


def test_a_seed_makes_jitter_the_same() -> None:
    def run(seed: int) -> list[int]:
        with Lab(seed=seed) as lab, ExitStack() as stack:
            a, b = lab.host("a"), lab.host("b")
            link = lab.link(a, b, delay="300ms", jitter="300ms", reorder=True)
            near, far = datagrams(a, b, link, stack)
            # All at nearly the same time, so that their order is that of the draws.
            for number in range(20):
                near.send(bytes([number]))
            return [far.recv(10)[0] for _ in range(20)]

    first, second, other = run(1), run(1), run(2)
    near = [abs(first.index(number) - second.index(number)) for number in range(20)]
    assert sum(near) <= 20 * PATIENCE, (first, second)
    assert other != first


@needs_ipv6
def test_what_hosts_send_by_themselves_takes_no_rate(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    """At 1 kbit/s a report of 90 bytes would take 0.7 seconds, and a queue of two packets hold two of them."""
    a, b = pair
    link = mptcp_lab.link(a, b, rate="1kbit", queue="2p")
    with ExitStack() as stack, link.capture(tmp_path / "received", host=b):
        near, far = datagrams(a, b, link, stack)
        join_groups(a, stack, 0, 30)
        near.send(b"x")
        start = time.monotonic()
        assert far.recv(10) == b"x"
        assert time.monotonic() - start < 2 * PATIENCE
        stats = link.stats()[0]
    assert (stats.frames, stats.bytes, stats.dropped) == (1, HEADERS + 1, 0)
    assert sum(frame[12:14] == b"\x86\xdd" for _, frame in packets(tmp_path / "received")) >= 1


def test_loss_of_all(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, loss="100%")
    with pytest.raises(TimeoutError):
        a.create_connection((link.address(b), PORT), 0.5)
    link.set(loss=None)
    bulk(a, b, link.address(b), 1000)


# Captures


def pcapng(path: Path) -> tuple[list[str], list[tuple[int, float, bytes]]]:
    """Read a pcapng file with nanosecond times: the names of its interfaces, and by interface when packets passed."""
    data, position, names, found = path.read_bytes(), 0, [], []
    while position < len(data):
        kind, length = struct.unpack_from("=2I", data, position)
        assert struct.unpack_from("=I", data, position + length - 4) == (length,)
        if kind == 1:
            option, size = struct.unpack_from("=2H", data, position + 16)
            assert option == 2
            names.append(data[position + 20 : position + 20 + size].decode())
        elif kind == 6:
            interface, high, low, captured = struct.unpack_from("=4I", data, position + 8)
            start = position + 28
            found.append((interface, (high << 32 | low) * 1e-9, data[start : start + captured]))
        position += length
    return names, found


def test_both_ends_are_captured(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    """Each datagram that is not lost is there twice, by the delay apart."""
    a, b = pair
    link = mptcp_lab.link(a, b, delay="30ms", loss=("30%", None))
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        capture = stack.enter_context(link.capture(tmp_path / "file", host="both"))
        for number in range(100):
            near.send(number.to_bytes(4, "big"))
        assert eventually(lambda: link.stats()[0].frames + link.stats()[0].lost == 100)
        arrived = {far.recv(4) for _ in range(link.stats()[0].frames)}
        capture.close()
        capture.close()
    names, found = pcapng(tmp_path / "file")
    assert names == ["a:eth1", "b:eth1"]
    assert capture.packets == len(found)
    assert capture.dropped == 0
    assert [when for _, when, _ in found] == sorted(when for _, when, _ in found)
    seen: list[dict[bytes, float]] = [{}, {}]
    for interface, when, frame in found:
        if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP:
            seen[interface][frame[HEADERS : HEADERS + 4]] = when
    assert len(seen[0]) == 100
    assert seen[1].keys() == arrived
    assert all(0.03 <= seen[1][data] - seen[0][data] <= 0.03 + 0.1 * PATIENCE for data in arrived)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="not installed: tshark")
def test_tshark_tells_the_ends_apart(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay="5ms")
    with link.capture(tmp_path / "file", host="both") as capture:
        bulk(a, b, link.address(b), 50_000)
    fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.len"]
    command = ["tshark", "-r", str(tmp_path / "file"), *fields]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == capture.packets
    assert {name for name, _ in lines} == {"a:eth1", "b:eth1"}


def test_a_capture_of_both_ends_that_cannot_be_written(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    link = mptcp_lab.link(*pair)
    with pytest.raises(FileNotFoundError):
        link.capture("/no/such/file", host="both")
    capture = link.capture("/dev/full", host="both")
    bulk(*pair, link.address(pair[1]), 100_000)
    with pytest.raises(OSError, match="No space"):
        capture.close()


def test_captures_are_of_the_links_hosts(pair: tuple[Host, Host], mptcp_lab: Lab, tmp_path: Path) -> None:
    link, other = mptcp_lab.link(*pair), mptcp_lab.host("c")
    with pytest.raises(ValueError, match="must be one of the link's hosts or \"both\", not 'all'"):
        link.capture(tmp_path / "file", host="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='must be one of the link\'s hosts or "both", not int'):
        link.capture(tmp_path / "file", host=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not at an end"):
        link.capture(tmp_path / "file", host=other)
    assert not (tmp_path / "file").exists()


# Changes


def test_what_is_under_way_survives_set(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    """Between all kinds of limits, and none, while frames are held."""
    a, b = pair
    link = mptcp_lab.link(a, b, delay="200ms")
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        numbers = iter(range(1000))
        for change in (
            {"rate": "50mbit"},
            {"delay": None},
            {"rate": None},
            {"loss": "0%"},
            {"delay": "100ms", "jitter": "10ms"},
            {"delay": None, "jitter": None},
        ):
            for _ in range(10):
                near.send(next(numbers).to_bytes(4, "big"))
            link.set(**change)
        # Those of the moment of a change may be doubled, none is missing, and what is held keeps its place.
        got: list[int] = []
        while len(set(got)) < 60:
            got.append(int.from_bytes(far.recv(4), "big"))
        assert sorted(set(got)) == list(range(60))


def test_set_during_a_storm(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, rate="50mbit", delay="2ms")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bulk, a, b, link.address(b), 10_000_000)
        changes = 0
        while not running.done():
            link.set(rate=("40mbit", "60mbit")[changes % 2], delay=("1ms", "3ms", None)[changes % 3])
            changes += 1
        assert running.result() > 0
    assert changes > 10 / PATIENCE


def test_what_is_on_a_link_that_goes_down_is_lost(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay="30s")
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        for _ in range(5):
            near.send(b"gone")
        assert eventually(lambda: link.stats()[0].flying_frames >= 5)
        link.down()
        link.set(delay="1ms")
        link.up()
        near.send(b"here")
        assert far.recv(10) == b"here"
    assert link.stats()[0].cut >= 5


def test_limits_outlive_down_and_up(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay="20ms")
    link.down()
    link.set(delay="30ms")
    link.up()
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        start = time.perf_counter()
        near.send(b"x")
        far.recv(1)
        assert time.perf_counter() - start >= 0.03


def test_a_queue_and_aqm_are_for_the_directions_that_have_a_rate(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    link = mptcp_lab.link(*pair, rate=("1mbit", None), queue="50ms", aqm="codel")
    assert (link.rate, link.queue, link.aqm) == ((1_000_000, None), (6250, None), ("codel", None))
    link.set(rate=(..., "2mbit"))
    assert (link.queue, link.aqm) == ((6250, 25_000), ("codel", None))
    link.set(aqm=(None, "codel"))
    assert link.aqm == (None, "codel")
    link.set(queue="10p")
    assert link.queue == "10p"
    # What waits for a rate goes with it.
    link.set(rate=("1mbit", None))
    assert (link.rate, link.queue, link.aqm) == ((1_000_000, None), ("10p", None), None)
    link.set(rate=None)
    assert (link.rate, link.queue, link.aqm) == (None, None, None)
    bulk(*pair, link.address(pair[1]), 1_000_000)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"rate": ("1mbit", None), "queue": ("50ms", "50ms")}, "in what the link's second host sends: a queue needs a"),
        ({"rate": (None, "1mbit"), "queue": ("50ms", None)}, "in what the link's first host sends: a queue needs a"),
        ({"rate": (None, "1mbit"), "aqm": ("codel", None)}, "in what the link's first host sends: aqm needs a rate"),
        ({"delay": ("1ms", "5ms"), "jitter": "2ms"}, "in what the link's first host sends: jitter must not be larger"),
        ({"queue": "50ms"}, "^a queue needs a rate"),
        ({"aqm": ("codel", "codel")}, "^aqm needs a rate"),
        ({"aqm": ("codel",)}, "aqm must be one value or two"),
    ],
)
def test_limits_name_the_direction_that_they_do_not_fit(
    mptcp_lab: Lab, pair: tuple[Host, Host], arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        mptcp_lab.link(*pair, **arguments)  # type: ignore[arg-type]
    assert mptcp_lab.links == []


def test_mtu_changes(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay="1ms", parallel=2)
    with ExitStack() as stack:
        near, far = datagrams(a, b, link, stack)
        near.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        for mtu in (9000, 1300, 1500):
            link.set(mtu=mtu)
            assert link.mtu == mtu
            near.send(bytes(mtu - 28))
            assert len(far.recv(1 << 16)) == mtu - 28
            with pytest.raises(OSError, match="too long"):
                near.send(bytes(mtu - 27))
    for wrong, error in ((500, ValueError), ("big", TypeError), (None, TypeError), (1 << 16, ValueError)):
        with pytest.raises(error, match="mtu must be"):
            link.set(delay="9ms", mtu=wrong)
    assert (link.mtu, link.delay) == (1500, 0.001)
    bulk(a, b, link.address(b), 1_000_000)


# Bad input


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "empty"),
        (b"5\n3\n", "line 2"),
        (b"-1\n", "line 1"),
        (b"1\n2\nfast\n", "line 3"),
        (bytes(range(256)), "line 1"),
        (b"0\n", "0|zero"),
    ],
)
def test_wrong_trace(mptcp_lab: Lab, pair: tuple[Host, Host], tmp_path: Path, text: bytes, complaint: str) -> None:
    path = tmp_path / "wrong.trace"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=complaint) as refused:
        mptcp_lab.link(*pair, trace=path)
    assert "wrong.trace" in str(refused.value)
    assert mptcp_lab.links == []


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"queue": "10ms"}, ValueError, "queue"),
        ({"aqm": "codel"}, ValueError, "aqm"),
        ({"aqm": "red", "rate": "1mbit"}, ValueError, "aqm"),
        ({"aqm": 1, "rate": "1mbit"}, TypeError, "aqm"),
        ({"jitter": "1ms"}, ValueError, "jitter"),
        ({"delay": "1ms", "jitter": "2ms"}, ValueError, "jitter"),
        ({"loss": 1.1}, ValueError, "loss"),
        ({"loss": ("1%", "101%")}, ValueError, "loss"),
        ({"rate": "500bit"}, ValueError, "rate"),
        ({"rate": "200gbit"}, ValueError, "rate"),
        ({"delay": "241s"}, ValueError, "delay"),
        ({"delay": "-1ms"}, ValueError, "delay must be from 0 to 240 seconds, not '-1ms'"),
        ({"jitter": "-.5ms"}, ValueError, "jitter must be from 0 to 240 seconds"),
        ({"delay": -1}, ValueError, "delay must be from 0 to 240 seconds"),
        ({"rate": "-1mbit"}, ValueError, "rate must be from 1kbit to 100gbit, not '-1mbit'"),
        ({"loss": "-1%"}, ValueError, "loss must be from 0% to 100%"),
        ({"rate": "1mbit", "queue": "-5p"}, ValueError, "queue must be from 1 to .* packets, not '-5p'"),
        ({"rate": "1mbit", "queue": "-5ms"}, ValueError, "queue must be from 0"),
        ({"delay": "1"}, ValueError, "delay must be a number with its unit"),
        ({"rate": ("1mbit",)}, ValueError, "rate"),
        ({"rate": ("1mbit", "2mbit", "3mbit")}, ValueError, "rate"),
        ({"reorder": 1}, TypeError, "reorder"),
        ({"mtu": 500}, ValueError, "mtu"),
        ({"mtu": "big"}, TypeError, "mtu"),
        ({"parallel": 0}, ValueError, "parallel"),
        ({"trace": 3}, TypeError, "trace"),
        ({"trace": "/no/such/trace"}, FileNotFoundError, "trace"),
    ],
)
def test_wrong_limits(
    mptcp_lab: Lab, pair: tuple[Host, Host], arguments: dict[str, object], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        mptcp_lab.link(*pair, **arguments)  # type: ignore[arg-type]
    assert mptcp_lab.links == []


@pytest.mark.parametrize("values", [(1.5, 0.1), (-0.1, 0.1), (0.1, 2)])
def test_wrong_model_of_losses(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be from"):
        GilbertElliott(*values)


def test_a_link_that_failed_leaves_nothing(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, delay="10ms")
    for wrong in ({"rate": 5}, {"queue": "1ms"}, {"loss": 2}, {"congestion_control": "nosuch", "delay": "50ms"}):
        with pytest.raises((ValueError, OSError)) as refused:
            link.set(**wrong)  # type: ignore[arg-type]
        assert refused.value.__notes__ == [f"link {link.name}"]
    assert (link.rate, link.delay, link.loss, link.queue) == (None, 0.01, None, None)


def test_many_links(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    links = [mptcp_lab.link(a, b, rate="10mbit", delay="1ms") for _ in range(32)]
    with ThreadPoolExecutor(8) as pool:
        took = list(pool.map(lambda link: bulk(a, b, link.address(b), 50_000), links))
    assert len(took) == 32
    assert all(link.stats()[0].bytes > 50_000 for link in links)


def kill(host: Host) -> None:
    """End the process that holds a host, and return when it has ended."""
    with ExitStack() as stack:
        handle = os.pidfd_open(host.pid)
        stack.callback(os.close, handle)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], DEADLINE)[0]


def test_a_host_that_dies_while_frames_are_held(mptcp_lab: Lab) -> None:
    a, b, c = (mptcp_lab.host(name) for name in "abc")
    dying, living = mptcp_lab.link(a, b, delay="200ms"), mptcp_lab.link(a, c, delay="5ms")
    with ExitStack() as stack:
        near, _ = datagrams(a, b, dying, stack)
        for _ in range(20):
            near.send(b"x")
        kill(b)
    bulk(a, c, living.address(c), 100_000)
    assert living.stats()[0].bytes > 100_000


def test_other_hosts_outlive_a_host(mptcp_lab: Lab, tmp_path: Path) -> None:
    """They are linked, and their links changed, taken down and up, captured and described as before."""
    a, b, c = (mptcp_lab.host(name) for name in "abc")
    mptcp_lab.link(a, b, rate="5mbit")
    before = mptcp_lab.link(a, c, delay="5ms")
    kill(b)
    link = mptcp_lab.link(a, c, rate="50mbit", delay="5ms")
    d = mptcp_lab.host("d")
    assert mptcp_lab.links[-2:] == [before, link]
    link.set(rate="40mbit", queue="50ms", mtu=1400)
    link.down()
    link.up()
    for each in (before, link, mptcp_lab.link(a, d)):
        with each.capture(tmp_path / "file") as capture:
            bulk(each.hosts[0], each.hosts[1], each.address(each.hosts[1]), 100_000)
        assert capture.packets
    described = mptcp_lab._describe()
    assert described["hosts"]["b"]["net.mptcp.path_manager"] is None
    assert [host["addresses"] for host in described["hosts"].values()] == [host.addresses for host in (a, b, c, d)]


def test_what_needs_a_host_that_is_gone_changes_nothing(mptcp_lab: Lab, tmp_path: Path) -> None:
    a, b, c = (mptcp_lab.host(name) for name in "abc")
    link, down = mptcp_lab.link(a, b, rate="5mbit", delay="10ms"), mptcp_lab.link(b, c)
    down.down()
    kill(b)
    gone = "the process of host 'b' has ended"
    for host in (a, c):
        for ends in ((host, b), (b, host)):
            with pytest.raises(BrokenPipeError, match=gone):
                mptcp_lab.link(*ends)
    for change in (
        link.down,
        down.up,
        lambda: link.set(rate="1mbit"),
        lambda: link.set(congestion_control="reno"),
        lambda: link.set(mtu=1400),
        lambda: link.capture(tmp_path / "file", host=b),
        lambda: link.capture(tmp_path / "file", host="both"),
    ):
        with pytest.raises(BrokenPipeError, match=gone):
            change()
    assert mptcp_lab.links == [link, down]
    assert (link.is_up, down.is_up) == (True, False)
    assert (link.rate, link.delay, link.mtu, link.congestion_control) == (5_000_000, 0.01, 1500, None)
    # The living end, too, is as it was: nothing was done to it before the other end was found to be gone.
    flags = a.run(["ip", "link", "show", link.interface(a)], capture_output=True, text=True, check=True).stdout
    assert "UP" in flags
    assert "mtu 1500" in flags


# Honesty


def test_lateness_is_told(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    link = mptcp_lab.link(*pair, delay="1ms")
    bulk(*pair, link.address(pair[1]), 100_000)
    for direction in link.stats():
        assert direction.frames > 0
        assert 0 < direction.late_p50_ns <= direction.late_p99_ns
        assert direction.late_p50_ns < 1e6 * PATIENCE


@contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """The process of the emulator does not run meanwhile."""
    middle = os.pidfd_open(lab._middle_pid)
    signal.pidfd_send_signal(middle, signal.SIGSTOP)
    try:
        tasks = list(Path(f"/proc/{lab._middle_pid}/task").glob("*/stat"))
        assert eventually(lambda: all(task.read_text().rpartition(") ")[2].startswith("T") for task in tasks))
        yield
    finally:
        signal.pidfd_send_signal(middle, signal.SIGCONT)
        os.close(middle)


def late_lab(stack: ExitStack, delay: str) -> tuple[Lab, Link, Callable[[int, float], None]]:
    """Return a lab, a link and what sends so many datagrams and lets them leave so many seconds late."""
    lab = Lab()
    stack.callback(lab.close)
    a, b = lab.host("a"), lab.host("b")
    link = lab.link(a, b, name="slow", delay=delay)
    near, far = datagrams(a, b, link, stack)

    def send(count: int, late: float) -> None:
        with ExitStack() as pause:
            if late:
                pause.enter_context(stopped(lab))
            for _ in range(count):
                near.send(b"x")
            if late:
                far.settimeout(link.delay + late)
                with pytest.raises(TimeoutError):
                    far.recv(1)
        far.settimeout(DEADLINE)
        for _ in range(count):
            far.recv(1)

    return lab, link, send


TOLD = r"frames left up to \d+ ms late \(links slow\): results are suspect"


def test_frames_that_left_very_late_are_told_at_the_end() -> None:
    """One is enough, if it left later than its delay, and than 50 ms."""
    with ExitStack() as stack:
        lab, link, send = late_lab(stack, "10ms")
        for _ in range(10):
            send(50, 0)
        send(1, 0.1)
        assert link.stats()[0].late_max_ns > 80e6
        with pytest.warns(RuntimeWarning, match=TOLD):
            lab.close()


@pytest.mark.filterwarnings("error:frames left")
def test_a_few_frames_that_left_a_little_late_are_not_told() -> None:
    """By less than the delay; they are counted."""
    with ExitStack() as stack:
        lab, link, send = late_lab(stack, "500ms")
        send(1, 0.1)
        stats = link.stats()[0]
        assert (stats.late, stats.frames) == (1, 1)
        assert stats.late_max_ns > 80e6
        lab.close()


def test_many_frames_that_left_a_little_late_are_told() -> None:
    """More than one in a hundred, later than a tenth of the delay, and than 1 ms."""
    with ExitStack() as stack:
        lab, link, send = late_lab(stack, "500ms")
        send(20, 0.1)
        assert link.stats()[0].late == 20
        with pytest.warns(RuntimeWarning, match=TOLD):
            lab.close()


def test_frames_for_which_there_was_no_room_are_counted_by_link() -> None:
    lab = Lab()
    a, b = lab.host("a"), lab.host("b")
    busy, quiet = lab.link(a, b, delay="5ms", name="busy"), lab.link(a, b, delay="5ms", name="quiet")
    with ExitStack() as stack:
        stack.callback(lab.close)
        # All links share the ring: what the hosts' kernels send by IPv6 unasked would rightly be counted on `quiet`.
        for host in (a, b):
            host.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        near, _ = datagrams(a, b, busy, stack)
        with stopped(lab):
            for _ in range(6000):
                near.send(b"x")
        assert eventually(lambda: busy.stats()[0].frames >= 1)
        assert eventually(lambda: busy.stats()[0].flying_frames == 0)
        stats = busy.stats()[0]
        # The ring holds 4,096 of this length.
        assert 1900 <= stats.overruns <= 6000 - 4000
        # Of the others, those for which the receiver had no room either have failed.
        assert stats.frames + stats.failed + stats.overruns == 6000
        assert busy.stats()[1].overruns == 0
        assert [each.overruns for each in quiet.stats()] == [0, 0]
        # They are remembered by a link that the kernel forwards now, and by one that it forwarded meanwhile.
        for limits in ({"delay": None}, {"delay": "5ms"}):
            busy.set(**limits)
            near.send(b"x")
            assert busy.stats()[0].overruns == stats.overruns
        with pytest.warns(RuntimeWarning, match=rf"had no room for {stats.overruns} frames \(links busy\)"):
            lab.close()


# Seen from outside


needs_root = pytest.mark.skipif(
    not ROOT, reason="needs root: tcpdump changes its user, which is denied in a user namespace"
)


def tcpdump(host: Host, stack: ExitStack, *arguments: str) -> subprocess.Popen[str]:
    """Start tcpdump on the host's first interface, and return when it listens."""
    command = ["tcpdump", "-n", "-s", "96", "-i", "eth1", *arguments]
    dump: subprocess.Popen[str] = host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stack.enter_context(dump)
    assert dump.stderr is not None
    while "listening on" not in dump.stderr.readline():
        assert dump.poll() is None
    return dump


@needs("tcpdump")
@needs_root
def test_tcpdump_sees_the_same_delay(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    """Of each datagram that arrives, by what tcpdump prints at the link's two ends."""
    a, b = pair
    link = mptcp_lab.link(a, b, delay="25ms", loss=("10%", None))
    seen: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        near, _ = datagrams(a, b, link, stack)
        options = ("-tt", "-l", "--immediate-mode", "udp", "and", "src", link.address(a))
        dumps = {host.name: tcpdump(host, stack, *options) for host in pair}
        for number in range(200):
            near.send(bytes(number + 1))
        # One of these arrives.
        for _ in range(20):
            near.send(bytes(1000))
        for name, dump in dumps.items():
            assert dump.stdout is not None
            lines = itertools.takewhile(lambda line: not line.endswith("length 1000\n"), dump.stdout)
            seen[name] = {line.split()[-1]: float(line.split()[0]) for line in lines}
            dump.terminate()
    assert len(seen["a"]) == 200
    assert 150 < len(seen["b"]) < 200
    delays = [seen["b"][length] - seen["a"][length] for length in seen["b"]]
    assert 0.025 <= min(delays) <= sorted(delays)[len(delays) // 2] <= 0.026 * PATIENCE


@needs("tcpdump")
@needs_root
def test_tcpdump_counts_the_losses(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    """20,000 datagrams at the sender, and at the receiver as many as the loss leaves, within 3 standard errors."""
    frames, loss = 20_000, 0.05
    a, b = pair
    link = mptcp_lab.link(a, b, loss=(loss, None))
    counted = {}
    with ExitStack() as stack:
        options = ("-B", "32768", "-w", os.devnull, "udp", "and", "src", link.address(a))
        dumps = {host.name: tcpdump(host, stack, *options) for host in pair}
        missed = sum(lost(a, b, link, frames))
        for name, dump in dumps.items():
            dump.send_signal(signal.SIGINT)
            _, report = dump.communicate(timeout=DEADLINE)
            assert re.search(r"^0 packets dropped by kernel", report, re.MULTILINE), report
            counted[name] = int(re.findall(r"^(\d+) packets? received by filter", report, re.MULTILINE)[0])
    assert counted["a"] == frames
    assert counted["b"] == frames - missed
    assert abs(counted["b"] - frames * (1 - loss)) <= 3 * math.sqrt(frames * loss * (1 - loss))


def test_without_privilege() -> None:
    """What the emulator does is the same for an ordinary user."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{__file__}",
        "-k",
        "round_trip or own_rate",
    ]
    if os.geteuid() != 0:
        pytest.skip("needs root: an ordinary user already runs all of these tests")
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    prefix = ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", "--ambient-caps=-all"]
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=100 * PATIENCE)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout, done.stdout


def test_two_paths_have_names() -> None:
    with pytest.raises(TypeError, match="pass names, one for each, instead of name"), two_paths(name="x"):
        pass
