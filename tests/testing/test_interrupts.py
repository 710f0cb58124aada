"""SIGINT at random moments: what was being made is taken back, and made again right afterwards."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import Lab
from mptcp.policies import FullMesh
from support import Connection, eventually, held, holds_no_more_than

TIMES = 20


def interrupted(act: Callable[[], object], seconds: float) -> bool:
    """Do it, and have SIGINT come after this time. Return whether it was cut short by that."""
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    try:
        try:
            timer.start()
            act()
        finally:
            timer.cancel()
            if timer.ident is not None:
                timer.join()
    except KeyboardInterrupt as error:
        # Whoever holds the exception holds the frames: nothing may depend on their end.
        held_by_us.append(error)
        return True
    return False


held_by_us: list[BaseException] = []


@pytest.fixture
def at_random_moments() -> Iterator[Callable[..., None]]:
    """Do something, interrupted at a random moment each time; then, without, it must work, and nothing is left."""

    def run(act: Callable[[], object], times: int = TIMES) -> None:
        def timed() -> float:
            begin = time.perf_counter()
            act()
            return time.perf_counter() - begin

        act()
        took = timed()
        gc.collect()
        before = held()
        moments = random.Random(15)
        cut_short = tries = 0
        with warnings.catch_warnings():
            # Between the end of a constructor and the with-block nobody can close what it made but its finalizer.
            warnings.simplefilter("ignore", ResourceWarning)
            # On a busy machine SIGINT may come late, or a moment was chosen by a time that was long: then it tries on.
            while tries < times or (cut_short <= times / 5 and tries < 10 * times):
                cut_short += interrupted(act, moments.uniform(0, 1.2 * took))
                took = timed()
                tries += 1
                held_by_us.clear()
                gc.collect()
        assert cut_short > times / 5, "hardly any moment was met"
        assert holds_no_more_than(before), f"{held()} descriptors and threads, not {before}"

    yield run
    held_by_us.clear()


AtRandomMoments = Callable[..., None]


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update((task / "children").read_text().split())
    return found


@pytest.mark.timeout(300)
def test_labs(at_random_moments: AtRandomMoments) -> None:
    before = children()

    def act() -> None:
        with Lab() as lab:
            lab.link(lab.host("a"), lab.host("b"))

    at_random_moments(act, times=8)
    assert eventually(lambda: children() <= before)


def test_links(mptcp_lab: Lab, at_random_moments: AtRandomMoments) -> None:
    a, b = mptcp_lab.host("a"), mptcp_lab.host("b")

    def act() -> None:
        link = mptcp_lab.link(a, b, rate="10mbit")
        link.down()
        link.up()
        link.set(delay="1ms")

    at_random_moments(act)
    # Each is there with both ends, or not at all.
    assert [link.address(a) for link in mptcp_lab.links] == [one for one in a.addresses if "." in one]
    for link in mptcp_lab.links:
        link.up()
        assert link.interface(a) in a.run(["ip", "-br", "link"], capture_output=True, text=True).stdout
        assert len(link.stats()) == 2
    assert a.run(["ping", "-c", "1", "-w", "5", mptcp_lab.links[-1].address(b)], capture_output=True).returncode == 0


def test_hosts(mptcp_lab: Lab) -> None:
    moments = random.Random(15)
    for name in (f"host{number}" for number in range(TIMES // 3)):
        interrupted(lambda name=name: mptcp_lab.host(name), moments.uniform(0, 0.03))
        host = mptcp_lab.hosts.get(name) or mptcp_lab.host(name)
        assert host.counters()


def test_sockets_of_a_host(connection: Connection, at_random_moments: AtRandomMoments) -> None:
    at_random_moments(lambda: connection.client.socket().close())


def test_opening_subflows(connection: Connection, at_random_moments: AtRandomMoments) -> None:
    sock = connection.sock

    def act() -> None:
        opened = sock.open_subflow(*connection.second, timeout=10)
        assert opened is not None
        sock.close_subflow(opened)

    connection.paths[1].set(delay="2ms")
    at_random_moments(act)
    # One that was accepted at the moment of the interrupt is there; none is on its way.
    assert {subflow.state for subflow in sock.subflows()} == {"ESTABLISHED"}


def test_policies(connection: Connection, at_random_moments: AtRandomMoments) -> None:
    client = connection.client
    client.set_path_manager("kernel")
    policy = FullMesh()

    def act() -> None:
        with client.run_policy(policy):
            pass

    at_random_moments(act)
    assert client.get_path_manager() == "kernel"
    assert policy._runtime is None


@pytest.mark.parametrize("to_file", [False, True], ids=["in memory", "to a file"])
def test_recordings(
    pair: tuple[mptcp.Socket, mptcp.Socket], at_random_moments: AtRandomMoments, tmp_path: Path, to_file: bool
) -> None:
    if to_file:
        pytest.importorskip("pyarrow", reason="pyarrow is missing")

    def act() -> None:
        with mptcp.Recorder(pair[0], 0.001, path=tmp_path / "run.arrow" if to_file else None) as recorder:
            assert recorder.metadata["interval"] == 0.001

    at_random_moments(act)


def test_events(connection: Connection, at_random_moments: AtRandomMoments) -> None:
    def act() -> None:
        with connection.client.events() as of_all, connection.sock.events() as of_one:
            of_all.get(0)
            of_one.get(0)

    at_random_moments(act)


PATH_MANAGER = """
import random, signal, threading, mptcp
moments = random.Random(15)
for _ in range(300):
    timer = threading.Timer(moments.uniform(0, 2e-4), signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    try:
        timer.start()
        with mptcp.use_path_manager("kernel"):
            pass
    except KeyboardInterrupt:
        pass
    while timer.is_alive():
        try:
            timer.join()
        except KeyboardInterrupt:
            pass
    assert mptcp.get_path_manager() == "userspace"
print("done")
"""


def test_the_path_manager_of_a_namespace(mptcp_lab: Lab) -> None:
    """In a process of its own, since it is the caller's network namespace whose path manager is changed."""
    command = [sys.executable, "-c", PATH_MANAGER]
    done = mptcp_lab.host("a").run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
