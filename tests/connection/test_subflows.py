"""Snapshots of subflows: families, numbers, ghosts, threads, namespaces."""

from __future__ import annotations

import socket
import threading

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from support import PORT, Connection, connected, eventually, exchange, ss

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


def test_a_snapshot_of_two(connection: Connection) -> None:
    local, remote = connection.second
    opened = connection.sock.open_subflow((local, 12345), (remote, PORT))
    first, second = connection.sock.subflows()
    assert second == opened
    assert (first.id, second.id) == (1, 2)
    assert (first.initial, second.initial) == (True, False)
    assert (second.local, second.remote) == ((local, 12345), (remote, PORT))
    assert first.local_id == 0
    assert second.local_id not in (0, None)
    assert first.cookie != second.cookie
    there = connection.peer.subflows()
    assert [(s.local, s.remote) for s in there] == [(s.remote, s.local) for s in (first, second)]
    assert there[1].remote_id == second.local_id, "the peer learns our address id from MP_JOIN"


def test_ss_sees_the_same(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    by_cookie = {
        word.removeprefix("sk:"): row for row in ss(connection.client, "-e") for word in row if word.startswith("sk:")
    }
    for subflow in connection.sock.subflows():
        assert subflow.cookie is not None
        row = by_cookie[f"{subflow.cookie:x}"]
        assert row[3:5] == [f"{host}:{port}" for host, port in (subflow.local, subflow.remote)]


@pytest.mark.parametrize("family", [socket.AF_INET6])
def test_ipv6(mptcp_two_paths: TwoPaths, family: int) -> None:
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths, family) as made:
        ends = [paths[1].address(host, family=family) for host in (client, server)]
        opened = made.sock.open_subflow((ends[0], 12345), ends[1])
        assert opened is not None
        assert opened.local == (ends[0], 12345, 0, 0)
        assert opened.remote == (ends[1], PORT, 0, 0)
        assert opened.cookie
        made.sock.close_subflow(opened)
        assert len(made.sock.subflows()) == 1


def test_both_families_in_one_connection(mptcp_two_paths: TwoPaths) -> None:
    """An IPv4 subflow of an IPv6 connection, on a dual-stack server: there it has an IPv4-mapped address."""
    client, server, paths = mptcp_two_paths
    with (
        server.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        client.create_connection((paths[0].address(server, family=socket.AF_INET6), PORT)) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            exchange(sock, peer)
            local, remote = paths[1].address(client), paths[1].address(server)
            opened = sock.open_subflow((local, 12345), remote)
            assert opened is not None
            assert (opened.local, opened.remote) == ((local, 12345), (remote, PORT))
            mapped = peer.subflows()[1]
            assert mapped.remote == (f"::ffff:{local}", 12345, 0, 0)
            assert mapped.local == (f"::ffff:{remote}", PORT, 0, 0)
            assert mapped.cookie is not None
            assert mapped.initial is False
            peer.close_subflow(mapped)
            assert eventually(lambda: len(sock.subflows()) == 1)


def test_a_dual_stack_server_and_an_ipv4_client(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with (
        server.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        client.create_connection((paths[0].address(server), PORT)) as sock,
    ):
        peer, _ = listener.accept()
        with peer:
            exchange(sock, peer)
            sock.open_subflow(paths[1].address(client), paths[1].address(server))
            assert [s.remote[:2] for s in peer.subflows()] == [
                (f"::ffff:{s.local[0]}", s.local[1]) for s in sock.subflows()
            ]
            assert all(s.cookie for s in peer.subflows())
            # From the accepting end towards an IPv4 client that listens.
            with client.socket() as back:
                back.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                back.bind((paths[1].address(client), sock.getsockname()[1]))
                back.listen()
                opened = peer.open_subflow(paths[1].address(server), paths[1].address(client))
                assert opened is not None
                assert opened.local[0] == paths[1].address(server)
                assert opened.cookie


def test_link_local_addresses_keep_their_interface(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    for host, last in ((client, 1), (server, 2)):
        address = ["ip", "-6", "address", "add", f"fe80::a:{last}/64", "dev", paths[1].interface(host), "nodad"]
        host.run(address, check=True)
    with connected(client, server, paths, socket.AF_INET6) as made:
        interface = paths[1].interface(client)
        try:
            opened = made.sock.open_subflow("fe80::a:1%" + interface, "fe80::a:2%" + interface)
        except mptcp.UnsupportedError as error:
            assert len(made.sock.subflows()) == 1
            pytest.skip(str(error))
        assert opened is not None
        assert opened.local[0] == "fe80::a:1"
        assert opened.local[3] == opened.remote[3] != 0
        assert made.sock.subflows()[1] == opened
        assert made.sock.subflows()[1].cookie == opened.cookie
        made.sock.close_subflow(opened)
        assert len(made.sock.subflows()) == 1


def test_more_subflows_than_a_byte_counts(connection: Connection) -> None:
    local, remote = connection.second
    for _ in range(40):
        connection.sock.open_subflow(local, remote)
    subflows = connection.sock.subflows()
    assert [s.id for s in subflows] == list(range(1, 42))
    assert len({s.cookie for s in subflows}) == 41
    assert len({s.local_id for s in subflows}) == 2, "one address id an address"
    assert len(connection.peer.subflows()) == 41


def test_ghosts_are_left_out(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    connection.sock.close_subflow(1)
    # The initial subflow ends by a FIN, which has to be answered.
    assert eventually(lambda: connection.sock.subflows() == [opened])
    assert eventually(lambda: len(connection.peer.subflows()) == 1)
    exchange(connection.sock, connection.peer)


def test_an_opening_subflow_is_listed(connection: Connection) -> None:
    """Towards an address that nobody answers for: the SYN stays alone."""
    nobody = connection.second[1].rsplit(".", 1)[0] + ".99"
    assert connection.sock.open_subflow(connection.second[0], nobody, timeout=0) is None
    opening = connection.sock.subflows()[-1]
    assert (opening.state, opening.id) == ("SYN_SENT", 2)
    connection.sock.close_subflow(opening)
    assert len(connection.sock.subflows()) == 1


def test_threads_read_at_once(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    expected = [connection.sock.subflows()[0], opened]
    wrong: list[object] = []

    def read() -> None:
        for _ in range(200):
            for sock in (connection.sock, connection.peer):
                subflows = sock.subflows()
                if len(subflows) != 2 or not all(s.cookie for s in subflows):
                    wrong.append(subflows)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not wrong
    assert connection.sock.subflows() == expected


def test_sockets_of_several_namespaces_in_one_process(mptcp_two_paths: TwoPaths) -> None:
    """Three namespaces: two hosts of a lab, one of another, and the test's own."""
    client, server, paths = mptcp_two_paths
    with Lab() as lab:
        other, peer = lab.host("client"), lab.host("server")
        link = lab.link(other, peer)
        with (
            connected(client, server, paths) as first,
            connected(other, peer, (link, link)) as second,
            mptcp.create_server(("127.0.0.1", 0)) as listener,
            mptcp.create_connection(listener.getsockname()) as own,
        ):
            accepted, _ = listener.accept()
            with accepted:
                # The two labs give out the same addresses: only the namespace tells the connections apart.
                assert first.sock.getpeername() == second.sock.getpeername()
                opened = first.sock.open_subflow(*first.second)
                assert len(second.sock.subflows()) == 1
                everything = [first.sock, first.peer, second.sock, second.peer, own, accepted]
                assert [len(sock.subflows()) for sock in everything] == [2, 2, 1, 1, 1, 1]
                cookies = [s.cookie for sock in everything for s in sock.subflows()]
                assert None not in cookies
                assert len(set(cookies)) == len(cookies)
                with pytest.raises(ValueError, match="another connection"):
                    second.sock.close_subflow(opened)
                assert len(first.sock.subflows()) == 2
