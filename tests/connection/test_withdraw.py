"""Withdrawing addresses by RM_ADDR, those in use too, and the ids that addresses and subflows are given."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

import mptcp
import pytest
from mptcp import EventKind
from mptcp.lab import Host, Link
from mptcp.policies import FullMesh
from support import PORT, ROOT, Connection, connected, eventually, exchange, let_events_be_read, needs, ss

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def accepting(mptcp_two_paths: TwoPaths, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """The client's in-kernel path manager, with limits left, opens a subflow to every address that it is told of."""
    client, server, paths = mptcp_two_paths
    client.set_path_manager("kernel")
    client.set_limits(subflows=8, add_addr_accepted=8)
    with connected(client, server, paths, family=request.param) as made:
        yield made


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def opening(mptcp_two_paths: TwoPaths, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Both sides under the userspace path manager."""
    with connected(*mptcp_two_paths, family=request.param) as made:
        yield made


def second_of_server(made: Connection) -> str:
    return made.paths[1].address(made.server, family=made.sock.family)


def joined(made: Connection) -> list[mptcp.Subflow]:
    return [one for one in made.peer.subflows() if not one.initial]


def announced(made: Connection) -> int:
    """Announces the server's second address, which the client joins then."""
    number = made.peer.announce_address(second_of_server(made))
    assert eventually(lambda: [one.state for one in joined(made)] == ["ESTABLISHED"])
    exchange(made.sock, made.peer)
    return number


def test_nobody_is_invited_back_when_the_subflow_is_closed_first(accepting: Connection) -> None:
    """close() takes the address out of the kernel's list: put back by ANNOUNCE, a stock peer joined it again."""
    number = announced(accepting)
    before = accepting.client.counters(), accepting.server.counters()
    with accepting.server.events() as events:
        joined(accepting)[0].close()
        accepting.peer.remove_address(number)
        assert eventually(lambda: accepting.client.counters()["RmAddr"] == before[0]["RmAddr"] + 1)
        exchange(accepting.sock, accepting.peer)
        exchange(accepting.sock, accepting.peer)
        assert accepting.client.counters()["AddAddr"] == before[0]["AddAddr"]
        assert joined(accepting) == []
        assert accepting.client.counters()["MPJoinSynTx"] == before[0].get("MPJoinSynTx", 0)
        # What put the address back into the list is nobody's subflow.
        let_events_be_read(accepting.server)
        told = list(iter(lambda: events.get(0), None))
        assert [event.kind for event in told] == [EventKind.SUB_CLOSED]
    with pytest.raises(mptcp.SubflowError) as caught:
        accepting.peer.remove_address(number)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_an_id_in_use_is_refused_unless_forced(accepting: Connection) -> None:
    number = announced(accepting)
    with pytest.raises(mptcp.SubflowError, match="in use") as caught:
        accepting.peer.remove_address(number)
    assert caught.value.errno == errno.EBUSY
    accepting.peer.remove_address(number, force=True)
    assert eventually(lambda: joined(accepting) == [])
    assert eventually(lambda: len(accepting.sock.subflows()) == 1)
    exchange(accepting.sock, accepting.peer)
    assert accepting.client.counters()["RmAddr"] == 1


def test_the_initial_address(accepting: Connection) -> None:
    """RM_ADDR of 0: the peer closes the initial subflow, and the other one carries on."""
    announced(accepting)
    with pytest.raises(mptcp.SubflowError, match="in use") as caught:
        accepting.peer.remove_address(0)
    assert caught.value.errno == errno.EBUSY
    accepting.peer.remove_address(0, force=True)
    assert eventually(lambda: [one.initial for one in accepting.sock.subflows()] == [False])
    exchange(accepting.sock, accepting.peer)


def test_an_initial_address_that_no_subflow_uses(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    connection.sock.close_subflow(connection.sock.subflows()[0])
    assert eventually(lambda: [one.local_id for one in connection.sock.subflows()] == [1])
    with connection.peer.events() as events:
        connection.sock.remove_address(0)
        event = next(event for event in events if event.kind == EventKind.REMOVED)
        assert event.remote_id == 0
    exchange(connection.sock, connection.peer)


def test_a_subflow_that_the_opener_withdraws(connection: Connection) -> None:
    """Not announced, but the peer knows the id by the join."""
    client, server, paths = connection.client, connection.server, connection.paths
    connection.sock.close()
    server.set_path_manager("kernel")
    server.set_limits(subflows=8)
    with client.create_connection((paths[0].address(server), PORT)) as sock, connection.listener.accept()[0] as peer:
        exchange(sock, peer)
        subflow = sock.open_subflow(*connection.second)
        assert subflow.local_id is not None
        sock.remove_address(subflow.local_id, force=True)
        assert eventually(lambda: len(sock.subflows()) == 1)
        exchange(sock, peer)


def test_an_address_whose_interface_lost_it(accepting: Connection) -> None:
    """It cannot be withdrawn without announcing it again, so nothing happens unless that is asked for."""
    number = announced(accepting)
    address = second_of_server(accepting)
    joined(accepting)[0].close()
    assert eventually(lambda: len(accepting.sock.subflows()) == 1)
    accepting.server.run(["ip", "address", "flush", "dev", "eth2"], check=True)
    # The lab keeps it local, so that it can be reached by the other link.
    accepting.server.run(["ip", "route", "del", "local", address, "dev", "lo", "table", "local"], stderr=DEVNULL)
    for _ in range(2):
        with pytest.raises(mptcp.SubflowError, match=f"(?s){address}.*force=True") as caught:
            accepting.peer.remove_address(number)
        assert caught.value.errno == errno.EADDRNOTAVAIL
    assert accepting.client.counters()["AddAddr"] == 1
    assert accepting.client.counters().get("RmAddr", 0) == 0
    accepting.peer.remove_address(number, force=True)
    assert eventually(lambda: accepting.client.counters().get("RmAddr") == 1)
    exchange(accepting.sock, accepting.peer)


@pytest.fixture
def without_timestamps(mptcp_two_paths: TwoPaths) -> None:
    """An IPv6 address with a port is not announced beside them."""
    for host in mptcp_two_paths[:2]:
        host.sysctl("net.ipv4.tcp_timestamps", 0)


@pytest.mark.parametrize("listener", ["ours", "another's"])
def test_an_address_with_a_port(without_timestamps: None, accepting: Connection, listener: str) -> None:
    """Its port is in use, by the listener and by the subflow in TIME_WAIT."""
    address = second_of_server(accepting)
    with contextlib.ExitStack() as stack:
        if listener != "ours":
            stack.enter_context(accepting.server.create_server((address, 7000), family=accepting.sock.family))
        number = accepting.peer.announce_address(address, 7000)
        assert eventually(lambda: [one.state for one in joined(accepting)] == ["ESTABLISHED"])
        exchange(accepting.sock, accepting.peer)
        before = accepting.client.counters()
        with accepting.peer.events() as events:
            joined(accepting)[0].close()
            accepting.peer.remove_address(number)
            assert eventually(lambda: accepting.client.counters().get("RmAddr") == 1)
            exchange(accepting.sock, accepting.peer)
            exchange(accepting.sock, accepting.peer)
            let_events_be_read(accepting.server)
            told = [event for event in iter(lambda: events.get(0), None) if event.kind != EventKind.SUB_ESTABLISHED]
            assert [event.kind for event in told] == [EventKind.SUB_CLOSED]
        after = accepting.client.counters()
        assert (after["AddAddr"], after["MPJoinSynTx"]) == (before["AddAddr"], before["MPJoinSynTx"])
        assert joined(accepting) == []
        assert [one.state for one in accepting.peer.subflows()] == ["ESTABLISHED"]
        assert any(row[3].endswith(":7000") for row in ss(accepting.server, "-l")) == (listener != "ours")


def test_a_link_local_address(accepting: Connection) -> None:
    if accepting.sock.family == socket.AF_INET:
        pytest.skip("IPv6 only")
    client, server = accepting.client, accepting.server
    show = server.run(
        ["ip", "-6", "-o", "address", "show", "dev", "eth2", "scope", "link"], capture_output=True, text=True
    )
    address = show.stdout.split()[3].split("/")[0] + "%eth2"
    number = accepting.peer.announce_address(address)
    assert eventually(lambda: client.counters().get("EchoAdd", 0) + client.counters().get("AddAddr", 0) > 0)
    for subflow in joined(accepting):
        subflow.close()
    accepting.peer.remove_address(number)
    assert eventually(lambda: client.counters().get("RmAddr") == 1)


def test_other_ports_of_the_address_keep_their_ids(without_timestamps: None, opening: Connection) -> None:
    """The address without a port is in the kernel's list already, with another id."""
    sock, peer, second = opening.sock, opening.peer, opening.paths[1]
    here, there = (second.address(host, family=sock.family) for host in (opening.client, opening.server))
    other = sock.open_subflow(here)
    number = sock.announce_address(here, 7000)
    assert number != other.local_id
    peer.open_subflow(there, (here, 7000))
    exchange(sock, peer)
    next(one for one in sock.subflows() if one.local[1] == 7000).close()
    with peer.events() as events:
        sock.remove_address(number)
        event = next(event for event in events if event.kind == EventKind.REMOVED)
        assert event.remote_id == number
    exchange(sock, peer)
    assert [one.local_id for one in sock.subflows()] == [0, other.local_id]
    with pytest.raises(mptcp.SubflowError, match="in use"):
        sock.remove_address(other.local_id)


# A peer whose policy opens again what it lost


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def full_mesh(mptcp_two_paths: TwoPaths, request: pytest.FixtureRequest) -> Iterator[Connection]:
    client, server, paths = mptcp_two_paths
    with client.run_policy(FullMesh()), connected(client, server, paths, family=request.param) as made:
        yield made


def stays_away(made: Connection, number: int) -> bool:
    """Whether the client leaves the server's address for good; what it was just opening may be accepted once more."""

    def is_gone() -> bool:
        return all(one.local_id != number for one in made.peer.subflows())

    def is_quiet() -> bool:
        joins = made.client.counters()["MPJoinSynTx"]
        was_gone = is_gone()
        for _ in range(20):
            exchange(made.sock, made.peer)
            made.client.connections()
        return was_gone and is_gone() and made.client.counters()["MPJoinSynTx"] == joins

    return eventually(is_quiet)


@pytest.mark.parametrize("moment", ["while-joining", "joined"])
def test_full_mesh_leaves_an_address_that_is_withdrawn(full_mesh: Connection, moment: str) -> None:
    number = full_mesh.peer.announce_address(second_of_server(full_mesh))
    assert eventually(lambda: len(full_mesh.peer.subflows()) >= (4 if moment == "joined" else 2))
    full_mesh.peer.remove_address(number, force=True)
    assert eventually(lambda: full_mesh.client.counters().get("RmAddr") == 1)
    assert stays_away(full_mesh, number)


def test_full_mesh_stays_away_after_a_close(full_mesh: Connection) -> None:
    """It opens the lost subflows again at once, which crosses RM_ADDR."""
    number = full_mesh.peer.announce_address(second_of_server(full_mesh))
    assert eventually(lambda: len(full_mesh.peer.subflows()) == 4)
    for subflow in full_mesh.peer.subflows():
        if subflow.local_id == number:
            subflow.close()
    full_mesh.peer.remove_address(number, force=True)
    assert eventually(lambda: full_mesh.client.counters().get("RmAddr") == 1)
    assert stays_away(full_mesh, number)


def test_full_mesh_leaves_the_initial_address(full_mesh: Connection) -> None:
    full_mesh.peer.announce_address(second_of_server(full_mesh))
    assert eventually(lambda: [one.state for one in full_mesh.peer.subflows()] == ["ESTABLISHED"] * 4)
    exchange(full_mesh.sock, full_mesh.peer)
    full_mesh.peer.remove_address(0, force=True)
    assert stays_away(full_mesh, 0)
    assert len(full_mesh.peer.subflows()) == 2


# On the wire


@pytest.mark.skipif(not ROOT, reason="tcpdump needs root")
@needs("tcpdump", "tshark")
@pytest.mark.parametrize("port", [None, 7000], ids=["no-port", "port"])
def test_one_rm_addr_and_no_further_add_addr(
    without_timestamps: None, accepting: Connection, tmp_path: Path, port: int | None
) -> None:
    with accepting.paths[0].capture(tmp_path / "first"), accepting.paths[1].capture(tmp_path / "second"):
        number = accepting.peer.announce_address(second_of_server(accepting), port)
        assert eventually(lambda: [one.state for one in joined(accepting)] == ["ESTABLISHED"])
        exchange(accepting.sock, accepting.peer)
        joined(accepting)[0].close()
        accepting.peer.remove_address(number)
        assert eventually(lambda: accepting.client.counters().get("RmAddr") == 1)
        exchange(accepting.sock, accepting.peer)
    server = accepting.peer.getsockname()[0]
    source = f"{'ip' if accepting.sock.family == socket.AF_INET else 'ipv6'}.src == {server}"
    seen = []
    for name in ("first", "second"):
        for option in (3, 4):
            # RFC 8684, section 3: ADD_ADDR is 3, with 0 in its flags where it is no echo; REMOVE_ADDR is 4.
            what = f"{source} && tcp.options.mptcp.subtype == {option}"
            rows = tshark(tmp_path / name, what)
            seen += [(name, option)] * len(rows)
        assert tshark(tmp_path / name, "ip.addr == 127.0.0.0/8 || ipv6.addr == ::1") == []
    assert seen == [("first", 3), ("first", 4)]
    joins = tshark(tmp_path / "second", "tcp.flags.syn == 1 && tcp.flags.ack == 0")
    assert len(joins) == 1


def tshark(file: Path, what: str) -> list[str]:
    command = ["tshark", "-n", "-r", str(file), "-Y", what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


# The ids that are asked for


def test_a_subflow_with_an_id_of_one_s_choice(connection: Connection) -> None:
    one = connection.sock.open_subflow(*connection.second, local_id=77)
    assert one.local_id == 77
    [handle] = connection.client.connections()
    other = handle.open_subflow((connection.second[0], 4321), connection.second[1], local_id=200)
    assert other.local_id == 200
    assert [subflow.remote_id for subflow in connection.peer.subflows()] == [0, 77, 200]


def test_a_second_subflow_from_the_initial_address(connection: Connection) -> None:
    first = connection.paths[0].address(connection.client)
    subflow = connection.sock.open_subflow(first, local_id=0)
    assert subflow.local_id == 0
    exchange(connection.sock, connection.peer)


def test_an_id_that_another_address_has(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second, local_id=5)
    first = connection.paths[0].address(connection.client)
    for call in (
        lambda: connection.sock.open_subflow(first, local_id=5),
        lambda: connection.sock.open_subflow(*connection.second, local_id=6),
        lambda: connection.sock.announce_address(first, 7001, address_id=5),
    ):
        with pytest.raises(mptcp.SubflowError, match="another") as caught:
            call()
        assert caught.value.errno == errno.EINVAL
    assert len(connection.sock.subflows()) == 2


def test_an_address_announced_with_an_id_of_one_s_choice(connection: Connection) -> None:
    with connection.peer.events() as events:
        assert connection.sock.announce_address(connection.second[0], address_id=99) == 99
        event = next(iter(events))
        assert (event.kind, event.remote_id) == (EventKind.ANNOUNCED, 99)
    # With 0 meaning the initial address it would be EINVAL for the kernel.
    for wrong in (0, 256, -1):
        with pytest.raises(ValueError, match="address_id"):
            connection.sock.announce_address(connection.second[0], address_id=wrong)
        if wrong:
            with pytest.raises(ValueError, match="address_id"):
                connection.sock.remove_address(wrong)
            with pytest.raises(ValueError, match="local_id"):
                connection.sock.open_subflow(*connection.second, local_id=wrong)
    for odd in ("1", 1.0, True):
        with pytest.raises(TypeError, match="address_id"):
            connection.sock.announce_address(connection.second[0], address_id=odd)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="local_id"):
            connection.sock.open_subflow(*connection.second, local_id=odd)  # type: ignore[call-overload]


def test_without_a_listener(connection: Connection) -> None:
    local = connection.second[0]

    def listening() -> set[str]:
        return {row[3] for row in ss(connection.client, "-l")}

    number = connection.sock.announce_address(local, 7003, listen=False)
    assert f"{local}:7003" not in listening()
    connection.sock.remove_address(number)
    connection.sock.announce_address(local, 7003)
    assert f"{local}:7003" in listening()
