"""Socket options on one subflow: what is set there is seen there, by the kernel's own means, and nowhere else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mptcp
import pytest
from mptcp.lab import Host, Link, two_paths
from support import NO_CAPABILITIES, Connection, connected, descriptors, eventually, exchange, has_bpf

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

SOL_SOCKET, TCP, IP, IPV6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6
# <asm-generic/socket.h>, <linux/tcp.h>, <linux/in6.h>: what the socket module lacks.
SO_MAX_PACING_RATE, SO_COOKIE, SO_MEMINFO, SO_BINDTOIFINDEX = 47, 57, 55, 62
TCP_CC_INFO = 26


class Pair(NamedTuple):
    """A connection with one subflow on each path."""

    made: Connection
    first: mptcp.Subflow
    second: mptcp.Subflow

    @property
    def sock(self) -> mptcp.Socket:
        return self.made.sock


@contextlib.contextmanager
def pair_of(paths: TwoPaths, family: int = socket.AF_INET) -> Iterator[Pair]:
    client, server, links = paths
    with connected(client, server, links, family) as made:
        made.sock.open_subflow(*(links[1].address(host, family) for host in (client, server)))
        yield Pair(made, *made.sock.subflows())


@pytest.fixture
def pair(mptcp_two_paths: TwoPaths) -> Iterator[Pair]:
    with pair_of(mptcp_two_paths) as pair:
        yield pair


def ss(host: Host, subflow: mptcp.Subflow) -> str:
    """What `ss` says of one subflow."""
    command = ["ss", "-Htieonm", "src", subflow.local[0], "sport", f"= {subflow.local[1]}"]
    output = host.run(command, capture_output=True, text=True, check=True).stdout
    assert f"sk:{subflow.cookie:x}" in output
    return output


def another(default: bytes) -> bytes:
    """A congestion control that every kernel has or can load, other than the default."""
    return b"cubic" if default.rstrip(b"\0") == b"reno" else b"reno"


# Reading without privilege.


def test_reads_that_need_no_privilege(pair: Pair) -> None:
    """Each as getsockopt on the whole socket has it, where that tells of the first subflow, or as ss prints it."""
    whole, first, host = pair.sock, pair.first, pair.made.client
    name = first.getsockopt(TCP, socket.TCP_CONGESTION, 16)
    assert name == whole.getsockopt(TCP, socket.TCP_CONGESTION, 16)
    assert first.getsockopt(TCP, socket.TCP_CONGESTION, 100) == name, "as long as the kernel has it"
    assert first.getsockopt(TCP, socket.TCP_CONGESTION, 3) == name[:3]
    assert first.getsockopt(TCP, socket.TCP_CONGESTION) == int.from_bytes(name[:4], sys.byteorder)
    assert len(first.getsockopt(TCP, socket.TCP_INFO, 1024)) == len(whole.getsockopt(TCP, socket.TCP_INFO, 1024))
    assert first.getsockopt(TCP, socket.TCP_INFO, 1) == b"\x01"
    assert len(first.getsockopt(TCP, TCP_CC_INFO, 64)) == len(whole.getsockopt(TCP, TCP_CC_INFO, 64))
    assert first.getsockopt(TCP, socket.TCP_MAXSEG) == first.tcp_info.snd_mss
    memory = dict(re.findall(r"(rb|tb)(\d+)", ss(host, first)))
    assert first.getsockopt(SOL_SOCKET, socket.SO_RCVBUF) == int(memory["rb"])
    assert first.getsockopt(SOL_SOCKET, socket.SO_SNDBUF) == int(memory["tb"])
    assert first.getsockopt(SOL_SOCKET, SO_MEMINFO, 8)[4:] == int(memory["rb"]).to_bytes(4, sys.byteorder)
    assert first.getsockopt(SOL_SOCKET, SO_MAX_PACING_RATE) == -1
    assert first.getsockopt(SOL_SOCKET, SO_MAX_PACING_RATE, 8) == b"\xff" * 8
    assert first.getsockopt(SOL_SOCKET, SO_COOKIE, 8) == struct.pack("=Q", first.cookie)
    assert first.getsockopt(SOL_SOCKET, SO_BINDTOIFINDEX) == 0
    assert first.getsockopt(IP, socket.IP_TOS) == 0
    whole.setsockopt(IP, socket.IP_TOS, 0x20)
    assert first.getsockopt(IP, socket.IP_TOS) == pair.second.getsockopt(IP, socket.IP_TOS) == 0x20
    assert first.getsockopt(IP, socket.IP_TOS, 16) == (0x20).to_bytes(4, sys.byteorder)
    # Of the lab's namespace everybody who made it is the administrator.
    assert first.getsockopt(SOL_SOCKET, socket.SO_MARK) == 0


def test_the_traffic_class_is_read_of_ipv6_alone(mptcp_two_paths: TwoPaths) -> None:
    with pair_of(mptcp_two_paths, socket.AF_INET6) as pair:
        assert pair.first.getsockopt(IPV6, socket.IPV6_TCLASS) == 0
    with pair_of(mptcp_two_paths) as pair, pytest.raises(mptcp.SubflowError, match="IPV6_TCLASS") as caught:
        pair.first.getsockopt(IPV6, socket.IPV6_TCLASS)
    assert caught.value.errno == errno.ENOPROTOOPT


def test_a_short_buffer_for_the_cookie(pair: Pair) -> None:
    with pytest.raises(mptcp.SubflowError, match="SO_COOKIE") as caught:
        pair.first.getsockopt(SOL_SOCKET, SO_COOKIE)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.skipif(has_bpf(), reason="needs a user without CAP_BPF: otherwise nothing is refused")
def test_without_the_privilege(pair: Pair) -> None:
    """What BPF would do is refused with what is missing and what still works, which does."""
    for attempt in (
        lambda: pair.second.setsockopt(TCP, socket.TCP_CONGESTION, b"reno"),
        lambda: pair.second.getsockopt(TCP, socket.TCP_USER_TIMEOUT),
        lambda: pair.sock.set_subflow_options({pair.second: {(SOL_SOCKET, socket.SO_PRIORITY): 3}}),
    ):
        with pytest.raises(PermissionError, match=r"CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.*congctl") as caught:
            attempt()
        assert caught.value.errno == errno.EPERM
    assert pair.second.getsockopt(TCP, socket.TCP_CONGESTION, 16)
    before = descriptors()
    for _ in range(10):
        with pytest.raises(PermissionError):
            pair.second.setsockopt(SOL_SOCKET, socket.SO_PRIORITY, 1)
    assert descriptors() == before, "a refusal leaves nothing open"


UNPRIVILEGED = """
import json, socket, sys, mptcp
sock = mptcp.Socket(fileno=int(sys.argv[1]))
one, two = sock.subflows()
told = {"read": two.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode(),
        "buffer": two.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)}
for name, attempt in {
    "set": lambda: two.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
    "get": lambda: two.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    "mark": lambda: two.getsockopt(socket.SOL_SOCKET, socket.SO_MARK),
}.items():
    try:
        told[name] = attempt()
    except PermissionError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


@pytest.mark.mptcp_needs("bpf")
def test_root_without_the_capabilities(pair: Pair) -> None:
    """The same for a process that gave its capabilities away."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    fd = pair.sock.fileno()
    command = [*NO_CAPABILITIES, sys.executable, "-c", UNPRIVILEGED, str(fd)]
    output = pair.made.client.run(command, pass_fds=[fd], capture_output=True, text=True, check=True).stdout
    told = json.loads(output)
    assert told["read"].encode() == pair.second.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
    assert told["buffer"] == pair.second.getsockopt(SOL_SOCKET, socket.SO_SNDBUF)
    for refused in ("set", "get", "mark"):
        assert all(name in told[refused] for name in ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")), told


# What is refused before any system call.


def test_what_cannot_be_an_option(pair: Pair) -> None:
    second: Any = pair.second
    sock: Any = pair.sock
    option = (TCP, socket.TCP_NODELAY)
    for wrong in (
        lambda: second.setsockopt(*option, None),
        lambda: second.setsockopt(*option, None, 4),
        lambda: second.setsockopt(*option, "1"),
        lambda: second.setsockopt(*option, 1.0),
        lambda: second.setsockopt("6", 1, 1),
        lambda: second.getsockopt(TCP, 1.0),
        lambda: second.getsockopt(*option, "4"),
        lambda: sock.set_subflow_options([pair.second]),
        lambda: sock.set_subflow_options({2: {option: 1}}),
        lambda: sock.set_subflow_options({pair.second: [option]}),
        lambda: sock.set_subflow_options({pair.second: {socket.TCP_NODELAY: 1}}),
        lambda: sock.set_subflow_options({pair.second: {(TCP, 1, 1): 1}}),
    ):
        with pytest.raises(TypeError):
            wrong()
    for wrong in (
        lambda: second.setsockopt(*option, 1 << 31),
        lambda: second.setsockopt(*option, b""),
        lambda: second.setsockopt(*option, bytes(257)),
        lambda: second.setsockopt(1 << 40, 1, 1),
        lambda: second.getsockopt(*option, -1),
        lambda: second.getsockopt(*option, 1025),
        # Nothing is set where one of several is wrong.
        lambda: sock.set_subflow_options({pair.second: {(IP, socket.IP_TOS): 16, option: b""}}),
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()
    assert pair.second.getsockopt(IP, socket.IP_TOS) == 0
    pair.sock.set_subflow_options({})
    pair.sock.set_subflow_options({pair.second: {}})


def test_a_subflow_of_another_connection(pair: Pair) -> None:
    with pytest.raises(ValueError, match="another connection"):
        pair.made.peer.set_subflow_options({pair.second: {(TCP, socket.TCP_NODELAY): 1}})


def test_a_closed_socket(pair: Pair) -> None:
    pair.sock.close()
    with pytest.raises(OSError, match="descriptor") as caught:
        pair.second.getsockopt(TCP, socket.TCP_INFO)
    assert caught.value.errno == errno.EBADF


def test_a_closed_subflow(pair: Pair) -> None:
    """By the time of the look-up it is gone, and another one of the same ends is not it."""
    pair.second.close()
    with pytest.raises(mptcp.SubflowError, match=r"subflow 2 .* is closed") as caught:
        pair.second.getsockopt(TCP, socket.TCP_CONGESTION, 16)
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(mptcp.SubflowError, match=r"TCP_NODELAY.*nothing was applied") as caught:
        pair.sock.set_subflow_options(
            {subflow: {(TCP, socket.TCP_NODELAY): 1} for subflow in (pair.first, pair.second)}
        )
    assert caught.value.errno == errno.ENOTCONN


# Setting.


@pytest.mark.mptcp_needs("bpf")
def test_two_congestion_controls(pair: Pair) -> None:
    default = pair.first.getsockopt(TCP, socket.TCP_CONGESTION, 16)
    other = another(default)
    pair.second.setsockopt(TCP, socket.TCP_CONGESTION, other)
    assert pair.second.getsockopt(TCP, socket.TCP_CONGESTION, 16) == other.ljust(16, b"\0")
    assert pair.first.getsockopt(TCP, socket.TCP_CONGESTION, 16) == default
    shown = [re.findall(r"\b(reno|cubic|bbr|dctcp|\w+) wscale", ss(pair.made.client, flow)) for flow in pair[1:]]
    assert shown == [[default.rstrip(b"\0").decode()], [other.decode()]]
    exchange(pair.sock, pair.made.peer)


@pytest.mark.mptcp_needs("bpf")
@pytest.mark.parametrize(
    ("level", "optname", "value", "read"),
    [
        (SOL_SOCKET, socket.SO_MARK, 42, 42),
        (SOL_SOCKET, socket.SO_PRIORITY, 5, 5),
        (SOL_SOCKET, socket.SO_SNDBUF, 50_000, 100_000),
        (SOL_SOCKET, socket.SO_RCVBUF, 60_000, 120_000),
        (SOL_SOCKET, socket.SO_KEEPALIVE, True, 1),
        (SOL_SOCKET, SO_MAX_PACING_RATE, 1_000_000, 1_000_000),
        (TCP, socket.TCP_NODELAY, 1, 1),
        (TCP, socket.TCP_KEEPIDLE, 77, 77),
        (TCP, socket.TCP_USER_TIMEOUT, 12_345, 12_345),
        (TCP, socket.TCP_NOTSENT_LOWAT, 16_384, 16_384),
        (TCP, socket.TCP_NOTSENT_LOWAT, memoryview(b"\0\0\0\1"), int.from_bytes(b"\0\0\0\1", sys.byteorder)),
        (TCP, socket.TCP_WINDOW_CLAMP, 30_000, 30_000),
        (IP, socket.IP_TOS, 0x10, 0x10),
    ],
)
def test_set_on_one_and_not_on_the_other(pair: Pair, level: int, optname: int, value: Any, read: int) -> None:
    before = pair.first.getsockopt(level, optname)
    pair.second.setsockopt(level, optname, value)
    assert pair.second.getsockopt(level, optname) == read
    assert pair.first.getsockopt(level, optname) == before
    assert pair.second.getsockopt(level, optname, 4) == read.to_bytes(4, sys.byteorder)
    assert {pair.second.getsockopt(level, optname, n) for n in (1, 2)} == {
        read.to_bytes(4, sys.byteorder)[:n] for n in (1, 2)
    }
    exchange(pair.sock, pair.made.peer)


@pytest.mark.mptcp_needs("bpf")
def test_buffers_and_notsent_lowat_as_ss_shows_them(pair: Pair) -> None:
    before = ss(pair.made.client, pair.first)
    pair.sock.set_subflow_options(
        {pair.second: {(SOL_SOCKET, socket.SO_SNDBUF): 50_000, (SOL_SOCKET, socket.SO_RCVBUF): 60_000}}
    )
    memory = r"skmem:\(r\d+,rb(\d+),t\d+,tb(\d+)"
    assert re.findall(memory, ss(pair.made.client, pair.second)) == [("120000", "100000")]
    assert re.findall(memory, ss(pair.made.client, pair.first)) == re.findall(memory, before)


def transfer_until(pair: Pair, done: Callable[[], bool], seconds: float = 20) -> bool:
    """Sends from the client at full speed until ``done``, which is asked again and again."""
    stop = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                pair.sock.send(bytes(1 << 16))

    def receive() -> None:
        with contextlib.suppress(OSError):
            while pair.made.peer.recv(1 << 18):
                pass

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        return eventually(done, seconds)
    finally:
        stop.set()
        threads[0].join()
        pair.sock.shutdown(socket.SHUT_WR)
        threads[1].join()


def sent(pair: Pair) -> list[int]:
    return [subflow.tcp_info.bytes_sent or 0 for subflow in pair.sock.subflows()]


def pass_over_both(pair: Pair, size: int = 100_000) -> None:
    """A transfer that has each subflow carry so many bytes at least."""
    assert transfer_until(pair, lambda: min(sent(pair)) > size)


@pytest.mark.mptcp_needs("bpf")
def test_a_mark_counted_by_nftables(mptcp_two_paths: TwoPaths) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft of nftables")
    client, _, links = mptcp_two_paths
    names = ("first", "second")
    rules = [
        f'oifname "{link.interface(client)}" meta mark 42 counter name {name}'
        for link, name in zip(links, names, strict=True)
    ]
    chain = ["type filter hook output priority 0", *rules]
    table = "\n".join(["table inet t {", *(f"counter {name} {{}}" for name in names), "chain out {", *chain, "}", "}"])

    def counted(host: Host) -> dict[str, int]:
        output = host.run(["nft", "-j", "list", "counters"], capture_output=True, text=True, check=True).stdout
        found = [item["counter"] for item in json.loads(output)["nftables"] if "counter" in item]
        return {counter["name"]: counter["packets"] for counter in found}

    made = client.run(["nft", table], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs nftables in the kernel: {made.stderr.splitlines()[0]}")
    with pair_of(mptcp_two_paths) as pair:
        pass_before = counted(client)
        assert pass_before == {"first": 0, "second": 0}
        pair.second.setsockopt(SOL_SOCKET, socket.SO_MARK, 42)
        pass_over_both(pair)
        seen = counted(client)
    assert seen["first"] == 0
    assert seen["second"] > 10


def traffic_classes(file: Path, host: str) -> set[int]:
    """The TOS or traffic class, ECN left out, of the TCP packets with data from ``host`` in a capture."""
    data = file.read_bytes()
    classes, at = set(), 24
    while at < len(data):
        _, _, length, _ = struct.unpack_from("=4I", data, at)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        kind, packet = struct.unpack_from("!H", frame, 12)[0], frame[14:]
        if kind == 0x0800 and packet[9] == TCP and packet[12:16] == socket.inet_pton(socket.AF_INET, host):
            size, offset, field = struct.unpack_from("!H", packet, 2)[0], (packet[0] & 15) * 4, packet[1]
        elif kind == 0x86DD and packet[6] == TCP and packet[8:24] == socket.inet_pton(socket.AF_INET6, host):
            size, offset, field = (
                struct.unpack_from("!H", packet, 4)[0] + 40,
                40,
                (packet[0] & 15) << 4 | packet[1] >> 4,
            )
        else:
            continue
        if size > offset + (packet[offset + 12] >> 4) * 4:
            classes.add(field & 0xFC)
    return classes


@pytest.mark.mptcp_needs("bpf")
@pytest.mark.parametrize(
    ("family", "level", "optname"),
    [(socket.AF_INET, IP, socket.IP_TOS), (socket.AF_INET6, IPV6, socket.IPV6_TCLASS)],
    ids=["IP_TOS", "IPV6_TCLASS"],
)
def test_a_packet_capture_sees_the_traffic_class(
    mptcp_two_paths: TwoPaths, tmp_path: Path, family: int, level: int, optname: int
) -> None:
    client, _, links = mptcp_two_paths
    with pair_of(mptcp_two_paths, family) as pair:
        pair.second.setsockopt(level, optname, 0x28)
        assert pair.second.getsockopt(level, optname) == 0x28
        assert pair.first.getsockopt(level, optname) == 0
        with links[0].capture(tmp_path / "first"), links[1].capture(tmp_path / "second"):
            pass_over_both(pair)
    seen = [
        traffic_classes(tmp_path / name, link.address(client, family))
        for name, link in zip(("first", "second"), links, strict=True)
    ]
    assert seen == [{0}, {0x28}]


@pytest.mark.mptcp_needs("bpf")
def test_a_pacing_rate_holds_one_subflow_back(pair: Pair) -> None:
    """1 Mbit/s on the second path, of 10; the first goes on at some 20."""
    limit = 125_000
    pair.second.setsockopt(SOL_SOCKET, SO_MAX_PACING_RATE, limit)
    start = time.monotonic()
    samples: list[tuple[float, list[int]]] = []

    def measured() -> bool:
        """For two seconds, after a first one: what was in flight when the limit was set is past then."""
        now = time.monotonic()
        if now - start > 1:
            samples.append((now, sent(pair)))
        return bool(samples) and now - samples[0][0] > 2

    assert transfer_until(pair, measured)
    begin, end = samples[0], samples[-1]
    first, second = ((b - a) / (end[0] - begin[0]) for a, b in zip(begin[1], end[1], strict=True))
    assert 0.4 * limit < second < 1.2 * limit
    assert first > 4 * limit
    assert pair.first.getsockopt(SOL_SOCKET, SO_MAX_PACING_RATE) == -1


@pytest.mark.mptcp_needs("bpf")
def test_a_user_timeout_ends_one_subflow(pair: Pair) -> None:
    """Both paths go silent: the subflow with the timeout is given up, the other is still trying."""
    pair.second.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 300)
    assert "user_timeout" not in ss(pair.made.client, pair.first)
    server = pair.made.server
    for link in pair.made.paths:
        # Packets leave, and nothing comes back.
        name = link.interface(server)
        server.run(["ip", "link", "set", "dev", name, "arp", "off", "address", "02:00:00:00:00:99"], check=True)
    pair.sock.setblocking(False)

    def given_up() -> bool:
        with contextlib.suppress(BlockingIOError):
            pair.sock.send(bytes(1 << 16))
        return [subflow.local for subflow in pair.sock.subflows()] == [pair.first.local]

    assert eventually(given_up, 20)


@pytest.mark.mptcp_needs("bpf")
def test_several_at_once(pair: Pair) -> None:
    pair.sock.set_subflow_options(
        {
            pair.first: {(SOL_SOCKET, socket.SO_MARK): 1, (TCP, socket.TCP_USER_TIMEOUT): 1000},
            pair.second: {(SOL_SOCKET, socket.SO_MARK): 2, (TCP, socket.TCP_USER_TIMEOUT): 2000},
        }
    )
    for factor, subflow in ((1, pair.first), (2, pair.second)):
        assert subflow.getsockopt(SOL_SOCKET, socket.SO_MARK) == factor
        assert subflow.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 1000 * factor


@pytest.mark.mptcp_needs("bpf")
def test_each_subflow_s_options_keep_their_order(pair: Pair) -> None:
    """IP_TOS sets the priority too: whether it comes first or last shows."""
    tos, priority = (IP, socket.IP_TOS), (SOL_SOCKET, socket.SO_PRIORITY)
    pair.sock.set_subflow_options({pair.second: {tos: 0x10, priority: 1}})
    assert pair.second.getsockopt(*priority) == 1
    pair.sock.set_subflow_options({pair.second: {priority: 1, tos: 0x08}})
    assert pair.second.getsockopt(*priority) == 2  # TC_PRIO_BULK


@pytest.mark.mptcp_needs("bpf")
def test_more_options_than_one_visit_carries(pair: Pair) -> None:
    """40 that no kernel knows, and then one."""
    options: dict[tuple[int, int], int] = {(TCP, 10_000 + number): 0 for number in range(40)}
    options[(SOL_SOCKET, socket.SO_MARK)] = 9
    with pytest.raises(mptcp.SubflowError, match=r"option 10000 at level 6.*applied: SO_MARK") as caught:
        pair.sock.set_subflow_options({pair.second: options})
    assert caught.value.errno == errno.EINVAL
    assert pair.second.getsockopt(SOL_SOCKET, socket.SO_MARK) == 9


@pytest.mark.mptcp_needs("bpf")
def test_a_refused_option_has_its_name_and_errno(pair: Pair) -> None:
    for optname, value, name, number in (
        (socket.TCP_CORK, 1, "TCP_CORK", errno.EINVAL),
        (socket.TCP_CONGESTION, b"nosuch", "TCP_CONGESTION", errno.ENOENT),
        (socket.TCP_KEEPIDLE, -1, "TCP_KEEPIDLE", errno.EINVAL),
    ):
        with pytest.raises(mptcp.SubflowError, match=rf"setsockopt\({name}\) on subflow 2 ") as caught:
            pair.second.setsockopt(TCP, optname, value)
        assert caught.value.errno == number
        assert "applied" not in str(caught.value)
    with pytest.raises(mptcp.SubflowError, match=r"getsockopt\(TCP_CORK\)") as caught:
        pair.second.getsockopt(TCP, socket.TCP_CORK)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.mptcp_needs("bpf")
def test_the_others_are_applied_and_named(pair: Pair) -> None:
    with pytest.raises(
        mptcp.SubflowError,
        match=r"\(TCP_CORK\) on subflow 1 .*; applied: SO_MARK on subflow 1 .*, IP_TOS on subflow 2 ",
    ):
        pair.sock.set_subflow_options(
            {
                pair.first: {(SOL_SOCKET, socket.SO_MARK): 3, (TCP, socket.TCP_CORK): 1},
                pair.second: {(IP, socket.IP_TOS): 0x20},
            }
        )
    assert pair.first.getsockopt(SOL_SOCKET, socket.SO_MARK) == 3
    assert pair.second.getsockopt(IP, socket.IP_TOS) == 0x20


def test_rcvlowat_is_refused_here(pair: Pair) -> None:
    with pytest.raises(mptcp.SubflowError, match="SO_RCVLOWAT") as caught:
        pair.second.setsockopt(SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.mptcp_needs("bpf")
def test_maxseg_has_no_effect_after_the_handshake(pair: Pair) -> None:
    before = pair.second.getsockopt(TCP, socket.TCP_MAXSEG)
    pair.second.setsockopt(TCP, socket.TCP_MAXSEG, 700)
    assert pair.second.getsockopt(TCP, socket.TCP_MAXSEG) == before


@pytest.mark.mptcp_needs("bpf")
def test_a_bound_subflow(pair: Pair) -> None:
    """Bound after it was read: its exact look-up has to name the interface from then on."""
    client = pair.made.client
    show = ["ip", "-j", "link", "show", "dev", pair.made.paths[1].interface(client)]
    index = json.loads(client.run(show, capture_output=True, check=True).stdout)[0]["ifindex"]
    pair.second.setsockopt(SOL_SOCKET, SO_BINDTOIFINDEX, index)
    assert pair.second.getsockopt(SOL_SOCKET, SO_BINDTOIFINDEX) == index
    pair.second.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 700)
    assert pair.second.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 700


@pytest.mark.mptcp_needs("bpf")
def test_what_a_later_setsockopt_on_the_whole_socket_does(pair: Pair) -> None:
    """It sets the option on every subflow, and leaves the other options alone."""
    set_here = {
        (SOL_SOCKET, socket.SO_MARK): 42,
        (SOL_SOCKET, socket.SO_PRIORITY): 5,
        (TCP, socket.TCP_NODELAY): 1,
        (TCP, socket.TCP_KEEPIDLE): 99,
        (TCP, socket.TCP_USER_TIMEOUT): 777,
    }
    pair.sock.set_subflow_options({pair.second: set_here})
    pair.sock.setsockopt(SOL_SOCKET, socket.SO_MARK, 7)
    pair.sock.setsockopt(TCP, socket.TCP_NODELAY, 0)
    expected = {**set_here, (SOL_SOCKET, socket.SO_MARK): 7, (TCP, socket.TCP_NODELAY): 0}
    assert {option: pair.second.getsockopt(*option) for option in set_here} == expected


@pytest.mark.mptcp_needs("bpf")
def test_a_subflow_that_is_opening(mptcp_two_paths: TwoPaths) -> None:
    with pair_of(mptcp_two_paths) as pair:
        nobody = pair.made.second[1].rsplit(".", 1)[0] + ".99"
        pair.sock.open_subflow(pair.made.second[0], nobody, timeout=0)
        opening = pair.sock.subflows()[-1]
        assert opening.state == "SYN_SENT"
        opening.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 60_000)
        assert opening.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 60_000


# Which socket it hits.


@pytest.mark.mptcp_needs("bpf")
def test_from_other_network_namespaces(mptcp_two_paths: TwoPaths) -> None:
    """The test is in none of the hosts' namespaces; a thread in the server's hits the client's subflow all the same."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    with pair_of(mptcp_two_paths) as pair:
        there: list[object] = []

        def inside(host: Host) -> None:
            with open(f"/proc/{host.pid}/ns/net") as namespace:
                assert setns(namespace.fileno(), 0x40000000) == 0  # CLONE_NEWNET
            pair.second.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1000 + len(there))
            there.append(pair.second.getsockopt(TCP, socket.TCP_USER_TIMEOUT))

        for host in (pair.made.server, pair.made.client):
            thread = threading.Thread(target=inside, args=(host,))
            thread.start()
            thread.join()
        assert there == [1000, 1001]
        assert pair.first.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0
        for subflow in pair.made.peer.subflows():
            assert subflow.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.mptcp_needs("bpf")
def test_among_two_thousand_others(pair: Pair) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 5000:
        pytest.skip("needs an RLIMIT_NOFILE of 5000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, before[1]))
    default = pair.first.getsockopt(TCP, socket.TCP_CONGESTION, 16)
    other = another(default)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        listener = stack.enter_context(pair.made.client.socket(proto=TCP))
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        plain = []
        for _ in range(1000):
            one = stack.enter_context(pair.made.client.socket(proto=TCP))
            one.connect(listener.getsockname())
            plain += [one, stack.enter_context(listener.accept()[0])]

        def values() -> set[tuple[object, ...]]:
            return {
                (
                    sock.getsockopt(TCP, socket.TCP_CONGESTION, 16),
                    sock.getsockopt(SOL_SOCKET, socket.SO_MARK),
                    sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT),
                    sock.getsockopt(IP, socket.IP_TOS),
                )
                for sock in plain
            }

        untouched = values()
        assert len(untouched) == 1
        for _ in range(20):
            pair.sock.set_subflow_options(
                {
                    pair.second: {
                        (TCP, socket.TCP_CONGESTION): other,
                        (SOL_SOCKET, socket.SO_MARK): 42,
                        (TCP, socket.TCP_USER_TIMEOUT): 777,
                        (IP, socket.IP_TOS): 0x10,
                    }
                }
            )
        assert values() == untouched
        assert pair.second.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 777
        assert pair.first.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0
        assert pair.first.getsockopt(TCP, socket.TCP_CONGESTION, 16) == default


@pytest.mark.mptcp_needs("bpf")
def test_subflows_that_come_and_go(pair: Pair) -> None:
    """A subflow that closes in between is ENOTCONN, and never another one that has its ends now."""
    local, remote = pair.made.second
    stop, tried = threading.Event(), threading.Event()
    outcomes: dict[str, int] = {"set": 0, "closed": 0}
    current: list[mptcp.Subflow] = [pair.second]

    def churn() -> None:
        """Every second one is closed in the middle of whatever goes on, the others after an attempt on them."""
        for wait in itertools.cycle((False, True)):
            if stop.is_set():
                return
            opened = pair.sock.open_subflow(local, remote)
            current[0] = opened
            if wait:
                tried.clear()
                tried.wait(5)
            opened.close()

    churner = threading.Thread(target=churn)
    churner.start()

    def both_seen() -> bool:
        try:
            current[0].setsockopt(TCP, socket.TCP_USER_TIMEOUT, 5000)
            outcomes["set"] += 1
        except mptcp.SubflowError as error:
            if error.errno != errno.ENOTCONN:
                raise
            outcomes["closed"] += 1
        tried.set()
        return outcomes["closed"] > 20 and outcomes["set"] > 5

    try:
        assert eventually(both_seen, 30), outcomes
    finally:
        stop.set()
        tried.set()
        churner.join()
    assert pair.first.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.mptcp_needs("bpf")
def test_threads_and_a_forked_child(pair: Pair) -> None:
    """Each gets its own answers, whoever loaded the program."""
    pair.first.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1)

    def use(subflow: mptcp.Subflow, base: int) -> bool:
        for value in range(base, base + 50):
            subflow.setsockopt(TCP, socket.TCP_USER_TIMEOUT, value)
            if subflow.getsockopt(TCP, socket.TCP_USER_TIMEOUT) != value:
                return False
        return True

    def in_child(results: multiprocessing.SimpleQueue[object]) -> None:
        try:
            results.put(use(pair.second, 5000))
        except BaseException as error:
            results.put(repr(error))

    well: list[bool] = []
    thread = threading.Thread(target=lambda: well.append(use(pair.first, 1000)))
    thread.start()
    context = multiprocessing.get_context("fork")
    results: multiprocessing.SimpleQueue[object] = context.SimpleQueue()
    child = context.Process(target=in_child, args=(results,))
    child.start()
    assert results.get() is True
    child.join()
    thread.join()
    assert well == [True]


# What is loaded.


class _Id(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint32), ("next", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class _Info(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("info", ctypes.c_uint64))


def loaded_programs() -> set[int]:
    """The ids of our programs that the kernel has, of whatever process: each of its programs is asked for its name."""
    number = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)
    if number is None:
        pytest.skip("needs a machine whose number of bpf(2) this test knows")
    libc = ctypes.CDLL(None, use_errno=True)
    get_next, get_descriptor, get_info = 11, 13, 15  # enum bpf_cmd
    ours, current = set(), 0
    while True:
        following = _Id(current)
        if libc.syscall(number, get_next, ctypes.byref(following), ctypes.sizeof(following)) < 0:
            assert ctypes.get_errno() == errno.ENOENT
            return ours
        current = following.next
        fd = libc.syscall(number, get_descriptor, ctypes.byref(_Id(current)), ctypes.sizeof(_Id))
        if fd < 0:
            continue  # gone meanwhile
        try:
            info = ctypes.create_string_buffer(128)
            attribute = _Info(fd, len(info), ctypes.addressof(info))
            assert libc.syscall(number, get_info, ctypes.byref(attribute), ctypes.sizeof(attribute)) == 0
            if info.raw[64:80].rstrip(b"\0") == b"mptcp_options":
                ours.add(current)
        finally:
            os.close(fd)


LOADED = """
import socket, sys, mptcp
sock = mptcp.Socket(fileno=int(sys.argv[1]))
for _ in range(3):
    sock.subflows()[1].setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
print("set", flush=True)
sys.stdin.read()
"""


@pytest.mark.mptcp_needs("bpf")
def test_loaded_once_and_nothing_is_left(pair: Pair) -> None:
    """Of a process that ends, and of one that is killed."""
    fd = pair.sock.fileno()
    for end in ("exit", "kill"):
        before = loaded_programs()
        other: subprocess.Popen[str] = pair.made.client.popen(
            [sys.executable, "-c", LOADED, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "set\n"
        # One of an earlier test may be on its way out.
        [program] = loaded_programs() - before
        if end == "kill":
            other.kill()
        other.communicate()
        assert eventually(lambda program=program: program not in loaded_programs())


@pytest.mark.mptcp_needs("bpf")
def test_no_descriptor_is_lost(pair: Pair) -> None:
    pair.second.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1)
    before = descriptors()
    for _ in range(20):
        pair.second.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1)
        with pytest.raises(mptcp.SubflowError):
            pair.second.setsockopt(TCP, socket.TCP_CONGESTION, b"nosuch")
    assert descriptors() == before
    with two_paths() as paths, pair_of(paths) as elsewhere:
        elsewhere.second.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1)
