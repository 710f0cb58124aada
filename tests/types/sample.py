"""A user's program that passes mypy --strict and pyright's strict mode: test_types.py. It is type-checked, not run."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import assert_type

import mptcp
import mptcp.aio
import mptcp.enhanced_api
import mptcp.lab
import mptcp.policies
from typing_extensions import override


def sockets() -> int:
    with mptcp.create_server(("", 0)) as listener, mptcp.create_connection(("10.0.1.2", 5000), timeout=5) as sock:
        accepted, _ = listener.accept()
        assert_type(accepted, mptcp.Socket)
        assert_type(sock.dup(), mptcp.Socket)
        assert_type(sock.is_mptcp, bool)
        assert_type(sock.token, int | None)
        assert_type(sock.path_manager, str | None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, b"\0\0\0\1")
        plain: socket.socket = mptcp.wrap(sock)
        with mptcp.patch(), socket.create_connection(("10.0.1.2", 5000)) as patched:
            patched.sendall(b"x")
        plain.close()
        mptcp.create_server(("::1", 0, 0, 0), family=socket.AF_INET6).close()
        mptcp.create_connection((None, "http"), None, source_address=("10.0.1.1", 0)).close()
        return len(sock.subflows())


@mptcp.patch()
def patched(host: str, port: int = 80) -> int:
    with socket.create_connection((host, port)) as sock:
        return sock.fileno()


@mptcp.patch()
async def patched_coroutine(host: str) -> str:
    return host


async def decorated() -> None:
    assert_type(patched("10.0.1.2", port=5000), int)
    assert_type(await patched_coroutine("10.0.1.2"), str)


def subflows(sock: mptcp.Socket | mptcp.Connection) -> float:
    opened = sock.open_subflow("10.0.2.1", ("10.0.2.2", 5000), backup=True, interface="eth1")
    assert_type(opened, mptcp.Subflow)
    assert_type(sock.open_subflow(timeout=0), None)
    # Every supported kernel has these,
    assert_type(opened.tcp_info.rtt, int)
    assert_type(opened.tcp_info.snd_wnd, int)
    assert_type(sock.info().token, int)
    # later kernels these.
    assert_type(opened.tcp_info.rcv_wnd, int | None)
    assert_type(sock.info().bytes_sent, int | None)
    opened.set_backup(False)
    assert_type(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), int)
    assert_type(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16), bytes)
    sock.set_subflow_options({opened: {(socket.SOL_SOCKET, socket.SO_MARK): 1}})
    address_id: int = sock.announce_address("10.0.2.1", 5001)
    sock.remove_address(address_id)
    try:
        sock.close_subflow(opened)
    except mptcp.SubflowError as error:
        assert_type(error.errno == errno.ENOTCONN, bool)
        assert_type(error.reset_reason, int | None)
    except (mptcp.PathManagerError, mptcp.NotMultipathError, mptcp.UnsupportedError):
        pass
    return sum(subflow.tcp_info.rtt / 1e6 for subflow in sock.subflows())


def watch(connections: Sequence[mptcp.Connection]) -> dict[int, str]:
    with mptcp.Events() as events:
        if (event := events.get(timeout=1.0)) is not None and event.kind is mptcp.EventKind.SUB_CLOSED:
            print(event.local, event.error, event.reset_reason)
        for each in events:
            if each.kind == mptcp.EventKind.OVERRUN:
                break
    return {connection.token: connection.state or "ended" for connection in connections}


async def asynchronously() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())

    async with await mptcp.aio.start_server(serve, ["127.0.0.1", "::1"], "http") as server:
        await server.start_serving()
        reader, writer = await mptcp.aio.open_connection("127.0.0.1", 80, happy_eyeballs_delay=0.25)
        assert_type(await mptcp.aio.open_subflow(writer, "10.0.2.1"), mptcp.Subflow)
        assert_type(await mptcp.aio.open_subflow(writer.transport, timeout=0), None)
        subflow = await mptcp.aio.open_subflow(writer, timeout=None)
        await mptcp.aio.close_subflow(writer, subflow)
        print(await reader.readline())
        with mptcp.wrap(writer.get_extra_info("socket")) as control:
            async for event in control.events():
                print(event.kind.name)


class Careful(mptcp.Policy):
    """A policy of the user's own."""

    tick = 0.5

    @override
    def on_connection(self, conn: mptcp.Connection) -> None:
        if conn.program == "backup":
            conn.open_subflow(timeout=0)

    @override
    def on_tick(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> None:
        for subflow in subflows:
            if subflow.tcp_info.rtt > 200_000 and not subflow.backup:
                subflow.set_backup(True)


def measure(sock: mptcp.Socket) -> float:
    with mptcp.run_policy(Careful(), mptcp.policies.Prefer("eth0", "eth1")):
        with mptcp.Recorder(sock, interval=0.01) as recorder:
            sock.sendall(bytes(1 << 20))
        recorder.save("run.parquet")
        return float(recorder.samples["rtt"].mean())


def in_a_lab() -> bytes:
    with (
        mptcp.lab.two_paths() as (client, server, (first, _)),
        server.create_server(("", 5000)) as listener,
        client.create_connection((first.address(server), 5000)) as sock,
    ):
        accepted, _ = listener.accept()
        with accepted:
            sock.sendall(b"hello")
            buffer = bytearray(1024)
            size = mptcp.enhanced_api.getsockopt(sock, mptcp.enhanced_api.MPTCP_GET_SUB_IDS, buffer)
            return bytes(buffer[:size]) + accepted.recv(5)
