"""Standing orders: subflows that are opened when others are lost, without Python's part; and commands that wait."""

from __future__ import annotations

import contextlib
import errno
import mmap
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from mptcp.policies import Backup, FullMesh, Handover, Prefer
from support import (
    KERNEL,
    PATIENCE,
    ROOT,
    STUCK_MEMORY,
    Connection,
    connected,
    eventually,
    exchange,
    has_userfaultfd,
)

METHODS = (
    "on_connection",
    "on_subflow_established",
    "on_subflow_failed",
    "on_subflow_lost",
    "on_link_down",
    "on_closed",
)

#: At the peer: closes the subflow from an end, and writes into a file when another one is accepted.
PEER = """
import mmap, sys, mptcp
token, host, port, name = sys.argv[1:]
end = host, int(port)
(conn,) = mptcp.connections(token=int(token))
there = {one.remote for one in conn.subflows()}
with open(name, "r+b") as file:
    shared = mmap.mmap(file.fileno(), 1)
print(flush=True)
sys.stdin.readline()
next(one for one in conn.subflows() if one.remote == end).close()
while {one.remote for one in conn.subflows() if one.state == "ESTABLISHED"} <= there:
    pass
shared[0] = 1
"""


class Recorded(mptcp.Policy):
    """Keeps what it is told, with the subflows that were being opened then."""

    open_timeout = 20.0 * PATIENCE

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[str, tuple[Any, ...], list[Any]]] = queue.Queue()

    def next(self, method: str) -> tuple[Any, ...]:
        called, arguments, self.opening_then = self.calls.get(timeout=30 * PATIENCE)
        assert called == method, arguments
        return arguments


def _recording(method: str) -> Any:
    def record(self: Recorded, *arguments: Any) -> None:
        conn = arguments[0]
        opening = list(self.opening(conn)) if isinstance(conn, mptcp.Connection) else []
        self.calls.put((method, arguments, opening))

    # Callbacks must have the names of Policy's parameters' number.
    count = {"on_connection": 1, "on_link_down": 1, "on_closed": 1}.get(method, 2)
    return (lambda self, one: record(self, one)) if count == 1 else (lambda self, one, other: record(self, one, other))


for _method in METHODS:
    setattr(Recorded, _method, _recording(_method))


class Acting(Recorded):
    """Does something once a subflow is lost."""

    act: Callable[[], object] | None = None

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        super().on_subflow_lost(conn, event)  # type: ignore[safe-super]
        if self.act is not None:
            self.act()


@pytest.fixture
def made(mptcp_two_paths: tuple[Host, Host, tuple[Link, Link]]) -> Iterator[Connection]:
    with connected(*mptcp_two_paths) as made, made.server.run_policy(mptcp.Policy()):
        yield made


def opened(policy: Recorded, conn: mptcp.Connection, local: str, remote: str) -> mptcp.Subflow:
    conn.open_subflow(local, remote)
    _, subflow = policy.next("on_subflow_established")
    return subflow


def at_the_peer(made: Connection, subflow: mptcp.Subflow) -> mptcp.Subflow:
    (conn,) = made.server.connections(token=made.peer.token)
    return next(one for one in conn.subflows() if one.remote[:2] == subflow.local[:2])


def test_a_lost_subflow_is_replaced_and_told(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        subflow = opened(policy, conn, local, remote)
        conn.when_lost(subflow, local, remote, backup=True)
        at_the_peer(made, subflow).close()
        told, event = policy.next("on_subflow_lost")
        assert (told, event.local) == (conn, subflow.local)
        # The order was carried out before.
        assert [(one.local[0], one.remote[0], one.backup) for one in policy.opening_then] == [(local, remote, True)]
        told, other = policy.next("on_subflow_established")
        assert (told, other.local[0]) == (conn, local)
        # On Linux 6.1 MP_PRIO makes it a backup, after it was accepted.
        assert eventually(lambda: [one.backup for one in conn.subflows()] == [False, True])
        assert other.local != subflow.local
        # It was carried out, and is not any more.
        at_the_peer(made, other).close()
        policy.next("on_subflow_lost")
        assert policy.opening_then == []
    assert len(conn.subflows()) == 1


def test_python_has_no_part_in_it(made: Connection, tmp_path: Path) -> None:
    """The replacement is accepted while one thread holds the GIL, so that no callback can run."""
    policy = Recorded()
    name = tmp_path / "shared"
    name.write_bytes(b"\0")
    with made.client.run_policy(policy), open(name, "r+b") as file, mmap.mmap(file.fileno(), 1) as shared:
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        subflow = opened(policy, conn, local, remote)
        conn.when_lost(subflow, local, remote)
        host, port = subflow.local[:2]
        command = [sys.executable, "-c", PEER, str(made.peer.token), host, str(port), str(name)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        interval = sys.getswitchinterval()
        with made.server.popen(command, text=True, bufsize=1, **pipes) as process:
            assert process.stdout.readline() == "\n"
            deadline = time.monotonic() + 20 * PATIENCE
            sys.setswitchinterval(3600)
            try:
                process.stdin.write("go\n")
                # Nothing from here gives up the GIL.
                while not shared[0] and time.monotonic() < deadline:
                    pass
                told = policy.calls.qsize()
            finally:
                sys.setswitchinterval(interval)
            assert shared[0], "no replacement was accepted"
            assert told == 0
        policy.next("on_subflow_lost")
        _, other = policy.next("on_subflow_established")
        assert other.local != subflow.local


def test_an_order_is_taken_back_and_replaced(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        first, second = opened(policy, conn, local, remote), opened(policy, conn, (local, 12345), remote)
        conn.when_lost(first, local, remote)
        conn.when_lost(first)
        conn.when_lost(first, None)
        conn.when_lost(second, local, remote)
        conn.when_lost(second, (local, 23456), remote)
        at_the_peer(made, first).close()
        policy.next("on_subflow_lost")
        assert policy.opening_then == []
        at_the_peer(made, second).close()
        policy.next("on_subflow_lost")
        _, other = policy.next("on_subflow_established")
        assert other.local[1] == 23456
        # A subflow that a policy closes is not lost.
        conn.when_lost(other, local, remote)
        conn.close_subflow(other)
        assert eventually(lambda: len(made.sock.subflows()) == 1)
    assert policy.calls.empty()
    assert len(made.sock.subflows()) == 1


def test_an_order_whose_open_fails(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        subflow = opened(policy, conn, local, remote)
        conn.when_lost(subflow, local, (remote, 5999))
        at_the_peer(made, subflow).close()
        policy.next("on_subflow_lost")
        _, event = policy.next("on_subflow_failed")
        assert (event.error, event.remote[:2]) == (errno.ECONNREFUSED, (remote, 5999))
        # Refused at once by the kernel, too.
        subflow = opened(policy, conn, local, remote)
        conn.when_lost(subflow, "192.0.2.1", remote)
        at_the_peer(made, subflow).close()
        assert {policy.calls.get(timeout=30 * PATIENCE)[0] for _ in range(2)} == {
            "on_subflow_lost",
            "on_subflow_failed",
        }


def test_an_order_ends_with_its_connection(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        subflow = opened(policy, conn, local, remote)
        conn.when_lost(subflow, local, remote)
        made.sock.close()
        made.peer.close()
        policy.next("on_closed")
        assert policy.opening_then == []
    assert policy.calls.empty()


@pytest.mark.parametrize("what", ["interface", "address"])
def test_a_lost_interface(mptcp_lab: Lab, what: str) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server) for _ in range(2)]
    policy = Recorded()
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(connected(client, server, (links[0], links[1])))
        stack.enter_context(server.run_policy(mptcp.Policy()))
        with client.run_policy(policy):
            (conn,) = policy.next("on_connection")
            lost = links[0].interface(client) if what == "interface" else links[0].address(client)
            conn.when_lost(lost, *made.second)
            links[0].down()
            (event,) = policy.next("on_link_down")
            assert event.interface == links[0].interface(client)
            _, subflow = policy.next("on_subflow_established")
            assert subflow.local[0] == links[1].address(client)


def test_what_cannot_be_lost_is_refused(made: Connection) -> None:
    policy = Recorded()
    (listed,) = made.client.connections(token=made.sock.token)
    with pytest.raises(RuntimeError, match="while policies run"):
        listed.when_lost("eth0", "10.0.0.1")
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        for wrong in (5, None, b"eth0"):
            with pytest.raises(TypeError, match="what must be a Subflow, a local address or the name of an interface"):
                conn.when_lost(wrong, local, remote)  # type: ignore[arg-type]
        for wrong in ("", "a/b", "longer than a name is", "eth 0"):
            with pytest.raises(ValueError, match="neither a local address nor the name of an interface"):
                conn.when_lost(wrong, local, remote)
        with pytest.raises(ValueError, match="same address family"):
            conn.when_lost("eth0", local, "::1")
        subflow = made.peer.subflows()[0]
        with pytest.raises(ValueError, match="another connection"):
            conn.when_lost(subflow, local, remote)
    assert policy.calls.empty()


def test_other_policies_are_asked(made: Connection) -> None:
    class Never(mptcp.Policy):
        def allows(self, conn: Any, local: Any, remote: Any) -> bool:
            return False

    policy = Recorded()
    with made.client.run_policy(policy, Never()):
        (conn,) = policy.next("on_connection")
        conn.when_lost(made.paths[0].interface(made.client), *made.second)
        made.paths[0].down()
        policy.next("on_link_down")
        assert len(made.sock.subflows()) == 1
    assert policy.calls.empty()


@pytest.mark.skipif(not ROOT, reason="needs root: userfaultfd for system calls")
@pytest.mark.parametrize("by", ["another thread", "an order", "the callback"])
def test_a_connection_whose_lock_is_held_delays_no_other(made: Connection, by: str) -> None:
    """Neither a policy's callbacks for others, nor their commands and standing orders; its own come afterwards."""
    if not has_userfaultfd():
        pytest.skip("needs userfaultfd for system calls")
    if KERNEL < (6, 5):
        pytest.skip(
            "needs Linux 6.5, where sock_diag waits for the connection's lock: a command waits with a mutex of all"
        )
    names: dict[str, Any] = {}
    exec(STUCK_MEMORY, names)
    stuck = names["Stuck"]()
    policy = Acting()
    local, remote = made.second
    address = made.sock.getpeername()
    with contextlib.ExitStack() as stack:
        stack.enter_context(made.client.run_policy(policy))
        (held,) = policy.next("on_connection")
        sock = stack.enter_context(made.client.create_connection(address, timeout=10))
        peer = stack.enter_context(made.listener.accept()[0])
        exchange(sock, peer)
        (other,) = policy.next("on_connection")
        mine = opened(policy, held, (local, 30000), remote)
        theirs = opened(policy, other, local, remote)

        def send() -> None:
            with contextlib.suppress(OSError):
                made.sock.send(stuck.memory)

        thread = threading.Thread(target=send)
        thread.start()
        stack.callback(thread.join)
        stuck.wait()
        released = False
        try:
            start = time.monotonic()

            def leave_commands() -> None:
                """These wait for the lock, in this order, and return at once."""
                held.close_subflow(mine)
                for port in range(30001, 30004):
                    held.open_subflow((local, port), (remote, 5999))

            if by == "the callback":
                policy.act = lambda: (leave_commands(), other.open_subflow(local, remote))
            else:
                leave_commands()
            if by == "an order":
                other.when_lost(theirs, local, remote)
            (there,) = [one for one in made.server.connections() if one.token == peer.token]
            next(one for one in there.subflows() if one.remote[:2] == theirs.local[:2]).close()
            told, _ = policy.next("on_subflow_lost")
            assert told == other
            if by == "another thread":
                other.open_subflow(local, remote)
            told, subflow = policy.next("on_subflow_established")
            assert (told, subflow.local[0]) == (other, local)
            assert time.monotonic() - start < 10 * PATIENCE
            if by == "the callback":
                # Once more: the one that called the policy then is stuck.
                policy.act = lambda: other.open_subflow(local, remote)
                next(one for one in there.subflows() if one.remote[:2] == subflow.local[:2]).close()
                assert policy.next("on_subflow_lost")[0] == other
                assert policy.next("on_subflow_established")[0] == other
                assert time.monotonic() - start < 20 * PATIENCE
            assert policy.calls.empty()
            stuck.release()
            released = True
            ports = [policy.next("on_subflow_failed")[1].local[1] for _ in range(3)]
            assert ports == [30001, 30002, 30003]
            assert all(one.local[1] != 30000 for one in held.subflows())
        finally:
            if not released:
                stuck.release()


def test_commands_of_a_connection_stay_in_order(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        for port in range(31000, 31020):
            conn.open_subflow((local, port), (remote, 5999))
        failed = [policy.next("on_subflow_failed")[1].local[1] for _ in range(20)]
        assert failed == list(range(31000, 31020))


class Reopening(mptcp.Policy):
    """Opens what is lost again, and says in which order what its thread called began and ended."""

    def __init__(self, local: str) -> None:
        self.local = local
        # By thread: one takes reports while another stands by.
        self.traced: dict[int, list[str]] = {}
        self.ended: queue.Queue[list[str]] = queue.Queue()
        self.established: queue.Queue[mptcp.Subflow] = queue.Queue()

    def trace(self, frame: Any, event: str, argument: Any) -> None:
        if threading.current_thread().name != "mptcp-policies":
            return
        traced = self.traced.setdefault(threading.get_native_id(), [])
        name = frame.f_code.co_name if event in ("call", "return") else argument.__name__
        traced.append(f"{event} {name}")
        if traced[-1] == "c_return get" and "call on_subflow_lost" in traced:
            self.ended.put(traced[:])
            traced.clear()

    def waits(self) -> bool:
        """Whether the thread that takes reports sleeps until there is one."""

        def sleeps(thread: int) -> bool:
            try:
                stat = Path(f"/proc/self/task/{thread}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return False
            return stat.rpartition(")")[2].split()[0] == "S"

        return any(traced[-1:] == ["c_call get"] and sleeps(thread) for thread, traced in list(self.traced.items()))

    def on_connection(self, conn: mptcp.Connection) -> None:
        conn.open_subflow(self.local)

    def on_subflow_established(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
        self.established.put(subflow)

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        conn.open_subflow(self.local)


def test_nothing_of_python_comes_between_a_loss_and_the_callback_and_its_command(made: Connection) -> None:
    policy = Reopening(made.second[0])
    threading.setprofile(policy.trace)
    try:
        with made.client.run_policy(policy):
            first = policy.established.get(timeout=30 * PATIENCE)
            # What comes while its thread is busy is read by another one, and waits in the queue.
            assert eventually(policy.waits)
            at_the_peer(made, first).close()
            second = policy.established.get(timeout=30 * PATIENCE)
            assert (second.local[0], second.local[1] != first.local[1]) == (policy.local, True)
            traced = policy.ended.get(timeout=30 * PATIENCE)
    finally:
        threading.setprofile(None)
    begun = len(traced) - traced[::-1].index("c_call get")
    assert traced[begun:] == [
        "call on_subflow_lost",
        "c_call open_subflow",
        "c_return open_subflow",
        "return on_subflow_lost",
        "c_return get",
    ]


def test_a_callback_that_fails_has_opened_what_it_opened(made: Connection, caplog: pytest.LogCaptureFixture) -> None:
    policy = Acting()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        subflow = opened(policy, conn, local, remote)

        def act() -> None:
            conn.open_subflow(local, remote)
            # The peer's own address and port are of another family than this.
            with pytest.raises(ValueError, match="family"):
                conn.open_subflow("::1")
            raise RuntimeError("after the commands")

        policy.act = act
        at_the_peer(made, subflow).close()
        policy.next("on_subflow_lost")
        _, again = policy.next("on_subflow_established")
        assert again.local[0] == local
        assert eventually(lambda: "after the commands" in caplog.text)
        # A policy is not told of what it closed itself.
        conn.close_subflow(again)
        assert eventually(lambda: len(made.sock.subflows()) == 1)
        opened(policy, conn, local, remote)


class Watching(mptcp.Policy):
    """Keeps from where subflows were being opened when it was told of a loss."""

    def watch(self) -> queue.Queue[list[str]]:
        self.told: queue.Queue[list[str]] = queue.Queue()
        return self.told

    def _note(self) -> None:
        self.told.put([one.local[0] for conn in self.connections() for one in self.opening(conn)])

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        self._note()
        super().on_subflow_lost(conn, event)

    def on_link_down(self, event: mptcp.Event) -> None:
        self._note()
        super().on_link_down(event)


class WatchedFullMesh(Watching, FullMesh):
    """FullMesh, watched."""


class WatchedBackup(Watching, Backup):
    """Backup, watched."""


class WatchedPrefer(Watching, Prefer):
    """Prefer, watched."""


class WatchedHandover(Watching, Handover):
    """Handover, watched."""


def has_orders(policy: Any, kind: type, count: int) -> bool:
    return sum(isinstance(key, kind) for orders in policy._orders.values() for key in orders) >= count


@pytest.mark.parametrize("kind", [WatchedFullMesh, WatchedBackup])
def test_a_lost_subflow_is_opened_again_by_an_order(made: Connection, kind: type) -> None:
    """When the policy is told, it is being opened already."""
    second = made.second[0]
    policy = kind() if kind is WatchedFullMesh else kind(*made.paths)
    told = policy.watch()
    with made.client.run_policy(policy):
        assert eventually(lambda: has_orders(policy, tuple, 2))
        subflow = next(one for one in made.sock.subflows() if one.local[0] == second)
        at_the_peer(made, subflow).close()
        assert told.get(timeout=30 * PATIENCE) == [second]


@pytest.mark.parametrize("kind", [WatchedPrefer, WatchedHandover])
def test_the_next_path_is_used_by_an_order(mptcp_lab: Lab, kind: type) -> None:
    """When the policy is told that the interface is down, the subflow on the next path is being opened already."""
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server) for _ in range(2)]
    second = links[1].address(client)
    policy = kind(*links)
    told = policy.watch()
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(connected(client, server, (links[0], links[1])))
        stack.enter_context(server.run_policy(mptcp.Policy()))
        stack.enter_context(client.run_policy(policy))
        assert eventually(lambda: has_orders(policy, str, 1))
        links[0].down()
        assert told.get(timeout=30 * PATIENCE) == [second]
        # The initial subflow ends by a FIN, which the link does not carry.
        assert eventually(lambda: any(one.local[0] == second and one._accepted for one in made.sock.subflows()))
