"""docs/libraries.md: each recipe runs against real servers, and everything is Multipath TCP."""

from __future__ import annotations

import ast
import contextlib
import http.client
import http.server
import importlib.util
import os
import re
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
import trustme
from mptcp.lab import Host, Lab
from support import PATIENCE, ROOT, eventually

DEADLINE = 60.0 * PATIENCE
PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"
EXAMPLE = re.compile(r"^### ([^\n]*)\n.*?^```python\n(.*?)^```\n+^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES = {match[1]: (match[2], match[3]) for match in EXAMPLE.finditer(PAGE.read_text())}
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Web(http.server.BaseHTTPRequestHandler):
    """Says what it was asked over, and is a proxy as well."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("http://"):
            netloc, _, path = self.path.removeprefix("http://").partition("/")
            host, _, port = netloc.partition(":")
            connection = http.client.HTTPConnection(host, int(port or 80), timeout=DEADLINE)
            connection._create_connection = self.server.connect  # type: ignore[attr-defined]
            connection.request("GET", f"/{path}")
            body = connection.getresponse().read()
            connection.close()
        else:
            with mptcp.wrap(self.connection) as control:
                body = b"Multipath TCP" if control.is_mptcp else b"TCP"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        host, _, port = self.path.partition(":")
        with self.server.connect((host, int(port))) as other:  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: other, other: self.connection}
            while True:
                for end in select.select(list(ends), [], [], DEADLINE)[0]:
                    if not (data := end.recv(65536)):
                        self.close_connection = True
                        return
                    ends[end].sendall(data)

    def log_message(self, *unused: object) -> None:
        pass


class WebServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    block_on_close = False
    daemon_threads = True

    def __init__(self, host: Host, port: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), Web, bind_and_activate=False)
        self.socket.close()
        self.socket = host.create_server(("127.0.0.1", port))
        self.server_port, self.server_name = port, "127.0.0.1"
        self.host, self.tls = host, tls

    def connect(self, address: tuple[str, int], *unused: Any) -> mptcp.Socket:
        return self.host.create_connection(address, timeout=DEADLINE)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = self.socket.accept()
        return (self.tls.wrap_socket(sock, server_side=True) if self.tls else sock), address

    def handle_error(self, *unused: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: WebServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def program(host: Host, command: list[str], port: int, **options: Any) -> Iterator[None]:
    """A server that knows nothing of Multipath TCP, by ``mptcp run``, until it listens and to its end."""
    command = [sys.executable, "-m", "mptcp", "run", *command]
    with child(host, command, **options) as process:

        def listens() -> bool:
            assert process.poll() is None, command
            return f"127.0.0.1:{port} " in host.run(["ss", "-Hltn"], capture_output=True, text=True).stdout

        assert eventually(listens, DEADLINE)
        yield


@contextlib.contextmanager
def child(host: Host, command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended at the end."""
    with host.popen(command, stdout=subprocess.DEVNULL, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(DEADLINE)


@contextlib.contextmanager
def postgresql(host: Host, folder: Path) -> Iterator[None]:
    """A server of its own in a folder. It refuses to be run by root, which an ordinary user is too in a lab's host."""
    if not POSTGRES:
        pytest.skip("needs PostgreSQL")
    if ROOT:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    else:
        as_user = ["unshare", "--user", "--map-user=1000"]
    data = folder / "data"
    initdb = [*as_user, str(POSTGRES[-1] / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-N"]
    host.run(initdb, check=True, capture_output=True, timeout=DEADLINE, cwd=folder)
    server = [*as_user, str(POSTGRES[-1] / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-k", str(folder)]
    with program(host, server, 5432, cwd=folder):
        yield


@pytest.fixture
def place(mptcp_lab: Lab) -> Host:
    return mptcp_lab.host("place")


def needs(code: str) -> None:
    """Skip a recipe whose library is missing."""
    if "gunicorn" in code:
        code += "\nimport gunicorn"
    if '"trio"' in code:
        code += "\nimport trio"
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if importlib.util.find_spec(name.split(".")[0]) is None:
                pytest.skip(f"needs {name.split('.')[0]}")
    if "httpx" in code or "anyio" in code:
        import anyio

        if not hasattr(anyio.abc.SocketStream, "from_socket"):
            pytest.skip("needs anyio 4.11")


def run(place: Host, tmp_path: Path, code: str) -> str:
    """What a program prints in a namespace with the servers that it mentions."""
    needs(code)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    tls_file = str(tmp_path / "authority.pem")
    environment = {**os.environ, "SSL_CERT_FILE": tls_file, "REQUESTS_CA_BUNDLE": tls_file}
    # By its file, which child processes of multiprocessing import.
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "program.py"]
    with contextlib.ExitStack() as stack:
        for port, context in ((8000, None), (8443, tls), (8080, None)):
            if f":{port}" in code:
                stack.enter_context(serving(WebServer(place, port, context)))
        if "redis" in code:
            if shutil.which("redis-server") is None:
                pytest.skip("needs redis-server")
            server = ["redis-server", "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
            stack.enter_context(program(place, server, 6379))
        if "psycopg" in code:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(postgresql(place, folder))
            command = [sys.executable, "-m", "mptcp", "run", *command]
        done = place.run(command, capture_output=True, text=True, env=environment, timeout=2 * DEADLINE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def counted(place: Host) -> tuple[int, int]:
    """How many TCP connections were accepted in the namespace, and how many of them are Multipath TCP."""
    code = "print(open('/proc/self/net/snmp').read())"
    text = place.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    accepted = int(dict(zip(names, values, strict=True))["PassiveOpens"])
    return accepted, place.counters()["MPCapableACKRX"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(place: Host, tmp_path: Path, name: str) -> None:
    code, output = RECIPES[name]
    assert run(place, tmp_path, code) == output
    accepted, multipath = counted(place)
    assert accepted == multipath > 0


# dask.distributed where the workers do not import the package by themselves, and by its commands.
WORKERS = """
from distributed import Client, LocalCluster

def protocol():
    import socket
    with socket.socket() as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)

if __name__ == "__main__":
    import mptcp
    options = dict(protocol="tcp", host="127.0.0.1", dashboard_address=None)
    with mptcp.patch(), LocalCluster(2, **options) as cluster, Client(cluster) as client:
        print(sorted(client.run(protocol).values()))
"""
CONNECTED = """
import mptcp
from distributed import Client

with mptcp.patch(), Client("tcp://127.0.0.1:8786") as client:
    client.wait_for_workers(1, timeout=60)
    print(client.submit(sum, [40, 2]).result(timeout=60))
"""


def test_workers_of_dask_that_do_not_import_the_package(place: Host, tmp_path: Path) -> None:
    assert run(place, tmp_path, WORKERS) == "[262, 262]\n"
    accepted, multipath = counted(place)
    assert accepted == multipath > 0


def test_dask_by_its_commands(place: Host, tmp_path: Path) -> None:
    needs(CONNECTED)
    options = ["--no-dashboard", "--preload", "mptcp"]
    environment = {**os.environ, "MPTCP_PATCH": "1"}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=8786", *options]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "tcp://127.0.0.1:8786", "--host=127.0.0.1", *options]
    with child(place, dask, env=environment, cwd=tmp_path), child(place, worker, env=environment, cwd=tmp_path):
        assert run(place, tmp_path, CONNECTED) == "42\n"
    accepted, multipath = counted(place)
    assert accepted == multipath > 0


# A listener whose queue is full answers no further SYN.
UNREACHABLE = """
import socket
listener = socket.create_server(("127.0.0.1", 0), backlog=0)
address = "%s:%d" % listener.getsockname()
waiting = []
for _ in range(4):
    waiting.append(socket.socket())
    waiting[-1].setblocking(False)
    waiting[-1].connect_ex(listener.getsockname())
"""


def definitions(name: str) -> str:
    """The imports, classes and functions of a recipe."""
    nodes = ast.parse(RECIPES[name][0]).body
    wanted = ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    constants = [node for node in nodes if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()]
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, wanted) or node in constants)


@pytest.mark.parametrize(
    ("name", "request_", "expected"),
    [
        (
            "requests and urllib3",
            """
session = requests.Session()
session.mount("http://", MultipathAdapter())
for url in (f"http://{address}/", "http://127.0.0.1:9/"):
    try:
        session.get(url, timeout=(0.5, 5))
    except requests.RequestException as error:
        print(type(error).__name__)
""",
            "ConnectTimeout\nConnectionError\n",
        ),
        (
            "httpx",
            """
client = httpx.Client(transport=multipath(httpx.HTTPTransport()), timeout=httpx.Timeout(5, connect=0.5))
for url in (f"http://{address}/", "http://127.0.0.1:9/"):
    try:
        client.get(url)
    except httpx.TransportError as error:
        print(type(error).__name__)
""",
            "ConnectTimeout\nConnectError\n",
        ),
        (
            "httpx, asynchronous",
            """
async def failing():
    transport = httpx.AsyncHTTPTransport()
    transport._pool._network_backend = MultipathBackend()
    client = httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(5, connect=0.5))
    for url in (f"http://{address}/", "http://127.0.0.1:9/"):
        try:
            await client.get(url)
        except httpx.TransportError as error:
            print(type(error).__name__)
asyncio.run(failing())
""",
            "ConnectTimeout\nConnectError\n",
        ),
        (
            "redis",
            """
host, _, port = address.partition(":")
for target in ({"host": host, "port": int(port)}, {"host": "127.0.0.1", "port": 9}):
    once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    options = {"socket_connect_timeout": 0.5, "retry": once, **target}
    try:
        redis.Redis.from_pool(redis.ConnectionPool(connection_class=MultipathConnection, **options)).ping()
    except redis.RedisError as error:
        print(type(error).__name__)
""",
            "TimeoutError\nConnectionError\n",
        ),
        (
            "aiohttp",
            """
async def failing():
    for url in (f"http://{address}/", "http://127.0.0.1:9/"):
        connector = aiohttp.TCPConnector(socket_factory=lambda address: mptcp.Socket(*address[:3]))
        timeout = aiohttp.ClientTimeout(sock_connect=0.5)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                await session.get(url)
            except aiohttp.ClientError as error:
                print(type(error).__name__)
asyncio.run(failing())
""",
            "ConnectionTimeoutError\nClientConnectorError\n",
        ),
        (
            "trio",
            """
async def failing():
    trio.socket.set_custom_socket_factory(Multipath())
    host, _, port = address.partition(":")
    for target in ((host, int(port)), ("127.0.0.1", 9)):
        try:
            with trio.fail_after(0.5):
                await trio.open_tcp_stream(*target)
        except (trio.TooSlowError, OSError) as error:
            print(type(error).__name__)
trio.run(failing)
""",
            "TooSlowError\nOSError\n",
        ),
        (
            "tornado",
            """
async def failing():
    client = HTTPClient(force_instance=True)
    for url in (f"http://{address}/", "http://127.0.0.1:9/"):
        try:
            await client.fetch(url, connect_timeout=0.5)
        except (simple_httpclient.HTTPTimeoutError, OSError) as error:
            print(type(error).__name__)
asyncio.run(failing())
""",
            "HTTPTimeoutError\nConnectionRefusedError\n",
        ),
    ],
)
def test_errors_are_the_librarys(place: Host, tmp_path: Path, name: str, request_: str, expected: str) -> None:
    """The classes of a recipe, with a peer that does not answer and one that refuses."""
    assert run(place, tmp_path, definitions(name) + UNREACHABLE + request_) == expected


# What a library does with its own sockets, and so with those of its recipe.
KEPT = {
    "http.client: a tunnel and TCP_NODELAY": (
        """
import http.client, mptcp, socket
connection = http.client.HTTPSConnection("127.0.0.1:8080", timeout=10)
connection._create_connection = mptcp.create_connection
connection.set_tunnel("127.0.0.1:8443")
connection.request("GET", "/")
print(connection.getresponse().read())
print(connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), connection.sock.gettimeout())
""",
        "b'Multipath TCP'\n1 10.0\n",
    ),
    "requests and urllib3": (
        """
import socket
session = requests.Session()
session.mount("http://", MultipathAdapter())
session.mount("https://", MultipathAdapter())
with session.get("http://127.0.0.1:8000/", stream=True, timeout=7) as response:
    sock = response.raw.connection.sock
    print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), sock.gettimeout())
session.trust_env = False
try:
    session.get("https://127.0.0.1:8443/")
except requests.exceptions.SSLError as error:
    print("not trusted")
""",
        "1 7.0\nnot trusted\n",
    ),
    "httpx": (
        """
import ssl
limited = multipath(httpx.HTTPTransport(limits=httpx.Limits(max_connections=1)))
with httpx.Client(transport=limited, timeout=httpx.Timeout(5, pool=0.1)) as client:
    with client.stream("GET", "http://127.0.0.1:8000/") as response:
        sock = response.extensions["network_stream"].get_extra_info("socket")
        print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        try:
            client.get("http://127.0.0.1:8000/")
        except httpx.PoolTimeout:
            print("one at a time")
untrusting = multipath(httpx.HTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)))
try:
    httpx.Client(transport=untrusting).get("https://127.0.0.1:8443/")
except httpx.ConnectError as error:
    print("not trusted" if "CERTIFICATE_VERIFY_FAILED" in str(error) else error)
""",
        "1\none at a time\nnot trusted\n",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_the_libraries_do_is_kept(place: Host, tmp_path: Path, name: str) -> None:
    program, expected = KEPT[name]
    assert run(place, tmp_path, definitions(name) + program if name in RECIPES else program) == expected
    accepted, multipath = counted(place)
    assert accepted == multipath > 0


def test_every_recipe_is_run() -> None:
    assert len(RECIPES) == PAGE.read_text().count("```python\n")
