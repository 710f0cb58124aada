"""What hostile and odd programs do under ``mptcp run``: memory that changes during a call, threads that end the call of
another, sockets made in other ways, debuggers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from mptcp.lab import Host
from programs import PRELUDE, SET, Echo, Paths, Program, ask, needs_bpf
from support import NO_CAPABILITIES, PATIENCE, PORT, PYTHON, ROOT, RUN, eventually, needs, needs_python

needs_root = pytest.mark.skipif(not ROOT, reason="needs root")


# Memory, threads and processes that change during a call.


@needs_python
def test_memory_that_other_threads_rewrite_and_take_away(mptcp_two_paths: Paths, echo: Echo) -> None:
    """Every answer is one that some state of the memory deserved, and nothing beside the buffer is written."""
    client, server, links = mptcp_two_paths
    program = rf"""
import errno, mmap
P = ctypes.c_void_p
page = mmap.PAGESIZE
area = mmap.mmap(-1, 4 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
buffer, outside = start + page, start + 3 * page
area[3 * page:] = b"Z" * page
tuple = b"\0" + end({links[1].address(client)!r}, 0) + end({links[1].address(server)!r}, {PORT})
size = ctypes.c_uint32.from_address(start)
over = threading.Event()
def rewrite():
    lengths = [0, 4, 33, 512, 2**31, 2**32 - 1]
    while not over.is_set():
        for length in lengths:
            size.value = length
        # The last one stays while memory is copied, when another thread of Python's comes to its turn.
        lengths.append(lengths.pop(0))
        ctypes.memset(buffer, 255, 8)
        ctypes.memmove(buffer, tuple, len(tuple))
def protect():
    while not over.is_set():
        for rights in (0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            libc.mprotect(P(start + 2 * page), page, rights)
threads = [threading.Thread(target=target) for target in (rewrite, protect)]
for thread in threads: thread.start()
seen, turn = set(), 0
while turn < 600 or "answered" not in seen:
    turn += 1
    for option in (66, 68, 71, 0x4000 + 66):
        # The second ends in the page whose rights change.
        for place in (buffer, start + 2 * page - 16):
            seen.add(errno.errorcode.get(call(libc.getsockopt, fd, option, P(place), P(start)), "answered"))
    seen.add(errno.errorcode.get(call(libc.setsockopt, fd, 72, P(start + 2 * page - 16), 32), "answered"))
over.set()
for thread in threads: thread.join()
print(*sorted(seen - {{"EFAULT", "EINVAL", "EPERM"}}), area[3 * page:] == b"Z" * page, len(ids(fd)))
"""
    assert ask(mptcp_two_paths, program) == ["answered True 1"]


@needs_python
def test_read_only_pages_of_files_are_not_written(mptcp_two_paths: Paths, echo: Echo, tmp_path: Path) -> None:
    """The supervisor could write where the program may not: a file that it may only read, mapped while it asks."""
    file = tmp_path / "file"
    file.write_bytes(b"Z" * 4096)
    program = rf"""
import errno, mmap, signal
P, page = ctypes.c_void_p, mmap.PAGESIZE
libc.mmap.restype, libc.mmap.argtypes = P, (P, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
place = libc.mmap(None, page, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
file = os.open({str(file)!r}, os.O_RDONLY)
FIXED = 0x10
over = threading.Event()
def remap():
    while not over.is_set():
        for flags, rights, number in (
            (mmap.MAP_SHARED, mmap.PROT_READ, file),
            (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE, -1),
        ):
            assert libc.mmap(place, page, rights, flags | FIXED, number, 0) == place
thread = threading.Thread(target=remap); thread.start()
seen = set()
size = ctypes.c_uint32(512)
for _ in range(3000):
    size.value = 512
    seen.add(errno.errorcode.get(call(libc.getsockopt, fd, 66, P(place), ctypes.byref(size)), "answered"))
over.set(); thread.join()
print(*sorted(seen))
"""
    [line] = ask(mptcp_two_paths, program)
    assert "answered" in line.split()
    assert set(line.split()) <= {"answered", "EFAULT"}
    assert file.read_bytes() == b"Z" * 4096


@needs_python
def test_another_thread_executes_a_program_during_calls(mptcp_two_paths: Paths, echo: Echo) -> None:
    """The threads that wait end, and the program that follows is served."""
    server = mptcp_two_paths[2][0].address(mptcp_two_paths[1])
    program = rf"""{PRELUDE}
program, turn, fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if turn == 0:
    sock = connect({server!r}, {PORT})
    fd = sock.fileno()
    os.set_inheritable(fd, True)
def ask():
    while True:
        ids(fd)
        get(fd, 68, b"\1" + bytes(99))
        socket.socket().close()
for _ in range(4):
    threading.Thread(target=ask, daemon=True).start()
for _ in range(20):
    ids(fd)
if turn < 20:
    os.execv({PYTHON!r}, [{PYTHON!r}, "-c", program, program, str(turn + 1), str(fd)])
print(turn, len(ids(fd)), socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), flush=True)
os._exit(0)
"""
    with Program(mptcp_two_paths, PYTHON, "-c", program, program, "0", "0") as running:
        assert running.finish() == "20 1 262\n"


@needs_python
def test_a_thousand_threads_call_at_once(mptcp_two_paths: Paths, echo: Echo) -> None:
    program = r"""
import collections, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))
threading.stack_size(128 << 10)
answers = []
barrier = threading.Barrier(1000)
def ask():
    barrier.wait()
    with socket.socket() as own:
        answers.append(own.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
    answers.append(f"{len(ids(fd))} subflow")
threads = [threading.Thread(target=ask) for _ in range(1000)]
for thread in threads: thread.start()
for thread in threads: thread.join()
seen = collections.Counter(answers)
print(seen[262], seen["1 subflow"])
"""
    assert ask(mptcp_two_paths, program) == ["1000 1000"]


@needs_python
def test_a_program_that_is_stopped_during_calls_goes_on(mptcp_two_paths: Paths, echo: Echo) -> None:
    program = r"""
print("--", "begin", flush=True)
for _ in range(3000):
    ids(fd)
    socket.socket().close()
print(len(ids(fd)))
"""
    server = mptcp_two_paths[2][0].address(mptcp_two_paths[1])
    start = f"{PRELUDE}\nsock = connect({server!r}, {PORT})\nfd = sock.fileno()\n"
    with Program(mptcp_two_paths, PYTHON, "-c", start + program) as running:
        running.until("begin")
        [child] = children(running.process.pid)
        for _ in range(20):
            os.kill(child, signal.SIGSTOP)
            assert eventually(lambda: state(child) in "TZ")
            os.kill(child, signal.SIGCONT)
        assert running.finish() == "1\n"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# What runs beside the supervisor with the caller's rights.


#: Looks for processes that the supervisor has started beside the program, stops each, and tries to read its memory.
ATTACK_ON_TRIALS = r"""
import signal, time
read = 0
supervisor, ours = os.getppid(), os.getpid()
over = threading.Event()
def attack():
    global read
    while not over.is_set():
        for task in os.listdir(f"/proc/{supervisor}/task"):
            try:
                with open(f"/proc/{supervisor}/task/{task}/children") as file:
                    others = [int(word) for word in file.read().split() if int(word) != ours]
            except OSError:
                continue
            for process in others:
                try:
                    os.kill(process, signal.SIGSTOP)
                    with open(f"/proc/{process}/mem", "rb"):
                        read += 1
                except OSError:
                    pass
thread = threading.Thread(target=attack)
thread.start()
answers, deadline = [], time.monotonic() + 60
while answers.count("ECHILD") < 3 and time.monotonic() < deadline:
    answers.append(on_subflow(socket.SOL_SOCKET, socket.SO_MARK, INT(5)))
over.set()
thread.join()
print(read, *sorted(set(answers)))
"""


@needs_bpf
@needs_python
@needs("setpriv")
@pytest.mark.parametrize("user", ["nobody", "root without capabilities"])
def test_what_tries_an_option_can_be_neither_read_nor_stopped(mptcp_two_paths: Paths, echo: Echo, user: str) -> None:
    """It runs with the caller's user and rights, as a copy of the supervisor."""
    server = mptcp_two_paths[2][0].address(mptcp_two_paths[1])
    start = f"{PRELUDE}\nsock = connect({server!r}, {PORT})\nfd = sock.fileno()\n"
    command = [PYTHON, "-c", start + SET + ATTACK_ON_TRIALS]
    options = ("--user", "nobody") if user == "nobody" else ()
    prefix = [] if options else NO_CAPABILITIES
    with Program(mptcp_two_paths, *prefix, *command, options=options) as running:
        # EPERM, the true answer, only if a trial was over before it was stopped.
        assert running.finish() in ("0 ECHILD EPERM\n", "0 ECHILD\n")


# Sockets made in other ways, and other filters.


@pytest.fixture(scope="module")
def odd_calls(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("odd") / "calls"
    source = Path(__file__).with_name("odd_calls.c")
    subprocess.run(["cc", "-Wall", "-Werror", "-o", str(output), str(source)], check=True, timeout=60 * PATIENCE)
    return str(output)


def made(host: Host, *command: str) -> int:
    done = host.run([*command], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    return int(done.stdout)


@needs("cc")
@pytest.mark.parametrize("way", ["vfork", "clone", "clone-vm"])
def test_sockets_of_processes_that_share_memory_or_descriptors(
    mptcp_two_paths: Paths, odd_calls: str, way: str
) -> None:
    assert made(mptcp_two_paths[0], *RUN, odd_calls, way) == 262


@needs("cc")
@pytest.mark.parametrize("way", ["32-bit", "x32", "io_uring"])
def test_calls_that_the_supervisor_does_not_see(mptcp_two_paths: Paths, odd_calls: str, way: str) -> None:
    """They do what they do without it."""
    host = mptcp_two_paths[0]
    bare = made(host, odd_calls, way)
    if bare < 0:
        pytest.skip(f"this kernel has no such calls here: {os.strerror(-bare)}")
    assert made(host, *RUN, odd_calls, way) == bare == 6


@needs("cc")
def test_filters_of_the_program_s_own(mptcp_two_paths: Paths, odd_calls: str) -> None:
    """One that refuses takes precedence, one that asks a tracer does not, and a second listener is refused."""
    host = mptcp_two_paths[0]
    results = {way: made(host, *RUN, odd_calls, way) for way in ("errno", "trace", "listener")}
    assert results == {"errno": -18, "trace": 262, "listener": -16}  # EXDEV, EBUSY
    assert made(host, odd_calls, "trace") == -38  # ENOSYS, as nobody traces


#: Prints what protocol a new TCP socket has: 262 is Multipath TCP.
PROTOCOL = "import socket; print(socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), flush=True)"


@needs("strace")
@needs_python
def test_strace_within_and_around(mptcp_two_paths: Paths) -> None:
    host = mptcp_two_paths[0]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null"]
    for command in ([*RUN, *strace, PYTHON, "-c", PROTOCOL], [*strace, *RUN, PYTHON, "-c", PROTOCOL]):
        done = host.run(command, capture_output=True, text=True, timeout=60 * PATIENCE)
        assert (done.stdout, done.returncode) == ("262\n", 0), done.stderr


@needs_root
@needs("setpriv")
def test_a_set_uid_program_has_no_privilege_of_its_owner(mptcp_two_paths: Paths, tmp_path: Path) -> None:
    program = tmp_path / "id"
    shutil.copy(shutil.which("id") or "", program)
    program.chmod(0o4755)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    host = mptcp_two_paths[0]
    assert made(host, *nobody, str(program), "-u") == 0
    assert made(host, *RUN, "--user", "nobody", str(program), "-u") == 65534


@needs_python
@needs("setpriv")
@pytest.mark.parametrize("is_privileged", [True, False])
def test_a_program_that_others_may_not_look_at(mptcp_two_paths: Paths, is_privileged: bool) -> None:
    """PR_SET_DUMPABLE keeps those without CAP_SYS_PTRACE out, an unprivileged supervisor too."""
    program = f"import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); {PROTOCOL}"
    command = [*([] if is_privileged else NO_CAPABILITIES), *RUN, PYTHON, "-c", program]
    done = mptcp_two_paths[0].run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("262\n" if is_privileged else "6\n", "")


# Programs that everybody has.


@needs("curl")
@needs_python
def test_python_s_http_server(mptcp_two_paths: Paths, tmp_path: Path) -> None:
    client, server, links = mptcp_two_paths
    (tmp_path / "file").write_text("hello")
    command = [*RUN, PYTHON, "-u", "-m", "http.server", "--directory", str(tmp_path), str(PORT)]
    with server.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
        try:
            assert serving.stdout is not None
            assert "Serving HTTP" in serving.stdout.readline()
            address = f"http://{links[0].address(server)}:{PORT}/file"
            for start in (RUN, []):
                got = client.run([*start, "curl", "-sS", address], capture_output=True, text=True, timeout=60)
                assert (got.stdout, got.stderr) == ("hello", "")
        finally:
            serving.terminate()
            serving.wait(60)
    # The second client's socket was TCP.
    assert server.counters()["MPCapableACKRX"] == 1
