"""A Socket is a socket.socket: what Python's own tests ask of one, and the standard library's users of sockets."""

from __future__ import annotations

import array
import asyncio
import contextlib
import copy
import errno
import http.client
import http.server
import importlib.util
import inspect
import io
import multiprocessing
import os
import pickle
import re
import select
import selectors
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
import trustme
from mptcp.lab import Host, Link
from support import PORT, Connection, descriptors, eventually, exchange, subscribers

Pair = tuple[mptcp.Socket, mptcp.Socket]
TwoPaths = tuple[Host, Host, tuple[Link, Link]]
DEADLINE = 60.0
SIZE = 1 << 20


def receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(size - len(data))):
        data += chunk
    return bytes(data)


@contextlib.contextmanager
def running(target: Callable[[], object]) -> Iterator[None]:
    """A thread that has come to its end without an exception when the block does."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            target()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


class Handler(http.server.BaseHTTPRequestHandler):
    """Says what it was asked over."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with mptcp.wrap(self.connection) as control:
            body = b"Multipath TCP\n" if control.is_mptcp else b"TCP\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused: object) -> None:
        pass


@contextlib.contextmanager
def web_server(listener: mptcp.Socket, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """A web server on a listener, with a thread a connection."""

    class Server(http.server.ThreadingHTTPServer):
        # What clients keep open is not waited for.
        block_on_close = False

        def get_request(self) -> tuple[socket.socket, Any]:
            sock, address = self.socket.accept()
            return (tls.wrap_socket(sock, server_side=True) if tls else sock), address

    with Server(listener.getsockname(), Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = listener
        with running(lambda: server.serve_forever(poll_interval=0.05)):
            try:
                yield
            finally:
                server.shutdown()


# Timeouts and blocking


def test_timeouts(pair: Pair) -> None:
    sock, _ = pair
    sock.settimeout(0.01)
    assert sock.gettimeout() == 0.01
    assert sock.getblocking()
    with pytest.raises(TimeoutError, match="timed out"):
        sock.recv(1)
    with sock.dup() as duplicate:
        assert duplicate.gettimeout() == 0.01
    sock.settimeout(0)
    assert not sock.getblocking()
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.setblocking(True)
    assert sock.gettimeout() is None
    for wrong, error in ((-1, ValueError), ("soon", TypeError)):
        with pytest.raises(error):
            sock.settimeout(wrong)  # type: ignore[arg-type]


def test_accepting_has_a_timeout_too() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            listener.accept()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.fixture
def default_timeout() -> Iterator[float]:
    socket.setdefaulttimeout(7.5)
    yield 7.5
    socket.setdefaulttimeout(None)


def test_the_default_timeout(default_timeout: float) -> None:
    with (
        mptcp.create_server(("127.0.0.1", 0)) as listener,
        mptcp.create_connection(listener.getsockname()) as sock,
        mptcp.Socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as nonblocking,
    ):
        peer, _ = listener.accept()
        with peer:
            assert [made.gettimeout() for made in (listener, sock, peer)] == [default_timeout] * 3
        assert nonblocking.gettimeout() == 0.0
        assert nonblocking.type == socket.SOCK_STREAM


def test_wrapping_never_changes_the_mode_of_the_connection(default_timeout: float) -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener, mptcp.create_connection(listener.getsockname()) as sock:
        sock.settimeout(None)
        modes, stop = set[bool](), threading.Event()

        def look() -> None:
            while not stop.is_set():
                modes.add(os.get_blocking(sock.fileno()))

        thread = threading.Thread(target=look)
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            for _ in range(1000):
                with mptcp.wrap(sock) as wrapped:
                    assert (wrapped.gettimeout(), wrapped.type) == (None, socket.SOCK_STREAM)
        finally:
            sys.setswitchinterval(before)
            stop.set()
            thread.join()
        assert modes == {True}


def test_what_is_wrapped_keeps_its_type(default_timeout: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, mptcp.wrap(sock) as wrapped:
        assert (wrapped.type, wrapped.proto) == (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        assert wrapped.gettimeout() == default_timeout


def test_what_a_listener_with_a_timeout_accepts_blocks() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        with mptcp.create_connection(listener.getsockname()):
            peer, _ = listener.accept()
            with peer:
                assert peer.gettimeout() is None
                assert os.get_blocking(peer.fileno())


def test_connecting_without_blocking() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener, mptcp.Socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        assert select.select([], [sock], [], 10)[1] == [sock]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getpeername() == listener.getsockname()


# Sending and receiving


def test_receiving_into_a_buffer(pair: Pair) -> None:
    sock, peer = pair
    buffer = bytearray(b"........")
    sock.sendall(b"abcdef")
    assert peer.recv_into(memoryview(buffer)[2:], 3) == 3
    assert buffer == b"..abc..."
    assert peer.recvfrom_into(buffer)[0] == 3
    assert buffer == b"defbc..."
    numbers = array.array("i", [0, 0])
    sock.sendall(array.array("i", [1, 2]))
    assert peer.recv_into(numbers) == numbers.itemsize * 2
    assert numbers.tolist() == [1, 2]


def test_flags(pair: Pair) -> None:
    sock, peer = pair
    sock.sendall(b"twice")
    assert peer.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL) == b"twice"
    assert peer.recv(5, socket.MSG_WAITALL) == b"twice"
    with pytest.raises(BlockingIOError):
        peer.recv(1, socket.MSG_DONTWAIT)


def test_messages(pair: Pair) -> None:
    sock, peer = pair
    assert sock.sendmsg([b"gather", memoryview(b"ed"), bytearray(b"!")]) == 9
    assert peer.recvmsg(9, 100, socket.MSG_WAITALL) == (b"gathered!", [], 0, None)
    parts = [bytearray(4), bytearray(10)]
    sock.sendall(b"scatteredwidely")
    assert peer.recvmsg_into(parts, 0, socket.MSG_WAITALL)[0] == 14
    assert parts == [b"scat", b"teredwidel"]


@pytest.mark.parametrize("offset", [0, 12345])
def test_sending_a_file(pair: Pair, offset: int) -> None:
    sock, peer = pair
    data = os.urandom(SIZE)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with running(lambda: sock.sendfile(file, offset)):
            assert receive(peer, SIZE - offset) == data[offset:]
        assert file.tell() == SIZE
    with running(lambda: sock.sendfile(io.BytesIO(data), offset, 1000)):
        assert receive(peer, 1000) == data[offset : offset + 1000]


def test_files_of_a_socket(pair: Pair) -> None:
    sock, peer = pair
    with sock.makefile("rw", encoding="utf-8", newline="\n") as text, peer.makefile("rwb") as binary:
        text.write("zwölf\n")
        text.flush()
        assert binary.readline() == "zwölf\n".encode()
        binary.write(b"one\ntwo\n")
        binary.flush()
        assert [text.readline(), text.readline()] == ["one\n", "two\n"]
    with peer.makefile("rb", buffering=0) as raw:
        assert isinstance(raw, socket.SocketIO)
        sock.shutdown(socket.SHUT_WR)
        assert raw.read() == b""
    sock.settimeout(0.01)
    with sock.makefile("rb") as file:
        with pytest.raises(TimeoutError):
            file.read(1)
        with pytest.raises(OSError, match="timed out object"):
            file.read(1)


def test_shutdown(pair: Pair) -> None:
    sock, peer = pair
    sock.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b""
    peer.sendall(b"the other half")
    assert receive(sock, 14) == b"the other half"
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
    peer.close()
    assert sock.recv(1) == b""


def test_shutdown_wakes_who_receives(pair: Pair) -> None:
    sock, _ = pair
    got = []
    with running(lambda: got.append(sock.recv(1))):
        sock.shutdown(socket.SHUT_RDWR)
    assert got == [b""]


def test_options(pair: Pair) -> None:
    sock, _ = pair
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == 262
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    for level, option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)):
        assert sock.getsockopt(level, option) == 0
        sock.setsockopt(level, option, 1)
        assert sock.getsockopt(level, option) == 1
    assert not os.get_inheritable(sock.fileno())
    linger = struct.pack("ii", 1, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger


# Descriptors and objects


def test_inheritance(pair: Pair) -> None:
    sock, peer = pair
    with sock.dup() as duplicate, mptcp.wrap(sock) as wrapped:
        for made in (sock, peer, duplicate, wrapped):
            assert not made.get_inheritable()
    sock.set_inheritable(True)
    assert sock.get_inheritable()
    program = "import mptcp, sys; mptcp.Socket(fileno=int(sys.argv[1])).sendall(b'from a child')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(sock.fileno())], check=True, close_fds=False)
    assert receive(peer, 12) == b"from a child"


def test_detaching(pair: Pair) -> None:
    sock, peer = pair
    fd = sock.detach()
    assert sock.fileno() == -1
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.send(b"x")
    with socket.socket(fileno=fd) as plain:
        assert plain.proto == 262
        exchange(plain, peer)


def test_a_descriptor_that_is_none() -> None:
    for wrong, error in ((1.5, TypeError), ("x", TypeError), (-5, ValueError), (1 << 30, OSError)):
        with pytest.raises(error):
            mptcp.Socket(fileno=wrong)  # type: ignore[arg-type]
    with open(os.devnull) as file, pytest.raises(OSError, match="non-socket"):
        mptcp.Socket(fileno=file.fileno())


def test_arguments_that_are_not_given() -> None:
    with mptcp.Socket(-1, -1, -1) as sock:
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


@pytest.mark.parametrize("proto", [0, socket.IPPROTO_TCP, 262])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_every_protocol_of_a_tcp_stream(family: int, proto: int) -> None:
    with mptcp.Socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, proto) as sock:
        assert (sock.family, sock.type, sock.proto) == (family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == 262
        assert sock.is_mptcp
        assert sock.gettimeout() == 0


def test_what_is_given_with_a_descriptor_overrules_it(pair: Pair) -> None:
    """As with socket.socket."""
    for given in ((socket.AF_UNIX,), (-1, socket.SOCK_RAW), (-1, -1, 17), (socket.AF_INET6, socket.SOCK_DGRAM, 0)):
        seen = []
        for make in (socket.socket, mptcp.Socket):
            made = make(*given, fileno=os.dup(pair[0].fileno()))
            seen.append((made.family, made.type, made.proto))
            made.close()
        if given[2:] == ():
            assert (seen[0][2], seen[1][2]) == (262, socket.IPPROTO_TCP)
        assert seen[0][:2] == seen[1][:2]
        assert seen[1][2] in (seen[0][2], socket.IPPROTO_TCP)
    with mptcp.Socket(proto=262, fileno=os.dup(pair[0].fileno())) as made:
        assert made.proto == socket.IPPROTO_TCP


def test_listening_takes_what_socket_takes() -> None:
    with mptcp.Socket() as sock:
        for wrong in ((None,), ("1",), (1, 2)):
            with pytest.raises(TypeError):
                sock.listen(*wrong)  # type: ignore[arg-type]
        sock.listen(-1)
        sock.listen()


def test_attributes_never_raise(connection: Connection) -> None:
    """So that mock, inspect and debuggers can look at any open Socket."""
    listener = mptcp.create_server(("127.0.0.1", 0))
    plain = socket.create_server(("127.0.0.1", 0))
    fallen_back = mptcp.create_connection(plain.getsockname())
    aborted = mptcp.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    exchange(aborted, peer)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert eventually(lambda: aborted.token is None)
    others = [mptcp.wrap(plain)]
    for family, kind in (
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_NETLINK, socket.SOCK_RAW),
    ):
        with socket.socket(family, kind) as other:
            others.append(mptcp.wrap(other))
    everything = [connection.sock, mptcp.Socket(), listener, fallen_back, aborted, *others]
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain)
        for sock in everything[1:]:
            stack.enter_context(sock)
        for sock in everything:
            assert {"token", "path_manager", "is_mptcp", "proto"} <= dict(inspect.getmembers(sock)).keys()
            assert all(hasattr(sock, name) for name in dir(sock))
            unittest.mock.Mock(spec=sock)
            unittest.mock.create_autospec(sock)
    unittest.mock.create_autospec(mptcp.Socket)


def test_closing(pair: Pair) -> None:
    sock, peer = pair
    before = descriptors()
    with sock as same:
        assert same is sock
    assert sock.fileno() == -1
    assert "[closed]" in repr(sock)
    sock.close()
    assert descriptors() == before - 1
    assert peer.recv(1) == b""
    for call in (lambda: sock.recv(1), sock.getsockname, sock.dup, sock.subflows, sock.detach):
        if call == sock.detach:
            assert call() == -1
            continue
        with pytest.raises(OSError) as caught:  # noqa: PT011
            call()
        assert caught.value.errno == errno.EBADF


def test_how_it_shows_itself(pair: Pair) -> None:
    sock, _ = pair
    assert re.fullmatch(
        r"<mptcp\.Socket fd=\d+, family=\S+, type=\S+, proto=6, laddr=\('127\.0\.0\.1', \d+\), raddr=.*>", repr(sock)
    )


def test_one_that_is_not_closed_is_warned_of() -> None:
    def forget() -> int:
        return mptcp.Socket().fileno()

    with pytest.warns(ResourceWarning, match=r"unclosed <mptcp\.Socket"):
        fd = forget()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_copies_are_refused(pair: Pair) -> None:
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle 'Socket' object"):
            call(pair[0])


def test_a_subclass_with_an_init_of_its_own() -> None:
    class Named(mptcp.Socket):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    with Named("server") as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with mptcp.create_connection(listener.getsockname()) as sock:
            peer, _ = listener.accept()
            with peer:
                assert type(peer) is mptcp.Socket
                exchange(sock, peer)


def test_creating_it_is_audited() -> None:
    """As socket.socket: a hook sees that a socket is made, and may refuse it."""
    program = """
import sys, mptcp
def refuse(event, arguments):
    if event == "socket.__new__":
        raise RuntimeError("no sockets")
sys.addaudithook(refuse)
try:
    mptcp.Socket()
except RuntimeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "no sockets\n"


# Processes, threads and interpreters


def test_fork(connection: Connection) -> None:
    """The child shares the connection and asks the kernel by netlink sockets of its own."""
    connection.sock.open_subflow(*connection.second)
    with warnings.catch_warnings():
        # That the process has threads: events are read by one.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            connection.sock.sendall(b"from the child")
            status = 0 if len(connection.sock.subflows()) == 2 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert receive(connection.peer, 14) == b"from the child"
    assert len(connection.sock.subflows()) == 2
    connection.sock.close_subflow(2)


def test_threads(connection: Connection) -> None:
    """One sends, one receives, others look on, and one opens and closes."""
    sock, peer = connection.sock, connection.peer
    data = os.urandom(SIZE)
    finished = threading.Event()

    def look() -> None:
        while not finished.is_set():
            assert sock.info().token == sock.token
            assert {subflow.id for subflow in sock.subflows()} <= {1, 2, 3}

    def change() -> None:
        for _ in range(2):
            # As backup, so that no data follows the join at once: docs/kernel-bugs.md.
            subflow = sock.open_subflow(*connection.second, backup=True)
            assert subflow is not None
            subflow.close()

    with running(look), running(look):
        try:
            with running(lambda: sock.sendall(data)), running(change):
                assert receive(peer, SIZE) == data
        finally:
            finished.set()


def work(channel: Any) -> None:
    """The other process: a Socket by a pipe, and one that came with the arguments."""
    with channel, channel.recv() as sock:
        sock.sendall(type(sock).__name__.encode())
        channel.send([subflow.id for subflow in sock.subflows()])


def work_with(sock: mptcp.Socket) -> None:
    with sock:
        sock.sendall(b"argument")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing(pair: Pair, method: str) -> None:
    sock, peer = pair
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with warnings.catch_warnings(), ours:
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=work, args=(theirs,))  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        ours.send(sock)
        assert receive(peer, 6) == b"Socket"
        assert ours.poll(DEADLINE)
        assert ours.recv() == [1]
        process.join(DEADLINE)
        assert process.exitcode == 0
        process = context.Process(target=work_with, args=(sock,))  # type: ignore[attr-defined]
        process.start()
        assert receive(peer, 8) == b"argument"
        process.join(DEADLINE)
        assert process.exitcode == 0
    # The thread that hands out descriptors.
    from multiprocessing import resource_sharer

    resource_sharer.stop(DEADLINE)


def test_multiprocessing_that_is_imported_later() -> None:
    """By which the Socket goes although nothing has told multiprocessing of it; a subclass does not, as of socket's."""
    program = """
import mptcp, pickle, sys
listener = mptcp.create_server(("127.0.0.1", 0))
sock = mptcp.create_connection(listener.getsockname())
class Own(mptcp.Socket):
    pass
assert "multiprocessing.reduction" not in sys.modules
import multiprocessing, multiprocessing.reduction
ours, theirs = multiprocessing.Pipe()
ours.send({"nested": [sock]})
received = theirs.recv()["nested"][0]
print(type(received), received.token == sock.token)
for refused in (lambda: pickle.dumps(sock), lambda: ours.send(Own())):
    try:
        refused()
    except TypeError as error:
        print(error)
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert result.stdout.splitlines() == [
        "<class 'mptcp.Socket'> True",
        "cannot pickle 'Socket' object",
        "cannot pickle 'Own' object",
    ], result.stderr


@pytest.mark.parametrize(
    "patch", ["import gevent.monkey; gevent.monkey.patch_all()", "import eventlet; eventlet.monkey_patch()"]
)
def test_under_a_monkey_patch(patch: str) -> None:
    """accept() and recv() wait in the library's way, so that the other side runs meanwhile, in the same thread."""
    library = patch.split()[1].split(".")[0].rstrip(";")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    program = f"""
{patch}
import mptcp, socket, threading
listener = mptcp.create_server(("127.0.0.1", 0))
before = threading.Event()
def serve():
    before.set()
    peer, _ = listener.accept()
    with peer:
        print(type(peer), peer.is_mptcp, peer.recv(5))
        peer.sendall(b"answer")
thread = threading.Thread(target=serve)
thread.start()
before.wait()
with mptcp.create_connection(listener.getsockname(), timeout=20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(6), sock.proto, sock.gettimeout() == 20)
    thread.join()
listener.close()
listener = mptcp.create_server(("127.0.0.1", 0))
listener.settimeout(0.01)
try:
    listener.accept()
except TimeoutError:
    print("timed out")
listener.setblocking(False)
try:
    listener.accept()
except BlockingIOError:
    print("would block")
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert result.stdout.splitlines() == [
        "<class 'mptcp.Socket'> True b'hello'",
        "b'answer' 6 True",
        "timed out",
        "would block",
    ], result.stderr


def test_passing_the_descriptor(pair: Pair) -> None:
    sock, peer = pair
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [b"x"], [sock.fileno()])
        _, [fd], _, _ = socket.recv_fds(other, 1, 1)
    with mptcp.Socket(fileno=fd) as received:
        assert received.token == sock.token
        exchange(received, peer)


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
program = '''
try:
    import mptcp
except ImportError as error:
    print("ImportError:", error, flush=True)
else:
    print("imported", flush=True)
'''
interpreter = interpreters.create()
{run}(interpreter, program)
interpreters.destroy(interpreter)
"""


def test_subinterpreters_are_refused() -> None:
    """By an ImportError that says so, and the main interpreter goes on."""
    try:
        module = __import__("_interpreters")
    except ImportError:
        module = pytest.importorskip("_xxsubinterpreters", reason="needs a Python with subinterpreters")
    run = "interpreters.exec" if hasattr(module, "exec") else "interpreters.run_string"
    program = "import mptcp\n" + SUBINTERPRETER.format(run=run) + "mptcp.Socket().close(); print('goes on')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 0, result.stderr
    refused, goes_on = result.stdout.splitlines()
    assert re.match(r"ImportError: .*subinterpreters", refused)
    assert goes_on == "goes on"


# The standard library's users of sockets


@pytest.mark.parametrize("selector", [selectors.DefaultSelector, selectors.PollSelector, selectors.SelectSelector])
def test_selectors(pair: Pair, selector: type[selectors.BaseSelector]) -> None:
    sock, peer = pair
    with selector() as waiting:
        waiting.register(sock, selectors.EVENT_READ, "sock")
        assert waiting.select(0) == []
        peer.sendall(b"x")
        [(key, events)] = waiting.select(10)
        assert (key.fileobj, key.data, events) == (sock, "sock", selectors.EVENT_READ)
        waiting.modify(sock, selectors.EVENT_WRITE)
        assert [events for _, events in waiting.select(10)] == [selectors.EVENT_WRITE]
        waiting.unregister(sock)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a client and a server at 127.0.0.1 or in the lab need for TLS."""
    client, server = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.configure_trust(client)
    authority.issue_cert("127.0.0.1", "10.0.1.2", "localhost").configure_cert(server)
    return client, server


def test_tls(connection: Connection, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Subflows come and go below a TLS connection, through wrap()."""
    before = descriptors()
    client_context, server_context = contexts

    def echo() -> None:
        with server_context.wrap_socket(connection.peer, server_side=True) as tls:
            while data := tls.recv(65536):
                tls.sendall(data)

    with running(echo), client_context.wrap_socket(connection.sock, server_hostname="10.0.1.2") as tls:
        assert connection.sock.fileno() == -1, "as any socket, it has given its descriptor away"
        tls.sendall(b"over the first path")
        assert receive(tls, 19) == b"over the first path"
        with mptcp.wrap(tls) as control:
            assert control.is_mptcp
            opened = control.open_subflow(*connection.second)
            assert opened is not None
            assert [subflow.id for subflow in control.subflows()] == [1, opened.id]
            control.close_subflow(1)
            data = os.urandom(10000)
            tls.sendall(data)
            assert receive(tls, len(data)) == data
            assert [subflow.local[0] for subflow in control.subflows()] == ["10.0.2.1"]
    assert descriptors() <= before


def test_tls_is_refused_and_the_socket_closed(pair: Pair, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    sock, peer = pair
    before = descriptors()
    peer.sendall(b"this is no TLS at all, not even close to it")
    with pytest.raises(ssl.SSLError):
        contexts[0].wrap_socket(sock, server_hostname="127.0.0.1")
    assert descriptors() == before - 1


def test_a_listener_given_to_tls_leaves_its_subscription(
    mptcp_two_paths: TwoPaths, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Joins are accepted while some Socket of the server's is held: wrap() is one."""
    _, server, _ = mptcp_two_paths
    listener = server.create_server(("", PORT))
    assert subscribers(server) == 1
    with contexts[1].wrap_socket(listener, server_side=True) as tls:
        assert eventually(lambda: subscribers(server) == 0)
        with mptcp.wrap(tls):
            assert subscribers(server) == 1


CLIENTS = 200


def test_asyncio_streams(mptcp_two_paths: TwoPaths) -> None:
    """A server and 200 clients on one loop; each gets a second subflow through its transport's socket."""
    client, server, paths = mptcp_two_paths
    remote = paths[0].address(server), PORT
    second = paths[1].address(client), paths[1].address(server)
    kinds: set[type] = set()
    handlers: set[asyncio.Task[None] | None] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        kinds.add(type(writer.get_extra_info("socket")._sock))
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def one(number: int) -> int:
        sock = await asyncio.to_thread(client.create_connection, remote)
        reader, writer = await asyncio.open_connection(sock=sock)
        said = []
        for text in ("first", "second"):
            writer.write(f"{text} {number}\n".encode())
            said.append(await reader.readline())
            if text == "first" and number % 20 == 0:
                with mptcp.wrap(writer.get_extra_info("socket")) as control:
                    await asyncio.to_thread(control.open_subflow, *second)
                    assert len(control.subflows()) == 2
        assert said == [f"FIRST {number}\n".encode(), f"SECOND {number}\n".encode()]
        with mptcp.wrap(writer.get_extra_info("socket")) as control:
            subflows = len(control.subflows())
        writer.close()
        await writer.wait_closed()
        return subflows

    async def everything() -> list[int]:
        listener = server.create_server(("", PORT), backlog=CLIENTS)
        async with await asyncio.start_server(echo, sock=listener, backlog=CLIENTS):
            subflows = await asyncio.wait_for(asyncio.gather(*map(one, range(CLIENTS))), DEADLINE)
            # The server sees the end a moment later.
            await asyncio.wait_for(asyncio.gather(*filter(None, handlers)), DEADLINE)
            return subflows

    subflows = asyncio.run(everything(), debug=False)
    assert subflows == [2 if number % 20 == 0 else 1 for number in range(CLIENTS)]
    assert kinds == {mptcp.Socket}


def test_asyncio_over_tls(mptcp_two_paths: TwoPaths, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    client, server, paths = mptcp_two_paths
    client_context, server_context = contexts
    handlers: set[asyncio.Task[None] | None] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        writer.write(await reader.readline())
        writer.write_eof() if writer.can_write_eof() else None
        writer.close()
        await writer.wait_closed()

    async def everything() -> bytes:
        listener = server.create_server(("", PORT))
        async with await asyncio.start_server(echo, sock=listener, ssl=server_context):
            sock = await asyncio.to_thread(client.create_connection, (paths[0].address(server), PORT))
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=client_context, server_hostname=paths[0].address(server)
            )
            with mptcp.wrap(writer.get_extra_info("socket")) as control:
                assert control.is_mptcp
            writer.write(b"line\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
            await asyncio.wait_for(asyncio.gather(*filter(None, handlers)), DEADLINE)
            return line

    assert asyncio.run(everything()) == b"line\n"


def test_asyncio_by_the_loop() -> None:
    """The loop's own calls on sockets, sendfile among them."""
    data = os.urandom(SIZE)

    async def everything() -> bytes:
        loop = asyncio.get_running_loop()
        with mptcp.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            sock = await asyncio.to_thread(mptcp.create_connection, listener.getsockname())
            sock.setblocking(False)
            peer, _ = await accepting
            with sock, peer, tempfile.TemporaryFile() as file:
                assert type(peer) is mptcp.Socket
                file.write(data)
                file.flush()
                sending = asyncio.ensure_future(loop.sock_sendfile(sock, file))
                got = bytearray()
                while len(got) < SIZE:
                    got += await loop.sock_recv(peer, 65536)
                assert await sending == SIZE
                await loop.sock_sendall(peer, b"thanks")
                buffer = bytearray(6)
                assert await loop.sock_recv_into(sock, buffer) == 6
                assert buffer == b"thanks"
                return bytes(got)

    assert asyncio.run(everything()) == data


@pytest.mark.parametrize("mixin", [socketserver.ThreadingMixIn, socketserver.ForkingMixIn])
def test_socketserver(mixin: type[Any]) -> None:
    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            # As bytes, because a forked child's variables are not seen here.
            self.wfile.write(type(self.request).__name__.encode() + self.rfile.readline())

    class Server(mixin, socketserver.TCPServer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(("127.0.0.1", 0), Echo, bind_and_activate=False)
            self.socket.close()
            self.socket = mptcp.create_server(("127.0.0.1", 0))

    with warnings.catch_warnings(), Server() as server:
        # That the process has threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(3):
            with mptcp.create_connection(server.socket.getsockname(), timeout=10) as sock:
                server.handle_request()
                sock.sendall(b" line\n")
                with sock.makefile("rb") as file:
                    assert file.read() == b"Socket line\n"


@pytest.mark.parametrize("tls", [False, True])
def test_http(mptcp_two_paths: TwoPaths, contexts: tuple[ssl.SSLContext, ssl.SSLContext], tls: bool) -> None:
    client, server, paths = mptcp_two_paths

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = client.create_connection((self.host, self.port), self.timeout)

    class TlsConnection(http.client.HTTPSConnection, Connection):
        pass

    remote = paths[0].address(server)
    with server.create_server(("", PORT)) as listener, web_server(listener, contexts[1] if tls else None):
        made = TlsConnection(remote, PORT, timeout=10, context=contexts[0]) if tls else Connection(remote, PORT)
        with contextlib.closing(made):
            for expected in (1, 2):
                made.request("GET", "/")
                answer = made.getresponse()
                assert (answer.status, answer.read()) == (200, b"Multipath TCP\n")
                with mptcp.wrap(made.sock) as control:
                    assert len(control.subflows()) == expected
                    if expected == 1:
                        control.open_subflow(paths[1].address(client), paths[1].address(server))


# The recipes

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"
EXAMPLE = re.compile(r"^### (.*?)\n.*?^```python\n(.*?)^```\n+^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("program", "output"),
    [pytest.param(match[2], match[3], id=match[1]) for match in EXAMPLE.finditer(RECIPES.read_text())],
)
def test_recipe(
    mptcp_two_paths: TwoPaths,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    authority: trustme.CA,
    tmp_path: Path,
    program: str,
    output: str,
) -> None:
    """In the client of two paths, where the page says that its programs run, with its web servers."""
    client, server, _ = mptcp_two_paths
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    environment = {**os.environ, "SSL_CERT_FILE": str(trusted), "REQUESTS_CA_BUNDLE": str(trusted)}
    with (
        server.create_server(("", 8000)) as plain,
        server.create_server(("", 8443)) as tls,
        web_server(plain),
        web_server(tls, contexts[1]),
    ):
        done = client.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            timeout=DEADLINE,
        )
    assert done.stderr == ""
    assert done.stdout == output


def test_every_recipe_is_run() -> None:
    assert len(EXAMPLE.findall(RECIPES.read_text())) == RECIPES.read_text().count("```python\n")
