"""Events: what happened is told, in order, to everyone who wants to know, and after a loss what there is."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import mptcp
import pytest
from mptcp import Event, EventKind, Events
from mptcp.lab import Host, Lab, Link
from support import (
    KERNEL,
    NO_CAPABILITIES,
    PORT,
    Connection,
    Pictured,
    churn,
    computing,
    connected,
    descriptors,
    events_are_read_late,
    eventually,
    exchange,
    held,
    holds_no_more_than,
    let_events_be_read,
    threads,
    true_picture,
)

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

DEADLINE = 20.0

CREATED, ESTABLISHED, CLOSED = EventKind.CREATED, EventKind.ESTABLISHED, EventKind.CLOSED
SUB_ESTABLISHED, SUB_CLOSED, SUB_PRIORITY = (
    EventKind.SUB_ESTABLISHED,
    EventKind.SUB_CLOSED,
    EventKind.SUB_PRIORITY,
)


def until(events: Events, *kinds: EventKind) -> list[Event]:
    """Every event until the last of these kinds, which come in this order."""
    missing, taken = list(kinds), []
    deadline = time.monotonic() + DEADLINE
    while missing:
        event = events.get(max(0.0, deadline - time.monotonic()))
        assert event is not None, f"{missing} did not come, but {taken}"
        taken.append(event)
        if event.kind == missing[0]:
            missing.pop(0)
    return taken


def queued(events: Events) -> list[Event]:
    return list(iter(lambda: events.get(0), None))


# What is told.


def test_the_life_of_a_connection_and_a_subflow(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with contextlib.ExitStack() as stack:
        at_client, at_server = stack.enter_context(client.events()), stack.enter_context(server.events())
        assert at_client.source == at_server.source == "netlink"
        before = time.monotonic_ns()
        with connected(client, server, paths) as connection:
            token = connection.sock.token
            subflow = connection.sock.open_subflow(*connection.second)
            subflow.set_backup(True)
            until(at_server, SUB_PRIORITY)
            subflow.close()
            until(at_server, SUB_CLOSED)
            ends = connection.sock.getsockname(), connection.sock.getpeername()
        told = until(at_client, CREATED, ESTABLISHED, SUB_ESTABLISHED, SUB_CLOSED, CLOSED)
        created, established, joined, left, closed = told
        assert {event.token for event in told} == {token}
        assert [(event.local, event.remote) for event in (created, established)] == [ends, ends]
        assert [(event.local, event.remote) for event in (joined, left)] == [(subflow.local, subflow.remote)] * 2
        assert (created.server_side, joined.server_side, closed.local) == (False, None, None)
        assert (joined.local_id, joined.remote_id) == (subflow.local_id, subflow.remote_id)
        times = [before, *(event.time_ns for event in told), time.monotonic_ns()]
        assert times == sorted(times)


def test_the_other_side(mptcp_two_paths: TwoPaths) -> None:
    with mptcp_two_paths[1].events() as events, connected(*mptcp_two_paths) as connection:
        subflow = connection.sock.open_subflow(*connection.second)
        subflow.set_backup(True)
        if KERNEL >= (6, 2):
            [listener] = until(events, EventKind.LISTENER_CREATED)
            assert listener.local == ("0.0.0.0", PORT)
        told = until(events, CREATED, ESTABLISHED, SUB_ESTABLISHED, SUB_PRIORITY)
        assert told[0].server_side is True
        assert (told[3].local, told[3].remote, told[3].backup) == (subflow.remote, subflow.local, True)
        assert {event.token for event in told} == {connection.peer.token}


def test_addresses_that_the_peer_announces(connection: Connection) -> None:
    address = connection.second[1]
    with connection.sock.events() as events:
        address_id = connection.peer.announce_address(address, 5001)
        connection.peer.remove_address(address_id)
        announced, removed = until(events, EventKind.ANNOUNCED, EventKind.REMOVED)[-2:]
        assert (announced.remote, announced.remote_id, announced.local) == ((address, 5001), address_id, None)
        assert (removed.remote, removed.remote_id) == (None, address_id)


def test_links_and_addresses(mptcp_two_paths: TwoPaths) -> None:
    client, _, paths = mptcp_two_paths
    up, down = EventKind.LINK_UP, EventKind.LINK_DOWN
    with client.events() as events:
        name = paths[1].interface(client)
        client.run(["ip", "address", "add", "192.0.2.1/32", "dev", name], check=True)
        client.run(
            ["ip", "address", "change", "192.0.2.1/32", "dev", name, "valid_lft", "99", "preferred_lft", "9"],
            check=True,
        )
        client.run(["ip", "address", "del", "192.0.2.1/32", "dev", name], check=True)
        added, removed = until(events, EventKind.ADDRESS_ADDED, EventKind.ADDRESS_REMOVED)
        assert (added.local, added.interface, removed.local) == (("192.0.2.1", 0), name, ("192.0.2.1", 0))

        # What is no transition is not told: neither a change of the MTU nor being set up twice.
        client.run(["ip", "link", "set", name, "mtu", "1400"], check=True)
        client.run(["ip", "link", "set", name, "up"], check=True)
        paths[1].down()
        paths[1].up()
        links = [event for event in until(events, down, up) if event.kind in (up, down)]
        assert [(event.kind, event.interface) for event in links] == [(down, name), (up, name)]


def test_the_carrier_is_a_part_of_being_up(mptcp_lab: Lab) -> None:
    client = mptcp_lab.host("client")
    client.run(["ip", "link", "add", "near", "type", "veth", "peer", "name", "far"], check=True)
    for name in ("near", "far"):
        client.run(["ip", "link", "set", name, "up"], check=True)
    with client.events() as events:
        client.run(["ip", "link", "set", "far", "down"], check=True)
        down = set()
        while "near" not in down:
            down.add(until(events, EventKind.LINK_DOWN)[-1].interface)


def test_of_one_connection_there_are_its_own(mptcp_two_paths: TwoPaths) -> None:
    client, _, paths = mptcp_two_paths
    with connected(*mptcp_two_paths) as connection, connection.sock.events() as events:
        remote = connection.sock.getpeername()
        with client.create_connection(remote, timeout=10) as other, connection.listener.accept()[0] as peer:
            exchange(other, peer)
            other.open_subflow(*connection.second)
        paths[1].down()
        paths[1].up()
        connection.sock.open_subflow(*connection.second)
        assert {event.token for event in until(events, SUB_ESTABLISHED)} == {connection.sock.token}


def test_of_one_connection_they_are_over_with_its_end(connection: Connection) -> None:
    [handle] = connection.client.connections()
    with connection.sock.events() as events, handle.events() as others:
        connection.sock.close()
        for stream in (events, others):
            # What was told of its beginning may still have been on the way.
            assert [event.kind for event in stream if event.kind not in (CREATED, ESTABLISHED)] == [CLOSED]
        assert events.get() is None
        assert select.select([events], [], [], 0)[0] == [events]


def test_what_an_open_that_is_not_waited_for_came_to_is_an_event(connection: Connection) -> None:
    local, remote = connection.second
    with connection.sock.events() as events:
        assert connection.sock.open_subflow(local, remote, timeout=0) is None
        joined = until(events, SUB_ESTABLISHED)[-1]
        assert joined.local is not None
        assert (joined.local[0], joined.remote) == (local, (remote, PORT))
        assert connection.sock.open_subflow(local, (remote, 5001), timeout=0) is None
        refused = until(events, SUB_CLOSED)[-1]
        assert (refused.remote, refused.error) == ((remote, 5001), errno.ECONNREFUSED)


def test_a_closed_initial_subflow_ends_once(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    with connection.client.events() as events:
        connection.sock.close_subflow(1)
        connection.sock.close()
        told = [event for event in until(events, SUB_CLOSED, CLOSED) if event.kind == SUB_CLOSED]
        assert len(told) == 1
        assert told[0].local not in (None, ("0.0.0.0", 0))


def test_the_interface_that_a_subflow_is_bound_to(connection: Connection) -> None:
    name = connection.paths[1].interface(connection.client)
    with connection.sock.events() as events:
        try:
            connection.sock.open_subflow(*connection.second, interface=name)
        except mptcp.UnsupportedError as error:
            pytest.skip(str(error))
        assert until(events, SUB_ESTABLISHED)[-1].interface == name


# How it is waited for.


def test_a_descriptor_is_readable_while_there_is_an_event(connection: Connection) -> None:
    with connection.sock.events() as events, select.epoll() as epoll:
        epoll.register(events, select.EPOLLIN)
        connection.sock.open_subflow(*connection.second)
        connection.sock.open_subflow(*connection.second)
        assert [fd for fd, _ in epoll.poll(DEADLINE)] == [events.fileno()]
        until(events, SUB_ESTABLISHED, SUB_ESTABLISHED)
        assert epoll.poll(0) == []


def test_waiting_has_an_end(mptcp_lab: Lab) -> None:
    with mptcp_lab.host("a").events() as events:
        assert events.get(0) is None
        assert events.get(0.01) is None
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                events.get(wrong)


def test_a_signal_handler_runs_while_it_waits(connection: Connection) -> None:
    class Rung(Exception):
        pass

    def ring(*unused: object) -> None:
        raise Rung

    before = signal.signal(signal.SIGUSR1, ring)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with connection.sock.events() as events:
            queued(events)

            def wait() -> None:
                timer.start()
                until(events, SUB_CLOSED)

            with pytest.raises(Rung):
                wait()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_one_that_is_closed(mptcp_lab: Lab) -> None:
    events = mptcp_lab.host("a").events()
    results: list[object] = []

    def iterate() -> None:
        results.append(list(events))

    def get() -> None:
        try:
            events.get()
        except ValueError as error:
            results.append(str(error))

    waiting = [threading.Thread(target=target) for target in (iterate, get)]
    for thread in waiting:
        thread.start()
    events.close()
    for thread in waiting:
        thread.join(DEADLINE)
    assert sorted(map(str, results)) == ["[]", "the Events object is closed"]
    events.close()
    for use in (events.fileno, events.get, lambda: events.source):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert list(events) == []


def test_one_thread_and_nothing_left(mptcp_two_paths: TwoPaths) -> None:
    client, _, _ = mptcp_two_paths
    with connected(*mptcp_two_paths) as connection:
        before = held()
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(client.events())
                stack.enter_context(connection.sock.events())
            # The one of the host's sockets is there already, and two sockets of rtnetlink are shared.
            assert descriptors() == before[0] + 40 + 2
            assert threads() <= before[1]
        assert holds_no_more_than(before), held()


def test_one_that_nobody_holds_ends(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    before, tasks = held(), set(os.listdir("/proc/self/task"))
    events = host.events()
    assert len({*os.listdir("/proc/self/task")} - tasks) == 1
    del events
    assert holds_no_more_than(before), held()


def test_a_forked_child_makes_its_own(connection: Connection) -> None:
    with connection.sock.events() as events:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                for use in (lambda: events.get(0), events.fileno, lambda: next(events)):
                    with pytest.raises(OSError, match="forked"):
                        use()
                events.close()
                with connection.sock.events() as own:
                    connection.sock.open_subflow(*connection.second)
                    assert until(own, SUB_ESTABLISHED)
                status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert until(events, SUB_ESTABLISHED)


def test_an_interpreter_ends_while_there_are_events(mptcp_lab: Lab) -> None:
    program = """if True:
        import mptcp, threading
        events = mptcp.Events()
        threading.Thread(target=events.get, daemon=True).start()
    """
    done = mptcp_lab.host("a").run([sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


# What is refused.


def test_arguments(mptcp_lab: Lab) -> None:
    for wrong in ("1", 1.0, True):
        with pytest.raises(TypeError):
            Events(token=wrong)  # type: ignore[arg-type]
    for number in (-1, 2**32):
        with pytest.raises(ValueError, match="token"):
            Events(token=number)
    with pytest.raises(TypeError):
        Events(1)  # type: ignore[misc]
    with mptcp.Socket() as sock, pytest.raises(OSError, match="not connected") as caught:
        sock.events()
    assert caught.value.errno == errno.ENOTCONN


def test_a_connection_that_has_ended(connection: Connection) -> None:
    [handle] = connection.client.connections()
    connection.sock.close()
    with pytest.raises(OSError, match=r"ended|no connection") as caught:
        handle.events()
    assert caught.value.errno == errno.ENOTCONN


def test_what_happened_before_is_not_told(connection: Connection) -> None:
    """Even where it has not been read yet, because another program keeps the reader from running."""
    client, address = connection.client, connection.sock.getpeername()
    with contextlib.ExitStack() as stack:
        earlier = stack.enter_context(client.events())
        with events_are_read_late(), computing():
            sock = stack.enter_context(client.create_connection(address, timeout=10))
            peer = stack.enter_context(connection.listener.accept()[0])
            exchange(sock, peer)
            later = stack.enter_context(client.events())
        sock.close()
        peer.close()
        assert [event.kind for event in until(later, CLOSED) if event.kind != SUB_CLOSED] == [CLOSED]
        assert [event.kind for event in until(earlier, CLOSED)][:2] == [CREATED, ESTABLISHED]


def test_an_event_is_a_value() -> None:
    event = Event(SUB_CLOSED, 5, token=7, local=("10.0.0.1", 1), remote=("fe80::1%3", 2), error=111, interface="eth1")
    assert (event.kind, event.time_ns, event.local) == (SUB_CLOSED, 5, ("10.0.0.1", 1))
    assert event.remote == ("fe80::1", 2, 0, 3)
    assert event.backup is None
    for same in (pickle.loads(pickle.dumps(event)), copy.copy(event), Event(**event.asdict())):
        assert same == event
        assert hash(same) == hash(event)
    assert event != Event(SUB_CLOSED, 6)
    with pytest.raises(AttributeError):
        event.token = 8  # type: ignore[misc]
    assert repr(event).startswith("<Event SUB_CLOSED token=7 local=('10.0.0.1', 1)")
    for wrong in ("SUB_CLOSED", None):
        with pytest.raises(TypeError):
            Event(wrong, 5)  # type: ignore[arg-type]


# What is lost.


def test_a_picture_survives_the_loss_of_events_in_the_kernel(connection: Connection) -> None:
    with connection.client.events() as events, contextlib.ExitStack() as stack:
        # The smallest buffer that the kernel allows holds two or three events.
        events._native.set_receive_buffer(1)
        listener = Pictured()
        listener.connections.update(true_picture(connection.client))
        with events_are_read_late():
            churn(connection, 5000, stack)
        alone = stack.enter_context(connection.client.create_connection(connection.sock.getpeername(), timeout=10))
        stack.enter_context(connection.listener.accept()[0])
        assert alone.token

        def settled() -> bool:
            for event in queued(events):
                listener.take(event)
            return listener.connections == true_picture(connection.client)

        assert eventually(settled, DEADLINE)
        # And goes on to be right.
        connection.sock.open_subflow(*connection.second)
        assert eventually(settled, DEADLINE)
        assert listener.overruns > 0, "no event was lost"
        assert len(listener.connections) > 15


def test_a_picture_survives_when_nobody_takes_events(connection: Connection) -> None:
    with connection.client.events() as events, contextlib.ExitStack() as stack:
        # Without any subflow only its token leads to it.
        connection.sock.close_subflow(1)
        assert eventually(lambda: connection.sock.subflows() == [])
        # One by one, so that the reader loses none.
        churn(connection, 16_384 + 1000, stack, at_once=1)
        let_events_be_read(connection.client)
        first = events.get(0)
        assert first is not None
        assert first.kind == EventKind.OVERRUN
        followed = list(iter(lambda: events.get(0), None))
        state = [event for event in followed if event.time_ns == first.time_ns]
        assert state == followed[: len(state)]
        kinds = [event.kind for event in state]
        name = connection.paths[1].interface(connection.client)
        assert (EventKind.LINK_UP, name) in [(event.kind, event.interface) for event in state]
        assert connection.second[0] in [event.local[0] for event in state if event.local]
        assert kinds.index(CREATED) > kinds.index(EventKind.ADDRESS_ADDED)
        told = {event.kind: event for event in state if event.token == connection.sock.token}
        assert list(told) == [CREATED, ESTABLISHED, SUB_CLOSED]
        listener = Pictured()
        for event in (first, *followed):
            listener.take(event)

        def settled() -> bool:
            # The last ones may be on their way to the reader.
            for event in queued(events):
                listener.take(event)
            picture = {token: subflows for token, subflows in listener.connections.items() if subflows}
            return picture == true_picture(connection.client)

        assert eventually(settled, DEADLINE)


# Without privilege.

Runner = Callable[[Host, str], "subprocess.Popen[str]"]

POLLING = """if True:
    import mptcp, sys
    with mptcp.create_connection(("10.0.1.2", 5000), timeout=10) as sock:
        try:
            sock.events().close()
        except PermissionError as error:
            print(error, flush=True)
            sys.exit()
        with mptcp.Events() as everything, sock.events() as events:
            print(events.source, everything.source, flush=True)
            for event in events:
                print(event.kind.name, event.local and event.local[0], event.backup, flush=True)
                if event.kind == mptcp.EventKind.SUB_CLOSED:
                    sock.close()
            assert events.get(0) is None
            seen = []
            while not seen or seen[-1].kind != mptcp.EventKind.CLOSED:
                seen.append(everything.get(20))
            print(*(event.kind.name for event in seen))
"""


def test_without_privilege_a_connection_is_polled(mptcp_two_paths: TwoPaths, unprivileged: Runner) -> None:
    client, server, paths = mptcp_two_paths
    with server.create_server(("", PORT)) as listener:
        program = unprivileged(client, POLLING)
        try:
            peer, _ = listener.accept()
            with peer:
                assert program.stdout is not None
                lines = iter(program.stdout.readline, "")
                first = next(lines)
                if KERNEL < (6, 15) and "tells others nothing of them" in first:
                    pytest.skip(first.strip())
                assert first == "polling polling\n"
                peer.sendall(b"x")
                [handle] = client.connections()
                # Its owner may not, but the lab's user may.
                assert eventually(lambda: opened(handle, paths[1].address(client), paths[1].address(server)))
                local = paths[1].address(client)
                assert next(lines) == f"ESTABLISHED {paths[0].address(client)} None\n"
                assert next(lines) == f"SUB_ESTABLISHED {local} False\n"
                [subflow] = [each for each in handle.subflows() if not each.initial]
                [peers] = [each for each in peer.subflows() if not each.initial]
                peers.set_backup(True)
                assert next(lines) == f"SUB_PRIORITY {local} True\n"
                handle.close_subflow(subflow)
                assert next(lines) == f"SUB_CLOSED {local} True\n"
                assert next(lines) == "CLOSED None None\n"
                assert next(lines) == "ESTABLISHED SUB_ESTABLISHED SUB_PRIORITY SUB_CLOSED CLOSED\n"
            assert program.wait(DEADLINE) == 0
        finally:
            program.kill()
            program.wait()
            program.stdout.close()


def opened(connection: mptcp.Connection, *ends: str) -> bool:
    with contextlib.suppress(mptcp.SubflowError):  # not fully established yet
        connection.open_subflow(*ends)
        return True
    return False


@pytest.fixture
def unprivileged() -> Runner:
    """Starts a Python program in a host without the capabilities that one has there."""

    def run(host: Host, program: str) -> subprocess.Popen[str]:
        command = [*NO_CAPABILITIES, sys.executable, "-W", "error", "-c", program]
        return host.popen(command, stdout=subprocess.PIPE, text=True)

    return run
