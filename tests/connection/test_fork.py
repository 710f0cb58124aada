"""What a forked child may do while threads of its parent use the same objects: it never waits for one of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import mptcp
import pytest
from mptcp import _core
from mptcp._connection import list_connections
from mptcp._events import Events
from mptcp.policies import FullMesh
from support import Connection, eventually, subscribers

FORKS = 20


def in_child(act: Callable[[], object]) -> None:
    """Fork, and run ``act`` in the child. A child that waits for a thread that it lacks is ended by SIGALRM."""
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended != -signal.SIGALRM, "the child waited for ever"
    assert ended == 0, f"the child ended with {ended}"


@contextlib.contextmanager
def meanwhile(*actions: Callable[[], object]) -> Iterator[None]:
    """Threads that do these, again and again, until the block ends; all have begun before it."""
    stop, failures = threading.Event(), list[BaseException]()
    begun = threading.Barrier(len(actions) + 1)

    def run(act: Callable[[], object]) -> None:
        begun.wait()
        try:
            while not stop.is_set():
                act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in actions]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def opening(connection: Connection) -> Callable[[], None]:
    """Opens subflows that nobody answers."""
    local, remote = connection.second
    nobody = remote.rsplit(".", 1)[0] + ".94"

    def act() -> None:
        with contextlib.suppress(mptcp.SubflowError):
            connection.sock.open_subflow(local, nobody, timeout=0.0005)

    return act


def test_fork_while_threads_open_subflows(connection: Connection) -> None:
    sock = connection.sock

    def act() -> None:
        opened = sock.open_subflow(*connection.second, timeout=10)
        assert opened is not None
        assert opened in sock.subflows()
        sock.close_subflow(opened)

    act_in_parent = opening(connection)
    with meanwhile(act_in_parent, act_in_parent, sock.subflows, sock.info):
        for _ in range(FORKS):
            in_child(act)
    act()


def test_fork_while_namespaces_come_and_go(connection: Connection) -> None:
    """Whoever forks meets the list of namespaces in use, and sockets whose namespace is looked for."""
    with connection.client.socket() as at_client, connection.server.socket() as at_server:

        def look() -> None:
            with mptcp.wrap(connection.sock) as sock:
                assert len(sock.subflows()) == 1
            for place in (at_client, at_server):
                listed = list_connections(place.fileno(), token=None, pid=None, port=None)
                assert [len(one.subflows()) for one in listed] == [1]

        with meanwhile(look, look, look):
            for _ in range(FORKS):
                in_child(look)


def test_fork_while_events_are_read(connection: Connection) -> None:
    """The child's reader of events is its own, and the parent's goes on."""
    sock = connection.sock

    def watch() -> None:
        with Events._of(_core.EventStream(sock.fileno(), None)) as events, sock.events() as of_one:
            events.get(0)
            of_one.get(0)

    def act() -> None:
        for _ in range(3):
            # Threads of the child get the stacks of the parent's, and with them their pthread_t.
            opened = sock.open_subflow(*connection.second, timeout=10)
            assert opened is not None
            watch()
            sock.close_subflow(opened)
        sock.close()

    opened = sock.open_subflow(*connection.second)
    with meanwhile(watch, watch):
        for _ in range(FORKS):
            in_child(act)
    with sock.events() as events:
        sock.close_subflow(opened)
        found = events.get(10)
        assert found is not None
        assert found.kind == mptcp.EventKind.SUB_CLOSED


def test_a_recording_is_the_parents(connection: Connection) -> None:
    with mptcp.Recorder(connection.sock, interval=0.0005) as recorder:

        def read() -> None:
            for name in ("samples", "connections", "events", "metadata"):
                with pytest.raises(OSError, match="forked child") as caught:
                    getattr(recorder, name)
                assert caught.value.errno == errno.EBADF
            recorder.close()

        def read_all() -> None:
            assert recorder.metadata
            assert recorder.samples is not None

        with meanwhile(read_all, read_all):
            for _ in range(FORKS):
                in_child(read)
    in_child(lambda: len(recorder.samples) + len(recorder.events))


def test_a_lab_is_the_parents(connection: Connection) -> None:
    first, lab = connection.paths[0], connection.client.lab

    def use() -> None:
        for call in (
            lambda: lab.host("another"),
            lambda: lab.link(connection.client, connection.server),
            first.down,
            first.up,
            first.stats,
            lambda: first.set(rate="1mbit"),
            connection.client.socket,
            connection.client.counters,
        ):
            with pytest.raises(OSError, match="forked child") as caught:
                call()
            assert caught.value.errno == errno.EBADF
        lab.close()

    with meanwhile(first.stats, lambda: connection.client.socket().close()):
        for _ in range(FORKS):
            in_child(use)
    assert first.stats()


def test_policies_are_the_parents(connection: Connection) -> None:
    """A child neither ends them nor puts the path manager back, and holds nothing that outlives them."""
    client = connection.client
    client.set_path_manager("kernel")
    ready, end = os.pipe(), os.pipe()
    running = client.run_policy(FullMesh())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            running.close()
            del running
            os.write(ready[1], b"x")
            os.close(end[1])
            os.read(end[0], 1)
            status = 0
        finally:
            os._exit(status)
    try:
        assert os.read(ready[0], 1) == b"x"
        assert client.get_path_manager() == "userspace"
        assert eventually(lambda: len(connection.sock.subflows()) == 2)
        running.close()
        assert client.get_path_manager() == "kernel"
        # The child is still there.
        client.run_policy(FullMesh()).close()
    finally:
        for descriptor in (*ready, *end):
            os.close(descriptor)
        assert os.waitpid(child, 0)[1] == 0


def test_an_opening_of_the_parents_is_not_ended(connection: Connection) -> None:
    """What a child forgets of a subflow on its way, its parent goes on with."""
    local, remote = connection.second
    connection.paths[1].set(delay="150ms")

    async def open_one() -> mptcp.Subflow | None:
        opening = asyncio.ensure_future(mptcp.aio.open_subflow(connection.sock, local, remote, timeout=10))
        while len(connection.sock.subflows()) < 2:
            await asyncio.sleep(0)

        coroutine = opening.get_coro()
        assert coroutine is not None
        in_child(coroutine.close)
        return await opening

    opened = asyncio.run(open_one())
    assert opened in connection.sock.subflows()
    assert subscribers(connection.client) == 1
