"""Connections of dual-stack sockets to IPv4 addresses, as Java and .NET make them: for policies they are IPv4."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import mptcp
import pytest
from mptcp.lab import Host, Link
from mptcp.policies import Backup, FullMesh, NDiffPorts, OnlyFor, Prefer
from support import PORT, Connection, eventually, exchange

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


@pytest.fixture
def made(mptcp_two_paths: TwoPaths) -> Iterator[Connection]:
    client, server, paths = mptcp_two_paths
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server(("", PORT)))
        sock = stack.enter_context(client.socket(socket.AF_INET6))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.connect((f"::ffff:{paths[0].address(server)}", PORT))
        peer, _ = listener.accept()
        stack.enter_context(peer)
        exchange(sock, peer)
        assert sock.getsockname()[0] == f"::ffff:{paths[0].address(client)}"
        yield Connection(client, server, paths, listener, sock, peer)


def locals_of(made: Connection) -> list[str]:
    return sorted(subflow.local[0].removeprefix("::ffff:") for subflow in made.sock.subflows())


def first_and_second(made: Connection) -> list[str]:
    return sorted(path.address(made.client) for path in made.paths)


def test_what_callbacks_are_told_is_ipv4(made: Connection) -> None:
    told: list[object] = []

    class Listening(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            told.extend([conn.local, conn.remote, *((one.local, one.remote) for one in conn.subflows())])
            conn.open_subflow(made.second[0])

        def on_subflow_established(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
            [initial] = [one for one in conn.subflows() if one.initial]
            conn.close_subflow(initial)

        def on_tick(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> None:
            told.extend(one.local for one in subflows)

    policy = Listening()
    policy.tick = 0.05
    local, remote = (end[:2] for end in (made.sock.getsockname(), made.sock.getpeername()))
    local, remote = ((end[0].removeprefix("::ffff:"), end[1]) for end in (local, remote))
    with made.client.run_policy(policy):
        assert eventually(lambda: locals_of(made) == [made.second[0]])
        exchange(made.sock, made.peer)
        assert eventually(lambda: len(told) > 5)
    assert told[:3] == [local, remote, (local, remote)]
    assert all(":" not in end[0] for end in told[3:])  # type: ignore[index]


def test_an_initial_subflow_that_is_lost_is_told_as_ipv4(made: Connection) -> None:
    lost: list[mptcp.Event] = []

    class Listening(mptcp.Policy):
        def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
            lost.append(event)

    with made.client.run_policy(Listening()):
        made.sock.open_subflow(*made.second)
        assert eventually(lambda: len(made.peer.subflows()) == 2)
        made.peer.close_subflow(made.peer.subflows()[0])
        assert eventually(lambda: bool(lost))
    assert lost[0].local == (first_and_second(made)[0], made.sock.getsockname()[1])


def test_full_mesh(made: Connection) -> None:
    with made.client.run_policy(FullMesh()):
        assert eventually(lambda: locals_of(made) == first_and_second(made))
    exchange(made.sock, made.peer)


def test_prefer_moves_the_connection(made: Connection) -> None:
    with made.client.run_policy(Prefer(made.paths[1], made.paths[0])):
        assert eventually(lambda: locals_of(made) == [made.second[0]])
    exchange(made.sock, made.peer)


def test_backup_of_the_initial_subflow(made: Connection) -> None:
    with made.client.run_policy(Backup(made.paths[1], made.paths[0])):
        assert eventually(lambda: [one.backup for one in made.sock.subflows()] == [True, False])
    exchange(made.sock, made.peer)


def test_different_ports(made: Connection) -> None:
    with made.client.run_policy(NDiffPorts(3)):
        assert eventually(lambda: locals_of(made) == [first_and_second(made)[0]] * 3)


def test_a_veto_holds_for_an_address_in_its_mapped_form(made: Connection) -> None:
    class Asking(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            conn.open_subflow(f"::ffff:{made.second[0]}")
            conn.open_subflow(conn.local[0])

    with made.client.run_policy(Asking(), OnlyFor(made.paths[1], ports=[1])):
        assert eventually(lambda: len(made.sock.subflows()) == 2)
        assert locals_of(made) == [first_and_second(made)[0]] * 2


def test_a_veto_holds_where_the_kernel_chooses_the_address(made: Connection) -> None:
    """Without a local address it is that of the route to the remote one."""
    client, server, paths = made.client, made.server, made.paths

    class Asking(mptcp.Policy):
        def on_connection(self, conn: mptcp.Connection) -> None:
            conn.open_subflow(None, (paths[1].address(server), PORT))
            conn.open_subflow(conn.local[0], conn.remote)

    with client.run_policy(Asking(), OnlyFor(paths[1], ports=[1])):
        assert eventually(lambda: len(made.sock.subflows()) == 2)
        assert locals_of(made) == [first_and_second(made)[0]] * 2
