"""The runtime of policies: what they are told, in which order, and what they do to others."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp import _proc
from mptcp._policy._connection import Attempt
from mptcp.lab import Host, Lab, Link
from mptcp.policies import FullMesh
from support import (
    KERNEL,
    PATIENCE,
    PORT,
    PYTHON,
    ROOT,
    RUN,
    Connection,
    churn,
    connected,
    events_are_read_late,
    eventually,
    exchange,
    needs,
    needs_python,
    true_picture,
)

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

METHODS = [name for name in vars(mptcp.Policy) if name.startswith("on_") and name != "on_tick"]


class Recorded(mptcp.Policy):
    """Every callback with its arguments, in order."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue()

    def next(self, method: str, seconds: float = 30) -> tuple[Any, ...]:
        """The arguments of the next call, which has to be of this method."""
        name, *arguments = self.calls.get(timeout=seconds)
        assert name == method, (name, arguments)
        return tuple(arguments)


def recording(method: str) -> Any:
    return lambda self, *arguments: self.calls.put((method, *arguments))


for method in METHODS:
    setattr(Recorded, method, recording(method))


@pytest.fixture
def made(mptcp_two_paths: TwoPaths) -> Iterator[Connection]:
    with connected(*mptcp_two_paths) as made:
        yield made


def test_a_connection_that_is_there(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        assert isinstance(conn, mptcp.Connection)
        assert (conn.token, conn.local, conn.remote) == (
            made.sock.token,
            made.sock.getsockname(),
            made.sock.getpeername(),
        )
        assert list(policy.connections()) == [conn]
    assert list(policy.connections()) == []
    assert policy.calls.empty()


def test_a_connection_from_its_begin_to_its_end(mptcp_two_paths: TwoPaths) -> None:
    client, server, _ = mptcp_two_paths
    policies = Recorded(), Recorded()
    with client.run_policy(policies[0]), server.run_policy(policies[1]):
        told = []
        with connected(*mptcp_two_paths) as made:
            for policy, sock in zip(policies, (made.sock, made.peer), strict=True):
                told += policy.next("on_connection")
                assert told[-1].token == sock.token
                assert told[-1].server_side is (policy is policies[1])
        for policy, conn in zip(policies, told, strict=True):
            assert policy.next("on_closed") == (conn,)


def test_a_connection_that_its_owner_has_closed(made: Connection) -> None:
    """It lives on for what the peer may still send, but its CLOSED has been told and no more will be."""
    made.sock.close()
    assert eventually(lambda: [conn.state for conn in made.client.connections()] == ["FIN_WAIT2"])
    policy = Recorded()
    with made.client.run_policy(policy):
        assert list(policy.connections()) == []
    assert policy.calls.empty()


def test_a_subflow_from_its_begin_to_its_end(made: Connection) -> None:
    here, there = Recorded(), Recorded()
    with made.client.run_policy(here), made.server.run_policy(there):
        (conn,), (other,) = here.next("on_connection"), there.next("on_connection")
        local, remote = made.second
        assert conn.open_subflow((local, 12345), (remote, 5000)) is None
        for policy, of, ends in ((here, conn, (local, remote)), (there, other, (remote, local))):
            told, subflow = policy.next("on_subflow_established")
            assert told == of
            assert (subflow.local[0], subflow.remote[0]) == ends
            # 6.1 tells the accepting end a moment before the state.
            early = ["SYN_RECV"] if policy is there and KERNEL < (6, 12) else []
            assert subflow.state in ("ESTABLISHED", *early)
        exchange(made.sock, made.peer)
        # A policy closes it: that is no loss here, and one at the other end.
        conn.close_subflow(conn.subflows()[1])
        _, event = there.next("on_subflow_lost")
        assert event.remote[0] == local
    assert here.calls.empty()


def test_an_open_that_fails(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        conn.open_subflow(local, (remote, 5999))
        _, event = policy.next("on_subflow_failed")
        assert (event.error, event.remote[:2]) == (errno.ECONNREFUSED, (remote, 5999))
        # Known at once, and told in the same way.
        conn.open_subflow("192.0.2.1", (remote, 5000))
        _, event = policy.next("on_subflow_failed")
        assert event.error in (errno.EADDRNOTAVAIL, errno.EINVAL)
        assert event.local[0] == "192.0.2.1"
        # What is wrong in itself is not an outcome.
        with pytest.raises(ValueError, match="same address family"):
            conn.open_subflow(local, ("fd00::1", 5000))
        assert list(policy.opening(conn)) == []
        assert len(conn.subflows()) == 1
    exchange(made.sock, made.peer)


def filtered(host: Host, port: int) -> None:
    """What comes to this port is dropped, without an answer."""
    rules = (
        "add table inet filter; add chain inet filter input { type filter hook input priority 0; }; "
        f"add rule inet filter input tcp dport {port} drop"
    )
    host.run(["nft", rules], check=True)


def test_many_opens_without_an_answer(made: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold nobody up, and come to an end."""
    filtered(made.server, 5998)
    monkeypatch.setattr(Recorded, "open_timeout", 5.0 * PATIENCE)
    policy = Recorded()
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        local, remote = made.second
        for _ in range(100):
            conn.open_subflow(local, (remote, 5998))
        conn.open_subflow(local, (remote, 5000))
        assert policy.next("on_subflow_established")[1].remote[:2] == (remote, 5000)
        for _ in range(100):
            assert policy.next("on_subflow_failed")[1].error == errno.ETIMEDOUT
        assert eventually(lambda: len(made.sock.subflows()) == 2)


def test_a_subflow_that_is_lost(made: Connection) -> None:
    policy = Recorded()
    made.sock.open_subflow(*made.second)
    with made.client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        lost = conn.subflows()[1]
        made.client.run(["ss", "-K", "src", f"{lost.local[0]}:{lost.local[1]}"], check=True, capture_output=True)
        told, event = policy.next("on_subflow_lost")
        assert (told, event.local, event.error) == (conn, lost.local, errno.ECONNABORTED)
        assert conn.subflows() == [subflow for subflow in conn.subflows() if subflow.initial]


def test_announced_addresses(made: Connection) -> None:
    policy = Recorded()
    with made.client.run_policy(policy):
        policy.next("on_connection")
        number = made.peer.announce_address(made.second[1])
        _, event = policy.next("on_address_announced")
        assert (event.remote[0], event.remote_id) == (made.second[1], number)
        made.peer.remove_address(number)
        _, event = policy.next("on_address_removed")
        assert event.remote_id == number


def test_links_and_addresses(mptcp_two_paths: TwoPaths) -> None:
    client, _, paths = mptcp_two_paths
    policy = Recorded()
    with client.run_policy(policy):
        name = paths[1].interface(client)
        assert {local.interface for local in policy.addresses()} == {path.interface(client) for path in paths}
        paths[1].down()
        seen = wait_for(policy, "on_link_down")
        assert seen.interface == name
        assert name not in {local.interface for local in policy.addresses()}
        paths[1].up()
        assert wait_for(policy, "on_link_up").interface == name
        assert eventually(lambda: name in {local.interface for local in policy.addresses()})
        assert policy.interface_of(paths[1].address(client)) == name


def wait_for(policy: Recorded, method: str) -> Any:
    while True:
        name, *arguments = policy.calls.get(timeout=10)
        if name == method:
            return arguments[-1]


def test_ticks(made: Connection) -> None:
    rounds: queue.Queue[tuple[mptcp.Connection, list[mptcp.Subflow]]] = queue.Queue()

    class Ticks(mptcp.Policy):
        tick = 0.05

        def on_tick(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> None:
            rounds.put((conn, subflows))

    with made.client.run_policy(Ticks()):
        conn, subflows = rounds.get(timeout=10)
        assert conn.token == made.sock.token
        assert [subflow.initial for subflow in subflows] == [True]
        made.sock.open_subflow(*made.second)
        assert eventually(lambda: len(rounds.get(timeout=10)[1]) == 2)


def test_an_exception_is_reported_and_the_next_is_called(made: Connection, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            raise RuntimeError("oh no")

        def on_closed(self, conn: mptcp.Connection) -> None:
            closed.set()

    closed = threading.Event()
    other = Recorded()
    with made.client.run_policy(Broken(), other):
        other.next("on_connection")
        made.sock.close()
        made.peer.close()
        assert closed.wait(10)
    assert "Broken.on_connection() failed" in caplog.text
    assert "oh no" in caplog.text


def test_a_callback_that_blocks_holds_up_its_own_policy_only(made: Connection) -> None:
    class Blocked(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            release.wait(30)

    release = threading.Event()
    other = Recorded()
    with made.client.run_policy(Blocked(), other):
        (conn,) = other.next("on_connection")
        conn.open_subflow(*made.second)
        other.next("on_subflow_established")
        release.set()


def test_an_open_happens_if_all_allow_it(made: Connection) -> None:
    class Never(mptcp.Policy):
        def allows(self, conn: mptcp.Connection, local: mptcp.LocalAddress, remote: Any) -> bool:
            asked.append((local, remote))
            return False

    asked: list[Any] = []
    policy = Recorded()
    with made.client.run_policy(policy, Never()):
        (conn,) = policy.next("on_connection")
        conn.open_subflow(made.second[0])
        interface = made.paths[1].interface(made.client)
        assert asked == [((made.second[0], interface), made.sock.getpeername())]
        assert list(policy.opening(conn)) == []
        assert len(made.sock.subflows()) == 1


def test_an_open_waits_until_the_connection_is_fully_established(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    policy = Recorded()
    with (
        server.create_server(("", 5000)) as listener,
        client.create_connection((paths[0].address(server), 5000), timeout=10) as sock,
        listener.accept()[0] as peer,
        client.run_policy(policy),
    ):
        (conn,) = policy.next("on_connection")
        conn.open_subflow(paths[1].address(client))
        assert len(policy.opening(conn)) == 1
        exchange(sock, peer)
        policy.next("on_subflow_established")
        assert list(policy.opening(conn)) == []


def test_a_connection_of_the_in_kernel_path_manager(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    policy = Recorded()
    client.set_path_manager("kernel")
    with connected(client, server, paths) as made, client.run_policy(policy):
        (conn,) = policy.next("on_connection")
        assert conn.path_manager == "kernel"
        with pytest.raises(mptcp.PathManagerError):
            conn.open_subflow(*made.second)
        exchange(made.sock, made.peer)
        conn.close_subflow(conn.subflows()[0], force=True)
        assert eventually(lambda: made.sock.subflows() == [])


def test_the_path_manager_is_held_and_put_back(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    host.set_path_manager("kernel")
    with host.run_policy(Recorded()):
        assert host.get_path_manager() == "userspace"
    assert host.get_path_manager() == "kernel"


def test_a_second_one_is_told(mptcp_lab: Lab) -> None:
    host, other = mptcp_lab.host("a"), mptcp_lab.host("b")
    with host.run_policy(Recorded()), other.run_policy(Recorded()):
        with pytest.raises(OSError, match="already") as caught:
            host.run_policy(Recorded())
        assert caught.value.errno == errno.EBUSY
    with host.run_policy(Recorded()):
        pass


def test_what_is_no_policy(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    for wrong in (Recorded, "fullmesh", None):
        with pytest.raises(TypeError):
            host.run_policy(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            mptcp.run_policy(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a policy"):
        host.run_policy()
    policy = Recorded()
    with pytest.raises(ValueError, match="already runs"):
        host.run_policy(policy, policy)
    with host.run_policy(policy), pytest.raises(ValueError, match="already runs"):
        mptcp_lab.host("b").run_policy(policy)


def test_many_connections(mptcp_two_paths: TwoPaths) -> None:
    """Each gets its second subflow, those that were there before the policy and those that come later."""
    client, server, paths = mptcp_two_paths
    local = paths[1].address(client)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server(("", 5000), backlog=200))

        def connect() -> None:
            sock = stack.enter_context(client.create_connection((paths[0].address(server), 5000), timeout=30))
            exchange(sock, stack.enter_context(listener.accept()[0]))

        for _ in range(100):
            connect()
        # Closed before the sockets are.
        with client.run_policy(FullMesh()):
            for _ in range(100):
                connect()
            conns = client.connections()
            assert len(conns) == 200
            assert eventually(lambda: all(accepted_from(local, conn) for conn in conns), 60)
            assert [len(conn.subflows()) for conn in conns] == [2] * 200


def accepted_from(local: str, conn: mptcp.Connection) -> list[mptcp.Subflow]:
    return [subflow for subflow in conn.subflows() if subflow.local[0] == local and subflow._accepted]


def test_the_picture_survives_the_loss_of_events(made: Connection) -> None:
    """After an overrun of 5,000 events the runtime knows the connections and subflows that the kernel has."""
    policy = Recorded()
    with contextlib.ExitStack() as stack, made.client.run_policy(policy), made.client.events() as events:
        # What the runtime reads events by, as all of this process do. The smallest buffer holds two or three.
        events._native.set_receive_buffer(1)
        with events_are_read_late():
            churn(made, 5000, stack)

        def is_true() -> bool:
            return known(policy) == true_picture(made.client)

        assert eventually(is_true, 20)
        assert len(known(policy)) > 15
        assert mptcp.EventKind.OVERRUN in {event.kind for event in iter(lambda: events.get(0), None)}, (
            "no event was lost"
        )
        # And it goes on to be right, by the events.
        made.sock.open_subflow(*made.second)
        assert eventually(is_true, 20)
        assert len(known(policy)[made.sock.token]) == 2


def test_what_was_asked_for_is_too_late_when_the_connection_has_ended(
    made: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """An open that waits for the connection to be fully established, which it is, and then ends before the runtime
    comes to it: in the order in which the runtime does it, without leaving it to chance."""
    policy = Recorded()
    with made.client.run_policy(policy):
        # What the runtime keeps is no part of the types.
        conn: Any = policy.connections()[0]
        runtime: Any = policy._runtime
        local, remote = made.second
        conn.waiting = [Attempt((local, 0), (remote, PORT), False)]
        token = made.sock.token
        made.sock.close()
        made.peer.close()
        assert eventually(lambda: not made.client.connections(token=token))
        runtime._established(conn)
        assert not conn.waiting
    assert not caplog.records


def known(policy: mptcp.Policy) -> dict[int, set[Any]]:
    """What the runtime believes that the peers have accepted."""
    return {conn.token: set(conn.known) for conn in policy.connections()}  # type: ignore[attr-defined]


PROGRAM = """
import mptcp, signal
running = mptcp.run_policy(mptcp.Policy())
print(mptcp.get_path_manager(), flush=True)
signal.pause()
"""

# A signal that arrives just before signal.pause() begins to wait would not end it.
WITH_BLOCK = """
import mptcp, time
with mptcp.run_policy(mptcp.Policy()):
    print(mptcp.get_path_manager(), flush=True)
    while True:
        time.sleep(1)
"""


# SIGTERM ends a process whatever it is at; SIGINT ends it as Python does, through its with-blocks.
@pytest.mark.parametrize(("number", "program"), [(signal.SIGTERM, PROGRAM), (signal.SIGINT, WITH_BLOCK)])
def test_a_signal_puts_the_path_manager_back(mptcp_lab: Lab, number: signal.Signals, program: str) -> None:
    host = mptcp_lab.host("a")
    host.set_path_manager("kernel")
    command = [sys.executable, "-c", program]
    with host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "userspace\n"
        process.send_signal(number)
        assert process.wait(30) == -number
    assert host.get_path_manager() == "kernel"


def test_without_privilege() -> None:
    if os.geteuid() == 0:
        pytest.skip("needs a user without CAP_NET_ADMIN")
    with pytest.raises(PermissionError, match="CAP_NET_ADMIN"):
        mptcp.run_policy(Recorded())


# The command

FILE = """
import mptcp

class Second(mptcp.Policy):
    def on_connection(self, conn):
        if not conn.server_side:
            conn.open_subflow(next(one.address for one in self.addresses() if one.address == "10.0.2.1"))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["FILE"],
        ["--builtin", "fullmesh"],
        ["--builtin", "prefer:10.0.2.0/24,eth1"],
        ["--builtin", "fullmesh:exclude=10.0.1.0/24+10.0.1.1,bind=true"],
    ],
)
def test_the_command(mptcp_two_paths: TwoPaths, arguments: list[str], tmp_path: Path) -> None:
    client, _, _ = mptcp_two_paths
    (tmp_path / "policy.py").write_text(FILE)
    arguments = [str(tmp_path / "policy.py") if one == "FILE" else one for one in arguments]
    client.set_path_manager("kernel")
    command = [sys.executable, "-W", "error", "-m", "mptcp", "policy", *arguments]
    with client.popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "running" in process.stderr.readline()
        with connected(*mptcp_two_paths) as made:
            assert eventually(lambda: "10.0.2.1" in {subflow.local[0] for subflow in made.sock.subflows()}, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert client.get_path_manager() == "kernel"


def test_the_command_with_what_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("import mptcp\n")
    for arguments in ([], [str(tmp_path / "empty.py")], [str(tmp_path / "none.py")], ["--builtin", "nonsense"]):
        command = [sys.executable, "-m", "mptcp", "policy", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


HELD_OPEN = """
import socket, sys
sock = socket.create_connection((sys.argv[1], 5000))
sock.sendall(b"x")
sock.recv(1)
sys.stdin.read()
"""


@needs_python
def test_a_policy_beside_a_program(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    client, server, paths = mptcp_two_paths
    (tmp_path / "policy.py").write_text(FILE)
    client.set_path_manager("kernel")
    arguments = ["--path-manager", "userspace", "--policy", str(tmp_path / "policy.py"), PYTHON, "-c", HELD_OPEN]
    with (
        server.create_server(("", 5000)) as listener,
        client.popen([*RUN, *arguments, paths[0].address(server)], stdin=subprocess.PIPE) as process,
    ):
        listener.settimeout(30)
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(1) == b"x"
            peer.sendall(b"y")
            ends = {paths[0].address(client), paths[1].address(client)}
            assert eventually(lambda: {subflow.remote[0] for subflow in peer.subflows()} == ends, 20)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0
    assert client.get_path_manager() == "kernel"


def test_one_walk_over_the_processes_answers_for_all(made: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """For those too that no process holds, as none does what is on its way between two."""
    walks = 0
    walk = _proc.holders

    def counted() -> dict[int, int]:
        nonlocal walks
        walks += 1
        return walk()

    monkeypatch.setattr(_proc, "holders", counted)
    policy = Recorded()
    near, far = socket.socketpair()
    with near, far, made.client.run_policy(policy), contextlib.ExitStack() as stack:
        for _ in range(5):
            sock = made.client.create_connection(made.sock.getpeername(), timeout=10)
            exchange(sock, stack.enter_context(made.listener.accept()[0]))
            socket.send_fds(near, [b"."], [sock.fileno()])
            sock.close()
        assert eventually(lambda: len(policy.connections()) == 6)
        for _ in range(2):
            pids = {conn.token: conn.pid for conn in policy.connections()}
            assert pids.pop(made.sock.token) == os.getpid()
            assert list(pids.values()) == [None] * 5
        assert walks == 1


#: Takes names, as any process may: without listening, listening, and listening to nobody more.
SQUAT = """
import socket, sys
held = []
for number, name in enumerate(["mptcp.policy", *(f"mptcp.policy.{number}" for number in range(1, int(sys.argv[1])))]):
    backlog = [None, 5, 0][number % 3]
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind("\\0" + name)
    if backlog is not None:
        held[-1].listen(backlog)
        while backlog == 0 and not (other := socket.socket(socket.AF_UNIX)).setblocking(False):
            held.append(other)
            try:
                other.connect("\\0" + name)
            except BlockingIOError:
                break
print("taken", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def names_taken(host: Host, number: int, prefix: list[str]) -> Iterator[int]:
    command = [*prefix, "/usr/bin/python3", "-c", SQUAT, str(number)]
    with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process.pid
        process.stdin.close()


@pytest.mark.skipif(not ROOT, reason="needs root, to be another user")
@needs("setpriv", "unshare")
@pytest.mark.parametrize("in_user_namespace", [False, True])
def test_who_has_taken_the_name_without_policies_is_passed_over(mptcp_lab: Lab, in_user_namespace: bool) -> None:
    host = mptcp_lab.host("a")
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    if in_user_namespace:
        nobody += ["unshare", "--user", "--map-root-user"]
    with names_taken(host, 30, nobody):
        with host.run_policy(Recorded()), pytest.raises(OSError, match="already") as caught:
            host.run_policy(Recorded())
        assert caught.value.errno == errno.EBUSY
        with host.run_policy(Recorded()):
            pass
    # One that could run policies is believed.
    with names_taken(host, 3, []), pytest.raises(OSError, match="already"):
        host.run_policy(Recorded())
    with host.run_policy(Recorded()):
        pass


#: Takes the name and becomes another program, which holds it on.
SQUAT_AND_BECOME = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind("\\0mptcp.policy")
sock.listen()
sock.set_inheritable(True)
os.execv(sys.argv[1], [sys.argv[1]])
"""


@pytest.mark.skipif(not ROOT, reason="needs root, to be another user")
@needs("setpriv")
@pytest.mark.parametrize("privilege", ["set-user-ID", "capabilities"])
def test_a_privileged_program_that_got_the_name_from_an_ordinary_user(mptcp_lab: Lab, privilege: str) -> None:
    """The listener is the user's, who started a program that has CAP_NET_ADMIN and knows nothing of it."""
    host = mptcp_lab.host("a")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = shutil.copy("/bin/cat", folder)
        os.chmod(program, 0o4755 if privilege == "set-user-ID" else 0o755)
        if privilege == "capabilities":
            try:
                # VFS_CAP_REVISION_2 with the effective flag, and CAP_NET_ADMIN as permitted.
                os.setxattr(program, "security.capability", struct.pack("<5I", 0x02000001, 1 << 12, 0, 0, 0))
            except OSError:
                pytest.skip(f"needs file capabilities in {folder}")
        nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        command = [*nobody, "/usr/bin/python3", "-c", SQUAT_AND_BECOME, program]
        with host.popen(command, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            status = Path(f"/proc/{process.pid}/status")
            assert eventually(lambda: "Name:\tcat\n" in status.read_text())
            if not int(re.findall(r"CapEff:\t(\w+)", status.read_text())[0], 16) >> 12 & 1:
                process.kill()
                pytest.skip(f"needs a file system without nosuid for {folder}")
            with host.run_policy(Recorded()), pytest.raises(OSError, match="already"):
                host.run_policy(Recorded())
            process.kill()


@pytest.mark.skipif(not ROOT, reason="needs root, to be another user")
@needs("setpriv")
def test_connecting_to_the_name_does_not_hide_who_has_it(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    with host.run_policy(Recorded()):
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "/usr/bin/python3", "-c", CONNECT]
        with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "full\n"
            with pytest.raises(OSError, match="already"):
                host.run_policy(Recorded())
            process.stdin.close()


#: Fills the backlog of the name.
CONNECT = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
while True:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].setblocking(False)
    try:
        held[-1].connect("\\0mptcp.policy")
    except BlockingIOError:
        break
print("full", flush=True)
sys.stdin.read()
"""
