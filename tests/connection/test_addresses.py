"""The list of local addresses that the kernel keeps for a connection, and closing a subflow by its ends."""

from __future__ import annotations

import errno
import shutil
import socket
import sys

import mptcp
import pytest
from mptcp import Address
from mptcp.lab import Host, Link
from support import KERNEL, PORT, Connection, connected, eventually, exchange

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

lists = pytest.mark.skipif(KERNEL < (6, 10), reason="needs GET_ADDR with a token, Linux 6.10")


@lists
def test_what_was_opened_and_announced_is_listed(connection: Connection) -> None:
    local, remote = connection.second
    assert connection.sock.addresses() == []
    subflow = connection.sock.open_subflow(local, remote, local_id=5)
    number = connection.sock.announce_address(local, 7000)
    (handle,) = connection.client.connections(token=connection.sock.token)
    assert handle.addresses() == connection.sock.addresses()
    listed = {each.id: each for each in connection.sock.addresses()}
    assert set(listed) == {5, number}
    assert (listed[5].address, listed[5].port) == (local, None)
    assert listed[number] == Address(local, number, 7000, ("signal",))
    # Each end has a list of its own: there it is the address that was joined.
    assert [(each.address, each.flags) for each in connection.peer.addresses()] == [(remote, ("implicit",))]
    connection.sock.close_subflow(subflow)
    connection.sock.remove_address(number)
    assert connection.sock.addresses() == []


@lists
def test_the_kernel_keeps_the_address_of_an_open_that_failed(connection: Connection) -> None:
    local, remote = connection.second
    with pytest.raises(ConnectionRefusedError):
        connection.sock.open_subflow(local, (remote, PORT + 1), local_id=77)
    assert [(each.address, each.id) for each in connection.sock.addresses()] == [(local, 77)]


@lists
def test_ipv6(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths, family=socket.AF_INET6) as made:
        local = paths[1].address(client, socket.AF_INET6)
        number = made.sock.announce_address(local)
        assert made.sock.addresses() == [Address(local, number, None, ("signal",))]


@lists
def test_under_the_in_kernel_path_manager(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    server.set_path_manager("kernel")
    server.add_endpoint(paths[1].address(server), signal=True)
    with connected(client, server, paths) as made:
        with pytest.raises(mptcp.PathManagerError) as raised:
            made.peer.addresses()
        assert raised.value.errno == errno.EBUSY
        assert made.sock.addresses() == []


@lists
def test_of_what_has_no_list(connection: Connection) -> None:
    (handle,) = connection.client.connections(token=connection.sock.token)
    connection.sock.close()
    connection.peer.close()
    assert eventually(lambda: connection.client.connections(token=handle.token) == [])
    with pytest.raises(OSError, match="ended") as raised:
        handle.addresses()
    assert raised.value.errno == errno.ENOTCONN
    with mptcp.Socket() as sock, pytest.raises(OSError, match="not connected"):
        sock.addresses()


_UNPRIVILEGED = """
import sys, mptcp
(connection,) = mptcp.connections(token=int(sys.argv[1]))
assert [each.id for each in connection.addresses()] == [9], connection.addresses()
"""


@lists
def test_it_needs_no_privilege(connection: Connection) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    connection.sock.open_subflow(*connection.second, local_id=9)
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    command = [*unprivileged, sys.executable, "-c", _UNPRIVILEGED, str(connection.sock.token)]
    connection.client.run(command, check=True)


@lists
def test_an_id_that_cannot_be_used_says_which_there_is(connection: Connection) -> None:
    local, remote = connection.second
    connection.sock.open_subflow(local, remote, local_id=5)
    before = connection.sock.addresses()
    with pytest.raises(mptcp.SubflowError, match="listed with another id, 5"):
        connection.sock.open_subflow(local, remote, local_id=6)
    with pytest.raises(mptcp.SubflowError, match=f"another address has it, {local}"):
        connection.sock.open_subflow((local, 12345), remote, local_id=5)
    with pytest.raises(mptcp.SubflowError, match=f"another address has it, {local}"):
        connection.sock.announce_address(connection.paths[0].address(connection.client), 7001, address_id=5)
    assert connection.sock.addresses() == before


def test_close_by_its_ends(connection: Connection) -> None:
    opened = [connection.sock.open_subflow(*connection.second) for _ in range(3)]
    connection.sock.close_subflow((opened[0].local, opened[0].remote))
    (handle,) = connection.client.connections(token=connection.sock.token)
    handle.close_subflow((opened[1].local[:2], opened[1].remote[:2]))
    assert [each.id for each in connection.sock.subflows()] == [1, opened[2].id]
    # By the peer, whose local end is our remote one.
    assert eventually(lambda: len(connection.peer.subflows()) == 2)
    connection.peer.close_subflow((opened[2].remote, opened[2].local))
    assert eventually(lambda: len(connection.sock.subflows()) == 1)
    exchange(connection.sock, connection.peer)
    for gone in (opened[0], opened[2]):
        with pytest.raises(mptcp.SubflowError, match="already closed") as raised:
            connection.sock.close_subflow((gone.local, gone.remote))
        assert raised.value.errno == errno.ENOTCONN


def test_ends_that_name_no_subflow(connection: Connection) -> None:
    for wrong, error in (
        ((("10.0.1.1", 1),), TypeError),
        ((("10.0.1.1", 1), None), TypeError),
        ((("10.0.1.1", 1), 5), TypeError),
        ((("10.0.1.1", 0), ("10.0.1.2", 5)), ValueError),
        (("10.0.1.1", "10.0.1.2"), ValueError),
        ((("name", 1), ("10.0.1.2", 5)), ValueError),
        ((("10.0.1.1", 70000), ("10.0.1.2", 5)), ValueError),
    ):
        with pytest.raises(error):
            connection.sock.close_subflow(wrong)  # type: ignore[arg-type]
    assert len(connection.sock.subflows()) == 1


class ByEnds(mptcp.Policy):
    """Opens two subflows and closes one by its ends, whose end is then no loss; the other's is."""

    def __init__(self, local: str, remote: str) -> None:
        self.ends = local, remote
        self.lost: list[tuple[object, object]] = []
        self.established: list[tuple[object, object]] = []

    def on_connection(self, conn: mptcp.Connection) -> None:
        for _ in range(2):
            conn.open_subflow(*self.ends)

    def on_subflow_established(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
        self.established.append((subflow.local, subflow.remote))
        if len(self.established) == 1:
            conn.close_subflow((subflow.local, subflow.remote))

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        self.lost.append((event.local, event.remote))


def test_a_policy_loses_nothing_that_it_closed_by_its_ends(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    policy = ByEnds(paths[1].address(client), paths[1].address(server))
    with client.run_policy(policy), connected(client, server, paths) as made:
        assert eventually(lambda: len(policy.established) == 2)
        assert eventually(lambda: len(made.peer.subflows()) == 2)
        (left,) = [one for one in made.peer.subflows() if not one.initial]
        left.close()
        assert eventually(lambda: bool(policy.lost))
        assert policy.lost == [(left.remote, left.local)]
