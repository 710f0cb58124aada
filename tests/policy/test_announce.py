"""Announce: what a server tells its peers of, and takes back."""

from __future__ import annotations

import mptcp
from mptcp.lab import Host, Lab, Link
from mptcp.policies import Announce, FullMesh
from support import connected, eventually

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


def remotes(sock: mptcp.Socket) -> set[str]:
    return {subflow.remote[0] for subflow in sock.subflows() if subflow.state == "ESTABLISHED"}


def test_every_address_is_announced(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    first, second = (path.address(server) for path in paths)
    with server.run_policy(Announce()), client.run_policy(FullMesh()), connected(client, server, paths) as made:
        assert eventually(lambda: remotes(made.sock) == {first, second})
        assert client.counters()["AddAddr"] == 1


def test_a_connection_that_was_there(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths) as made, server.run_policy(Announce(paths[1])):
        assert eventually(lambda: client.counters()["AddAddr"] == 1)
        with client.run_policy(FullMesh()):
            made.peer.sendall(b"x")
            assert made.sock.recv(1) == b"x"
            assert client.counters()["AddAddr"] == 1, "announced again"


def test_only_what_is_asked_for(mptcp_lab: Lab) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    a, b, c = (mptcp_lab.link(client, server) for _ in range(3))
    for policy, expected in ((Announce(b), [b]), (Announce(exclude=b), [c]), (Announce(a, b, c, exclude=c), [b])):
        with (
            server.run_policy(policy),
            client.events() as events,
            connected(client, server, (a, b)),
        ):
            announced = []
            while len(announced) < len(expected):
                event = events.get(20)
                assert event is not None
                if event.kind == mptcp.EventKind.ANNOUNCED:
                    assert event.remote is not None
                    announced.append(event.remote[0])
            assert announced == [link.address(server) for link in expected]


def test_an_address_that_goes_and_comes(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    second = paths[1].address(server)
    with server.run_policy(Announce()), client.run_policy(FullMesh()), connected(client, server, paths) as made:
        assert eventually(lambda: second in remotes(made.sock))
        server.run(["ip", "link", "set", interface(server, second), "down"], check=True)
        assert eventually(lambda: remotes(made.sock) == {paths[0].address(server)}, 60)
        server.run(["ip", "link", "set", interface(server, second), "up"], check=True)
        assert eventually(lambda: second in remotes(made.sock), 60)


def interface(host: Host, address: str) -> str:
    rows = host.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout.splitlines()
    return next(row.split()[1] for row in rows if f" {address}/" in row)


def test_the_connecting_side_announces_nothing(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with (
        server.run_policy(mptcp.Policy()),
        client.run_policy(Announce(), FullMesh()),
        connected(client, server, paths) as made,
    ):
        assert eventually(lambda: len(made.sock.subflows()) == 2)
        assert server.counters().get("AddAddr", 0) == 0
