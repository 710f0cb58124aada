"""Each policy that ships, on the traffic of a program that knows nothing of it: which subflows there are, and which
of them carry bytes, by the kernel's counters, before and after what the policy is about."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from mptcp.policies import Backup, FullMesh, Handover, NDiffPorts, OnlyFor, Prefer, Refresh, WhenLong
from support import PYTHON, RUN, connected, eventually, needs, needs_python

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

PORT = 5000

pytestmark = needs_python

# Sends until it is told to end by a line, and prints the digest of what it sent. It knows TCP only: `mptcp run` starts
# it.
SENDER = """
import hashlib, select, socket, sys
source, host, port = sys.argv[1:4]
sock = socket.socket()
sock.bind((source, 0))
sock.connect((host, int(port)))
print(sock.getsockname()[1], flush=True)
sent, block = hashlib.sha256(), bytes(range(251)) * 16
while not select.select([sys.stdin], [], [], 0)[0]:
    sock.sendall(block)
    sent.update(block)
sock.shutdown(socket.SHUT_WR)
sock.recv(1)
print(sent.hexdigest(), flush=True)
"""


@dataclass
class Site:
    """Three links between a client and a server that takes whatever comes."""

    client: Host
    server: Host
    links: list[Link]
    listener: mptcp.Socket
    received: dict[int, str] = field(default_factory=dict)

    def serve(self) -> None:
        while True:
            try:
                sock, (_, port) = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._drain, args=(sock, port), daemon=True).start()

    def _drain(self, sock: mptcp.Socket, port: int) -> None:
        digest = hashlib.sha256()
        with sock:
            while data := sock.recv(1 << 16):
                digest.update(data)
        self.received[port] = digest.hexdigest()


class Flow:
    """A sender's connection, looked at from outside."""

    def __init__(self, site: Site, process: subprocess.Popen[str]) -> None:
        self.site, self.process = site, process
        assert process.stdout is not None
        self.port = int(process.stdout.readline())

    def subflows(self) -> list[mptcp.Subflow]:
        found = [conn for conn in self.site.client.connections(port=self.port) if not conn.server_side]
        return found[0].subflows() if found else []

    def on(self, *links: Link) -> bool:
        """Whether the subflows are exactly on these links, one each."""
        addresses = sorted(link.address(self.site.client) for link in links)
        return sorted(local[0] for local in self.established()) == addresses

    def comes_to_be_on(self, *links: Link, seconds: float = 20) -> None:
        if not eventually(lambda: self.on(*links), seconds):
            there = [(one.state, one.local, one.remote) for one in self.subflows()]
            pytest.fail(f"not on {links} alone, but {there}")

    def established(self) -> list[tuple[str, int]]:
        return [subflow.local for subflow in self.subflows() if subflow.state == "ESTABLISHED"]

    def sent(self) -> dict[tuple[str, int], int]:
        return {subflow.local: subflow.tcp_info.bytes_acked or 0 for subflow in self.subflows()}

    def carrying(self, *links: Link) -> bool:
        """Whether it comes to this: of 400 kB acknowledged these links carried 50 kB each, and no other did."""
        wanted = {link.address(self.site.client) for link in links}
        before = self.sent()

        def settled() -> bool:
            nonlocal before
            now = self.sent()
            moved: dict[str, int] = {}
            for ends, count in now.items():
                moved[ends[0]] = moved.get(ends[0], 0) + count - before.get(ends, 0)
            if sum(moved.values()) < 400_000:
                return False
            # What was on its way on another link before takes its time.
            before = now
            return {address for address, count in moved.items() if count > 50_000} == wanted

        return eventually(settled, 30)

    def finish(self) -> None:
        """Ends the transfer: every byte has arrived."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        digest = self.process.stdout.readline().strip()
        assert self.process.wait(60) == 0
        assert eventually(lambda: self.port in self.site.received, 20)
        assert self.site.received[self.port] == digest


@pytest.fixture
def site(mptcp_lab: Lab) -> Iterator[Site]:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate="20mbit") for _ in range(3)]
    with server.create_server(("", PORT), backlog=64) as listener, server.run_policy(mptcp.Policy()):
        site = Site(client, server, links, listener)
        thread = threading.Thread(target=site.serve)
        thread.start()
        yield site
        with contextlib.suppress(OSError):
            listener.shutdown(2)
        thread.join(10)


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., Flow]]:
    with contextlib.ExitStack() as stack:

        def start(link: Link, to: Link | None = None, executable: str | None = None) -> Flow:
            """Begins over a link, to the server's address on another one, which that link leads to as well."""
            ends = link.address(site.client), (to or link).address(site.server)
            command = [*RUN, executable or PYTHON, "-c", SENDER, *ends, str(PORT)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = stack.enter_context(site.client.popen(command, text=True, **pipes))
            stack.callback(process.kill)
            return Flow(site, process)

        yield start


Start = Callable[..., Flow]


# The three sentences of 2016


def test_prefer_a_over_b_if_c_is_down(site: Site, start: Start) -> None:
    a, b, c = site.links
    with site.client.run_policy(Prefer(c, a, b)):
        flow = start(b)
        flow.comes_to_be_on(c)
        assert flow.carrying(c)
        c.down()
        flow.comes_to_be_on(a)
        assert flow.carrying(a)
        c.up()
        flow.comes_to_be_on(c)
        assert flow.carrying(c)
    flow.finish()


def test_use_b_only_for_a_given_app(site: Site, start: Start) -> None:
    a, b, c = site.links
    with site.client.run_policy(FullMesh(), OnlyFor(b, ports=[5000]), OnlyFor(c, programs=["no-such-program"])):
        flow = start(a)
        flow.comes_to_be_on(a, b)
        assert flow.carrying(a, b)
    flow.finish()


def test_two_that_want_the_same_path_at_once_open_it_once(site: Site, start: Start) -> None:
    a, b, c = site.links
    both = threading.Barrier(2)

    class Meeting(OnlyFor):
        """Opens when the other one has looked too, if it ever does."""

        def wanted(
            self, conn: mptcp.Connection, subflows: list[mptcp.Subflow], opening: Sequence[mptcp.Opening]
        ) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(1)
            super().wanted(conn, subflows, opening)

    with site.client.run_policy(Meeting(b, ports=[PORT]), Meeting(b, ports=[PORT]), OnlyFor(c, ports=[PORT])):
        flow = start(a)
        flow.comes_to_be_on(a, b, c)
        assert both.broken
    flow.finish()


def test_by_program(site: Site, start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    a, b, _ = site.links
    chosen = tmp_path_factory.mktemp("bin") / "the-chosen-one"
    chosen.symlink_to(PYTHON)
    with site.client.run_policy(OnlyFor(b, programs=[chosen.name])):
        flow, other = start(a, executable=str(chosen)), start(a)
        flow.comes_to_be_on(a, b)
        assert other.on(a)
        assert flow.carrying(a, b)
        assert other.on(a)
    flow.finish()
    other.finish()


def test_start_over_c_and_establish_a_if_the_flow_is_long_enough(site: Site, start: Start) -> None:
    a, _, c = site.links
    with site.client.run_policy(WhenLong(a, after_bytes=2_000_000)):
        flow = start(c)
        sizes: dict[int, int] = {}

        def has_two() -> bool:
            subflows = flow.subflows()
            size = sum(subflow.tcp_info.bytes_acked or 0 for subflow in subflows)
            sizes.setdefault(len(subflows), size)
            return len(subflows) == 2

        assert eventually(has_two)
        # One subflow at first, and the second when the flow is long enough: both numbers are of one reading.
        assert sizes.get(1, 0) < 2_000_000 <= sizes[2]
        flow.comes_to_be_on(a, c)
        assert flow.carrying(a, c)
    flow.finish()


def test_the_announced_address_on_the_path_is_tried_first(mptcp_two_paths: TwoPaths) -> None:
    client, _, paths = mptcp_two_paths
    with connected(*mptcp_two_paths) as made, client.run_policy(WhenLong(paths[1], after_bytes=100_000)):
        made.peer.announce_address(made.second[1])
        assert eventually(lambda: client.counters()["AddAddr"] == 1)
        made.sock.sendall(bytes(200_000))
        assert eventually(lambda: len(made.sock.subflows()) == 2)
        assert made.sock.subflows()[1].remote == (made.second[1], PORT)


@needs("iperf3")
def test_use_b_only_for_iperf3(site: Site, start: Start) -> None:
    a, b, _ = site.links
    ends = a.address(site.client), a.address(site.server)
    quiet = {"stdout": subprocess.DEVNULL}
    with (
        site.client.run_policy(OnlyFor(b, programs=["iperf3"])),
        site.server.popen([*RUN, "iperf3", "-s", "-1"], **quiet) as server,
    ):
        other = start(a)
        listens = ["ss", "-Htln", "sport = 5201"]
        assert eventually(lambda: bool(site.server.run(listens, capture_output=True).stdout), 20)

        def sent_over_b() -> int:
            subflows = [one for conn in site.client.connections(port=5201) for one in conn.subflows()]
            on_b = [one for one in subflows if one.local[0] == b.address(site.client)]
            return sum(one.tcp_info.bytes_acked or 0 for one in on_b)

        command = [*RUN, "iperf3", "-B", ends[0], "-c", ends[1], "-n", "8M"]
        with site.client.popen(command, **quiet) as client:
            assert eventually(lambda: sent_over_b() > 1_000_000, 30)
            assert other.on(a)
            assert client.wait(60) == 0
        assert server.wait(60) == 0
    other.finish()


# The others


def test_full_mesh(site: Site, start: Start) -> None:
    a, b, c = site.links
    c.down()
    with site.client.run_policy(FullMesh()):
        flow = start(a)
        flow.comes_to_be_on(a, b)
        # A new interface is used as soon as it is there, and an address as soon as it is announced.
        c.up()
        flow.comes_to_be_on(a, b, c)
        assert flow.carrying(a, b, c)
    flow.finish()


def test_full_mesh_with_an_announced_address(site: Site, start: Start) -> None:
    a, b, c = site.links
    c.down()
    with site.client.run_policy(FullMesh()):
        flow = start(a)
        flow.comes_to_be_on(a, b)
        [peer] = site.server.connections(port=flow.port)
        peer.announce_address(b.address(site.server))
        assert eventually(lambda: len(flow.subflows()) == 4, 20)
        remotes = {subflow.remote[0] for subflow in flow.subflows()}
        assert remotes == {a.address(site.server), b.address(site.server)}
    flow.finish()


def test_n_diff_ports(site: Site, start: Start) -> None:
    a = site.links[0]
    with site.client.run_policy(NDiffPorts(4)):
        flow = start(a)
        flow.comes_to_be_on(a, a, a, a)
        assert len({subflow.local[1] for subflow in flow.subflows()}) == 4
    flow.finish()


def test_backup(site: Site, start: Start) -> None:
    a, b, c = site.links
    with site.client.run_policy(Backup(a, b)):
        flow = start(a, to=c)
        flow.comes_to_be_on(a, b)
        assert [subflow.backup for subflow in flow.subflows()] == [False, True]
        assert flow.carrying(a)
        a.down()
        flow.comes_to_be_on(b)
        assert flow.carrying(b)
        a.up()
        flow.comes_to_be_on(a, b)
        assert flow.carrying(a)
    flow.finish()


def test_handover_from_a_link_that_goes_down(site: Site, start: Start) -> None:
    a, b, c = site.links
    with site.client.run_policy(Handover(a, b)):
        flow = start(a, to=c)
        assert flow.carrying(a)
        assert flow.on(a)
        a.down()
        flow.comes_to_be_on(b)
        assert flow.carrying(b)
    flow.finish()


def test_handover_from_a_slow_path(site: Site, start: Start) -> None:
    """A link became so narrow that every segment takes a quarter of a second."""
    a, b, _ = site.links
    a.set(queue="20ms")
    with site.client.run_policy(Handover(a, b, rtt=0.15)):
        flow = start(a)
        assert flow.carrying(a)
        a.set(rate="50kbit", queue="2s")
        flow.comes_to_be_on(b, seconds=60)
        assert flow.carrying(b)
        a.set(rate="20mbit")
    flow.finish()


def test_refresh(site: Site, start: Start) -> None:
    """What comes from the first subflow's port is dropped, as a NAT does that has forgotten it."""
    a = site.links[0]
    with site.client.run_policy(Refresh(after=0.5)):
        flow = start(a)
        assert flow.carrying(a)
        stuck = flow.subflows()[0].local
        rules = (
            "add table inet nat; add chain inet nat input { type filter hook input priority 0; }; "
            f"add rule inet nat input tcp sport {stuck[1]} drop"
        )
        site.server.run(["nft", rules], check=True)
        assert eventually(lambda: flow.on(a) and stuck not in flow.established(), 60)
        assert flow.carrying(a)
    flow.finish()


def test_wrong_arguments() -> None:
    for wrong in (
        lambda: Prefer(),
        lambda: Handover("eth0"),
        lambda: OnlyFor("eth0"),
        lambda: WhenLong("eth0"),
        lambda: NDiffPorts(0),
        lambda: Refresh(0),
        lambda: Prefer("10.0.0.1/8"),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()
    for of_wrong_type in (
        lambda: NDiffPorts("2"),  # type: ignore[arg-type]
        lambda: Prefer(3),  # type: ignore[arg-type]
        lambda: OnlyFor("eth0", programs="curl"),
        lambda: OnlyFor("eth0", ports=["http"]),  # type: ignore[list-item]
    ):
        with pytest.raises(TypeError):
            of_wrong_type()
