"""on_rto and on_progress: on a bench, whose numbers are exact, and in a lab."""

from __future__ import annotations

import queue

import mptcp
import pytest
from mptcp.lab import Host, Link
from mptcp.testing import PolicyBench
from support import connected

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

TWO = {"eth0": "10.0.1.1", "wlan0": "10.0.2.1"}


class Watch(mptcp.Policy):
    """As SMAPP's applications: 32 kB within half a second, and no RTO of more than a second."""

    tick = 0.1
    rto_threshold = 1.0

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[object, ...]] = queue.SimpleQueue()
        self.progress: mptcp.Progress | None = None

    def on_connection(self, conn: mptcp.Connection) -> None:
        self.progress = self.expect_progress(conn, 32_000, 0.5)

    def on_rto(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
        self.calls.put(("rto", conn, subflow))

    def on_progress(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> None:
        assert self.progress is not None
        self.calls.put(("progress", self.progress.is_met, self.now(), len(subflows)))

    def told(self) -> list[tuple[object, ...]]:
        return [self.calls.get() for _ in range(self.calls.qsize())]


def test_progress_that_is_made() -> None:
    policy = Watch()
    with PolicyBench(policy, addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", "192.0.2.1")
        assert policy.progress is not None
        bench.tick(conn, bytes_acked=10_000)
        assert (policy.progress.is_met, policy.progress.bytes) == (None, 10_000)
        # What a second subflow carries counts, and what is received.
        second = bench.join(conn, "10.0.2.1", "192.0.2.1")
        bench.tick(conn, second, bytes_received=22_000)
        assert policy.told() == [("progress", True, pytest.approx(0.2), 2)]
        assert policy.progress.is_met
        bench.advance(5)
        assert policy.told() == []


def test_progress_that_is_not() -> None:
    policy = Watch()
    with PolicyBench(policy, addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", "192.0.2.1")
        bench.tick(conn, bytes_acked=31_999)
        bench.advance(0.35)
        assert policy.told() == []
        bench.advance(0.1)
        assert policy.told() == [("progress", False, pytest.approx(0.5), 1)]
        # What a subflow carried that is gone by now still counts; what it carried before does not.
        policy.progress = again = policy.expect_progress(conn, 5_000, 1)
        [first] = bench.subflows(conn)
        bench.join(conn, "10.0.2.1", "192.0.2.1")
        bench.tick(conn, first, bytes_acked=36_000)
        assert again.bytes == 4_001
        bench.lose(first)
        bench.tick(conn, bytes_acked=1_000)
        assert again.is_met


def test_an_expectation_ends_with_its_connection() -> None:
    policy = Watch()
    with PolicyBench(policy, addresses=TWO) as bench:
        bench.end(bench.connection("10.0.1.1", "192.0.2.1"))
        bench.advance(2)
        assert policy.told() == []


def test_the_rto_passes_the_threshold_and_comes_back() -> None:
    policy = Watch()
    with PolicyBench(policy, addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", "192.0.2.1")
        [subflow] = bench.subflows(conn)
        bench.set(conn, bytes_acked=32_000)
        for rto, expected in ((1_000_000, 0), (1_000_001, 1), (4_000_000, 0), (900_000, 0), (1_200_000, 1)):
            bench.tick(conn, rto=rto)
            calls = [call for call in policy.told() if call[0] == "rto"]
            assert calls == [("rto", conn, subflow)] * expected, rto


def test_what_is_refused() -> None:
    policy = Watch()
    with PolicyBench(policy, addresses=TWO) as bench:
        conn = bench.connection("10.0.1.1", "192.0.2.1")
        for size, seconds, error in ((0, 1, ValueError), (1, float("nan"), ValueError), ("1", 1, TypeError)):
            with pytest.raises(error):
                policy.expect_progress(conn, size, seconds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not run"):
        policy.expect_progress(conn, 1, 1)
    other = mptcp.Policy()
    with PolicyBench(other, addresses=TWO) as bench, pytest.raises(TypeError, match="no on_progress"):
        other.expect_progress(bench.connection("10.0.1.1", "192.0.2.1"), 1, 1)
    policy.rto_threshold = 0
    with pytest.raises(ValueError, match="rto_threshold must be"):
        PolicyBench(policy, addresses=TWO)


def test_in_a_lab(mptcp_two_paths: TwoPaths) -> None:
    """A link that swallows everything: 32 kB are not through in time, and the RTO grows."""
    client, _, paths = mptcp_two_paths
    policy = Watch()
    with connected(*mptcp_two_paths) as made:
        paths[0].set(rate="20mbit", loss=1.0)
        made.sock.sendall(bytes(8_000))
        with client.run_policy(policy):
            # On a busy machine the RTO may have grown by the time that the policy runs.
            told = {what: rest for what, *rest in (policy.calls.get(timeout=60) for _ in range(2))}
            assert told.keys() == {"progress", "rto"}
            assert told["progress"][0] is False
            subflow = told["rto"][1]
            assert isinstance(subflow, mptcp.Subflow)
            assert subflow.tcp_info.rto > 1_000_000
            paths[0].set(rate="20mbit")


def test_progress_in_a_lab(mptcp_two_paths: TwoPaths) -> None:
    client = mptcp_two_paths[0]
    policy = Watch()
    with client.run_policy(policy), connected(*mptcp_two_paths) as made:
        made.sock.sendall(bytes(100_000))
        # On a busy machine half a second may be too short: it is decided, and by these bytes if by any.
        what, is_met, *_ = policy.calls.get(timeout=60)
        assert what == "progress"
        assert policy.progress is not None
        assert is_met == (policy.progress.bytes >= 32_000)
