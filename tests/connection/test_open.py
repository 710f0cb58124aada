"""Opening subflows: what is accepted, what refuses and why, and that nothing is left of a failure."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import (
    KERNEL,
    PORT,
    Connection,
    computing,
    connected,
    ends,
    events_are_read_late,
    eventually,
    exchange,
    ss,
    subscribers,
    tuples,
)

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


def test_the_slides_tuple(connection: Connection) -> None:
    """Local 10.0.2.1:12345, remote 10.0.2.2:5000, as ss shows it too."""
    opened = connection.sock.open_subflow(("10.0.2.1", 12345), ("10.0.2.2", 5000))
    assert opened is not None
    assert (opened.local, opened.remote) == (("10.0.2.1", 12345), ("10.0.2.2", 5000))
    assert ("10.0.2.1:12345", "10.0.2.2:5000") in tuples(connection.client)
    assert opened.id == 2
    assert opened.initial is False
    exchange(connection.sock, connection.peer)


def test_accepted_means_that_the_peer_has_it_too(connection: Connection) -> None:
    for _ in range(20):
        opened = connection.sock.open_subflow(*connection.second)
        assert opened is not None
        assert opened.local in [s.remote for s in connection.peer.subflows()]


def test_everything_left_open(connection: Connection) -> None:
    """No local, no remote: another subflow between the addresses of the first."""
    opened = connection.sock.open_subflow()
    assert opened is not None
    assert opened.local[0] == connection.sock.getsockname()[0]
    assert opened.remote == connection.sock.getpeername()
    assert opened.local[1] != connection.sock.getsockname()[1]


def test_any_address_is_that_of_the_route(connection: Connection) -> None:
    for anything in (None, "0.0.0.0", ("", 0), ("0.0.0.0", 23456)):
        opened = connection.sock.open_subflow(anything, connection.second[1])
        assert opened is not None
        assert opened.local[0] == connection.second[0]
        assert opened.local_id not in (0, None)
    assert opened.local[1] == 23456


def disconnect(sock: socket.socket) -> None:
    """connect() to AF_UNSPEC, which ends a connection and keeps its socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_a_socket_that_is_connected_anew(connection: Connection) -> None:
    """What was found by the descriptor before is not taken for its next connection's."""
    sock = connection.sock
    of_first = sock.open_subflow(*connection.second)
    disconnect(sock)
    for act in (lambda: sock.open_subflow(*connection.second), of_first.close):
        with pytest.raises(OSError, match="not connected") as refused:
            act()
        assert refused.value.errno == errno.ENOTCONN
    sock.connect((connection.paths[0].address(connection.server), PORT))
    peer, _ = connection.listener.accept()
    with peer:
        peer.settimeout(10)
        exchange(sock, peer)
        with pytest.raises(ValueError, match="another connection"):
            of_first.close()
        opened = sock.open_subflow(*connection.second)
        assert opened.local in [subflow.remote for subflow in peer.subflows()]
        opened.close()
        assert len(sock.subflows()) == 1
        exchange(sock, peer)


def test_a_backup(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second, backup=True)
    assert opened is not None
    assert (opened.backup, opened.peer_backup) == (True, False)
    # Told by the join itself, on older kernels (6.1) by an MP_PRIO behind it.
    assert eventually(lambda: connection.peer.subflows()[1].peer_backup)
    assert not connection.peer.subflows()[1].backup


def test_a_backup_that_nobody_waits_for(connection: Connection) -> None:
    """It is one from the beginning, or is not opened: what must not be used first is not used unnoticed."""
    nobody = "10.0.2.250"  # of whom no answer comes
    try:
        connection.sock.open_subflow(connection.second[0], nobody, backup=True, timeout=0)
    except mptcp.UnsupportedError as error:
        if KERNEL >= (6, 12):
            raise
        assert len(connection.sock.subflows()) == 1
        pytest.skip(str(error))
    [waiting] = [subflow for subflow in connection.sock.subflows() if not subflow.initial]
    assert (waiting.state, waiting.remote[0], waiting.backup) == ("SYN_SENT", nobody, True)


def test_bound_to_an_interface(connection: Connection) -> None:
    name = connection.paths[1].interface(connection.client)
    try:
        opened = connection.sock.open_subflow(None, connection.second[1], interface=name)
    except mptcp.UnsupportedError as error:
        if KERNEL >= (6, 12):
            raise
        assert len(connection.sock.subflows()) == 1
        pytest.skip(str(error))
    assert opened is not None
    assert opened.local[0] == connection.second[0]
    assert opened.cookie, "an exact look-up finds a bound subflow"
    assert any(f"%{name}:" in row[3] for row in ss(connection.client))
    # Known from the kernel alone, too: by a handle that did not open it.
    with mptcp.wrap(connection.sock) as wrapped:
        assert wrapped.subflows()[1].cookie == opened.cookie
    with pytest.raises(OSError, match="No such device") as caught:
        connection.sock.open_subflow(*connection.second, interface="nosuch0")
    assert caught.value.errno == errno.ENODEV


def failed_open(connection: Connection, *args: object, **options: object) -> OSError:
    """The error of an open that must fail, after which the connection is as it was."""
    before = ends(connection.sock), ends(connection.peer)
    with pytest.raises(OSError, match=r".") as caught:
        connection.sock.open_subflow(*args, **options)
    assert ends(connection.sock) == before[0]
    assert eventually(lambda: ends(connection.peer) == before[1])
    assert not [row for row in ss(connection.client, "-a") if row[0] == "SYN-SENT"]
    exchange(connection.sock, connection.peer)
    return caught.value


def test_refused(connection: Connection) -> None:
    local, remote = connection.second
    for port in (0, 34567):
        error = failed_open(connection, (local, port), (remote, PORT + 1))
        assert isinstance(error, mptcp.SubflowError)
        assert isinstance(error, ConnectionRefusedError)
        assert error.errno == errno.ECONNREFUSED


def test_the_cause_is_known_before_its_event_has_been_read(connection: Connection) -> None:
    """Other programs keep the thread that reads events from running."""
    local, remote = connection.second
    with events_are_read_late(), computing(), computing(), computing():
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError, match="a reset answered the SYN"):
                connection.sock.open_subflow(local, (remote, PORT + 1))


def test_a_plain_tcp_listener(connection: Connection) -> None:
    with connection.server.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as plain:
        plain.bind(("", 7000))
        plain.listen()
        error = failed_open(connection, connection.second[0], (connection.second[1], 7000))
    assert isinstance(error, mptcp.SubflowError)
    assert error.errno == errno.EPROTO


def test_another_multipath_listener(connection: Connection) -> None:
    """A port that the peer has not announced: its kernel resets, with MismatchPortSynRx."""
    with connection.server.create_server(("", 7000)):
        error = failed_open(connection, connection.second[0], (connection.second[1], 7000))
    assert isinstance(error, ConnectionRefusedError)
    assert connection.server.counters()["MismatchPortSynRx"] >= 1


def test_filtered(connection: Connection) -> None:
    nobody = connection.second[1].rsplit(".", 1)[0] + ".99"
    begin = time.monotonic()
    error = failed_open(connection, connection.second[0], nobody, timeout=0.3)
    assert isinstance(error, mptcp.SubflowError)
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - begin >= 0.3


def test_an_unreachable_neighbour_is_told_by_the_kernel(connection: Connection) -> None:
    """ARP gives up after a second here, by default after three: EHOSTUNREACH, before the deadline."""
    interface = connection.paths[1].interface(connection.client)
    connection.client.sysctl(f"net.ipv4.neigh.{interface}.mcast_solicit", 1)
    nobody = connection.second[1].rsplit(".", 1)[0] + ".98"
    error = failed_open(connection, connection.second[0], nobody, timeout=30)
    assert isinstance(error, mptcp.SubflowError)
    assert error.errno == errno.EHOSTUNREACH


def test_no_route(connection: Connection) -> None:
    error = failed_open(connection, None, "203.0.113.1")
    assert isinstance(error, mptcp.SubflowError)
    assert error.errno == errno.ENETUNREACH


def test_an_address_that_is_not_ours(connection: Connection) -> None:
    for port in (0, 12345):
        error = failed_open(connection, ("10.0.2.77", port), connection.second[1])
        assert isinstance(error, mptcp.SubflowError)
        assert error.errno == errno.EADDRNOTAVAIL


def test_a_port_in_use(connection: Connection) -> None:
    local, remote = connection.second
    connection.sock.open_subflow((local, 12345), remote)
    error = failed_open(connection, (local, 12345), remote)
    assert isinstance(error, mptcp.SubflowError)
    assert error.errno == errno.EADDRINUSE


def test_the_in_kernel_path_manager(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    client.set_path_manager("kernel")
    with connected(client, server, paths) as made:
        assert made.sock.path_manager == "kernel"
        assert made.peer.path_manager == "userspace"
        error = failed_open(made, *made.second)
        assert isinstance(error, mptcp.PathManagerError)
        assert error.errno == errno.EBUSY
        assert "path_manager=" in str(error)


@pytest.mark.parametrize("delay", [None, "50ms"])
def test_a_peer_at_its_limit(mptcp_two_paths: TwoPaths, delay: str | None) -> None:
    """The server is under the in-kernel path manager with a limit of one subflow: it refuses at the third ACK.

    That is never taken for success, however late the refusal comes.
    """
    client, server, paths = mptcp_two_paths
    paths[1].set(delay=delay)
    server.set_path_manager("kernel")
    server.set_limits(subflows=1)
    with connected(client, server, paths) as made:
        made.sock.open_subflow(*made.second)
        error = failed_open(made, *made.second)
        assert isinstance(error, mptcp.SubflowError)
        assert isinstance(error, ConnectionAbortedError)


def test_before_full_establishment(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with (
        server.create_server(("", PORT)) as listener,
        client.create_connection((paths[0].address(server), PORT)) as sock,
    ):
        peer, _ = listener.accept()
        second = paths[1].address(client), paths[1].address(server)
        with peer:
            for timeout in (0, 0.1):
                with pytest.raises(mptcp.SubflowError, match="a byte in each direction") as caught:
                    sock.open_subflow(*second, timeout=timeout)
                assert caught.value.errno == errno.ENOTCONN
            # Waited for: the bytes come while the open is under way.
            opened: list[object] = []
            opener = threading.Thread(target=lambda: opened.append(sock.open_subflow(*second, timeout=10)))
            opener.start()
            exchange(sock, peer)
            opener.join()
            assert sock.subflows()[1:] == opened


def test_zero_does_not_wait(connection: Connection) -> None:
    assert connection.sock.open_subflow(*connection.second, timeout=0) is None
    assert eventually(lambda: len(connection.peer.subflows()) == 2)
    assert connection.sock.subflows()[1].state == "ESTABLISHED"


def test_from_the_accepting_end(connection: Connection) -> None:
    """The client listens at the connection's own local port, or nobody answers there."""
    local, remote = connection.second[1], connection.second[0]
    with pytest.raises(ConnectionRefusedError):
        connection.peer.open_subflow(local, remote)
    with connection.client.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((remote, connection.sock.getsockname()[1]))
        listener.listen()
        opened = connection.peer.open_subflow((local, 23456), remote)
        assert opened is not None
        assert opened.local == (local, 23456)
        assert opened.remote == (remote, connection.sock.getsockname()[1])
        assert (opened.remote, opened.local) in ends(connection.sock)
        exchange(connection.sock, connection.peer)


def test_many_chosen_ports(connection: Connection) -> None:
    """A chosen port takes an address id of its own, of which there are 255: closing has to free it."""
    local, remote = connection.second
    ids = set()
    for port in range(20000, 20300):
        opened = connection.sock.open_subflow((local, port), remote)
        assert opened is not None
        assert opened.local_id not in (0, None)
        assert opened.id not in ids
        ids.add(opened.id)
        connection.sock.close_subflow(opened)
    assert len(connection.sock.subflows()) == 1


def test_many_failures_from_chosen_ports(connection: Connection) -> None:
    """The kernel keeps the address id of a refused subflow: they must not run out."""
    local, remote = connection.second
    for port in range(20000, 20300):
        with pytest.raises(ConnectionRefusedError):
            connection.sock.open_subflow((local, port), (remote, PORT + 1))
    opened = connection.sock.open_subflow((local, 20001), remote)
    assert opened is not None
    assert opened.local == (local, 20001)
    exchange(connection.sock, connection.peer)


def test_address_ids_do_not_collide(connection: Connection) -> None:
    local, remote = connection.second
    opened = [connection.sock.open_subflow((local, port), remote) for port in (0, 11111, 0, 22222, 0)] + [
        connection.sock.open_subflow(None, remote),
        connection.sock.open_subflow(),
    ]
    by_id: dict[object, set[object]] = {}
    for subflow in opened:
        assert subflow is not None
        assert subflow.local_id
        by_id.setdefault(subflow.local_id, set()).add(subflow.local[0])
    assert all(len(addresses) == 1 for addresses in by_id.values()), "an id names one address"
    connection.sock.close_subflow(opened[1])
    again = connection.sock.open_subflow((local, 33333), remote)
    assert again is not None
    live = [(s.local_id, s.local[0]) for s in connection.sock.subflows()]
    assert len({address for number, address in live if number == again.local_id}) == 1


OTHER_PROCESS = """
import socket, sys, mptcp
sock = mptcp.Socket(fileno=int(sys.argv[1]))
for port in range(int(sys.argv[2]), int(sys.argv[2]) + 50):
    sock.open_subflow((sys.argv[3], port if port % 2 else 0), sys.argv[4])
"""


def test_another_process_on_the_same_connection(connection: Connection) -> None:
    local, remote = connection.second
    fd = connection.sock.fileno()
    other = connection.client.popen(
        [sys.executable, "-c", OTHER_PROCESS, str(fd), "20001", local, remote], pass_fds=[fd]
    )
    mine = [connection.sock.open_subflow((local, port if port % 2 else 0), remote) for port in range(30001, 30051)]
    assert other.wait(60) == 0
    subflows = connection.sock.subflows()
    assert len(subflows) == 101
    assert {s.id for s in mine if s} < {s.id for s in subflows}
    ports = {s.local[1] for s in subflows}
    assert ports >= set(range(30001, 30051, 2)) | set(range(20001, 20051, 2))
    assert all(s.local_id for s in subflows[1:])


def test_threads_open_at_once(connection: Connection) -> None:
    results: list[mptcp.Subflow | None] = []

    def open_some() -> None:
        results.extend(connection.sock.open_subflow(*connection.second) for _ in range(10))

    openers = [threading.Thread(target=open_some) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert len({s.id for s in results if s}) == 40
    assert len(connection.sock.subflows()) == 41


def test_one_waiting_open_does_not_hold_up_another(connection: Connection) -> None:
    nobody = connection.second[1].rsplit(".", 1)[0] + ".97"
    failed: list[mptcp.SubflowError] = []

    def wait_in_vain() -> None:
        try:
            connection.sock.open_subflow(connection.second[0], nobody, timeout=60)
        except mptcp.SubflowError as error:
            failed.append(error)

    waiter = threading.Thread(target=wait_in_vain)
    waiter.start()
    assert eventually(lambda: connection.sock.subflows()[-1].state == "SYN_SENT")
    opened = connection.sock.open_subflow(*connection.second)
    assert waiter.is_alive()
    # It ends when what it waits for is closed.
    connection.sock.close_subflow(next(s for s in connection.sock.subflows() if s.state == "SYN_SENT"))
    waiter.join()
    assert [error.errno for error in failed] == [errno.ECONNRESET]
    assert connection.sock.subflows()[1:] == [opened]


def test_an_interrupted_open_leaves_nothing(connection: Connection) -> None:
    nobody = connection.second[1].rsplit(".", 1)[0] + ".96"

    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    def open_subflow() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        connection.sock.open_subflow(connection.second[0], nobody, timeout=30)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupt):
            open_subflow()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(connection.sock.subflows()) == 1


def test_the_connection_ends_during_an_open(connection: Connection) -> None:
    nobody = connection.second[1].rsplit(".", 1)[0] + ".95"
    closer = threading.Timer(0.2, connection.sock.close)
    closer.start()
    # The descriptor may be gone before the open has begun to wait.
    with pytest.raises(OSError, match=r"ended|closed|Bad file descriptor") as caught:
        connection.sock.open_subflow(connection.second[0], nobody, timeout=30)
    closer.join()
    assert caught.value.errno in (errno.ENOTCONN, errno.EBADF, errno.ECONNABORTED)


def test_the_blocking_mode_is_left_alone(connection: Connection) -> None:
    for blocking in (True, False):
        connection.sock.setblocking(blocking)
        opened = connection.sock.open_subflow(*connection.second)
        connection.sock.close_subflow(opened)
        assert os.get_blocking(connection.sock.fileno()) is blocking


def test_a_server_holds_its_own_subscription(mptcp_two_paths: TwoPaths) -> None:
    """For as long as a Socket under the userspace path manager lives, and no longer."""
    client, server, paths = mptcp_two_paths
    assert (subscribers(client), subscribers(server)) == (0, 0)
    with server.create_server(("", PORT)) as listener:
        assert (subscribers(client), subscribers(server)) == (0, 1)
        with client.create_connection((paths[0].address(server), PORT)):
            assert (subscribers(client), subscribers(server)) == (1, 1)
            peer, _ = listener.accept()
        listener.close()
        assert (subscribers(client), subscribers(server)) == (0, 1)
        peer.close()
    assert (subscribers(client), subscribers(server)) == (0, 0)
    server.set_path_manager("kernel")
    with server.create_server(("", PORT)):
        assert subscribers(server) == 0


def test_a_forked_child_works_and_the_parent_goes_on(connection: Connection) -> None:
    def in_child(results: multiprocessing.SimpleQueue[object]) -> None:
        try:
            opened = connection.sock.open_subflow(*connection.second)
            results.put((opened.id if opened else None, len(connection.sock.subflows())))
        except BaseException as error:
            results.put(repr(error))

    context = multiprocessing.get_context("fork")
    results: multiprocessing.SimpleQueue[object] = context.SimpleQueue()
    child = context.Process(target=in_child, args=(results,))
    child.start()
    assert results.get() == (2, 2)
    child.join()
    assert connection.sock.open_subflow(*connection.second) == connection.sock.subflows()[2]
    assert subscribers(connection.client) == 1


def test_again_from_the_same_port_after_a_timeout(connection: Connection) -> None:
    """The end of the first attempt is not taken for the end of the second."""
    local, remote = connection.second
    nobody = remote.rsplit(".", 1)[0] + ".94"
    for _ in range(10):
        with pytest.raises(TimeoutError):
            connection.sock.open_subflow((local, 12345), nobody, timeout=0.02)
    opened = connection.sock.open_subflow((local, 12345), remote)
    assert opened is not None
    assert opened.local == (local, 12345)


def test_a_connection_that_was_reset(connection: Connection) -> None:
    connection.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.peer.close()
    with pytest.raises(ConnectionResetError):
        connection.sock.recv(1)
    with pytest.raises(OSError, match=r"not connected|ended|not fully established") as caught:
        connection.sock.open_subflow(*connection.second, timeout=0.2)
    assert caught.value.errno == errno.ENOTCONN
    assert connection.sock.subflows() == []


def test_full_establishment_is_waited_for_until_the_deadline(mptcp_two_paths: TwoPaths) -> None:
    """Well beyond the moment in which signals are looked for."""
    client, server, paths = mptcp_two_paths
    with (
        server.create_server(("", PORT)) as listener,
        client.create_connection((paths[0].address(server), PORT)) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            later = threading.Timer(0.5, exchange, (sock, peer))
            later.start()
            opened = sock.open_subflow(paths[1].address(client), paths[1].address(server))
            later.join()
            assert sock.subflows()[1:] == [opened]
