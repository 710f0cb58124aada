"""Connections without a descriptor: what is listed, what is read, and that they do as sockets do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import (
    KERNEL,
    NO_CAPABILITIES,
    PORT,
    Connection,
    connected,
    descriptors,
    ends,
    eventually,
    exchange,
    subscribers,
)

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


@contextmanager
def over_loopback(family: int = socket.AF_INET) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    """A connection in the namespace that the tests run in: no privilege is needed for it."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with (
        mptcp.create_server((host, 0), family=family) as listener,
        mptcp.create_connection(listener.getsockname()[:2], timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        exchange(sock, peer)
        yield sock, peer


def handle_of(sock: mptcp.Socket, host: Host | None = None) -> mptcp.Connection:
    [found] = (host or mptcp).connections(token=sock.token)
    return found


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_both_ends_are_listed(family: int) -> None:
    with over_loopback(family) as (sock, peer):
        listed = {found.token: found for found in mptcp.connections()}
        for end, server_side in ((sock, False), (peer, True)):
            found = listed[end.token]
            assert found == handle_of(end)
            assert found.local == end.getsockname()
            assert found.remote == end.getpeername()
            assert found.server_side is server_side
            assert found.state == "ESTABLISHED"
            assert found.uid == os.getuid()
            assert found.inode == os.fstat(end.fileno()).st_ino
            assert found.pid == os.getpid()
            with open("/proc/self/comm") as file:
                assert found.program == file.read().strip()
            assert found.path_manager == mptcp.get_path_manager()
            assert 0 <= found.age < 60
            assert found.cgroup is None or found.cgroup > 0
            assert str(found.token) in repr(found)
        assert listed[sock.token] != listed[peer.token]
        assert len({handle_of(sock), listed[sock.token], listed[peer.token]}) == 2


def test_age_grows_and_is_no_less_than_what_is_known() -> None:
    with over_loopback() as (sock, _):
        first = handle_of(sock)
        before = first.age
        assert eventually(lambda: first.age > before + 0.01)
        assert handle_of(sock).age >= before + 0.01, "the connection is remembered while somebody holds a handle"


def test_what_can_be_asked_for() -> None:
    with over_loopback() as (sock, peer):
        port = sock.getsockname()[1]
        assert {found.token for found in mptcp.connections(port=port)} == {sock.token, peer.token}
        assert mptcp.connections(port=port, token=sock.token) == mptcp.connections(token=sock.token)
        mine = {found.token for found in mptcp.connections(pid=os.getpid())}
        assert {sock.token, peer.token} <= mine
        assert mptcp.connections(pid=os.getpid(), port=port, token=peer.token) == [handle_of(peer)]
        assert mptcp.connections(token=sock.token, port=1) == []
        token = sock.token
    assert eventually(lambda: mptcp.connections(token=token) == [])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert mptcp.connections(pid=other.pid) == []


def test_before_it_is_accepted_a_connection_has_no_owner() -> None:
    with (
        mptcp.create_server(("127.0.0.1", 0)) as listener,
        mptcp.create_connection(listener.getsockname(), timeout=10) as sock,
    ):
        port = sock.getsockname()[1]
        assert eventually(lambda: len(mptcp.connections(port=port)) == 2)
        [waiting] = [found for found in mptcp.connections(port=port) if found.server_side]
        assert (waiting.inode, waiting.pid, waiting.program) == (0, None, None)
        peer, _ = listener.accept()
        with peer:
            assert handle_of(peer) == waiting
            assert handle_of(peer).pid == os.getpid()


def test_one_that_is_connecting(mptcp_two_paths: TwoPaths) -> None:
    client, _, paths = mptcp_two_paths
    with client.socket() as sock:
        sock.setblocking(False)
        nobody = paths[0].address(client).rsplit(".", 1)[0] + ".99"
        assert sock.connect_ex((nobody, PORT)) == errno.EINPROGRESS
        [found] = client.connections()
        assert (found.state, found.server_side, found.remote) == ("SYN_SENT", False, (nobody, PORT))
        assert found.age < 60


def test_listeners_and_tcp_are_not_listed() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as plain:
        assert mptcp.connections(port=listener.getsockname()[1]) == []
        with socket.create_connection(plain.getsockname()):
            assert mptcp.connections(port=plain.getsockname()[1]) == []


def test_one_that_fell_back_is_not_listed() -> None:
    """The kernel still finds it by its token: it is told by the flags of its subflow."""
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        mptcp.create_connection(plain.getsockname(), timeout=10) as sock,
    ):
        assert sock.is_mptcp is False
        assert mptcp.connections(port=sock.getsockname()[1]) == []


def test_a_handle_whose_connection_falls_back(mptcp_two_paths: TwoPaths) -> None:
    """It was listed while it connected, when nobody could know."""
    client, server, paths = mptcp_two_paths

    def answer_arp(switch: str) -> None:
        server.run(["ip", "link", "set", "dev", paths[0].interface(server), "arp", switch], check=True)

    with (
        server.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as plain,
        client.socket() as sock,
    ):
        plain.bind(("", PORT))
        plain.listen()
        sock.setblocking(False)
        answer_arp("off")
        assert sock.connect_ex((paths[0].address(server), PORT)) == errno.EINPROGRESS
        [handle] = client.connections()
        assert handle.state == "SYN_SENT"
        answer_arp("on")
        assert eventually(lambda: not sock.is_mptcp)
        for call in (handle.subflows, handle.info, handle.open_subflow):
            with pytest.raises(mptcp.NotMultipathError) as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP
        assert client.connections() == []


def test_reading_is_what_the_descriptor_reads(connection: Connection) -> None:
    handle = handle_of(connection.sock, connection.client)
    connection.sock.open_subflow(*connection.second, backup=True)
    there, here = handle.subflows(), connection.sock.subflows()
    assert [subflow.id for subflow in there] == [None, None]
    for name in ("cookie", "local", "remote", "local_id", "remote_id", "initial", "backup", "peer_backup", "state"):
        assert [getattr(subflow, name) for subflow in there] == [getattr(subflow, name) for subflow in here], name
    assert [s.tcp_info.bytes_acked for s in there] == [s.tcp_info.bytes_acked for s in here]
    assert handle.info().token == connection.sock.token
    assert handle.info().bytes_sent == connection.sock.info().bytes_sent
    assert handle.path_manager == "userspace"


def test_other_connections_subflows_are_left_out(connection: Connection) -> None:
    with (
        connection.client.create_connection((connection.paths[0].address(connection.server), PORT)) as other,
        connection.listener.accept()[0] as other_peer,
    ):
        exchange(other, other_peer)
        other.open_subflow(*connection.second)
        assert len(handle_of(connection.sock, connection.client).subflows()) == 1
        assert len(handle_of(other, connection.client).subflows()) == 2
        assert len(connection.client.connections()) == 2


def test_opening_and_closing(connection: Connection) -> None:
    handle = handle_of(connection.sock, connection.client)
    opened = handle.open_subflow(("10.0.2.1", 12345), ("10.0.2.2", 5000))
    assert (opened.local, opened.remote, opened.id) == (("10.0.2.1", 12345), ("10.0.2.2", 5000), None)
    assert opened == handle.subflows()[1]
    assert (opened.remote, opened.local) in ends(connection.peer)
    # Ids are chosen for both in one place.
    again = connection.sock.open_subflow(*connection.second)
    assert again.local_id != opened.local_id
    opened.close()
    assert [subflow.local for subflow in handle.subflows()][1:] == [again.local]
    with pytest.raises(mptcp.SubflowError, match="already closed") as caught:
        opened.close()
    assert caught.value.errno == errno.ENOTCONN
    # Left open, everything is the connection's own, as for a socket.
    assert handle.open_subflow().remote == connection.sock.getpeername()
    assert handle.open_subflow(*connection.second, timeout=0) is None
    assert eventually(lambda: len(connection.peer.subflows()) == 4)
    handle.close_subflow(handle.subflows()[0])
    exchange(connection.sock, connection.peer)


def test_from_the_accepting_end(connection: Connection) -> None:
    handle = handle_of(connection.peer, connection.server)
    with pytest.raises(ConnectionRefusedError):
        handle.open_subflow(connection.second[1], connection.second[0])


def test_bound_to_an_interface(connection: Connection) -> None:
    handle = handle_of(connection.sock, connection.client)
    name = connection.paths[1].interface(connection.client)
    try:
        opened = handle.open_subflow(None, connection.second[1], interface=name)
    except mptcp.UnsupportedError as error:
        if KERNEL >= (6, 12):
            raise
        assert len(handle.subflows()) == 1
        pytest.skip(str(error))
    assert opened.local[0] == connection.second[0]
    assert handle_of(connection.sock, connection.client).subflows()[1] == opened
    opened.close()
    assert len(handle.subflows()) == 1


def test_failures_leave_nothing(connection: Connection) -> None:
    """The same errors as a socket's, from the same code."""
    handle = handle_of(connection.sock, connection.client)
    local, remote = connection.second
    nobody = remote.rsplit(".", 1)[0] + ".99"
    for arguments, timeout, number in (
        ((local, (remote, PORT + 1)), 5, errno.ECONNREFUSED),
        (("10.0.2.77", remote), 5, errno.EADDRNOTAVAIL),
        ((local, nobody), 0.2, errno.ETIMEDOUT),
        ((None, "203.0.113.1"), 5, errno.ENETUNREACH),
    ):
        with pytest.raises(mptcp.SubflowError) as caught:
            handle.open_subflow(*arguments, timeout=timeout)
        assert caught.value.errno == number
        assert len(connection.sock.subflows()) == 1
    exchange(connection.sock, connection.peer)


def test_the_in_kernel_path_manager(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    client.set_path_manager("kernel")
    with connected(client, server, paths) as made:
        handle = handle_of(made.sock, client)
        assert handle.path_manager == "kernel"
        with pytest.raises(mptcp.PathManagerError) as caught:
            handle.open_subflow(*made.second)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(mptcp.PathManagerError, match="last subflow"):
            handle.subflows()[0].close()
        assert len(handle.subflows()) == 1


def test_before_full_establishment(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with (
        server.create_server(("", PORT)),
        client.create_connection((paths[0].address(server), PORT)) as sock,
        pytest.raises(mptcp.SubflowError, match="a byte in each direction") as caught,
    ):
        handle_of(sock, client).open_subflow(paths[1].address(client), paths[1].address(server), timeout=0.1)
    assert caught.value.errno == errno.ENOTCONN


def test_a_connection_holds_nothing(mptcp_two_paths: TwoPaths) -> None:
    """No descriptor and no subscription: what is watched ends when its owner ends it, and the handle says so."""
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths) as made:
        handle = handle_of(made.sock, client)
        before = descriptors()
        assert handle_of(made.sock, client) == handle
        assert descriptors() <= before
        made.sock.close()
        assert made.peer.recv(1) == b"", "the peer sees the end"
        assert subscribers(client) == 0
    assert eventually(lambda: client.connections() == [])
    for call in (handle.info, handle.subflows, handle.open_subflow, lambda: handle.path_manager):
        with pytest.raises(OSError, match="has ended") as caught:
            call()
        assert caught.value.errno == errno.ENOTCONN
    assert handle.state == "ESTABLISHED", "as it was when it was listed"
    assert handle.pid is None


def test_every_subflow_may_be_closed(connection: Connection) -> None:
    """Without a subflow a connection is found by its token only, and takes a new one."""
    handle = handle_of(connection.sock, connection.client)
    handle.subflows()[0].close()
    assert eventually(lambda: connection.client.connections() == [])
    assert handle.subflows() == []
    [again] = connection.client.connections(token=handle.token)
    assert again == handle
    assert again.server_side is None
    handle.open_subflow(*connection.second)
    exchange(connection.sock, connection.peer)
    assert [found.server_side for found in connection.client.connections()] == [None]


def test_namespaces_are_told_apart(connection: Connection) -> None:
    tokens = {connection.sock.token, connection.peer.token}
    assert not tokens & {found.token for found in mptcp.connections()}
    assert [found.token for found in connection.client.connections()] == [connection.sock.token]
    assert [found.token for found in connection.server.connections()] == [connection.peer.token]
    [found] = connection.server.connections()
    assert found.open_subflow.__self__ is found
    assert found.pid == os.getpid()


def test_a_forked_child_lists_for_itself() -> None:
    with over_loopback() as (sock, _):
        handle = handle_of(sock)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                handle.subflows()
            except OSError as error:
                code = 0 if error.errno == errno.EBADF and handle_of(sock).subflows() else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(handle.subflows()) == 1


def test_a_subflow_of_another_connection(connection: Connection) -> None:
    mine = handle_of(connection.sock, connection.client)
    theirs = handle_of(connection.peer, connection.server)
    with pytest.raises(ValueError, match="another connection"):
        mine.close_subflow(theirs.subflows()[0])
    with pytest.raises(mptcp.SubflowError, match="already closed"):
        mine.close_subflow(1)  # type: ignore[arg-type]
    for wrong in (None, "1", True):
        with pytest.raises(TypeError):
            mine.close_subflow(wrong)  # type: ignore[arg-type]
    assert len(mine.subflows()) == 1


def test_what_cannot_be_asked_for() -> None:
    for name in ("token", "pid", "port"):
        for wrong in ("1", 1.0, True, b"1"):
            with pytest.raises(TypeError):
                mptcp.connections(**{name: wrong})  # type: ignore[arg-type]
        for value in (-1, 2**32, 2**80):
            with pytest.raises(ValueError, match="must be from"):
                mptcp.connections(**{name: value})
    with pytest.raises(ValueError, match="65535"):
        mptcp.connections(port=65536)
    with pytest.raises(TypeError):
        mptcp.connections(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        mptcp.Connection(1)  # type: ignore[arg-type]
    assert mptcp.connections(token=0) == []
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
        with pytest.raises(ProcessLookupError) as caught:
            mptcp.connections(pid=ended.pid)
        assert caught.value.errno == errno.ESRCH


def test_counters() -> None:
    before = mptcp.counters()
    with over_loopback():
        after = mptcp.counters()
    assert after["MPCapableSYNRX"] > before["MPCapableSYNRX"]
    assert all(isinstance(value, int) for value in after.values())


def test_counters_are_the_threads_namespaces(connection: Connection) -> None:
    program = "import mptcp; print(mptcp.counters()['MPCapableSYNACKRX'])"
    said = connection.client.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(said) == connection.client.counters()["MPCapableSYNACKRX"] == 1


# Attaching to another process's descriptor.

OWNER = """
import mptcp, sys
listener = mptcp.create_server(("127.0.0.1", 0))
sock = mptcp.create_connection(listener.getsockname())
peer, _ = listener.accept()
sock.sendall(b"x"); peer.sendall(peer.recv(1)); sock.recv(1)
plain = open("/dev/null")
print(sock.fileno(), sock.token, peer.fileno(), plain.fileno(), flush=True)
sys.stdin.read()
"""


@contextmanager
def owner() -> Iterator[tuple[int, list[int]]]:
    """Another process with a connection: its pid, and what it says."""
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, [int(word) for word in process.stdout.readline().split()]
        assert process.stdin is not None
        process.stdin.close()


def ptrace_scope() -> int:
    """0 where Yama is absent."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def test_attach() -> None:
    if ptrace_scope() > 1:
        pytest.skip("needs kernel.yama.ptrace_scope of 0 or 1: above that no process may attach to its children")
    with owner() as (pid, (fd, token, peer_fd, plain_fd)):
        before = descriptors()
        with mptcp.attach(pid, fd) as sock, mptcp.attach(pid, peer_fd) as peer:
            assert isinstance(sock, mptcp.Socket)
            assert sock.token == token
            assert sock.subflows()[0].id == 1
            assert os.get_blocking(sock.fileno()) is True
            exchange(sock, peer)
            [found] = mptcp.connections(token=token)
            assert found in mptcp.connections(pid=pid)
            assert found in mptcp.connections(pid=os.getpid())
            del found
        with pytest.raises(OSError, match="no descriptor") as caught:
            mptcp.attach(pid, 999)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match=r".") as caught:
            mptcp.attach(pid, plain_fd)
        assert caught.value.errno == errno.ENOTSOCK
        assert descriptors() <= before
        [found] = mptcp.connections(token=token)
        assert found.pid == pid
        assert found.program is not None
        assert found.program.startswith("python")
    with pytest.raises(ProcessLookupError) as gone:
        mptcp.attach(pid, fd)
    assert gone.value.errno == errno.ESRCH


def test_attach_takes_ints() -> None:
    for pid, fd in (("1", 1), (1, "1"), (1.0, 1), (1, None), (None, 1), (True, 1), (1, False)):
        with pytest.raises(TypeError):
            mptcp.attach(pid, fd)  # type: ignore[arg-type]
    for number, descriptor in ((0, 1), (-1, 1), (2**31, 1), (os.getpid(), -1), (os.getpid(), 2**31)):
        with pytest.raises(ValueError, match="must be from"):
            mptcp.attach(number, descriptor)


STRANGER = """
import json, mptcp, sys
pid, fd, token = (int(word) for word in sys.argv[1:])
said = {}
def note(**calls):
    for name, call in calls.items():
        try:
            said[name] = [type(call()).__name__]
        except OSError as error:
            said[name] = [type(error).__name__, error.errno, str(error)]
note(attach=lambda: mptcp.attach(pid, fd), pid=lambda: mptcp.connections(pid=pid))
[found] = mptcp.connections(token=token)
try:
    [subflow] = found.subflows()
except PermissionError as error:
    print(json.dumps({"untold": error.strerror}))
    sys.exit()
note(open=found.open_subflow, close=subflow.close, backup=lambda: subflow.set_backup(True),
     announce=lambda: found.announce_address("127.0.0.1"), remove=lambda: found.remove_address(1))
said["info"], said["holder"], said["still"] = found.info().token, found.pid, len(found.subflows())
print(json.dumps(said))
"""


SILENT = """
import argparse, mptcp, mptcp.cli.list, sys
token = int(sys.argv[1])
def recorded():
    with mptcp.Recorder(None) as recorder:
        return set(recorder.samples["token"])
def listed():
    [(_, subflows)] = mptcp.cli.list.find(argparse.Namespace(token=token, pid=None, port=None))
    return subflows
def polled():
    with mptcp.Events() as events:
        return [events.source]
for ask in (mptcp.connections, lambda: mptcp.connections(token=token)[0].subflows(), recorded, listed, polled):
    try:
        print(len(ask()))
    except PermissionError as error:
        print(error.errno, error.strerror)
"""


def test_what_is_not_told_is_no_empty_list(connection: Connection) -> None:
    """Before 6.15 the kernel tells of subflows to CAP_NET_ADMIN alone."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    command = [*NO_CAPABILITIES, sys.executable, "-W", "error", "-c", SILENT, str(connection.sock.token)]
    said = connection.client.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    if KERNEL < (6, 15) and said != ["1"] * 5:
        assert len(said) == 5
        assert all(line.startswith("1 subflows need CAP_NET_ADMIN") for line in said)
    else:
        assert said == ["1"] * 5


def test_another_users_process() -> None:
    """Listing and reading work; taking its descriptor and controlling it do not, and change nothing."""
    with owner() as (pid, (fd, token, *_)):
        if os.geteuid() == 0:
            # To the kernel a process with more capabilities is as another user's.
            command, foreign = ["setpriv", "--bounding-set=-all"], (pid, fd)
        else:
            command, foreign = ["unshare", "--user"], (1, 0)
            if os.stat("/proc/1").st_uid == os.geteuid():
                pytest.skip("needs a process of another user, but process 1 is our own")
        command += [sys.executable, "-W", "error", "-c", STRANGER, *map(str, (*foreign, token))]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if KERNEL < (6, 15) and "untold" in said:
            pytest.skip(said["untold"])
        for call, capability in {
            "attach": "CAP_SYS_PTRACE",
            "pid": "CAP_SYS_PTRACE",
            "open": "CAP_NET_ADMIN",
            "close": "CAP_NET_ADMIN",
            "backup": "CAP_NET_ADMIN",
            "announce": "CAP_NET_ADMIN",
            "remove": "CAP_NET_ADMIN",
        }.items():
            assert said[call][:2] == ["PermissionError", errno.EPERM], call
            assert capability in said[call][2]
        assert said["info"] == token
        assert said["still"] == 1
        if os.geteuid() == 0:
            assert said["holder"] is None


@pytest.mark.parametrize("initial", ["open", "closed"])
def test_one_that_its_owner_has_closed_has_its_subflows(connection: Connection, initial: str) -> None:
    """They keep its inode, while the connection has none any more."""
    first = connection.sock.subflows()[0]
    opened = connection.sock.open_subflow(*connection.second)
    wanted = {first.cookie, opened.cookie}
    if initial == "closed":
        connection.sock.close_subflow(first)
        assert eventually(lambda: len(connection.sock.subflows()) == 1)
        wanted = {opened.cookie}
    connection.sock.close()

    def listed() -> set[int]:
        return {subflow.cookie for conn in connection.client.connections() for subflow in conn.subflows()}

    assert eventually(lambda: listed() == wanted)
