"""What test_patch.py runs: libraries within mptcp.patch(), and again after it.

Prints the protocol that each one used, SO_PROTOCOL of the connection that the server accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import aiohttp
import distributed
import httpx
import mptcp
import requests
import trio
import websockets.asyncio.client
import websockets.asyncio.server


def protocol(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the protocol of the connection."""

    def do_GET(self) -> None:
        body = str(protocol(self.connection)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused: object) -> None:
        pass


@contextlib.contextmanager
def web_server() -> Iterator[tuple[str, int]]:
    """A server that accepts both, whatever the process is; a TCP client is accepted as TCP."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = mptcp.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.socket.getsockname()
        server.shutdown()
        thread.join()


async def with_httpx(url: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).text


async def with_aiohttp(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.text()


async def with_websockets() -> tuple[int, int]:
    async def serve(connection: websockets.asyncio.server.ServerConnection) -> None:
        await connection.send(str(protocol(connection.transport.get_extra_info("socket"))))

    async with websockets.asyncio.server.serve(serve, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with websockets.asyncio.client.connect(f"ws://127.0.0.1:{port}", proxy=None) as connection:
            return protocol(connection.transport.get_extra_info("socket")), int(await connection.recv())


async def with_trio(address: tuple[str, int]) -> tuple[str, str]:
    async def serve(stream: trio.SocketStream) -> None:
        number = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
        await stream.send_all(str(number).encode())

    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join([chunk async for chunk in stream])
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            lambda task_status: trio.serve_tcp(serve, 0, host="127.0.0.1", task_status=task_status)
        )
        async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
            own = b"".join([chunk async for chunk in stream])
        nursery.cancel_scope.cancel()
    return answer.rpartition(b"\n")[2].decode(), own.decode()


def with_dask() -> int:
    """The connection by which a worker and the scheduler speak to each other, at the scheduler."""
    options = {"n_workers": 1, "processes": False, "protocol": "tcp://", "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        [comm] = [batched.comm for batched in cluster.scheduler.stream_comms.values()]
        return protocol(comm.stream.socket)


def everything() -> None:
    with web_server() as address:
        url = f"http://{address[0]}:{address[1]}/"
        print("requests", requests.get(url, timeout=20).text)
        print("httpx", asyncio.run(with_httpx(url)))
        print("aiohttp", asyncio.run(with_aiohttp(url)))
        client, server = asyncio.run(with_websockets())
        print("websockets client", client)
        print("websockets server", server)
        client_of_trio, server_of_trio = trio.run(with_trio, address)
        print("trio client", client_of_trio)
        print("trio server", server_of_trio)
        print("dask", with_dask(), flush=True)


if __name__ == "__main__":
    with mptcp.patch():
        everything()
    everything()
