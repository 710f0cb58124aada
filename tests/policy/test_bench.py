"""PolicyBench: what a test says happens reaches the policies as it does in a kernel, and they decide the same."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Link
from mptcp.policies import Announce, Backup, Budget, Deadline, FullMesh, NDiffPorts, OnlyFor, Prefer, Refresh, Split
from mptcp.testing import PolicyBench
from support import connected, eventually

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

TWO = {"eth0": "10.0.1.1", "wlan0": "10.0.2.1"}
PEER = ("192.0.2.1", 443)


def test_the_page_about_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    [program] = [block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "PolicyBench" in block]
    names: dict[str, Any] = {}
    exec(program, names)
    tests = [thing for name, thing in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


class Told(mptcp.Policy):
    """Keeps what it is told."""

    tick = 0.5

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_connection(self, conn: mptcp.Connection) -> None:
        self.calls.append(("connection", conn.local, conn.remote, conn.uid, conn.program, conn.server_side))

    def on_closed(self, conn: mptcp.Connection) -> None:
        self.calls.append(("closed", conn.token))

    def on_subflow_established(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
        self.calls.append(("established", subflow.local[0], subflow.remote))

    def on_subflow_failed(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        self.calls.append(("failed", event.error))

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        self.calls.append(("lost", event.local, event.error))

    def on_address_announced(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        self.calls.append(("announced", event.remote, event.remote_id))

    def on_address_removed(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        self.calls.append(("removed", event.remote_id))

    def on_link_up(self, event: mptcp.Event) -> None:
        self.calls.append(("up", event.interface))

    def on_link_down(self, event: mptcp.Event) -> None:
        self.calls.append(("down", event.interface))

    def on_address(self, event: mptcp.Event) -> None:
        self.calls.append((event.kind.name, event.local, event.interface))

    def on_tick(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> None:
        self.calls.append(("tick", self.now(), [subflow.tcp_info.rtt for subflow in subflows]))

    def since(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


def test_what_a_policy_is_told() -> None:
    policy = Told()
    with PolicyBench(policy, addresses=TWO) as bench:
        conn = bench.connection(("10.0.1.1", 1000), PEER, uid=1000, program="curl")
        assert policy.since() == [("connection", ("10.0.1.1", 1000), PEER, 1000, "curl", False)]
        conn.open_subflow("10.0.2.1")
        [opened] = bench.opened
        assert opened == (conn, ("10.0.2.1", 0), PEER, False, None, None)
        assert [opening.local for opening in policy.opening(conn)] == [("10.0.2.1", 0)]
        second = bench.establish(opened)
        assert policy.since() == [("established", "10.0.2.1", PEER)]
        assert conn.subflows() == bench.subflows(conn) == [*bench.subflows(conn)[:1], second]
        bench.tick(conn, second, rtt=20_000)
        bench.tick(conn, rtt=30_000)
        assert policy.since() == [("tick", 0.5, [0, 20_000]), ("tick", 1.0, [30_000, 30_000])]
        bench.lose(second, errno.ETIMEDOUT)
        assert policy.since() == [("lost", second.local, errno.ETIMEDOUT)]
        number = bench.announce(conn, "192.0.2.2")
        bench.withdraw(conn, number)
        assert policy.since() == [("announced", ("192.0.2.2", 0), number), ("removed", number)]
        bench.link_down("wlan0")
        assert [local.address for local in policy.addresses()] == ["10.0.1.1"]
        bench.link_up("wlan0")
        bench.add_address("usb0", "10.0.3.1")
        bench.remove_address("usb0", "10.0.3.1")
        assert policy.since() == [
            ("down", "wlan0"),
            ("up", "wlan0"),
            ("ADDRESS_ADDED", ("10.0.3.1", 0), "usb0"),
            ("ADDRESS_REMOVED", ("10.0.3.1", 0), "usb0"),
        ]
        joined = bench.join(conn, "10.0.1.1", "192.0.2.9")
        assert policy.since() == [("established", "10.0.1.1", joined.remote)]
        bench.end(conn)
        assert policy.since() == [("closed", conn.token)]
    assert policy._runtime is None


def test_an_open_that_nobody_answers() -> None:
    policy = Told()
    bench = PolicyBench(policy, addresses=TWO)
    conn = bench.connection("10.0.1.1", PEER)
    conn.open_subflow("10.0.2.1")
    conn.open_subflow("10.0.2.1", ("192.0.2.7", 443))
    bench.lose(bench.opened[1], errno.ECONNREFUSED)
    bench.advance(4.9)
    assert [call for call in policy.since() if call[0] == "failed"] == [("failed", errno.ECONNREFUSED)]
    bench.advance(0.1)
    assert [call for call in policy.since() if call[0] == "failed"] == [("failed", errno.ETIMEDOUT)]
    with pytest.raises(ValueError, match="given up before"):
        bench.establish(bench.opened[0])
    conn.open_subflow("10.9.9.9")
    bench.advance(0)
    assert ("failed", errno.EADDRNOTAVAIL) in policy.since()


def test_an_open_whose_subflow_is_gone_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its event may have been lost: it fails all the same, and once."""
    policy = Told()
    bench = PolicyBench(policy, addresses=TWO)
    conn = bench.connection("10.0.1.1", PEER)
    native = bench._native(conn)
    conn.open_subflow("10.0.2.1")
    read: list[mptcp.Subflow] = []

    def read_too_early(connections: Sequence[Any]) -> list[list[mptcp.Subflow]]:
        """The first time the subflow is there, and never again."""
        subflow = mptcp.Subflow(token=conn.token, local=("10.0.2.1", 40_000), remote=PEER, owner=conn)
        there = [] if read else [subflow]
        read.extend(there)
        return [[*native.snapshots(one), *there] for one in connections]

    bench.advance(4.5)
    policy.since()
    monkeypatch.setattr(bench._kernel, "subflows_of", read_too_early)
    bench.advance(0.5)
    bench.advance(1)
    assert read, "nothing was closed"
    assert [call for call in policy.since() if call[0] == "failed"] == [("failed", errno.ETIMEDOUT)]
    assert list(policy.opening(conn)) == []


def test_an_exception_is_the_tests() -> None:
    class Broken(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            raise KeyError("oops")

    with PolicyBench(Broken(), addresses=TWO) as bench, pytest.raises(KeyError, match="oops"):
        bench.connection("10.0.1.1", PEER)


def test_what_is_refused() -> None:
    class Misspelt(mptcp.Policy):
        def on_conection(self, conn: mptcp.Connection) -> None: ...

    with pytest.raises(TypeError, match="on_conection"):
        PolicyBench(Misspelt(), addresses=TWO)
    with pytest.raises(ValueError, match="'eth9' does not exist"):
        PolicyBench(Prefer("eth9"), addresses=TWO)
    with pytest.raises(ValueError, match="does not appear to be"):
        PolicyBench(FullMesh(), addresses={"eth0": "10.0.1"})
    bench = PolicyBench(FullMesh(), addresses=TWO)
    conn = bench.connection("10.0.1.1", PEER)
    for wrong in (lambda: bench.link_down("eth9"), lambda: bench.advance(-1), lambda: bench.set(conn, rtt=-1)):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()
    bench.end(conn)
    with pytest.raises(ValueError, match="has ended"):
        bench.tick(conn)


def test_policies_in_their_own_time() -> None:
    """Hours of a budget, and the minutes of a backup, in no time."""
    budget = Budget("wlan0", bytes_per_hour=1e6)
    with PolicyBench(budget, addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", PEER)
        metered = bench.establish(bench.opened[0])
        bench.tick(conn, metered, bytes_sent=600_000)
        assert bench.closed == []
        bench.tick(conn, metered, bytes_sent=600_000, bytes_received=500_000)
        assert bench.closed == [metered]
        bench.advance(3500)
        assert len(bench.opened) == 1
        bench.advance(200)
        assert len(bench.opened) >= 2
    with PolicyBench(Backup("eth0", "wlan0", rto=1), addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", PEER)
        bench.establish(bench.opened[0])
        bench.tick(conn, bench.subflows(conn)[0], rto=2_000_000)
        assert [subflow.local[0] for subflow in bench.closed] == ["10.0.1.1"]
        bench.advance(9)
        assert len(bench.opened) == 1
        bench.advance(2)
        assert bench.opened[-1].local[0] == "10.0.1.1"


def test_a_deadline() -> None:
    for rate, expected in ((200_000, 0), (50_000, 1)):
        with PolicyBench(Deadline("wlan0", size=10e6, seconds=10), addresses=TWO) as bench:
            conn = bench.connection("10.0.1.1", PEER)
            for number in range(20):
                bench.tick(conn, bytes_acked=rate * number)
            assert len(bench.opened) == expected


def test_the_other_policies() -> None:
    with PolicyBench(NDiffPorts(8), addresses=TWO) as bench:
        bench.connection("10.0.1.1", PEER)
        assert [opened.local for opened in bench.opened] == [("10.0.1.1", 0)] * 7
    with PolicyBench(OnlyFor("wlan0", programs=["curl"]), FullMesh(), addresses=TWO) as bench:
        bench.connection("10.0.1.1", PEER, program="wget")
        assert bench.opened == []
        bench.connection("10.0.1.1", PEER, program="curl")
        assert len(bench.opened) == 1
    with PolicyBench(Announce(), addresses={**TWO, "eth2": ["10.0.3.1", "fd00::1"]}) as bench:
        bench.connection("10.0.1.1", PEER, server_side=True)
        assert [announced.address for announced in bench.announced] == ["10.0.2.1", "10.0.3.1"]
        bench.link_down("wlan0")
        assert bench.withdrawn == [bench.announced[0].address_id]
    with PolicyBench(Refresh(every=2), addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", PEER)
        second = bench.join(conn, "10.0.1.1", PEER)
        bench.set(conn, pacing_rate=2_000_000)
        bench.set(conn, second, pacing_rate=1_000_000)
        bench.advance(3)
        bench.establish(bench.opened[0])
        assert bench.closed == [second]


def test_the_caps_of_a_split() -> None:
    """The path that is ahead is capped, the one that is behind is not; at the end both are as before."""
    unlimited = 2**64 - 1
    with PolicyBench(Split({"eth0": 50, "wlan0": 50}), addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", PEER)
        second = bench.establish(bench.opened[0])
        first = bench.subflows(conn)[0]
        for number in range(1, 30):
            bench.set(conn, second, bytes_acked=100_000 * number, notsent_bytes=1, max_pacing_rate=unlimited)
            bench.tick(conn, first, bytes_acked=300_000 * number, notsent_bytes=1, max_pacing_rate=unlimited)
        capped = {option.subflow for option in bench.options}
        assert capped == {first}
        assert 0 < int.from_bytes(bench.options[-1].value, "little") < 1_000_000
    assert bench.options[-1].value == b"\xff\xff\xff\xff"


# The same script on a bench and in a lab

Script = Callable[[Any], None]
POLICIES: dict[str, Callable[[str, str], mptcp.Policy]] = {
    "Prefer": lambda first, second: Prefer(second, first),
    "FullMesh": lambda first, second: FullMesh(),
    "Backup": lambda first, second: Backup(first, second),
    "Backup the other way": lambda first, second: Backup(second, first),
}
SCRIPTS: dict[str, list[tuple[str, int]]] = {
    "the second link": [("down", 1), ("up", 1)],
    "the first link": [("down", 0), ("up", 0)],
    "both in turn": [("down", 1), ("up", 1), ("down", 0), ("up", 0)],
}


def on_a_bench(
    policy: mptcp.Policy, script: list[tuple[str, int]], addresses: dict[str, list[str]], remote: Any
) -> Any:
    """What was opened and closed by the beginning, and by the end of each step; whatever is opened is accepted."""
    names = list(addresses)
    with PolicyBench(policy, addresses=addresses) as bench:
        steps = []
        established = 0

        def settle() -> None:
            nonlocal established
            while established < len(bench.opened):
                established += 1
                bench.establish(bench.opened[established - 1])
            closed = sorted(subflow.local[0] for subflow in bench.closed)
            steps.append((sorted(opened.local[0] for opened in bench.opened), closed))

        bench.connection(addresses[names[0]][0], remote)
        settle()
        for what, number in script:
            (bench.link_up if what == "up" else bench.link_down)(names[number])
            settle()
        return steps


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_a_lab_decides_as_a_bench_does(
    mptcp_two_paths: TwoPaths, make: Callable[[str, str], mptcp.Policy], script: list[tuple[str, int]]
) -> None:
    client, server, paths = mptcp_two_paths
    first, second = (path.address(client) for path in paths)
    addresses = {"eth1": [first], "eth2": [second]}
    expected = on_a_bench(make(first, second), script, addresses, (paths[0].address(server), 5000))
    opened: list[str] = []
    closed: list[str] = []
    with (
        server.run_policy(mptcp.Policy()),
        client.events() as events,
        client.run_policy(make(first, second)),
        connected(client, server, paths),
    ):

        def is_as(step: tuple[list[str], list[str]]) -> bool:
            while (event := events.get(0)) is not None:
                if event.kind == mptcp.EventKind.SUB_ESTABLISHED and event.local is not None:
                    opened.append(event.local[0])
                elif event.kind == mptcp.EventKind.SUB_CLOSED and event.local is not None:
                    closed.append(event.local[0])
            return (sorted(opened), sorted(closed)) == step

        assert eventually(lambda: is_as(expected[0])), (expected[0], opened, closed)
        for (what, number), step in zip(script, expected[1:], strict=True):
            getattr(paths[number], what)()
            assert eventually(lambda step=step: is_as(step)), (what, number, step, opened, closed)  # type: ignore[misc]
