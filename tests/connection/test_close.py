"""Closing subflows under both path managers, and what becomes of the data."""

from __future__ import annotations

import errno
import functools
import hashlib
import threading

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from support import Connection, connected, eventually, exchange, has_joined, held, holds_no_more_than

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


def test_by_object_by_id_and_by_method(connection: Connection) -> None:
    opened = [connection.sock.open_subflow(*connection.second) for _ in range(3)]
    assert all(opened)
    one, two, three = (s for s in opened if s)
    connection.sock.close_subflow(one)
    assert two.id is not None
    connection.sock.close_subflow(two.id)
    three.close()
    assert [s.id for s in connection.sock.subflows()] == [1]
    assert eventually(lambda: len(connection.peer.subflows()) == 1)
    exchange(connection.sock, connection.peer)


def test_one_that_is_gone(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    assert opened is not None
    opened.close()
    for gone in (opened, opened.id, 4711):
        with pytest.raises(mptcp.SubflowError, match="already closed") as caught:
            connection.sock.close_subflow(gone)
        assert caught.value.errno == errno.ENOTCONN
    assert len(connection.sock.subflows()) == 1


def test_the_peer_closes(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    connection.peer.close_subflow(connection.peer.subflows()[1])
    assert eventually(lambda: len(connection.sock.subflows()) == 1)


def test_the_initial_subflow(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    before = connection.sock.getsockname(), connection.sock.getpeername()
    connection.sock.close_subflow(1)
    assert eventually(lambda: connection.sock.subflows() == [opened])
    assert (connection.sock.getsockname(), connection.sock.getpeername()) == before
    exchange(connection.sock, connection.peer)
    again = connection.sock.open_subflow()
    assert again is not None
    assert again.local[0] == before[0][0]
    exchange(connection.sock, connection.peer)


def test_the_last_one_and_what_was_sent_meanwhile(connection: Connection) -> None:
    connection.sock.close_subflow(1)
    assert eventually(lambda: connection.sock.subflows() == [])
    assert eventually(lambda: connection.peer.subflows() == [])
    connection.sock.sendall(b"sent without a subflow")
    opened = connection.sock.open_subflow(*connection.second)
    assert connection.sock.subflows() == [opened]
    assert connection.peer.recv(100) == b"sent without a subflow"


def test_under_the_in_kernel_path_manager(mptcp_two_paths: TwoPaths) -> None:
    """By SOCK_DESTROY; the last one only by force."""
    client, server, paths = mptcp_two_paths
    server.set_path_manager("kernel")
    with connected(client, server, paths) as made:
        made.sock.open_subflow(*made.second)
        assert eventually(lambda: len(made.peer.subflows()) == 2)
        made.peer.close_subflow(made.peer.subflows()[1])
        assert eventually(lambda: len(made.peer.subflows()) == 1)
        with pytest.raises(mptcp.PathManagerError, match="force=True") as caught:
            made.peer.close_subflow(1)
        assert caught.value.errno == errno.EBUSY
        exchange(made.sock, made.peer)
        made.peer.close_subflow(1, force=True)
        assert eventually(lambda: made.peer.subflows() == [])


def test_opened_and_closed_a_thousand_times_during_a_transfer() -> None:
    """Every byte arrives, no id comes twice, nothing grows. Short queues, which every handshake has to pass."""
    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        first, second = (lab.link(client, server, rate="200mbit", queue="2ms") for _ in range(2))
        with connected(client, server, (first, second)) as connection:
            # Under so much change the kernel may take seconds to send again what was on a closed subflow.
            connection.sock.settimeout(60)
            connection.peer.settimeout(60)
            open_and_close(connection, 1000)


def open_and_close(connection: Connection, rounds: int) -> None:
    block = bytes(range(256)) * 256
    stop = threading.Event()
    sent, received = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        while not stop.is_set():
            connection.sock.sendall(block)
            sent.update(block)
        connection.sock.shutdown(1)

    def receive() -> None:
        while data := connection.peer.recv(1 << 16):
            received.update(data)

    transfer = [threading.Thread(target=send), threading.Thread(target=receive)]
    for thread in transfer:
        thread.start()
    ids = set()
    before = None
    for round_ in range(rounds):
        # Carries data when the acceptor is through with the join, and not before: docs/kernel-bugs.md.
        opened = connection.sock.open_subflow(*connection.second, backup=True)
        assert opened is not None
        ids.add(opened.id)
        assert eventually(functools.partial(has_joined, connection.peer, opened))
        opened.set_backup(False)
        connection.sock.close_subflow(opened)
        if round_ == 100:
            before = *held(), resident()
    assert before is not None
    assert holds_no_more_than(before[:2]), held()
    assert resident() - before[2] < 4 << 20
    stop.set()
    for thread in transfer:
        thread.join()
    assert len(ids) == rounds
    mismatches = connection.server.counters().get("DSSNotMatching")
    assert sent.digest() == received.digest(), f"MPTcpExtDSSNotMatching of the acceptor: {mismatches}"


def resident() -> int:
    """Resident memory in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_closing_frees_the_thread_and_the_descriptors(mptcp_two_paths: TwoPaths) -> None:
    with connected(*mptcp_two_paths):
        pass
    before = held()
    for _ in range(20):
        with connected(*mptcp_two_paths) as made:
            made.sock.open_subflow(*made.second)
    assert holds_no_more_than(before), held()
