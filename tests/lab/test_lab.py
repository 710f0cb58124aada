"""The lab: real namespaces, links and programs. Runs as root and as an ordinary user."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mptcp
import pytest
from mptcp import Endpoint, Limits, _proc
from mptcp.lab import Host, Lab, Link, two_paths
from mptcp.lab._topology import Edge, remote_addresses
from mptcp.lab._units import parse_loss, parse_queue, parse_rate, parse_time
from support import PATIENCE, SO_TIMESTAMPNS, STRICT, descriptors_left, eventually, held, holds_no_more_than

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

DEADLINE = 20.0
FAMILIES = [socket.AF_INET, socket.AF_INET6]
ROOT = os.geteuid() == 0


@pytest.fixture
def pair(mptcp_lab: Lab) -> tuple[Host, Host]:
    return mptcp_lab.host("a"), mptcp_lab.host("b")


def connect(client: Host, server: Host, address: str, source: str | None = None) -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection to ``address`` of ``server``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.socket(family, proto=socket.IPPROTO_TCP) as listener:
        listener.bind((address, 0))
        listener.listen()
        listener.settimeout(DEADLINE)
        near = client.socket(family, proto=socket.IPPROTO_TCP)
        try:
            near.settimeout(DEADLINE)
            if source is not None:
                near.bind((source, 0))
            near.connect(listener.getsockname()[:2])
            far, _ = listener.accept()
        except BaseException:
            near.close()
            raise
        far.settimeout(DEADLINE)
    return near, far


def transfer(near: socket.socket, far: socket.socket, size: int) -> float:
    """Send ``size`` bytes and return the bits a second at which they came."""

    def send() -> None:
        chunk = memoryview(bytes(1 << 16))
        left = size
        while left:
            left -= near.send(chunk[: min(left, len(chunk))])

    buffer = bytearray(1 << 20)
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        left = size
        while left:
            left -= far.recv_into(buffer, min(left, len(buffer)))
        sending.result()
    return size * 8 / (time.perf_counter() - start)


def bulk(client: Host, server: Host, address: str, size: int, source: str | None = None) -> float:
    near, far = connect(client, server, address, source)
    with near, far:
        return transfer(near, far, size)


def assert_rate(rate: float, measure: Callable[[], float]) -> None:
    """Assert that a transfer comes within 10 % of ``rate``. Something else may have the processor for one or two."""
    measured: list[float] = []
    while not measured or measured[-1] != pytest.approx(rate, rel=0.1):
        assert len(measured) < 3, f"{measured} bit/s instead of {rate}"
        measured.append(measure())


def sent_bytes(host: Host, link: Link) -> int:
    """What the interface of the link has sent, by /proc/net/dev."""
    text = host.run(["cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{link.interface(host)}:"))
    return int(line.split(":")[1].split()[8])


def ip(host: Host, *arguments: str) -> str:
    """What iproute2 says in the host."""
    return host.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def network_namespace(pid: int) -> tuple[int, int]:
    status = os.stat(f"/proc/{pid}/ns/net")
    return status.st_dev, status.st_ino


def processes_in(namespaces: set[tuple[int, int]]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if network_namespace(int(name)) in namespaces:
                    found.append(int(name))
            except OSError:
                continue
    return found


def wait_for_end(handles: list[int]) -> None:
    """Wait until the processes of these pidfds have ended."""
    deadline = time.monotonic() + DEADLINE
    for handle in handles:
        assert select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0], "it still runs"
        os.close(handle)


# Units


@pytest.mark.parametrize(
    ("parse", "value", "expected"),
    [
        (parse_rate, "20mbit", 20_000_000),
        (parse_rate, "2.5 Mbit", 2_500_000),
        (parse_rate, "1gbit", 1_000_000_000),
        (parse_rate, "9600bit", 9600),
        (parse_rate, 5e6, 5_000_000),
        (lambda value: parse_time(value, "delay"), "10ms", 0.01),
        (lambda value: parse_time(value, "delay"), "250us", 0.00025),
        (lambda value: parse_time(value, "delay"), 1.5, 1.5),
        (lambda value: parse_time(value, "delay"), 0, 0.0),
        (parse_loss, "0.1%", 0.001),
        (parse_loss, 0.5, 0.5),
        (parse_queue, "100ms", ("ns", 100_000_000)),
        (parse_queue, "50p", ("packets", 50)),
        (parse_queue, 30000, ("bytes", 30000)),
    ],
)
def test_units(parse: Callable[[object], object], value: object, expected: object) -> None:
    assert parse(value) == (expected if isinstance(expected, tuple) else pytest.approx(expected))


@pytest.mark.parametrize(
    "value", ["20", "mbit", "20mbps", "20 m bit", "-20mbit", "", 0, -1, 1e15, float("nan"), "1bit"]
)
def test_wrong_rate(value: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["10", "10min", "-1ms", -1, 1e9, float("inf")])
def test_wrong_time(value: object) -> None:
    with pytest.raises(ValueError, match="delay"):
        parse_time(value, "delay")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0.1", "101%", 1.5, -0.1, "5ms"])
def test_wrong_loss(value: object) -> None:
    with pytest.raises(ValueError, match="loss"):
        parse_loss(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["100", 0, -5, "0ms", "100kb", "0p", "1.5p", 1 << 40])
def test_wrong_queue(value: object) -> None:
    with pytest.raises(ValueError, match="queue"):
        parse_queue(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("parse", [parse_rate, parse_loss, parse_queue])
@pytest.mark.parametrize("value", [True, b"20mbit", [1], object()])
def test_wrong_type_of_unit(parse: Callable[[object], float], value: object) -> None:
    with pytest.raises(TypeError):
        parse(value)


def test_queue_is_no_float() -> None:
    with pytest.raises(TypeError, match="bytes"):
        parse_queue(0.1)  # type: ignore[arg-type]


def test_counters_are_parsed() -> None:
    text = "TcpExt: A B\nTcpExt: 1 2\nMPTcpExt: MPCapableSYNRX MPJoinSynRx\nMPTcpExt: 3 4\n"
    assert _proc.parse_counters(text) == {"MPCapableSYNRX": 3, "MPJoinSynRx": 4}
    assert _proc.parse_counters("TcpExt: A\nTcpExt: 1\n") == {}


# Routes over routers


def edge(number: int, a: str, b: str) -> Edge:
    return Edge(f"eth{number}", {a: [f"10.0.{number}.1"], b: [f"10.0.{number}.2"]})


def test_way_over_a_router() -> None:
    edges = [edge(1, "a", "r"), edge(2, "r", "b")]
    assert remote_addresses("a", edges, {"r"}) == {"eth1": ["10.0.2.1", "10.0.2.2"]}
    assert remote_addresses("b", edges, {"r"}) == {"eth2": ["10.0.1.1", "10.0.1.2"]}
    assert remote_addresses("r", edges, {"r"}) == {}


def test_no_way_over_a_host_that_does_not_forward() -> None:
    edges = [edge(1, "a", "r"), edge(2, "r", "b")]
    assert remote_addresses("a", edges, set()) == {"eth1": ["10.0.2.1"]}


def test_way_arrives_by_the_link_of_the_address() -> None:
    edges = [edge(1, "a", "r"), edge(2, "r", "b"), edge(3, "a", "s"), edge(4, "s", "t"), edge(5, "t", "b")]
    found = remote_addresses("a", edges, {"r", "s", "t"})
    assert "10.0.2.2" in found["eth1"]
    # Two routers away, though one is enough to get to b.
    assert "10.0.5.2" in found["eth3"]


# Hosts, sockets and programs


def test_socket_lives_in_the_host(mptcp_two_paths: TwoPaths) -> None:
    client, server, (first, _) = mptcp_two_paths
    with (
        closing(server.create_server((first.address(server), 5000))) as listener,
        closing(client.create_connection((first.address(server), 5000), timeout=DEADLINE)) as near,
    ):
        far, peer = listener.accept()
        with far:
            assert isinstance(near, mptcp.Socket)
            assert isinstance(far, mptcp.Socket)
            assert peer[0] == first.address(client) == "10.0.1.1"
            assert near.gettimeout() == DEADLINE
            near.sendall(b"hello")
            assert far.recv(5) == b"hello"
            far.sendall(b"world")
            assert near.recv(5) == b"world"
            assert near.is_mptcp
            assert client.counters()["MPCapableSYNACKRX"] == 1
            assert server.counters()["MPCapableSYNRX"] == 1


def test_connection_from_a_source_address(mptcp_two_paths: TwoPaths) -> None:
    client, server, (_, second) = mptcp_two_paths
    address = second.address(server)
    with (
        server.create_server((address, 5000)),
        client.create_connection((address, 5000), DEADLINE, (second.address(client), 12345)) as near,
    ):
        assert near.getsockname() == ("10.0.2.1", 12345)
        assert near.getpeername() == ("10.0.2.2", 5000)


def test_connection_over_ipv6(mptcp_two_paths: TwoPaths) -> None:
    client, server, (first, _) = mptcp_two_paths
    address = first.address(server, socket.AF_INET6)
    with (
        server.create_server((address, 5000), family=socket.AF_INET6),
        client.create_connection((address, 5000), DEADLINE) as near,
    ):
        assert near.getsockname()[0] == first.address(client, socket.AF_INET6) == "fd00:0:0:1::1"


def test_nobody_listens(mptcp_two_paths: TwoPaths) -> None:
    client, server, (first, _) = mptcp_two_paths
    with pytest.raises(ConnectionRefusedError):
        client.create_connection((first.address(server), 5000), DEADLINE)


def test_server_leaves_other_hosts_alone(mptcp_two_paths: TwoPaths) -> None:
    client, server, _ = mptcp_two_paths
    with server.create_server(("0.0.0.0", 5000)), client.create_server(("0.0.0.0", 5000)):
        assert "5000" in server.run(["ss", "-tlnM"], capture_output=True, text=True).stdout


def test_netlink_socket_speaks_to_the_host(pair: tuple[Host, Host], mptcp_lab: Lab) -> None:
    a, b = pair
    mptcp_lab.link(a, b)
    with a.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(DEADLINE)
        # RTM_GETLINK (18) with NLM_F_REQUEST | NLM_F_DUMP
        netlink.send(struct.pack("=IHHII", 32, 18, 0x301, 1, 0) + bytes(16))
        assert b"eth1\0" in netlink.recv(1 << 16)


def test_program_runs_in_the_host(pair: tuple[Host, Host]) -> None:
    a, b = pair
    for host in pair:
        result = host.run(["stat", "-Lc", "%i", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
        assert int(result.stdout) == network_namespace(host.pid)[1]
        assert result.args == ["stat", "-Lc", "%i", "/proc/self/ns/net"]
    assert network_namespace(a.pid) != network_namespace(b.pid)
    assert network_namespace(a.pid) != network_namespace(os.getpid())


def test_program_is_run_as_subprocess_would(pair: tuple[Host, Host], tmp_path: Path) -> None:
    host, _ = pair
    shown = host.run('echo "$A$0" && pwd', shell=True, cwd=tmp_path, env={"A": "b"}, capture_output=True, text=True)
    assert shown.stdout == f"b/bin/sh\n{tmp_path}\n"
    assert host.run("exit 3", shell=True).returncode == 3
    assert host.run(["cat"], input=b"x", stdout=subprocess.PIPE).stdout == b"x"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        host.run(["false"], check=True)
    assert failed.value.cmd == ["false"]
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        host.run(["sleep", "1000"], timeout=0.01)
    assert expired.value.cmd == ["sleep", "1000"]
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    assert host.run(["./script"], cwd=tmp_path, stdout=subprocess.PIPE).stdout == b"here\n"
    assert host.run(["x", "-c", "echo $0"], executable="/bin/sh", stdout=subprocess.PIPE).stdout == b"/bin/sh\n"


def test_program_that_does_not_exist(pair: tuple[Host, Host], tmp_path: Path) -> None:
    host, _ = pair
    not_executable = tmp_path / "data"
    not_executable.touch()
    for missing in ("no-such-program", str(tmp_path / "no-such-program"), "./no-such-program"):
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            host.run([missing], cwd=tmp_path)
    with pytest.raises(FileNotFoundError):
        host.popen(["sh"], env={"PATH": str(tmp_path)})
    for forbidden in (str(not_executable), str(tmp_path)):
        with pytest.raises(PermissionError):
            host.run([forbidden])
    with pytest.raises(ValueError, match="empty"):
        host.run([])


def test_program_has_the_callers_descriptors_only(pair: tuple[Host, Host]) -> None:
    host, _ = pair
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader:
        command = ["sh", "-c", f"echo passed >/proc/self/fd/{write_end}; ls /proc/$$/fd"]
        listed = host.run(command, pass_fds=[write_end], capture_output=True, text=True, check=True).stdout
        os.close(write_end)
        assert reader.read() == b"passed\n"
    assert set(map(int, listed.split())) == {0, 1, 2, write_end}


def test_signals_reach_the_program(pair: tuple[Host, Host]) -> None:
    host, _ = pair
    with host.popen(
        ["sh", "-c", "trap 'exit 7' TERM; echo $$; while :; do read line; done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert isinstance(program, subprocess.Popen)
        assert program.stdout is not None
        assert int(program.stdout.readline()) == program.pid
        program.terminate()
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait(DEADLINE) == 7


def test_sysctl(pair: tuple[Host, Host]) -> None:
    a, b = pair
    ours = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    assert a.sysctl("net.ipv4.ip_default_ttl", 33) == b.sysctl("net.ipv4.ip_default_ttl")
    assert a.sysctl("net/ipv4/ip_default_ttl") == "33"
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == ours
    with pytest.raises(FileNotFoundError):
        a.sysctl("net.no.such")
    with pytest.raises(OSError, match="Invalid"):
        a.sysctl("net.ipv4.ip_default_ttl", "many")
    for elsewhere in ("kernel.hostname", "net/../kernel/hostname", "/etc/passwd", "net"):
        with pytest.raises(ValueError, match="net"):
            a.sysctl(elsewhere)


def test_path_manager(pair: tuple[Host, Host]) -> None:
    a, b = pair
    assert a.set_path_manager("kernel") == "userspace"
    assert a.set_path_manager("userspace") == "kernel"
    assert b.set_path_manager("userspace") == "userspace"
    with pytest.raises(ValueError, match="path_manager must be"):
        a.set_path_manager("none")
    with pytest.raises(TypeError):
        a.set_path_manager(1)  # type: ignore[arg-type]


def test_kernel_path_manager_with_endpoints(mptcp_two_paths: TwoPaths) -> None:
    client, server, (first, second) = mptcp_two_paths
    for host in (client, server):
        host.set_path_manager("kernel")
    before = server.set_limits(subflows=3, add_addr_accepted=1)
    assert server.get_limits() == Limits(3, 1)
    assert server.set_limits(subflows=2) == Limits(3, 1)
    assert server.set_limits() == Limits(2, 1)
    assert before.subflows >= 0
    client.set_limits(subflows=2)
    added = client.add_endpoint(second.address(client), id=9, subflow=True)
    client.add_endpoint(first.address(client, socket.AF_INET6), signal=True, backup=True)
    endpoint, announced = sorted(client.endpoints(), key=lambda endpoint: endpoint.address)
    assert endpoint == added == Endpoint("10.0.2.1", 9, subflow=True)
    assert announced.flags == ("signal", "backup")
    with pytest.raises(FileExistsError):
        client.add_endpoint(second.address(client), subflow=True)
    address = (first.address(server), 5000)
    with server.create_server(address) as listener, client.create_connection(address, DEADLINE) as near:
        far, _ = listener.accept()
        with far:
            near.sendall(b"x")
            far.sendall(far.recv(1))
            near.recv(1)
            deadline = time.monotonic() + DEADLINE
            while server.counters()["MPJoinAckRx"] < 1:
                assert time.monotonic() < deadline, "no subflow came"
    client.remove_endpoint(endpoint)
    assert client.endpoints() == [announced]
    with pytest.raises(OSError, match="no endpoint"):
        client.remove_endpoint(endpoint)
    with pytest.raises(ValueError, match="address"):
        client.add_endpoint("localhost")


def test_wrong_names(mptcp_lab: Lab) -> None:
    mptcp_lab.host("a")
    for wrong in ("", "a b", "-a", "a/b", "x" * 64, "a\n"):
        with pytest.raises(ValueError, match="name"):
            mptcp_lab.host(wrong)
    with pytest.raises(ValueError, match="already"):
        mptcp_lab.host("a")
    with pytest.raises(TypeError):
        mptcp_lab.host(1)  # type: ignore[arg-type]
    assert list(mptcp_lab.hosts) == ["a"]


# Links


def test_addresses_are_given_out(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    first, second = mptcp_lab.link(a, b), mptcp_lab.link(b, a)
    assert a.addresses == ["10.0.1.1", "10.0.2.2", "fd00:0:0:1::1", "fd00:0:0:2::2"]
    assert b.addresses == ["10.0.1.2", "10.0.2.1", "fd00:0:0:1::2", "fd00:0:0:2::1"]
    assert second.address(b) == "10.0.2.1"
    assert first.interface(a) != second.interface(a)
    assert mptcp_lab.links == [first, second]
    with pytest.raises(ValueError, match="family"):
        first.address(a, socket.AF_UNIX)


def test_wrong_links(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    with Lab() as other:
        stranger = other.host("a")
        with pytest.raises(ValueError, match="another lab"):
            mptcp_lab.link(a, stranger)
        link = mptcp_lab.link(a, b)
        with pytest.raises(ValueError, match="end"):
            link.address(stranger)
    with pytest.raises(ValueError, match="different"):
        mptcp_lab.link(a, a)
    with pytest.raises(TypeError):
        mptcp_lab.link(a, "b")  # type: ignore[arg-type]
    for wrong in ({"rate": "fast"}, {"queue": "10ms"}, {"jitter": "1ms"}, {"congestion_control": "x y"}):
        with pytest.raises(ValueError, match=next(iter(wrong)).partition("_")[0]):
            mptcp_lab.link(a, b, **wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nosuch"):
        mptcp_lab.link(a, b, congestion_control="nosuch")
    # What failed left nothing.
    assert mptcp_lab.links == [link]
    assert ip(a, "-br", "link").count("eth") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_address_reaches_every_other_by_its_own_link(mptcp_lab: Lab, family: int) -> None:
    a, b = mptcp_lab.host("a"), mptcp_lab.host("b")
    links = [mptcp_lab.link(a, b), mptcp_lab.link(a, b), mptcp_lab.link(a, b)]
    size = 300_000
    for own in links:
        for target in links:
            before = {link: sent_bytes(a, link) for link in links}
            bulk(a, b, target.address(b, family), size, own.address(a, family))
            for link in links:
                sent = sent_bytes(a, link) - before[link]
                assert sent > size if link is own else sent < size / 100


@pytest.mark.parametrize("rate", ["2mbit", "20mbit", "100mbit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_named_rate_is_reached(mptcp_lab: Lab, pair: tuple[Host, Host], rate: str, family: int) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, rate=rate)
    assert link.rate is not None
    for client, server in ((a, b), (b, a)):
        assert_rate(link.rate, lambda c=client, s=server: bulk(c, s, link.address(s, family), link.rate // 16))


def test_rate_is_changed(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, rate="50mbit")
    assert link.queue == 625_000
    frame, headers, count = 1250, 42, 100
    with (
        a.socket(type=socket.SOCK_DGRAM, proto=0) as near,
        b.socket(type=socket.SOCK_DGRAM, proto=0) as far,
    ):
        far.bind((link.address(b), 5000))
        far.settimeout(DEADLINE)
        far.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        near.connect(far.getsockname())

        def halfway() -> float:
            """Send frames at once; return the seconds from one to the one half of them later, at the median."""
            for _ in range(count):
                near.send(bytes(frame - headers))
            stamps = []
            for _ in range(count):
                ((_, _, stamp),) = far.recvmsg(frame, 64)[1]
                seconds, nanoseconds = struct.unpack("=qq", stamp)
                stamps.append(seconds + nanoseconds * 1e-9)
            half = count // 2
            return statistics.median(stamps[half + n] - stamps[n] for n in range(half))

        # So slow that it does not matter if the machine stands still for a moment: 250 and 125 ms.
        for rate in (2_000_000, 4_000_000):
            link.set(rate=rate, queue=f"{count}p")
            taken = count / 2 * frame * 8 / rate
            assert 0.8 * taken < halfway() < 1.2 * taken * PATIENCE
        link.set(rate=None)
        assert (link.rate, link.queue) == (None, None)
        assert halfway() < 0.05 * PATIENCE


def test_queue_holds_what_it_says(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    frame, headers = 1000, 42
    # So slow that nothing leaves the queue while it is filled, on a busy machine either: a frame takes 0.4 s.
    link = mptcp_lab.link(a, b, rate="20kbit", queue=20 * frame)
    with (
        a.socket(type=socket.SOCK_DGRAM, proto=0) as near,
        b.socket(type=socket.SOCK_DGRAM, proto=0) as far,
    ):
        far.bind((link.address(b), 5000))
        far.settimeout(DEADLINE)
        near.connect(far.getsockname())
        # The first one waits for no neighbour discovery then.
        near.send(b"first")
        far.recv(frame)
        for _ in range(100):
            near.send(bytes(frame - headers))
        near.send(b"")
        waiting = link.stats()[0]
        link.set(rate="100mbit")
        # What is being sent is finished at the old rate.
        assert eventually(lambda: link.stats()[0].waiting_frames == 0)
        near.send(b"last")
        received = 0
        while far.recv(frame) != b"last":
            received += 1
    # As full as it can be: a frame of IPv6's own, which the kernel sends when it likes, may take the room of one.
    assert 19 * frame < waiting.waiting_bytes <= 20 * frame
    # What is being sent does not wait.
    assert 19 <= received <= 22
    assert link.stats()[0].dropped >= 101 - received


@pytest.mark.parametrize("family", FAMILIES)
def test_down_and_up_put_everything_back(mptcp_two_paths: TwoPaths, family: int) -> None:
    client, server, (first, second) = mptcp_two_paths

    def state(host: Host) -> list[str]:
        shown = [ip(host, f"-{version}", what) for version in (4, 6) for what in ("addr", "rule")]
        shown += [ip(host, f"-{version}", "route", "show", "table", "all") for version in (4, 6)]
        return sorted(line for text in shown for line in text.splitlines())

    second.set(congestion_control="reno")
    before = state(client), state(server)
    source, target = second.address(client, family), second.address(server, family)
    bulk(client, server, target, 1000, source)
    second.down()
    second.down()
    assert not second.is_up
    assert "DOWN" in ip(client, "-br", "link", "show", second.interface(client))
    # An address of a link that is down does not leave by another link. (The kernel takes the IPv6 one away.)
    with pytest.raises(OSError, match=r"unreachable|No route|assign"):
        connect(client, server, first.address(server, family), source)
    bulk(client, server, first.address(server, family), 1000)
    second.up()
    assert second.is_up
    # At once, without waiting for anything.
    bulk(client, server, target, 1000, source)
    assert (state(client), state(server)) == before
    second.up()
    assert (state(client), state(server)) == before


@pytest.mark.parametrize("scope", ["all", "eth1"])
def test_links_where_a_sysctl_has_disabled_ipv6(mptcp_lab: Lab, scope: str) -> None:
    """In one host. What needs IPv6 comes back with it, once the link was down and up."""
    a, b, router = (mptcp_lab.host(name, forwarding=name == "router") for name in ("a", "b", "router"))
    link, other = mptcp_lab.link(a, b), mptcp_lab.link(a, b)
    mptcp_lab.link(b, router)
    a.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)

    def go_down_and_up() -> None:
        for each in mptcp_lab.links:
            each.down()
            each.up()

    go_down_and_up()
    link.set(congestion_control="reno")
    mptcp_lab.link(a, router)
    mptcp_lab.link(a, b, parallel=2)
    go_down_and_up()
    for each in (link, other):
        near, far = connect(a, b, each.address(b))
        near.close()
        far.close()
    a.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 0)
    go_down_and_up()
    near, far = connect(a, b, link.address(b, socket.AF_INET6))
    near.close()
    far.close()


def test_rate_survives_down_and_up(mptcp_lab: Lab, pair: tuple[Host, Host]) -> None:
    a, b = pair
    link = mptcp_lab.link(a, b, rate="20mbit")
    link.down()
    link.set(rate="10mbit")
    link.up()
    assert_rate(10_000_000, lambda: bulk(a, b, link.address(b), 625_000))


def test_congestion_control_by_route(mptcp_two_paths: TwoPaths) -> None:
    client, server, (first, second) = mptcp_two_paths

    def used(link: Link, family: int, source: str | None = None) -> str:
        near, far = connect(client, server, link.address(server, family), source)
        with near, far:
            names = [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") for end in (near, far)]
        assert names[0] == names[1]
        return names[0].decode()

    default = client.sysctl("net.ipv4.tcp_congestion_control")
    other = next(name for name in ("reno", "cubic") if name != default)
    first.set(congestion_control=other)
    assert first.congestion_control == other
    for family in FAMILIES:
        assert used(first, family) == other
        assert used(first, family, first.address(client, family)) == other
        assert used(second, family) == default
    first.down()
    first.up()
    for family in FAMILIES:
        assert used(first, family) == other
    with pytest.raises(FileNotFoundError, match="nosuch"):
        first.set(congestion_control="nosuch")
    assert first.congestion_control == other
    first.set(congestion_control=None)
    for family in FAMILIES:
        assert used(first, family) == default


@pytest.mark.parametrize("family", FAMILIES)
def test_router_and_shared_bottleneck(mptcp_lab: Lab, family: int) -> None:
    a, b, server = mptcp_lab.host("a"), mptcp_lab.host("b"), mptcp_lab.host("server")
    router = mptcp_lab.host("router", forwarding=True)
    from_a, from_b = mptcp_lab.link(a, router), mptcp_lab.link(b, router)
    bottleneck = mptcp_lab.link(router, server, rate="20mbit")
    address = bottleneck.address(server, family)
    with ThreadPoolExecutor(2) as pool:
        rates = list(pool.map(lambda host: bulk(host, server, address, 2_500_000), (a, b)))
    # Together they take two seconds; each alone would have taken one.
    assert min(rates) == pytest.approx(10_000_000, rel=0.2)
    # Backwards, and between the clients.
    bulk(server, a, from_a.address(a, family), 100_000)
    bulk(a, b, from_b.address(b, family), 100_000)
    bulk(a, router, from_a.address(router, family), 100_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_paths_over_two_routers(mptcp_lab: Lab, family: int) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    sides = []
    for name in ("upper", "lower"):
        router = mptcp_lab.host(name, forwarding=True)
        sides.append((mptcp_lab.link(client, router), mptcp_lab.link(router, server)))
    size = 300_000
    for near_link, _ in sides:
        for _, far_link in sides:
            before = [sent_bytes(client, link) for link, _ in sides]
            bulk(client, server, far_link.address(server, family), size, near_link.address(client, family))
            sent = [sent_bytes(client, link) - start for (link, _), start in zip(sides, before, strict=True)]
            assert [amount > size for amount in sent] == [link is near_link for link, _ in sides]
            assert min(sent) < size / 100
    # Without a source address the way is the one that arrives by the address's own link.
    before = [sent_bytes(client, link) for link, _ in sides]
    bulk(client, server, sides[1][1].address(server, family), size)
    assert sent_bytes(client, sides[1][0]) - before[1] > size


def test_chain_of_routers(mptcp_lab: Lab) -> None:
    hosts = [mptcp_lab.host(f"h{number}", forwarding=0 < number < 4) for number in range(5)]
    links = [mptcp_lab.link(near, far) for near, far in itertools.pairwise(hosts)]
    for family in FAMILIES:
        bulk(hosts[0], hosts[4], links[3].address(hosts[4], family), 1000)
        bulk(hosts[4], hosts[0], links[0].address(hosts[0], family), 1000)


# Captures


def packets(path: Path) -> Iterator[tuple[float, bytes]]:
    """Read a pcap file with nanosecond times."""
    data = path.read_bytes()
    assert struct.unpack_from("=IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 1)
    position = 24
    while position < len(data):
        seconds, nanoseconds, captured, length = struct.unpack_from("=4I", data, position)
        assert captured == length
        assert nanoseconds < 10**9
        position += 16
        yield seconds + nanoseconds * 1e-9, data[position : position + captured]
        position += captured
    assert position == len(data)


def test_capture(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    client, server, (first, second) = mptcp_two_paths
    text = b"what is sent must be in the file"
    start = time.time()
    with first.capture(tmp_path / "first") as capture, second.capture(tmp_path / "second", host=server):
        bulk(client, server, first.address(server), 1_000_000)
        near, far = connect(client, server, first.address(server))
        with near, far:
            near.sendall(text)
            assert far.recv(100) == text
    found = list(packets(tmp_path / "first"))
    assert capture.packets == len(found)
    assert capture.dropped == 0
    assert all(start <= when <= time.time() for when, _ in found)
    assert [when for when, _ in found] == sorted(when for when, _ in found)
    assert sum(packet.endswith(text) for _, packet in found) == 1
    to_server = socket.inet_aton("10.0.1.1") + socket.inet_aton("10.0.1.2")
    payload = sum(
        len(packet) - 14 - 20 - (packet[46] >> 4) * 4
        for _, packet in found
        if packet[12:14] == b"\x08\x00" and packet[26:34] == to_server
    )
    assert payload >= 1_000_000 + len(text)
    assert not any(to_server in packet for _, packet in packets(tmp_path / "second"))


def test_capture_is_complete_when_the_lab_is_closed_first(tmp_path: Path) -> None:
    with two_paths() as (client, server, (first, _)):
        capture = first.capture(tmp_path / "file")
        bulk(client, server, first.address(server), 100_000)
    found = list(packets(tmp_path / "file"))
    assert capture.packets == len(found)
    assert sum(len(packet) for _, packet in found) > 100_000
    capture.close()


def test_capture_with_a_limit_keeps_the_beginning_and_the_end(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    client, server, (first, _) = mptcp_two_paths
    first.set(rate="200mbit")
    whole, some = tmp_path / "whole.pcapng", tmp_path / "some.pcapng"
    with (
        first.capture(whole, host="both"),
        first.capture(some, host="both", limit=2 << 20) as capture,
        server.create_server(("", 5000)) as listener,
        client.create_connection((first.address(server), 5000), timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        for _ in range(240):
            sock.sendall(bytes(50_000))
            left = 50_000
            while left:
                left -= len(peer.recv(left))
    assert some.stat().st_size < (2 << 20) + 2 * (3 << 20) < whole.stat().st_size
    every, kept = mptcp.read_trace(whole), mptcp.read_trace(some)
    assert capture.packets == sum(each["frames"] for each in kept.metadata["captures"])
    assert kept.connections["token"] == every.connections["token"] != 0
    assert kept.connections["complete"]
    for trace in (every, kept):
        assert trace.packets["dsn"].min() == 0
        assert (trace.packets["dsn"] + trace.packets["length"]).max() == 12_000_000
    assert kept.connections["missing_0"] > 1_000_000
    for limit, error in ((0, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="limit must be"):
            first.capture(some, limit=limit)


def test_capture_to_a_file_that_cannot_be(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    client, server, (first, _) = mptcp_two_paths
    with pytest.raises(FileNotFoundError, match="missing"):
        first.capture(tmp_path / "missing" / "file")
    if os.path.exists("/dev/full"):
        capture = first.capture("/dev/full")
        bulk(client, server, first.address(server), 3_000_000)
        with pytest.raises(OSError, match="space") as full:
            capture.close()
        assert full.value.errno == errno.ENOSPC


# Life and death


def test_labs_side_by_side() -> None:
    def use(number: int) -> list[str]:
        with two_paths(rate=("20mbit", None)) as (client, server, (_, second)):
            bulk(client, server, second.address(server), 100_000 * number)
            return client.addresses

    with ThreadPoolExecutor(4) as pool:
        assert len({tuple(addresses) for addresses in pool.map(use, range(1, 9))}) == 1


def test_threads_share_a_lab(mptcp_lab: Lab) -> None:
    center = mptcp_lab.host("center")

    def add(number: int) -> None:
        host = mptcp_lab.host(f"h{number}")
        link = mptcp_lab.link(center, host)
        bulk(host, center, link.address(center), 10_000)
        for _ in range(20):
            host.socket().close()
            center.counters()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert len(center.addresses) == 16


def test_close_ends_everything() -> None:
    # What is opened once in a process and kept is not counted.
    Lab().close()
    descriptors, threads = os.listdir("/proc/self/fd"), threading.active_count()
    lab = Lab()
    a, b = lab.host("a"), lab.host("b")
    link = lab.link(a, b, rate="20mbit")
    namespaces = {network_namespace(host.pid) for host in (a, b)}
    program = a.popen(["sleep", "1000"])
    stubborn = b.popen("trap '' TERM INT HUP; setsid sleep 1000 & echo; wait", shell=True, stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    stubborn.stdout.close()
    # At the latest now all of them are in their host.
    assert len(processes_in(namespaces)) >= 4
    lab.close()
    assert processes_in(namespaces) == []
    assert program.returncode == stubborn.returncode == -signal.SIGKILL
    lab.close()
    assert sorted(os.listdir("/proc/self/fd")) == sorted(descriptors)
    assert threading.active_count() == threads
    for use in (
        lambda: lab.host("c"),
        lambda: lab.link(a, b),
        a.socket,
        a.counters,
        link.down,
        link.up,
        lambda: link.set(rate="1mbit"),
        lambda: link.capture("/dev/null"),
        lambda: a.run(["true"]),
        lambda: a.popen(["true"]),
    ):
        with pytest.raises(OSError, match="closed"):
            use()
    assert "closed" in repr(lab)


def test_socket_outlives_its_lab() -> None:
    with two_paths() as (client, server, (first, _)):
        near, far = connect(client, server, first.address(server))
    # Its namespace lives as long as it does, though nothing else is left there.
    with near, far:
        assert near.getpeername()[0] == first.address(server)


def test_unclosed_lab_warns_and_ends() -> None:
    lab = Lab()
    handle = os.pidfd_open(lab.host("a").pid)
    labs = [lab]
    del lab
    with pytest.warns(ResourceWarning, match="unclosed <Lab open: a"):
        labs.clear() or gc.collect()
    wait_for_end([handle])


def test_process_of_a_host_dies(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    handle = os.pidfd_open(host.pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    wait_for_end([handle])
    with pytest.raises(OSError, match="the process of host 'a' has ended"):
        host.socket()
    # The others live on.
    mptcp_lab.host("b").socket().close()


# Prints its processes, waits for a byte that never comes. The forked child holds copies of all descriptors.
HOLDER = textwrap.dedent("""
    import os, sys
    from mptcp.lab import two_paths
    with two_paths() as (client, server, (first, second)):
        listener = server.create_server((first.address(server), 5000))
        program = client.popen(["sh", "-c", "echo; exec sleep 1000"], stdout=2)
        server.popen(["sh", "-c", "sleep 1000 & trap '' TERM; echo; wait"], stdout=2)
        lab = client.lab
        if "fork" in sys.argv:
            told, tell = os.pipe()
            if os.fork() == 0:
                try:
                    client.socket()
                except OSError as error:
                    assert "forked" in str(error), error
                    lab.close()
                    os.write(tell, b"refused")
                sys.stdin.read()
                os._exit(0)
            assert os.read(told, 10) == b"refused"
        try:
            # Who reads this may interrupt at once.
            print(lab._helper.pid, client.pid, server.pid, program.pid, flush=True)
            sys.stdin.read()
        except KeyboardInterrupt:
            client.run(["true"], check=True)
            print("still here", flush=True)
""")


def without_capabilities(*command: str) -> list[str]:
    """Return the command line that runs a program without a capability over networks, whoever we are."""
    if not ROOT:
        return list(command)
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    # CAP_SETFCAP is what the kernel wants of root, not of others, for making its own user the root of a namespace.
    return ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", "--ambient-caps=-all", *command]


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not ROOT, reason="needs root")), False])
def command_prefix(request: pytest.FixtureRequest) -> list[str]:
    """The start of a command line with our privileges, and one without any."""
    return [] if request.param else without_capabilities()


@dataclass
class Holder:
    """Another process that has a lab: itself, pidfds of the lab's processes, the helper's first, and its namespaces."""

    process: subprocess.Popen[str]
    handles: list[int]
    namespaces: set[tuple[int, int]]


@contextmanager
def holder(prefix: list[str], *arguments: str) -> Iterator[Holder]:
    with subprocess.Popen(
        [*prefix, *STRICT, "-c", HOLDER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            # Each program says that it is there, and so in its host.
            assert [process.stderr.readline() for _ in range(2)] == ["\n", "\n"]
            pids = [int(pid) for pid in process.stdout.readline().split()]
            handles = [os.pidfd_open(pid) for pid in pids]
            yield Holder(process, handles, {network_namespace(pid) for pid in pids[1:3]})
        finally:
            process.kill()


def wait_until_empty(namespaces: set[tuple[int, int]]) -> None:
    for pid in processes_in(namespaces):
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        wait_for_end([handle])
    assert processes_in(namespaces) == []


@pytest.mark.parametrize("arguments", [[], ["fork"]], ids=["alone", "with a forked child"])
def test_killed_process_leaves_nothing(command_prefix: list[str], arguments: list[str]) -> None:
    with holder(command_prefix, *arguments) as held:
        assert len(processes_in(held.namespaces)) >= 5
        held.process.kill()
        wait_for_end(held.handles)
        wait_until_empty(held.namespaces)


def test_killed_helper_leaves_nothing(command_prefix: list[str]) -> None:
    with holder(command_prefix) as held:
        signal.pidfd_send_signal(held.handles[0], signal.SIGKILL)
        wait_for_end(held.handles)
        wait_until_empty(held.namespaces)


def test_interrupt_of_the_process_group_spares_the_lab(command_prefix: list[str]) -> None:
    with holder(command_prefix) as held:
        os.killpg(held.process.pid, signal.SIGINT)
        assert held.process.stdout is not None
        assert held.process.stdout.readline() == "still here\n"
        wait_for_end(held.handles)
        wait_until_empty(held.namespaces)
        assert held.process.wait(DEADLINE) == 0


def test_without_privilege() -> None:
    """The whole job with no capability that helps: rates, sockets, down and up, a capture."""
    script = textwrap.dedent("""
        import os, sys, tempfile
        from mptcp.lab import two_paths
        with open("/proc/self/status") as status:
            (effective,) = (int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
        assert effective & ~(1 << 31) == 0
        with two_paths() as (client, server, (first, second)):
            with first.capture(os.devnull) as capture:
                with server.create_server((first.address(server), 5000)) as listener:
                    with client.create_connection((first.address(server), 5000), 20) as near:
                        far, _ = listener.accept()
                        with far:
                            near.sendall(b"x")
                            assert far.recv(1) == b"x"
            assert capture.packets
            second.down()
            second.up()
            assert client.run(["id", "-u"], capture_output=True).stdout == b"0\\n"
            assert client.sysctl("net.ipv4.ip_default_ttl", 5)
            assert client.set_path_manager("kernel") == "userspace"
    """)
    subprocess.run(without_capabilities(*STRICT, "-c", script), check=True, timeout=60)


def test_namespaces_denied() -> None:
    """In a user namespace that allows none below it, without capabilities there."""
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} of util-linux")
    script = textwrap.dedent("""
        from mptcp.lab import Lab
        try:
            Lab()
        except PermissionError as error:
            for knob in ("max_user_namespaces", "unprivileged_userns_clone", "apparmor_restrict_unprivileged_userns"):
                assert knob in str(error), error
            print("denied")
    """)
    deny = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all"
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{deny} "$@"', "-"]
    result = subprocess.run(
        [*command, sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "denied\n", result.stderr
    assert result.stderr == ""


def test_module_is_light() -> None:
    """Users of the lab load little."""
    script = "import mptcp.lab, sys; assert not {'asyncio', 'numpy', 'ssl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_two_paths_takes_one_for_both_or_one_for_each() -> None:
    with two_paths(rate="5mbit") as (_, _, paths):
        assert [path.rate for path in paths] == [5_000_000, 5_000_000]
    with two_paths(rate=[None, 1e6]) as (_, _, paths):
        assert [path.rate for path in paths] == [None, 1_000_000]
    with pytest.raises(ValueError, match="rate"), two_paths(rate=("1mbit",)):
        pass


def test_no_warnings_with_threads() -> None:
    """Python 3.12 warns of a fork while there are threads; the lab does not fork in the caller's process."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with warnings.catch_warnings(), two_paths() as (client, _, _):
            warnings.simplefilter("error")
            client.run(["true"], check=True)
    finally:
        stop.set()
        thread.join()


def test_what_there_is_no_descriptor_for_is_said(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("host")
    before = held()
    with descriptors_left(0), pytest.raises(OSError, match="RLIMIT_NOFILE") as caught:
        host.socket()
    assert caught.value.errno == errno.EMFILE
    host.socket().close()
    assert holds_no_more_than(before)
