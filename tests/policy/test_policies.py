"""Each policy that ships, on the traffic of a program that knows nothing of it: which subflows there are, and which
of them carry bytes, by the kernel's counters, before and after what the policy is about."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Sequence

import mptcp
import pytest
from flows import PORT, Site, Start
from mptcp.lab import Host, Link
from mptcp.policies import (
    Announce,
    Backup,
    Budget,
    Deadline,
    FullMesh,
    Handover,
    NDiffPorts,
    OnlyFor,
    Prefer,
    Refresh,
    Split,
    WhenLong,
)
from support import PYTHON, RUN, connected, eventually, needs, needs_python

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

pytestmark = needs_python


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
        # As the link counts it: iperf3 may have ended before this process looks.
        before = b.stats()[0].bytes
        command = [*RUN, "iperf3", "-B", ends[0], "-c", ends[1], "-n", "8M"]
        with site.client.popen(command, **quiet) as client:
            assert eventually(lambda: b.stats()[0].bytes - before > 1_000_000, 30)
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
        # On Linux 6.1 MP_PRIO makes it a backup, after it was accepted.
        assert eventually(lambda: [subflow.backup for subflow in flow.subflows()] == [False, True])
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


def test_refresh_of_the_slowest(site: Site, start: Start) -> None:
    """Of three subflows one is replaced again and again, and there are three in the end."""
    a = site.links[0]
    with site.client.run_policy(NDiffPorts(3), Refresh(after=60, every=0.4)):
        flow = start(a)
        flow.comes_to_be_on(a, a, a)
        first = set(flow.established())
        assert eventually(lambda: len(first & set(flow.established())) <= 1, 60)
        flow.comes_to_be_on(a, a, a)
        assert flow.carrying(a)
    flow.finish()


def test_backup_by_rto(site: Site, start: Start) -> None:
    """The primary link swallows everything and stays up: only the RTO tells."""
    a, b, c = site.links
    with site.client.run_policy(Backup(a, b, rto=1.0)):
        flow = start(a, to=c)
        flow.comes_to_be_on(a, b)
        assert flow.carrying(a)
        a.set(rate="20mbit", loss=1.0)
        flow.comes_to_be_on(b, seconds=30)
        assert flow.carrying(b)
        a.set(rate="20mbit")
    flow.finish()


def test_handover_by_rto(site: Site, start: Start) -> None:
    a, b, c = site.links
    with site.client.run_policy(Handover(a, b, rto=1.0)):
        flow = start(a, to=c)
        assert flow.carrying(a)
        a.set(rate="20mbit", loss=1.0)
        flow.comes_to_be_on(b, seconds=30)
        assert flow.carrying(b)
        a.set(rate="20mbit")
    flow.finish()


def test_budget(site: Site, start: Start) -> None:
    a, b, _ = site.links
    budget = Budget(b, bytes_per_hour=2_000_000)
    with site.client.run_policy(FullMesh(exclude=site.links[2]), budget):
        flow = start(a)
        flow.comes_to_be_on(a, b)
        flow.comes_to_be_on(a, seconds=40)
        assert flow.carrying(a)
        # At 20 Mbit/s a tick is 250 kB; a busy machine may be late for some.
        assert 2_000_000 <= budget.used() < 6_000_000
        assert budget.is_spent()
        other = start(a)
        assert other.carrying(a)
        assert other.on(a)
    flow.finish()
    other.finish()


def test_budget_of_the_only_path(site: Site, start: Start) -> None:
    """The last subflow is not closed: it waits with the backup flag until there is another path."""
    a, b, c = site.links
    for link in (b, c):
        link.down()
    with site.client.run_policy(FullMesh(), Budget(a, bytes_per_hour=500_000)):
        flow = start(a)
        assert eventually(lambda: [subflow.backup for subflow in flow.subflows()] == [True], 40)
        b.up()
        flow.comes_to_be_on(b, seconds=40)
        assert flow.carrying(b)
    flow.finish()


def test_deadline_that_would_be_missed(site: Site, start: Start) -> None:
    a, b, _ = site.links
    with site.client.run_policy(Deadline(b, size=9_000_000, seconds=3)):
        flow = start(a)
        flow.comes_to_be_on(a, b)
        # Once all is through the path is left.
        flow.comes_to_be_on(a, seconds=40)
    flow.finish()


def test_deadline_that_is_met(site: Site, start: Start) -> None:
    a, b, c = site.links
    with site.client.run_policy(Deadline(b, size=4_000_000, seconds=60), FullMesh(exclude=c)):
        flow = start(a)

        def is_over() -> bool:
            assert flow.on(a) or not flow.subflows()
            return sum(flow.sent().values()) > 4_000_000

        assert eventually(is_over, 40)
        assert flow.on(a)
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
        lambda: FullMesh(exclude=["10.0.0.1/8"]),
        lambda: Announce(""),
        lambda: Budget("eth0", 0),
        lambda: Deadline("eth0", size=0, seconds=1),
        lambda: Deadline("eth0", size=1, seconds=float("nan")),
        lambda: Split({"eth0": 1}),
        lambda: Split({"eth0": 1, "eth1": 0}),
        lambda: Backup("eth0", "eth1", rto=0),
        lambda: Refresh(every=-1),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()
    for of_wrong_type in (
        lambda: NDiffPorts("2"),  # type: ignore[arg-type]
        lambda: Prefer(3),  # type: ignore[arg-type]
        lambda: OnlyFor("eth0", programs="curl"),
        lambda: OnlyFor("eth0", ports=["http"]),  # type: ignore[list-item]
        lambda: FullMesh(exclude=3),  # type: ignore[arg-type]
        lambda: FullMesh(bind=1),  # type: ignore[arg-type]
        lambda: Split(["eth0", "eth1"]),  # type: ignore[arg-type]
        lambda: Split({"eth0": "1", "eth1": "2"}),  # type: ignore[dict-item]
        lambda: Handover("eth0", "eth1", rto="1"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            of_wrong_type()
