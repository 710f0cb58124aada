"""Announcing and withdrawing local addresses, and changing a subflow's priority."""

from __future__ import annotations

import errno
import socket
import sys
import threading

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link, two_paths
from support import PORT, Connection, connected, descriptors_left, ends, eventually, exchange, ss, subscribers

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


def listeners(host: Host) -> set[str]:
    """Where somebody listens in a host, as ss prints it."""
    return {row[3] for row in ss(host, "-l")}


@pytest.fixture
def accepting(mptcp_two_paths: TwoPaths) -> object:
    """Announced addresses are acted on: the client's in-kernel path manager opens subflows to them."""
    client, server, paths = mptcp_two_paths
    client.set_path_manager("kernel")
    client.set_limits(subflows=8, add_addr_accepted=8)
    with connected(client, server, paths) as made:
        yield made


def test_without_descriptors() -> None:
    """What it opens in the namespace wants several, and each of them may be the one too many."""
    ended: list[int | None] = []
    while not ended or ended[-1] is not None:
        with two_paths() as made, connected(*made) as connection, descriptors_left(len(ended)):
            try:
                connection.sock.announce_address(connection.second[0])
                ended.append(None)
            except OSError as error:
                ended.append(error.errno)
    assert len(ended) > 2
    assert set(ended) == {errno.EMFILE, None}


def test_the_peer_opens_a_subflow_to_it(accepting: Connection) -> None:
    """There is a listener at the connection's own port already: none is opened."""
    address = accepting.second[1]
    before = listeners(accepting.server)
    number = accepting.peer.announce_address(address)
    assert number in range(1, 256)
    assert eventually(lambda: len(accepting.peer.subflows()) == 2)
    [subflow] = [subflow for subflow in accepting.peer.subflows() if not subflow.initial]
    assert subflow.local == (address, PORT)
    assert subflow.local_id == number
    assert listeners(accepting.server) == before
    exchange(accepting.sock, accepting.peer)


def test_a_port_of_its_own_gets_a_listener(accepting: Connection) -> None:
    address = accepting.second[1]
    number = accepting.peer.announce_address(address, 7000)
    assert f"{address}:7000" in listeners(accepting.server)
    assert eventually(lambda: len(accepting.peer.subflows()) == 2)
    [subflow] = [subflow for subflow in accepting.peer.subflows() if not subflow.initial]
    assert (subflow.local, subflow.local_id) == ((address, 7000), number)
    exchange(accepting.sock, accepting.peer)


def test_it_is_withdrawn(accepting: Connection) -> None:
    address = accepting.second[1]
    number = accepting.peer.announce_address(address, 7000)
    assert eventually(lambda: len(accepting.peer.subflows()) == 2)
    before = ends(accepting.peer)
    [subflow] = [subflow for subflow in accepting.peer.subflows() if not subflow.initial]
    # The peer would close it.
    with pytest.raises(
        mptcp.SubflowError, match=f"{address}:7000 -> {subflow.remote[0]}:{subflow.remote[1]}"
    ) as caught:
        accepting.peer.remove_address(number)
    assert caught.value.errno == errno.EBUSY
    assert ends(accepting.peer) == before
    assert f"{address}:7000" in listeners(accepting.server)
    subflow.close()
    assert eventually(lambda: len(accepting.peer.subflows()) == 1)
    accepting.peer.remove_address(number)
    assert f"{address}:7000" not in listeners(accepting.server)
    assert eventually(lambda: accepting.client.counters()["RmAddr"] == 1)
    assert eventually(lambda: len(accepting.peer.subflows()) == 1)
    exchange(accepting.sock, accepting.peer)
    with pytest.raises(mptcp.SubflowError, match=f"no local address with id {number}") as caught:
        accepting.peer.remove_address(number)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_the_listener_goes_with_the_socket(connection: Connection) -> None:
    address = connection.second[1]
    with mptcp.wrap(connection.peer) as wrapped:
        wrapped.announce_address(address, 7000)
        wrapped.announce_address(address, 7001)
        assert {f"{address}:7000", f"{address}:7001"} < listeners(connection.server)
    assert not {f"{address}:7000", f"{address}:7001"} & listeners(connection.server)
    # Another handle of the same connection keeps it.
    connection.peer.announce_address(address, 7002)
    with mptcp.wrap(connection.peer) as wrapped:
        wrapped.announce_address(address, 7003)
    assert {f"{address}:7002", f"{address}:7003"} < listeners(connection.server)
    connection.peer.close()
    assert {row.rsplit(":", 1)[1] for row in listeners(connection.server)} == {str(PORT)}


def test_the_same_address_again(connection: Connection) -> None:
    address = connection.second[1]
    number = connection.peer.announce_address(address, 7000)
    assert connection.peer.announce_address(address, 7000) == number
    connection.peer.remove_address(number)
    assert f"{address}:7000" not in listeners(connection.server)


def test_a_client_announces(connection: Connection) -> None:
    """At the connection's own local port, where the server may then open subflows."""
    address = connection.second[0]
    number = connection.sock.announce_address(address)
    port = connection.sock.getsockname()[1]
    assert f"{address}:{port}" in listeners(connection.client)
    assert eventually(lambda: connection.server.counters()["AddAddr"] == 1)
    opened = connection.peer.open_subflow(connection.second[1], (address, port))
    assert (opened.remote, opened.local) in ends(connection.sock)
    [joined] = [subflow for subflow in connection.sock.subflows() if not subflow.initial]
    assert joined.local_id == number
    exchange(connection.sock, connection.peer)


def test_at_another_port_a_join_needs_the_announcement(connection: Connection) -> None:
    address = connection.second[1]
    with connection.server.create_server((address, 7000)):
        with pytest.raises(ConnectionRefusedError):
            connection.sock.open_subflow(connection.second[0], (address, 7000))
        connection.peer.announce_address(address, 7000)
        opened = connection.sock.open_subflow(connection.second[0], (address, 7000))
        assert opened.remote == (address, 7000)


def test_ipv6(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths, socket.AF_INET6) as made:
        address = paths[1].address(server, socket.AF_INET6)
        number = made.peer.announce_address(address, 7000)
        assert f"[{address}]:7000" in listeners(server)
        opened = made.sock.open_subflow(paths[1].address(client, socket.AF_INET6), (address, 7000))
        assert opened.remote[:2] == (address, 7000)
        assert [s.local_id for s in made.peer.subflows() if not s.initial] == [number]
        with pytest.raises(ValueError, match="link-local"):
            made.peer.announce_address("fe80::2")
        made.peer.announce_address(f"fe80::2%{paths[1].interface(server)}", 7001)
        assert any(row.endswith(":7001") and "fe80::2" in row for row in listeners(server))


def test_without_a_descriptor(connection: Connection) -> None:
    """By a Connection, which holds the listener and, since joins depend on it, the subscription to events."""
    connection.peer.close()
    connection.listener.close()
    with connection.server.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", PORT))
        listener.listen()
        with connection.client.create_connection((connection.paths[0].address(connection.server), PORT)) as sock:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
            with socket.socket(fileno=fd) as plain:
                plain.settimeout(10)
                exchange(sock, plain)
                listener.close()
                assert subscribers(connection.server) == 0
                [handle] = connection.server.connections(port=sock.getsockname()[1])
                number = handle.announce_address(connection.second[1], 7000)
                assert subscribers(connection.server) == 1
                opened = sock.open_subflow(connection.second[0], (connection.second[1], 7000))
                assert [s.local_id for s in handle.subflows()] == [0, number]
                with pytest.raises(mptcp.SubflowError, match="in use by subflow"):
                    handle.remove_address(number)
                opened.close()
                assert eventually(lambda handle=handle: len(handle.subflows()) == 1)
                handle.remove_address(number)
                assert subscribers(connection.server) == 0
                handle.announce_address(connection.second[1], 7000)
                del handle
                assert listeners(connection.server) == set()
                assert subscribers(connection.server) == 0


def test_ids_are_shared_with_subflows(connection: Connection) -> None:
    """One place chooses them: an id names one address and port, whatever it was first used for."""
    local, remote = connection.second
    numbers = {("subflow", port): connection.sock.open_subflow((local, port), remote).local_id for port in (0, 11111)}
    numbers |= {("address", port): connection.sock.announce_address(local, port or None) for port in (0, 7000, 7001)}
    numbers["subflow", 22222] = connection.sock.open_subflow((local, 22222), remote).local_id
    assert numbers["address", 0] == numbers["subflow", 0], "the same address and any port"
    assert len(set(numbers.values())) == len(numbers) - 1
    other = connection.sock.announce_address(connection.paths[0].address(connection.client), 7002)
    assert other not in numbers.values()
    # Ids that failed subflows have used up are freed, announced ones never.
    for port in range(20000, 20300):
        with pytest.raises(ConnectionRefusedError):
            connection.sock.open_subflow((local, port), (remote, PORT + 1))
    removed = connection.server.counters().get("RmAddr", 0)
    for port in (7000, 7001):
        assert connection.sock.announce_address(local, port) == numbers["address", port]
        connection.sock.remove_address(numbers["address", port])  # type: ignore[arg-type]
    assert eventually(lambda: connection.server.counters()["RmAddr"] >= removed + 1)
    exchange(connection.sock, connection.peer)


def test_an_id_outlives_the_subflows_at_its_address(connection: Connection) -> None:
    """Closing one takes the address out of the kernel's list, but the peer still knows it by its id."""
    local, remote = connection.second
    number = connection.sock.announce_address(local)
    opened = connection.sock.open_subflow(local, remote)
    assert opened.local_id == number
    opened.close()
    assert connection.sock.open_subflow((local, 11111), remote).local_id != number
    again = connection.sock.open_subflow(local, remote)
    assert again.local_id == number
    again.close()
    connection.sock.remove_address(number)
    assert eventually(lambda: connection.server.counters()["RmAddr"] == 1)


def test_an_id_that_another_process_has_given_away(mptcp_lab: Lab) -> None:
    """SUBFLOW_DESTROY takes the announced address out of the kernel's list, and so frees its id for others."""
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    paths = mptcp_lab.link(client, server), mptcp_lab.link(client, server)
    third = mptcp_lab.link(client, server).address(client)
    with connected(client, server, paths) as connection:
        local, remote = connection.second
        number = connection.sock.announce_address(local)
        connection.sock.open_subflow(local, remote).close()
        program = "import mptcp, sys; mptcp.connections(token=int(sys.argv[1]))[0].open_subflow(*sys.argv[2:])"
        command = [sys.executable, "-c", program, str(connection.sock.token), third, remote]
        client.run(command, check=True)
        assert [one.local_id for one in connection.sock.subflows()] == [0, number]
        opened = connection.sock.open_subflow(local, remote)
        assert opened is not None
        assert opened.local_id not in (None, 0, number)


def test_threads_announce_and_open_at_once(connection: Connection) -> None:
    local, remote = connection.second
    numbers: list[int | None] = []

    def work(first: int) -> None:
        for port in range(first, first + 10):
            numbers.append(connection.sock.announce_address(local, port))
            numbers.append(connection.sock.open_subflow((local, port + 1000), remote).local_id)

    workers = [threading.Thread(target=work, args=(first,)) for first in (20000, 20100, 20200)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(numbers) == len(set(numbers)) == 60
    assert len(connection.sock.subflows()) == 31


def refused(connection: Connection, *arguments: object) -> OSError:
    """The error of an announcement that must fail, after which nothing is announced or held."""
    before = listeners(connection.server), connection.client.counters().get("AddAddr", 0)
    with pytest.raises(OSError, match=r".") as caught:
        connection.peer.announce_address(*arguments)  # type: ignore[arg-type]
    assert (listeners(connection.server), connection.client.counters().get("AddAddr", 0)) == before
    exchange(connection.sock, connection.peer)
    return caught.value


def test_an_address_that_is_not_ours(connection: Connection) -> None:
    for address in ("10.0.2.77", connection.second[0], "203.0.113.1", "fd00::77"):
        error = refused(connection, address, 7000)
        assert isinstance(error, mptcp.SubflowError)
        assert error.errno == errno.EADDRNOTAVAIL


def test_a_plain_tcp_listener(connection: Connection) -> None:
    with connection.server.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as plain:
        plain.bind(("", 7000))
        plain.listen()
        error = refused(connection, connection.second[1], 7000)
    assert isinstance(error, mptcp.SubflowError)
    assert error.errno == errno.EADDRINUSE


def test_a_port_that_is_bound(connection: Connection) -> None:
    with connection.server.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.bind((connection.second[1], 7000))
        error = refused(connection, connection.second[1], 7000)
    assert isinstance(error, mptcp.SubflowError)
    assert error.errno == errno.EADDRINUSE


def test_the_in_kernel_path_manager(accepting: Connection) -> None:
    for call in (
        lambda: accepting.sock.announce_address(accepting.second[0]),
        lambda: accepting.sock.announce_address(accepting.second[0], 7000),
        lambda: accepting.sock.remove_address(1),
        lambda: accepting.sock.subflows()[0].set_backup(True),
    ):
        with pytest.raises(mptcp.PathManagerError, match="path_manager=") as caught:
            call()
        assert caught.value.errno == errno.EBUSY
    assert listeners(accepting.client) == set()
    assert accepting.sock.subflows()[0].backup is False


def test_before_full_establishment(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with (
        server.create_server(("", PORT)),
        client.create_connection((paths[0].address(server), PORT)) as sock,
        pytest.raises(mptcp.SubflowError, match="a byte in each direction") as caught,
    ):
        sock.announce_address(paths[1].address(client))
    assert caught.value.errno == errno.ENOTCONN


def test_what_cannot_be_announced(connection: Connection) -> None:
    announce, remove = connection.peer.announce_address, connection.peer.remove_address
    for address in (None, 1, b"10.0.2.2", ("10.0.2.2", 7000), 10.0):
        with pytest.raises(TypeError):
            announce(address)  # type: ignore[arg-type]
    for address in ("", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "server", "10.0.2", "fe80::1", "fe80::1%", "/tmp/x"):
        with pytest.raises(ValueError, match=r"."):
            announce(address)
    for port in ("7000", 7000.0, True):
        with pytest.raises(TypeError):
            announce(connection.second[1], port)  # type: ignore[arg-type]
    for number in (0, -1, 65536, 2**80):
        with pytest.raises(ValueError, match="65535"):
            announce(connection.second[1], number)
    for wrong in ("1", 1.0, None, True, connection.peer.subflows()[0]):
        with pytest.raises(TypeError):
            remove(wrong)  # type: ignore[arg-type]
    for number in (-1, 256, 2**80):
        with pytest.raises(ValueError, match="255"):
            remove(number)
    with pytest.raises(OSError, match="nosuch0") as caught:
        announce("fe80::1%nosuch0")
    assert caught.value.errno == errno.ENODEV
    assert {row.rsplit(":", 1)[1] for row in listeners(connection.server)} == {str(PORT)}


def test_sockets_that_have_no_connection(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    address = paths[0].address(server)
    with server.create_server((address, PORT)) as listener, server.socket() as fresh, server.socket() as closed:
        closed.close()
        for sock, number in ((listener, errno.ENOTCONN), (fresh, errno.ENOTCONN), (closed, errno.EBADF)):
            for call in (lambda sock=sock: sock.announce_address(address), lambda sock=sock: sock.remove_address(1)):
                with pytest.raises(OSError, match=r".") as caught:
                    call()
                assert caught.value.errno == number
        with (
            server.socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as udp,
            client.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as plain,
        ):
            plain.connect((address, PORT))
            fallen, _ = listener.accept()
            with fallen:
                for sock in (udp, plain, fallen):
                    for call in (
                        lambda sock=sock: sock.announce_address(address),
                        lambda sock=sock: sock.remove_address(1),
                    ):
                        with pytest.raises(mptcp.NotMultipathError) as caught:
                            call()
                        assert caught.value.errno == errno.EOPNOTSUPP


# Priority.


def receive(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


def backups(sock: mptcp.Socket) -> list[tuple[bool | None, bool | None]]:
    return [(subflow.backup, subflow.peer_backup) for subflow in sock.subflows()]


def test_set_backup(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    for which in (0, 1):
        for backup in (True, True, False):
            connection.sock.subflows()[which].set_backup(backup)
            here = [(backup, False) if number == which else (False, False) for number in (0, 1)]
            there = [(mine, theirs) for theirs, mine in here]
            assert backups(connection.sock) == here
            assert eventually(lambda there=there: backups(connection.peer) == there)
    exchange(connection.sock, connection.peer)


def test_set_backup_at_the_accepting_end_and_without_a_descriptor(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second, backup=True)
    [handle] = connection.server.connections()
    [subflow] = [subflow for subflow in handle.subflows() if not subflow.initial]
    subflow.set_backup(True)
    assert eventually(lambda: backups(connection.sock)[1] == (True, True))
    connection.sock.subflows()[1].set_backup(False)
    assert eventually(lambda: backups(connection.peer)[1] == (True, False))


def test_set_backup_moves_the_traffic(connection: Connection) -> None:
    """A backup subflow carries nothing while another is there."""
    second = connection.sock.open_subflow(*connection.second)
    connection.sock.subflows()[0].set_backup(True)
    assert eventually(lambda: backups(connection.peer)[0] == (False, True))

    def sent() -> list[int]:
        return [subflow.tcp_info.bytes_sent or 0 for subflow in connection.sock.subflows()]

    before = sent()
    receiver = threading.Thread(target=receive, args=(connection.peer, 1_000_000))
    receiver.start()
    connection.sock.sendall(bytes(1_000_000))
    receiver.join()
    initial, joined = (now - then for now, then in zip(sent(), before, strict=True))
    assert second == connection.sock.subflows()[1]
    # What the joined one does not deliver in time, on a busy machine, the kernel sends again by the backup.
    assert initial <= (connection.sock.info().bytes_retrans or 0)
    assert joined >= 1_000_000


def test_set_backup_takes_a_bool(connection: Connection) -> None:
    [subflow] = connection.sock.subflows()
    for wrong in (1, 0, None, "yes"):
        with pytest.raises(TypeError):
            subflow.set_backup(wrong)  # type: ignore[arg-type]
    assert backups(connection.sock) == [(False, False)]


def test_set_backup_of_what_is_gone(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    opened.close()
    with pytest.raises(mptcp.SubflowError, match="already closed") as caught:
        opened.set_backup(True)
    assert caught.value.errno == errno.ENOTCONN
    connection.sock.close()
    with pytest.raises(OSError, match=r".") as closed:
        opened.set_backup(True)
    assert closed.value.errno == errno.EBADF
