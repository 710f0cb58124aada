"""How soon a lost subflow is replaced: by the package, by mptcpd, by bare Python, and by the in-kernel path manager.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/policies.py [--rounds 60] [--way here|there|down]

It runs in a lab of its own, without privilege, and prints a table after some minutes. What is not installed is left
out: mptcpd (Debian: mptcpd), and a C compiler and mptcpd's headers (libmptcpd3-dev, libell-dev). A benchmark, not a
test: nothing fails for being slow.

The subflow ends in one of three ways: reset by the client's side (SOCK_DESTROY, as `ss -K`), reset by the server's, or
its interface goes down at the client. Each way has its table, with a new connection a round; the contestants take
turns. All times are the kernel's, of packets at the client: the RST, by which the kernel raises SUB_CLOSED too, then
the SYN with MP_JOIN, then the fourth ACK, by which the server has accepted the subflow. An interface that goes down
sends no packet: there the time runs from the request to take it down, and what the kernel takes to do so is in it.

The kernel raises SUB_CLOSED in a worker, which it starts at once in some rounds and late in others, whoever waits for
the event: medians are those of one kind of round in one run and of the other in the next. The times are therefore the
20 % quantile of the rounds, and `slow` is the share of rounds in which the SYN took more than twice that.

The links are as fast as the machine, so that the path manager is all of it but for the handshake. Over a network that
takes a round trip and a half more, of everybody alike.

All contestants do the same work up to the SYN, with two differences. Bare Python and mptcpd send the command at once;
if the connection's lock is held, all such commands of the host wait for it. The package sets a timer by which another
thread takes over, and where the event does not show that the kernel had the lock just now, it first waits for the lock
by sock_diag: one to three system calls more. And neither bare Python nor mptcpd checks what it opens; bare Python keeps
only the remote end of each connection.

The contestants replace a subflow by what they do so with, the first four in a process of its own:

- callback: policies_ours.py, which opens it in on_subflow_lost() or on_link_down().
- standing order: the same by conn.when_lost(); and once more beside a thread of its Python that computes all the time,
  which is started for each of its rounds, so that all others have an idle machine.
- mptcp policy: the command with FullMesh, or with Prefer where the interface goes down.
- bare Python: policies_bare.py, one loop over netlink sockets.
- mptcpd with its plugin sspi. It is given the subflow, since sspi opens none.
- mptcpd with the plugin policies_mptcpd.c, written for this: the least that mptcpd can do the same with. Once more
  beside a process that computes, which keeps the kernel from taking an interface down as fast as on an idle machine.
- in-kernel: two endpoints more, and a limit of one subflow, so that one endpoint is left to replace the other.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import mptcp
from mptcp.lab import Host, Lab, Link

PORT = 5000
SECONDS = 1.0
# Whoever did nothing in so many rounds does nothing.
HOPELESS = 3
HERE = Path(__file__).parent
MPTCPD = "/usr/libexec/mptcpd"

ETH_P_ALL, SO_TIMESTAMPNS = 3, 35
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
FIN, SYN, RST, ACK = 1, 2, 4, 16
KIND_MPTCP, MP_JOIN = 30, 1


class Packet(NamedTuple):
    time: float
    source: tuple[str, int]
    destination: tuple[str, int]
    flags: int
    joins: bool


class Rig(NamedTuple):
    """A contestant's own two hosts with three links, and what it runs at the client."""

    name: str
    client: Host
    server: Host
    links: list[Link]
    is_in_kernel: bool
    opens: bool
    command: Callable[[str], list[str]] | None
    #: Something computes beside it, so it runs in its own rounds only.
    is_busy: bool


Times = dict[str, list[tuple[float, float] | None]]
Cause = Callable[[Rig, mptcp.Connection, mptcp.Connection, mptcp.Subflow], float | None]


# What starts a contestant on a client, by the way.
Command = Callable[[Host, list[Link]], Callable[[str], list[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--way", choices=WAYS, help="one way only")
    parser.add_argument("--only", action="append", help="contestants whose names begin so")
    arguments = parser.parse_args()
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        only = tuple(arguments.only or [""])
        rigs = [rig for rig in contestants(lab, folder) if rig.name.startswith(only)]
        for way in WAYS if arguments.way is None else [arguments.way]:
            title, cause = WAYS[way]
            print_table(title, run(rigs, title, cause, arguments.rounds))


def contestants(lab: Lab, folder: str) -> Iterator[Rig]:
    def paths(links: list[Link], client: Host) -> list[str]:
        return [f"{link.interface(client)}={link.address(client)}" for link in links[1:]]

    def program(name: str, *arguments: str) -> Command:
        start = [sys.executable, str(HERE / name), *arguments]
        return lambda client, links: lambda way: [*start, *paths(links, client)]

    def policy(client: Host, links: list[Link]) -> Callable[[str], list[str]]:
        prefer = "prefer:" + ",".join(link.interface(client) for link in links[1:])
        start = [sys.executable, "-m", "mptcp", "policy", "--builtin"]
        return lambda way: [*start, prefer if "down" in way else "fullmesh"]

    number = 0

    def rig(
        name: str,
        *,
        command: Command | None = None,
        is_in_kernel: bool = False,
        opens: bool = True,
        is_busy: bool = False,
    ) -> Rig:
        nonlocal number
        number += 1
        client, server = lab.host(f"client{number}"), lab.host(f"server{number}")
        links = [lab.link(client, server) for _ in range(3)]
        # What accepts is the same for all, and needs no process.
        server.set_path_manager("kernel")
        server.set_limits(subflows=8)
        if is_in_kernel:
            client.set_path_manager("kernel")
            client.set_limits(subflows=1)
            for link in links[1:]:
                client.add_endpoint(link.address(client), subflow=True)
        run = command(client, links) if command is not None else None
        return Rig(name, client, server, links, is_in_kernel, opens, run, is_busy)

    yield rig("in-kernel", is_in_kernel=True)
    yield rig("callback", command=program("policies_ours.py", "callback"))
    yield rig("standing order", command=program("policies_ours.py", "order"))
    yield rig("standing order, Python computes", command=program("policies_ours.py", "order", "--busy"), is_busy=True)
    yield rig("mptcp policy", command=policy)
    yield rig("bare Python", command=program("policies_bare.py"))
    if not os.access(MPTCPD, os.X_OK):
        print(f"{MPTCPD} is not installed")
        return
    sspi = [MPTCPD, "--load-plugins=sspi", "--path-manager=sspi", "--log=null"]
    yield rig("mptcpd, sspi", command=lambda *unused: lambda way: sspi, opens=False)
    build = [
        "cc",
        "-O2",
        "-shared",
        "-fPIC",
        "-o",
        f"{folder}/replace.so",
        HERE / "policies_mptcpd.c",
        "-lmptcpd",
        "-lell",
    ]
    if shutil.which("cc") is None or subprocess.run(build, stderr=subprocess.DEVNULL).returncode != 0:
        print("a C compiler, or libmptcpd3-dev and libell-dev, are not installed")
        return
    own = [MPTCPD, f"--plugin-dir={folder}", "--load-plugins=replace", "--path-manager=replace", "--log=null"]
    yield rig("mptcpd, policies_mptcpd.c", command=lambda *unused: lambda way: own)
    beside = """"$0" -c 'while True: sum(range(1000))' & busy=$!; "$@" & trap "kill $busy $!; wait" TERM; wait"""
    both = ["sh", "-c", beside, sys.executable, *own]
    yield rig("the same, Python computes", command=lambda *unused: lambda way: both, is_busy=True)


def run(rigs: list[Rig], way: str, cause: Cause, rounds: int) -> Times:
    """Seconds to the SYN and to the fourth ACK, of each round in which the subflow was replaced."""
    times: Times = {rig.name: [] for rig in rigs}
    with contextlib.ExitStack() as stack:
        # mptcpd does not learn at once of addresses that come back with their interface.
        anew = {rig.name for rig in rigs if cause is down or rig.is_busy}
        for rig in rigs:
            if rig.name not in anew:
                stack.enter_context(running(rig, way))
        for _ in range(rounds):
            for rig in random.sample(rigs, len(rigs)):
                taken = times[rig.name]
                if len(taken) < HOPELESS or any(taken):
                    with running(rig, way) if rig.name in anew else contextlib.nullcontext():
                        taken.append(one_round(rig, cause))
    return times


@contextlib.contextmanager
def running(rig: Rig, way: str) -> Iterator[None]:
    """The process at the client, from when it hears of events."""
    if rig.command is None:
        yield
        return
    process = rig.client.popen(rig.command(way), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: is_subscribed(rig.client), f"{rig.name} to subscribe")
        # mptcpd reads the addresses afterwards, and nothing tells when it has.
        time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def one_round(rig: Rig, cause: Cause) -> tuple[float, float] | None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(rig.server.create_server(("", PORT)))
        address = rig.links[0].address(rig.server)
        sock = stack.enter_context(rig.client.create_connection((address, PORT), timeout=10))
        peer = stack.enter_context(listener.accept()[0])
        for sender, receiver in ((sock, peer), (peer, sock)):
            sender.sendall(b"x")
            receiver.recv(1)
        (here,) = rig.client.connections(token=sock.token)
        (there,) = rig.server.connections(token=peer.token)
        local = rig.links[1].address(rig.client)
        if not rig.opens:
            here.open_subflow(local, address)

        def lives_on() -> list[mptcp.Subflow]:
            return [each for each in here.subflows() if each.local[0] == local and each._accepted]

        wait_for(lambda: bool(lives_on()), f"the subflow of {rig.name}")
        # Until nobody is at work any more.
        time.sleep(0.05)
        (subflow,) = lives_on()
        capture = stack.enter_context(rig.client.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        capture.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        capture.setblocking(False)
        begin = cause(rig, here, there, subflow)
        packets: list[Packet] = []
        deadline = time.monotonic() + SECONDS
        result = None
        while result is None and time.monotonic() < deadline:
            time.sleep(0.02)
            packets += captured(capture)
            result = replaced(packets, begin, subflow)
    rig.links[1].up()
    return result


def reset_here(rig: Rig, here: mptcp.Connection, there: mptcp.Connection, subflow: mptcp.Subflow) -> None:
    ends = [f"{host}:{port}" for host, port in (subflow.local, subflow.remote)]
    rig.client.run(
        ["ss", "-K", "src", ends[0], "dst", ends[1]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def reset_there(rig: Rig, here: mptcp.Connection, there: mptcp.Connection, subflow: mptcp.Subflow) -> None:
    ends = [f"{host}:{port}" for host, port in (subflow.remote, subflow.local)]
    rig.server.run(
        ["ss", "-K", "src", ends[0], "dst", ends[1]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def down(rig: Rig, here: mptcp.Connection, there: mptcp.Connection, subflow: mptcp.Subflow) -> float:
    """The time at which the kernel was told to take the interface down."""
    name = rig.links[1].interface(rig.client).encode()
    with rig.client.socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as sock:
        (flags,) = struct.unpack_from("=16xH", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("=16s24x", name)))
        request = struct.pack("=16sH22x", name, flags & ~IFF_UP)
        begin = time.clock_gettime(time.CLOCK_REALTIME)
        fcntl.ioctl(sock, SIOCSIFFLAGS, request)
    return begin


WAYS: dict[str, tuple[str, Cause]] = {
    "here": ("reset by the client's side", reset_here),
    "there": ("reset by the server's side", reset_there),
    "down": ("interface down at the client", down),
}


def captured(capture: socket.socket) -> list[Packet]:
    """The TCP segments over IPv4 that have passed."""
    packets = []
    while True:
        try:
            frame, ancillary, _, _ = capture.recvmsg(65536, 64)
        except BlockingIOError:
            return packets
        seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
        packet = frame[14:]
        if frame[12:14] != b"\x08\x00" or packet[9] != socket.IPPROTO_TCP:
            continue
        segment = packet[(packet[0] & 15) * 4 :]
        source_port, destination_port = struct.unpack_from("!HH", segment)
        source = socket.inet_ntoa(packet[12:16]), source_port
        destination = socket.inet_ntoa(packet[16:20]), destination_port
        joins = any(kind == KIND_MPTCP and data[0] >> 4 == MP_JOIN for kind, data in options(segment))
        packets.append(Packet(seconds + nanoseconds / 1e9, source, destination, segment[13], joins))


def options(segment: bytes) -> Iterator[tuple[int, bytes]]:
    position, end = 20, (segment[12] >> 4) * 4
    while position < end and segment[position] != 0:
        if segment[position] == 1:
            position += 1
            continue
        length = segment[position + 1]
        yield segment[position], segment[position + 2 : position + length]
        position += length


def replaced(packets: list[Packet], begin: float | None, lost: mptcp.Subflow) -> tuple[float, float] | None:
    """Seconds from the loss to the SYN and to the fourth ACK of the first subflow that was accepted after it."""
    if begin is None:
        begin = next(
            (each.time for each in packets if each.flags & RST and lost.local[:2] in (each.source, each.destination)),
            None,
        )
    if begin is None:
        return None
    for syn in packets:
        if not (syn.joins and syn.flags & (SYN | ACK) == SYN):
            continue
        third = fourth = None
        for each in packets:
            if third is None and (each.source, each.destination) == (syn.source, syn.destination):
                third = each if each.joins and not each.flags & SYN else None
            elif third is not None and (each.source, each.destination) == (syn.destination, syn.source):
                fourth = each
                break
        if fourth is not None and not fourth.flags & (RST | FIN):
            return syn.time - begin, fourth.time - begin
    return None


def is_subscribed(host: Host) -> bool:
    """Whether a process there listens to a generic netlink multicast group."""
    rows = host.run(["cat", "/proc/net/netlink"], capture_output=True, text=True, check=True).stdout.splitlines()
    return any(row.split()[1] == "16" and int(row.split()[3], 16) != 0 for row in rows[1:])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.001)


def quantile(times: Iterable[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[int(len(ordered) * share)]


def print_table(way: str, times: Times) -> None:
    """Of each contestant the 20 % quantiles, and its SYN's as a multiple of the others'."""
    print(
        f"\n{way + ', ms':34}{'to SYN':>9}{'accepted':>10}{'slow':>7}{'of mptcpd':>11}{'of Python':>11}"
        f"{'of in-kernel':>14}   replaced"
    )
    syns = {name: quantile((each[0] for each in taken if each), 0.2) for name, taken in times.items() if any(taken)}
    daemon = min((syn for name, syn in syns.items() if name.startswith("mptcpd")), default=None)
    for name, taken in times.items():
        done = [each for each in taken if each]
        share = f"{len(done)} of {len(taken)}"
        if not done:
            dashes = "".join(f"{'-':>{width}}" for width in (9, 10, 7, 11, 11, 14))
            print(f"{name:34}{dashes}   {share}, in {SECONDS:.0f} s each")
            continue
        syn = syns[name]
        accepted = quantile((each[1] for each in done), 0.2)
        slow = sum(each[0] > 2 * syn for each in done) / len(done)
        line = f"{name:34}{syn * 1e3:9.3f}{accepted * 1e3:10.3f}{slow:7.0%}"
        for reference, width in ((daemon, 11), (syns.get("bare Python"), 11), (syns.get("in-kernel"), 14)):
            line += f"{'-':>{width}}" if reference is None else f"{syn / reference:{width}.2f}"
        print(f"{line}   {share}")


if __name__ == "__main__":
    main()
