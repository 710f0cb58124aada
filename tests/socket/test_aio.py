"""mptcp.aio: streams over Multipath TCP, subflows opened without a thread, and events of many connections at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import mptcp
import mptcp.aio
import pytest
import trustme
from mptcp import EventKind
from mptcp.lab import Host, Link
from support import PORT, Connection, descriptors, exchange, held, holds_no_more_than, threads

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

DEADLINE = 60.0
T = TypeVar("T")


def run(program: Coroutine[Any, Any, T]) -> T:
    async def within() -> T:
        result = await asyncio.wait_for(program, DEADLINE)
        # Those who serve see the end a moment later.
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
        return result

    return asyncio.run(within())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        finally:
            writer.close()
        await writer.wait_closed()


# Streams.


@pytest.mark.parametrize("host", [None, "127.0.0.1", "localhost"])
def test_streams(host: str | None) -> None:
    async def program() -> None:
        async with await mptcp.aio.start_server(echo, host) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await mptcp.aio.open_connection("127.0.0.1", port)
            writer.write(b"line\n")
            assert await reader.readline() == b"line\n"
            sock = writer.get_extra_info("socket")
            assert sock.getsockopt(6, 1), "TCP_NODELAY"
            with mptcp.wrap(sock) as control:
                assert control.is_mptcp
            writer.close()
            await writer.wait_closed()

    run(program())


def test_streams_over_tls() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(ours)
    authority.configure_trust(theirs)

    async def program() -> None:
        async with await mptcp.aio.start_server(echo, "127.0.0.1", ssl=ours) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await mptcp.aio.open_connection("localhost", port, ssl=theirs)
            writer.write(b"line\n")
            assert await reader.readline() == b"line\n"
            assert isinstance(mptcp.aio._target(writer), mptcp.Socket)
            writer.close()
            await writer.wait_closed()

    run(program())


async def conversation(*arguments: Any, **options: Any) -> socket.socket:
    """Connect, say a line and hear it again, and return a duplicate of the socket."""
    reader, writer = await mptcp.aio.open_connection(*arguments, **options)
    writer.write(b"line\n")
    assert await reader.readline() == b"line\n"
    duplicate = writer.get_extra_info("socket").dup()
    writer.close()
    await writer.wait_closed()
    return duplicate  # type: ignore[no-any-return]


def test_several_hosts() -> None:
    """A listener on each; what is accepted is Multipath TCP with TCP_NODELAY, as asyncio sets it."""
    accepted = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        accepted.append((sock.getsockopt(1, socket.SO_PROTOCOL), sock.getsockopt(6, socket.TCP_NODELAY)))
        await echo(reader, writer)

    async def program() -> None:
        hosts = ("127.0.0.1", "127.0.0.2", "::1", "127.0.0.1")
        server = await mptcp.aio.start_server(serve, hosts, start_serving=False)
        assert isinstance(server, asyncio.Server)
        assert not server.is_serving()
        async with server:
            addresses = [sock.getsockname()[:2] for sock in server.sockets]
            assert [host for host, _ in addresses] == list(hosts[:3])
            assert len({port for _, port in addresses}) == 1, "port 0 is one port where it can be"
            serving = asyncio.create_task(server.serve_forever())
            while not server.is_serving():
                await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already"):
                await server.serve_forever()
            for host, port in addresses:
                (await conversation(host, str(port))).close()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert server.sockets == ()
        with pytest.raises(ConnectionRefusedError):
            await mptcp.aio.open_connection(*addresses[1])

    before = descriptors()
    run(program())
    assert accepted == [(262, 1)] * 3
    assert descriptors() <= before


def test_one_of_several_hosts_is_not_ours() -> None:
    async def program() -> None:
        with pytest.raises(OSError, match=r"192\.0\.2\.1") as caught:
            await mptcp.aio.start_server(echo, ["127.0.0.1", "192.0.2.1"], 0)
        assert caught.value.errno == errno.EADDRNOTAVAIL

    before = descriptors()
    run(program())
    assert descriptors() <= before


@pytest.mark.parametrize("options", [{}, {"happy_eyeballs_delay": 0.25}, {"interleave": 2}])
def test_addresses_are_tried_in_turn(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two of the name refuse."""

    async def program() -> None:
        async with await mptcp.aio.start_server(echo, "127.0.0.3", 0) as server:
            port = server.sockets[0].getsockname()[1]

            async def getaddrinfo(*unused: Any, **also: Any) -> list[Any]:
                kind = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
                four = [(socket.AF_INET, *kind, (f"127.0.0.{last}", port)) for last in (1, 2, 3)]
                return [*four, (socket.AF_INET6, *kind, ("::1", port, 0, 0))]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
            with await conversation("name", port, **options) as sock:
                assert sock.getpeername()[0] == "127.0.0.3"
                assert sock.getsockopt(6, socket.TCP_NODELAY)
                assert sock.getsockopt(1, socket.SO_PROTOCOL) == 262
        with pytest.raises(ConnectionRefusedError):
            await mptcp.aio.open_connection("name", port, **options)
        with pytest.raises(ExceptionGroup) as caught:
            await mptcp.aio.open_connection("name", port, all_errors=True, **options)
        assert [type(error) for error in caught.value.exceptions] == [ConnectionRefusedError] * 4

    before = descriptors()
    run(program())
    assert descriptors() <= before


def test_the_order_of_addresses() -> None:
    """That of RFC 8305, as asyncio's loop.create_connection orders them."""
    found = [(4, "a"), (4, "b"), (4, "c"), (6, "x"), (6, "y")]
    assert [name for _, name in mptcp.aio._interleaved(found, 1)] == ["a", "x", "b", "y", "c"]
    assert [name for _, name in mptcp.aio._interleaved(found, 2)] == ["a", "b", "x", "c", "y"]
    assert mptcp.aio._interleaved(found[:2], 3) == found[:2]


def test_a_socket_that_is_given() -> None:
    async def program() -> None:
        listener = mptcp.create_server(("127.0.0.1", 0))
        async with await mptcp.aio.start_server(echo, sock=listener):
            sock = await asyncio.to_thread(mptcp.create_connection, listener.getsockname())
            (await conversation(sock=sock)).close()
            for wrong in ({"host": "127.0.0.1"}, {"port": 1}):
                with pytest.raises(ValueError, match="sock"):
                    await mptcp.aio.open_connection(sock=listener, **wrong)
                with pytest.raises(ValueError, match="sock"):
                    await mptcp.aio.start_server(echo, sock=listener, **wrong)
        with pytest.raises(ValueError, match="given"):
            await mptcp.aio.open_connection()
        with pytest.raises(ValueError, match="proto"):
            await mptcp.aio.open_connection("127.0.0.1", 1, proto=socket.IPPROTO_UDP)
        with pytest.raises(socket.gaierror):
            await mptcp.aio.open_connection("127.0.0.1", "no such service")

    run(program())


def test_keep_alive() -> None:
    async def program() -> None:
        for given, expected in ((True, 1), (False, 0), (None, 0)):
            async with await mptcp.aio.start_server(echo, ["127.0.0.1", "127.0.0.2"], keep_alive=given) as server:
                options = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for sock in server.sockets]
                assert options == [expected] * 2

    run(program())


def test_every_address_of_the_host() -> None:
    async def program() -> None:
        async with await mptcp.aio.start_server(echo) as server:
            [listener] = server.sockets
            for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
                (await conversation(host, listener.getsockname()[1])).close()
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            async with await mptcp.aio.start_server(echo, family=family, reuse_port=True) as server:
                [listener] = server.sockets
                assert listener.getsockopt(1, socket.SO_REUSEPORT)
                (await conversation(host, listener.getsockname()[1])).close()

    run(program())


def test_with_uvloop() -> None:
    """uvloop makes its own sockets in C; ours are passed to it."""
    uvloop = pytest.importorskip("uvloop")

    async def program() -> None:
        async with await mptcp.aio.start_server(echo, ["127.0.0.1", "127.0.0.2"]) as server:
            for listener in server.sockets:
                with await conversation(*listener.getsockname(), local_addr=("127.0.0.9", 0)) as sock:
                    assert sock.getsockopt(1, socket.SO_PROTOCOL) == 262
                    assert sock.getsockopt(6, socket.TCP_NODELAY)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(program(), DEADLINE))


def test_the_local_address(mptcp_two_paths: TwoPaths) -> None:
    async def program() -> None:
        async with await mptcp.aio.start_server(echo, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            _, writer = await mptcp.aio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            assert writer.get_extra_info("sockname")[0] == "127.0.0.2"
            writer.close()
            await writer.wait_closed()

    run(program())


def test_nobody_listens() -> None:
    before = descriptors()
    with pytest.raises(ConnectionRefusedError):
        run(mptcp.aio.open_connection("127.0.0.1", 1))
    assert descriptors() <= before


# Subflows.


def test_opening_and_closing(connection: Connection) -> None:
    async def program() -> None:
        reader, writer = await asyncio.open_connection(sock=connection.sock)
        [handle] = connection.client.connections()
        for way in (connection.sock, writer, writer.transport, writer.get_extra_info("socket"), handle):
            subflow = await mptcp.aio.open_subflow(way, *connection.second)
            assert subflow is not None
            assert subflow in handle.subflows() if way is handle else subflow in connection.sock.subflows()
            await mptcp.aio.close_subflow(way, subflow)
            assert len(connection.sock.subflows()) == 1
        assert await mptcp.aio.open_subflow(writer, *connection.second, timeout=0) is None
        connection.peer.sendall(b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()

    run(program())


def test_what_fails(connection: Connection) -> None:
    local, remote = connection.second

    async def program() -> None:
        with pytest.raises(ConnectionRefusedError):
            await mptcp.aio.open_subflow(connection.sock, local, (remote, 5001))
        with pytest.raises(TimeoutError):
            await mptcp.aio.open_subflow(connection.sock, local, "10.0.99.1", timeout=0.05)
        with pytest.raises(mptcp.SubflowError) as caught:
            await mptcp.aio.open_subflow(connection.sock, "192.0.2.1", remote)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                await mptcp.aio.open_subflow(connection.sock, timeout=wrong)
        with pytest.raises(TypeError):
            await mptcp.aio.open_subflow(object())

    before = held()
    run(program())
    assert len(connection.sock.subflows()) == 1
    assert holds_no_more_than(before), held()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_writer_that_is_not_multipath_tcp(connection: Connection, family: int) -> None:
    """No other connection of its network namespace is taken for it."""

    async def program(one: socket.socket) -> None:
        _, writer = await asyncio.open_connection(sock=one)
        with pytest.raises(mptcp.NotMultipathError):
            await mptcp.aio.open_subflow(writer, *connection.second)
        with pytest.raises(mptcp.NotMultipathError):
            await mptcp.aio.close_subflow(writer, 1, force=True)
        writer.close()
        await writer.wait_closed()

    if family == socket.AF_UNIX:
        one, other = socket.socketpair()
    else:
        with connection.client.socket(proto=socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            # Plain sockets, as asyncio has them of other libraries.
            plain = connection.client.socket(proto=socket.IPPROTO_TCP)
            plain.connect(listener.getsockname())
            one, other = socket.socket(fileno=plain.detach()), listener.accept()[0]
    with other:
        run(program(one))
    assert len(connection.sock.subflows()) == 1


def test_many_at_once_beside_those_that_nobody_answers(connection: Connection) -> None:
    local, remote = connection.second

    async def program() -> None:
        silent = [
            asyncio.ensure_future(mptcp.aio.open_subflow(connection.sock, local, "10.0.99.1", timeout=None))
            for _ in range(50)
        ]
        while len(connection.sock.subflows()) < 51:
            await asyncio.sleep(0)
        opened = await asyncio.gather(*(mptcp.aio.open_subflow(connection.sock, local, remote) for _ in range(20)))
        assert len(set(opened)) == 20
        assert not any(task.done() for task in silent)
        assert threads() <= before[1], "an open takes no thread"
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)
        assert {subflow.remote[0] for subflow in connection.sock.subflows()} == {
            remote,
            connection.sock.getpeername()[0],
        }

    before = held()
    run(program())
    assert holds_no_more_than(before), held()


def test_cancelled_at_any_moment_nothing_is_left(connection: Connection) -> None:
    """Either the open is over, and the subflow is there, or it is cancelled, and there is none."""

    async def program() -> None:
        for turns in range(60):
            task = asyncio.ensure_future(mptcp.aio.open_subflow(connection.sock, *connection.second))
            for _ in range(turns % 6):
                await asyncio.sleep(0)
            task.cancel()
            try:
                subflow = await task
            except asyncio.CancelledError:
                pass
            else:
                assert subflow is not None
                await mptcp.aio.close_subflow(connection.sock, subflow)
            assert len(connection.sock.subflows()) == 1

    before = held()
    run(program())
    assert holds_no_more_than(before), held()


# Events.


def test_events_of_one_connection(connection: Connection) -> None:
    async def program() -> list[EventKind]:
        with connection.sock.events() as events:
            await mptcp.aio.open_subflow(connection.sock, *connection.second)
            kinds = []
            async for event in events:
                kinds.append(event.kind)
                if event.kind == EventKind.SUB_ESTABLISHED:
                    connection.sock.close()
            return kinds

    kinds = [kind for kind in run(program()) if kind not in (EventKind.CREATED, EventKind.ESTABLISHED)]
    assert kinds == [EventKind.SUB_ESTABLISHED, EventKind.CLOSED]


def test_waiting_for_events_is_cancelled_and_ends_with_close(connection: Connection) -> None:
    async def next_of_kind(events: mptcp.Events, kind: EventKind) -> mptcp.Event | None:
        async for event in events:
            if event.kind == kind:
                return event
        return None

    async def program() -> None:
        events = connection.sock.events()
        # Several tasks may wait for one.
        waiting = [asyncio.ensure_future(next_of_kind(events, EventKind.SUB_CLOSED)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await mptcp.aio.open_subflow(connection.sock, *connection.second)
        events.close()
        assert await asyncio.gather(*waiting[1:]) == [None, None]

    before = descriptors()
    run(program())
    assert descriptors() <= before


MANY = 1000


@pytest.fixture
def many_descriptors() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * MANY
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"needs a hard limit of {wanted} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_connections_with_one_thread(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    remote = paths[0].address(server), PORT
    second = paths[1].address(client), paths[1].address(server)

    async def wait(sock: mptcp.Socket) -> mptcp.Event:
        with sock.events() as events:
            async for event in events:
                if event.kind == EventKind.SUB_ESTABLISHED:
                    return event
        raise AssertionError("the connection ended")

    async def program(pairs: list[tuple[mptcp.Socket, mptcp.Socket]], before: int) -> None:
        tasks = [asyncio.ensure_future(wait(sock)) for sock, _ in pairs]
        await asyncio.sleep(0)
        assert threads() <= before
        for sock, _ in pairs:
            sock.open_subflow(*second, timeout=0)
            await asyncio.sleep(0)
        events = await asyncio.gather(*tasks)
        assert [event.token for event in events] == [sock.token for sock, _ in pairs]
        assert threads() <= before

    with server.create_server(("", PORT), backlog=128) as listener, contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(MANY):
            sock = stack.enter_context(client.create_connection(remote, timeout=10))
            peer = stack.enter_context(listener.accept()[0])
            exchange(sock, peer)
            pairs.append((sock, peer))
        run(program(pairs, threads()))


def test_asyncio_is_not_imported_for_nothing() -> None:
    program = "import sys, mptcp; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
