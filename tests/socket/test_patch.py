"""mptcp.patch(): the TCP sockets of a process, whoever creates them, are Multipath TCP, and plain TCP afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import Lab

DEADLINE = 60.0
SO_PROTOCOL = socket.SOL_SOCKET, socket.SO_PROTOCOL
MPTCP, TCP = 262, socket.IPPROTO_TCP

# As a module that imports the class before has it.
Bound = socket.socket
INIT = socket.socket.__init__


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    yield
    assert Bound.__init__ is INIT
    assert type(socket) is type(os)
    assert "MPTCP_PATCH" not in os.environ


def protocol(sock: socket.socket) -> int:
    return sock.getsockopt(*SO_PROTOCOL)


def need(*libraries: str) -> None:
    """Skip where one is missing; it is not imported here."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


@contextlib.contextmanager
def protocols_of(*arguments: int) -> Iterator[tuple[int, int]]:
    with socket.socket(*arguments) as sock:
        yield protocol(sock), sock.proto


@pytest.mark.parametrize("proto", [(), (0,), (-1,), (TCP,), (MPTCP,)])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_tcp_streams(family: int, proto: tuple[int, ...]) -> None:
    with mptcp.patch():
        for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM | socket.SOCK_NONBLOCK):
            with protocols_of(family, kind, *proto) as found:
                assert found == (MPTCP, TCP)
    with protocols_of(family, socket.SOCK_STREAM, 0) as found:
        assert found == (TCP, 0)


def test_by_keywords_and_defaults() -> None:
    with mptcp.patch():
        with socket.socket() as sock:
            assert (sock.family, sock.type, sock.gettimeout()) == (socket.AF_INET, socket.SOCK_STREAM, None)
            assert protocol(sock) == MPTCP
        with socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK, family=socket.AF_INET6) as sock:
            assert (sock.family, sock.gettimeout(), protocol(sock)) == (socket.AF_INET6, 0, MPTCP)
            assert not sock.get_inheritable()


@pytest.mark.parametrize(
    ("family", "kind", "proto"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM, 0),
        (socket.AF_UNIX, socket.SOCK_STREAM, 0),
        (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    ],
)
def test_everything_else_is_as_before(family: int, kind: int, proto: int) -> None:
    with socket.socket(family, kind, proto) as before, mptcp.patch(), socket.socket(family, kind, proto) as sock:
        assert (sock.family, sock.type, sock.proto) == (before.family, before.type, before.proto)
        assert protocol(sock) == protocol(before) != MPTCP


def test_wrong_arguments_raise_what_they_did() -> None:
    calls: list[tuple[object, ...]] = [
        ("x",),
        (2, "x"),
        (2, 1, "x"),
        (2, 1, 999999),
        (-7,),
        (2, 1, 0, -5),
        (2, 1, 0, "x"),
    ]
    for arguments in calls:
        raised = []
        for block in (contextlib.nullcontext(), mptcp.patch()):
            with block, pytest.raises(Exception) as caught:  # noqa: PT011
                socket.socket(*arguments)  # type: ignore[arg-type]
            raised.append((caught.type, str(caught.value)))
        assert raised[0] == raised[1]


def test_every_function_of_the_module() -> None:
    with mptcp.patch():
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as sock,
        ):
            peer, _ = listener.accept()
            with peer, sock.dup() as duplicate, socket.fromfd(sock.fileno(), sock.family, sock.type) as same:
                for made in (listener, sock, peer, duplicate, same):
                    assert protocol(made) == MPTCP
                    assert type(made) is socket.socket
                    assert isinstance(made, socket.SocketType)
                assert (peer.proto, duplicate.proto) == (TCP, TCP)
                with socket.socket(fileno=os.dup(sock.fileno())) as by_descriptor:
                    assert by_descriptor.proto == TCP
                with mptcp.wrap(sock) as wrapped:
                    assert wrapped.is_mptcp
                    assert [subflow.state for subflow in wrapped.subflows()] == ["ESTABLISHED"]
        one, other = socket.socketpair()
        with one, other:
            assert protocol(one) == 0


def test_classes_hold() -> None:
    with socket.socket() as before, mptcp.Socket() as ours:
        with mptcp.patch():
            assert isinstance(before, socket.socket)
            assert isinstance(ours, socket.socket)
            assert issubclass(mptcp.Socket, socket.socket)
            assert socket.socket is Bound
            assert issubclass(socket.socket, socket.SocketType)
            with socket.socket() as within:
                pass
            with mptcp.Socket() as sock:
                assert sock.is_mptcp
        assert isinstance(within, socket.socket)
        assert protocol(before) == TCP


def test_a_class_bound_before_and_a_subclass() -> None:
    class Own(Bound):
        def __init__(self, name: str) -> None:
            super().__init__(socket.AF_INET, socket.SOCK_STREAM)
            self.name = name

    with mptcp.patch(), Bound() as bound, Own("x") as own:
        assert (protocol(bound), protocol(own)) == (MPTCP, MPTCP)
    with Bound() as bound, Own("x") as own:
        assert (protocol(bound), protocol(own)) == (TCP, TCP)


def test_a_class_that_cannot_be_patched_is_named() -> None:
    """In a process of its own: classes are found as long as anything refers to them."""
    program = """
import _socket, mptcp, socket, sys, warnings
class Alike(_socket.socket):
    pass
with mptcp.patch():
    print(Alike().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
print("__init__" in vars(Alike))
class Foreign(_socket.socket):
    def __init__(self, name):
        super().__init__()
init = socket.socket.__init__
for action in ("error", "always"):
    with warnings.catch_warnings(record=action == "always") as caught:
        warnings.simplefilter(action)
        try:
            with mptcp.patch():
                print(Foreign("x").getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), caught[0].filename)
        except RuntimeWarning as warning:
            print(warning)
    print(socket.socket.__init__ is init)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert result.stdout.splitlines() == [
        "262",
        "False",
        "mptcp.patch() does not cover classes with a constructor of their own: __main__.Foreign",
        "True",
        "6 <string>",
        "True",
    ], result.stderr


def test_nested_and_after_an_exception() -> None:
    for _ in range(2):
        with contextlib.suppress(KeyError), mptcp.patch(), mptcp.patch():
            with mptcp.patch():
                pass
            with protocols_of() as found:
                assert found[0] == MPTCP
            raise KeyError
        with protocols_of() as found:
            assert found[0] == TCP


def test_as_a_decorator() -> None:
    @mptcp.patch()
    def within() -> int:
        with protocols_of() as found:
            return found[0]

    assert [within(), within()] == [MPTCP, MPTCP]


def test_as_a_decorator_of_coroutine_functions_and_of_no_others() -> None:
    @mptcp.patch()
    async def within(number: int) -> int:
        await asyncio.sleep(0)
        with protocols_of() as found:
            return found[0] + number

    async def twice() -> list[int]:
        return await asyncio.gather(within(0), within(number=1))

    assert asyncio.run(twice()) == [MPTCP, MPTCP + 1]
    assert within.__name__ == "within"

    def generator() -> Iterator[None]:
        yield

    async def asynchronous_generator() -> AsyncIterator[None]:
        yield

    for function in (generator, asynchronous_generator):
        with pytest.raises(TypeError, match="generator"):
            mptcp.patch()(function)


def test_a_block_that_nobody_holds_goes_on() -> None:
    """In a process of its own, as nothing ends it."""
    program = """
import gc, mptcp, socket
mptcp.patch().__enter__()
gc.collect()
print(socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE).stdout == "262\n"


def test_a_block_that_is_not_entered_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="alone has no effect") as caught:
        mptcp.patch()
    assert caught[0].filename == __file__


def test_a_block_is_entered_again_and_left_as_often() -> None:
    block = mptcp.patch()
    for _ in range(2):
        with block, block:
            pass
    with pytest.raises(RuntimeError, match="has not been entered, or has ended"):
        block.__exit__()
    with mptcp.patch():
        with pytest.raises(RuntimeError):
            block.__exit__()
        with protocols_of() as found:
            assert found[0] == MPTCP


def test_overlapping_blocks_of_threads() -> None:
    """The process is patched until the last of them ends, whoever began."""
    entered, leave = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def block(number: int) -> None:
        with mptcp.patch():
            entered[number].set()
            leave[number].wait(DEADLINE)

    threads = [threading.Thread(target=block, args=(number,)) for number in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        entered[number].wait(DEADLINE)
    for number, thread in enumerate(threads):
        with protocols_of() as found:
            assert found[0] == MPTCP
        leave[number].set()
        thread.join(DEADLINE)
    with protocols_of() as found:
        assert found[0] == TCP


def test_many_threads_at_once() -> None:
    wrong = []

    def work() -> None:
        for _ in range(200):
            with mptcp.patch(), protocols_of() as found:
                if found != (MPTCP, TCP):
                    wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not wrong


def test_where_multipath_tcp_is_off() -> None:
    program = """
import mptcp, socket
with mptcp.patch():
    for proto in (0, -1, 6, 262):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto) as sock:
            print(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
"""
    with Lab() as lab:
        host = lab.host("a")
        host.sysctl("net.mptcp.enabled", 0)
        result = host.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE)
    assert (result.stdout, result.stderr) == ("6\n" * 4, "")


@pytest.mark.parametrize("number", ["EPERM", "EACCES", "EINVAL", "EPROTONOSUPPORT"])
def test_where_a_sandbox_denies_it(number: str) -> None:
    program = """
import mptcp, socket
with mptcp.patch(), socket.create_server(("127.0.0.1", 0)) as sock:
    print(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
"""
    denied = Path(__file__).parents[1] / "denied.py"
    command = [sys.executable, denied, number, f"socket:{MPTCP}@2", sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (result.stdout, result.stderr) == ("6\n", "")


def test_where_a_sandbox_denies_tcp_too() -> None:
    program = "import mptcp, socket\nwith mptcp.patch(): socket.socket()"
    denied = Path(__file__).parents[1] / "denied.py"
    command = [sys.executable, denied, "EACCES", f"socket:{int(socket.AF_INET)}", sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert result.stderr.splitlines()[-1] == "PermissionError: [Errno 13] Permission denied"


def test_a_constructor_that_another_puts_over_it_stays() -> None:
    program = """
import _socket, mptcp, socket
class Own(_socket.socket):
    pass
with mptcp.patch():
    within = Own.__init__
    def other(self, *arguments):
        within(self, *arguments)
    Own.__init__ = other
print(Own.__init__ is other, Own().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
"""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE).stdout == "True 6\n"


def test_asyncio() -> None:
    async def program() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            seen.append((sock.getsockopt(*SO_PROTOCOL), sock.getsockopt(TCP, socket.TCP_NODELAY)))
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, "localhost", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            sock = writer.get_extra_info("socket")
            seen.append((sock.getsockopt(*SO_PROTOCOL), sock.getsockopt(TCP, socket.TCP_NODELAY)))
            await reader.read()
            writer.close()
            await writer.wait_closed()
        return seen

    with mptcp.patch():
        assert asyncio.run(program()) == [(MPTCP, 1), (MPTCP, 1)]
    assert asyncio.run(program()) == [(TCP, 1), (TCP, 1)]


# gevent and eventlet

MONKEY_PATCHES = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_monkey_patch_before_and_after(library: str, order: str) -> None:
    need(library)
    patched = {
        "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
        "eventlet": "import eventlet; eventlet.monkey_patch()",
    }
    lines = [patched[library], "block.__enter__()"]
    before, after = lines if order == "before" else reversed(lines)
    program = f"""
import mptcp
block = mptcp.patch()
{before}
{after}
import socket, threading
theirs = socket.socket
def serve(listener):
    peer, _ = listener.accept()
    with peer:
        print(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), peer.recv(5))
def once():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with socket.create_connection(listener.getsockname()) as sock:
            print(type(sock) is theirs, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), sock.proto in (0, 6))
            sock.sendall(b"hello")
        thread.join()
once()
block.__exit__(None, None, None)
once()
print(socket.socket is theirs, "mptcp" not in type(socket).__module__)
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert result.stdout.splitlines() == [
        "True 262 True",
        "262 b'hello'",
        "True 6 True",
        "6 b'hello'",
        "True True",
    ], result.stderr


def test_gevents_class_without_a_monkey_patch() -> None:
    need("gevent")
    program = """
import gevent.socket, mptcp, socket
def protocol():
    with gevent.socket.socket() as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
with mptcp.patch():
    print(protocol())
print(protocol())
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE).stdout == "262\n6\n"


# Child processes


def child(connection: multiprocessing.connection.Connection) -> None:
    with protocols_of() as found:
        connection.send(found[0])


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_children_of_multiprocessing(method: str) -> None:
    """This module imports mptcp, by which a child that is spawned is patched."""
    context = multiprocessing.get_context(method)
    answers = []
    for block in (mptcp.patch(), contextlib.nullcontext()):
        ours, theirs = context.Pipe(duplex=False)
        with block, ours, theirs:
            process = context.Process(target=child, args=(theirs,))  # type: ignore[attr-defined]
            process.start()
            assert ours.poll(DEADLINE)
            answers.append(ours.recv())
            process.join(DEADLINE)
    assert answers == [MPTCP, TCP]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_other_threads_patch() -> None:
    """The child has none of those threads, and must not wait for them."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            with mptcp.patch():
                pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            if (pid := os.fork()) == 0:
                signal.alarm(int(DEADLINE))
                with mptcp.patch(), protocols_of() as found:
                    os._exit(found[0] != MPTCP)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join(DEADLINE)


# Of a program that does not import mptcp, whose children start before, within and after a block.
CHILDREN = """
import multiprocessing, os, socket, sys

def child(connection):
    with socket.socket() as sock:
        connection.send((sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), os.environ.get("MPTCP_PATCH")))

def answer():
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    print(*ours.recv(), flush=True)
    process.join()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    if sys.argv[2] == "before":
        answer()
    import mptcp
    with mptcp.patch():
        answer()
    answer()
    print(multiprocessing.spawn.get_preparation_data.__module__)
"""


@pytest.mark.parametrize("first", ["before", "within"])
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_child_is_patched_as_its_parent_is_when_it_starts(tmp_path: Path, method: str, first: str) -> None:
    """A forkserver keeps the environment of its own start."""
    (tmp_path / "program.py").write_text(CHILDREN)
    command = [sys.executable, "-W", "ignore", "program.py", method, first]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path)
    *lines, module = result.stdout.splitlines()
    assert lines == ["6 None"] * (first == "before") + ["262 1", "6 None"], result.stderr
    assert module == ("mptcp._patch" if method == "forkserver" else "multiprocessing.spawn")


def test_a_child_finds_the_package_where_its_parent_did(tmp_path: Path) -> None:
    """In a folder that the parent's program has put into sys.path, with an interpreter that has no such package."""
    package = Path(mptcp.__file__).parent
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mptcp").symlink_to(package)
    program = CHILDREN.replace("import mptcp\n", f"sys.path.insert(0, {str(tmp_path / 'folder')!r}); import mptcp\n")
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-S", "-W", "ignore", "program.py", "spawn", "within"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path, env=environment)
    assert result.stdout.splitlines() == ["262 1", "6 None", "multiprocessing.spawn"], result.stderr


def test_a_program_that_imports_the_package() -> None:
    program = "import socket, sys; {} print(socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))"
    for text, expected in (("import mptcp;", MPTCP), ("", TCP)):
        command = [sys.executable, "-W", "ignore", "-c", program.format(text)]
        with mptcp.patch():
            result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert (result.stdout, result.stderr) == (f"{expected}\n", "")


# mptcp run --in-process


def run_in_process(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mptcp", "run", "--in-process", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=cwd)


SCRIPT = """
import atexit, socket, sys, threading
import beside

def show(when):
    with socket.socket() as sock:
        print(when, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), flush=True)

atexit.register(show, "at exit")
ended = threading.Event()
def outlive():
    threading.main_thread().join()
    show("in a thread")
threading.Thread(target=outlive).start()
show("at once")
print(__name__, __file__, sys.argv, sys.modules["__main__"].show is show, beside.__file__)
"""


def test_running_a_script(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "beside.py").touch()
    result = run_in_process("folder/script.py", "--user", "x y", cwd=tmp_path)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "at once 262",
        f"__main__ folder/script.py ['folder/script.py', '--user', 'x y'] True {folder / 'beside.py'}",
        "in a thread 262",
        "at exit 262",
    ]


@pytest.mark.parametrize(
    ("text", "status", "last"),
    [
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('why')", 1, "why"),
        ("raise OSError(5, 'its own')", 1, "OSError: [Errno 5] its own"),
        ("1 +", 1, "SyntaxError: invalid syntax"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_how_a_script_ends(tmp_path: Path, text: str, status: int, last: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(text)
    result = run_in_process(script)
    assert (result.returncode, result.stdout) == (status, "")
    assert (result.stderr.splitlines() or [""])[-1] == last
    assert "run_script" not in result.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_a_script(tmp_path: Path, method: str) -> None:
    """Of one that does not import mptcp."""
    (tmp_path / "script.py").write_text(f"""
import multiprocessing, socket

def protocol(_):
    with socket.socket() as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)

if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(1) as pool:
        print(pool.map(protocol, range(2)))
""")
    result = run_in_process("script.py", cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("[262, 262]\n", "")


def test_a_script_that_is_not_there_and_options_that_do_not_fit(tmp_path: Path) -> None:
    result = run_in_process("missing.py", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (127, "mptcp run: missing.py: No such file or directory\n")
    for options in (["--layout", "draft"], ["--except", "x"], ["--path-manager", "kernel"]):
        result = run_in_process(*options, "missing.py")
        assert result.returncode == 2
        assert f"{options[0]}" in result.stderr
        assert "cannot be used with --in-process" in result.stderr


# The libraries that people use

LIBRARIES = ["requests", "httpx", "aiohttp", "websockets", "trio", "distributed"]
ENDS = ("client", "server")


def test_the_libraries_that_people_use_in_one_process() -> None:
    need(*LIBRARIES)
    program = Path(__file__).with_name("patched_libraries.py")
    command = [sys.executable, "-W", "ignore", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE)
    names = [
        "requests",
        "httpx",
        "aiohttp",
        "websockets client",
        "websockets server",
        "trio client",
        "trio server",
        "dask",
    ]
    expected = [f"{name} {number}" for number in (MPTCP, TCP) for name in names]
    assert result.stdout.splitlines() == expected, result.stderr
