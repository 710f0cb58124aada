"""The enhanced socket API of 2016 under ``mptcp run``: programs in C, Go and Ruby, what they get wrong, and whose
connections they reach."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import mptcp
import mptcp.lab
import pytest
from mptcp import enhanced_api
from programs import PRELUDE, SET, Echo, Paths, Program, ask, needs_bpf
from support import (
    KERNEL,
    NO_CAPABILITIES,
    PATIENCE,
    PORT,
    PYTHON,
    ROOT,
    RUN,
    STUCK_MEMORY,
    eventually,
    has_bpf,
    has_userfaultfd,
    needs,
    needs_python,
    ss,
    tuples,
)

PROGRAMS = Path(__file__).parents[1] / "enhanced_api"

needs_root = pytest.mark.skipif(not ROOT, reason="needs root")

Build = Callable[[Path], list[str]]

# Programs of 2016.


def c(source: str, *flags: str) -> Build:
    def build(folder: Path) -> list[str]:
        output = folder / "program"
        include = f"-I{enhanced_api.include_dir()}"
        command = ["cc", "-Wall", "-Werror", *flags, include, "-o", str(output), str(PROGRAMS / source)]
        subprocess.run(command, check=True, timeout=60 * PATIENCE)
        return [str(output)]

    return build


@functools.cache
def go_program() -> Path:
    """control.go, which takes seconds to build: once for all tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    output = folder / "program"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(folder / "cache"), "GO111MODULE": "off"}
    command = ["go", "build", "-o", str(output), str(PROGRAMS / "control.go")]
    subprocess.run(command, check=True, timeout=110 * PATIENCE, env=environment)
    return output


def go(_: Path) -> list[str]:
    return [str(go_program())]


def ruby(folder: Path) -> list[str]:
    return ["ruby", str(PROGRAMS / "control.rb")]


IN_ALL_LANGUAGES = [
    pytest.param(c("slides.c"), id="slides", marks=needs("cc")),
    pytest.param(c("slides.c", "-static", "-Wno-error"), id="slides-static", marks=needs("cc")),
    pytest.param(c("kernel_layout.c"), id="kernel-layout", marks=needs("cc")),
    pytest.param(c("kernel_layout.c", "-static", "-Wno-error"), id="kernel-layout-static", marks=needs("cc")),
    pytest.param(go, id="go-static", marks=needs("go")),
    pytest.param(ruby, id="ruby", marks=needs("ruby")),
]


@pytest.mark.parametrize("build", IN_ALL_LANGUAGES)
def test_a_program_of_2016_prints_what_ss_shows(
    mptcp_two_paths: Paths, echo: Echo, build: Build, tmp_path: Path
) -> None:
    client, server, links = mptcp_two_paths
    second = links[1]
    ends = [second.address(client), "12345", second.address(server), str(PORT)]
    command = [*build(tmp_path), links[0].address(server), str(PORT), *ends]
    check_control(mptcp_two_paths, command, (f"{ends[0]}:{ends[1]}", f"{ends[2]}:{ends[3]}"))


@needs("cc", "ip")
def test_the_subflow_of_the_slides(mptcp_two_paths: Paths, echo: Echo, tmp_path: Path) -> None:
    """From 10.0.0.1 port 12345 to 10.1.0.1 port 1234, all by default."""
    client, server, links = mptcp_two_paths
    for host, own, other in ((client, "10.0.0.1", "10.1.0.1"), (server, "10.1.0.1", "10.0.0.1")):
        device = links[0].interface(host)
        gateway = links[0].address(server if host is client else client)
        host.run(["ip", "address", "add", f"{own}/32", "dev", device], check=True)
        host.run(["ip", "route", "add", other, "via", gateway, "dev", device, "src", own], check=True)
    with server.create_server(("", 1234)) as listener:
        answering = threading.Thread(target=answer, args=(listener,))
        answering.start()
        check_control(mptcp_two_paths, c("slides.c")(tmp_path), ("10.0.0.1:12345", "10.1.0.1:1234"))
        answering.join()


def answer(listener: mptcp.Socket) -> None:
    """One connection: a byte each way, then nothing until its end."""
    peer, _ = listener.accept()
    with peer:
        peer.sendall(peer.recv(1))
        peer.recv(1)


def check_control(paths: Paths, command: list[str], opened: tuple[str, str]) -> None:
    client = paths[0]
    with Program(paths, *command) as program:
        lines = program.until("open")
        first = int(lines[0].split()[-1])
        [new] = [int(line.split()[-1]) for line in lines if line.startswith("opened : ")]
        assert lines[0] == f"Subflow id : {first}"
        assert first != new
        listed = [int(line.split()[-1]) for line in lines[2:] if line.startswith("Subflow id : ")]
        assert sorted(listed) == sorted([first, new])
        text = "\n".join(lines)
        found = re.findall(
            r"^Subflow (\d+)\n\tip src : (\S+) src port : (\d+)\n\tip dst : (\S+) dst port : (\d+)", text, re.MULTILINE
        )
        told = {int(number): (f"{src}:{sport}", f"{dst}:{dport}") for number, src, sport, dst, dport in found}
        assert set(told.values()) == tuples(client)
        assert told[new] == opened
        # The kernel's own TCP_INFO of that subflow.
        [row] = [row for row in ss(client, "-i", "-O", "--tos") if row[3:5] == list(opened)]
        length, state, mss = re.findall(rf"^TCP_INFO of {new}: length (\d+) state (\d+) snd_mss (\d+)$", text, re.M)[0]
        assert (int(length) >= 104, state) == (True, "1")
        assert f"mss:{mss}" in row
        if has_bpf():
            assert f"IP_TOS of {new}: set to 16" in lines
            assert "tos:0x10" in row
        program.go_on()
        assert program.until("closed") == [f"closed : {new}", f"Subflow id : {first}"]
        assert eventually(lambda: tuples(client) == {told[first]})
        program.go_on()
        _, errors = program.process.communicate(timeout=60 * PATIENCE)
        if has_bpf():
            assert (program.process.returncode, errors) == (0, "")
        else:
            assert program.process.returncode == 1
            assert errors.startswith("MPTCP_SUB_SETSOCKOPT(IP_TOS)")


@needs("go")
def test_a_go_program_in_a_rain_of_signals_opens_each_subflow_once(
    mptcp_two_paths: Paths, echo: Echo, tmp_path: Path
) -> None:
    client, server, links = mptcp_two_paths
    local, remote = links[1].address(client), links[1].address(server)
    command = [*go(tmp_path), "storm", "10", links[0].address(server), str(PORT), local, remote, str(PORT)]
    with Program(mptcp_two_paths, *command) as program:
        [line] = program.until("open")
        listed, signals = map(int, line.split())
        assert listed == 11
        assert signals > 1000
        assert sum(ends[0].startswith(f"{local}:") for ends in tuples(client)) == 10
        [peer] = echo.peers
        assert len(peer.subflows()) == 11


@needs_python
def test_the_draft_s_layout_and_ipv6(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    program = rf"""
tuple = bytes([0, 1]) + end({links[1].address(client)!r}, 0) + end({links[1].address(server)!r}, {PORT})
error, reply = get(fd, 69, tuple)
assert (error, len(reply)) == (0, 34), (error, reply)
error, listed = get(fd, 66, bytes(100))
print(error, listed[0], reply[0] in listed[2::2])
error, told = get(fd, 68, reply[:1] + bytes(99))
print(error, told[:2] == bytes([reply[0], 1]), socket.inet_ntoa(told[6:10]), len(told))
error, _ = get(fd, 67, struct.pack("=Bxxxi", reply[0], 77))
print(error)
error, _ = get(fd, 67, struct.pack("=Bxxxi", reply[0], socket.SHUT_RDWR))
print(error, reply[0] in get(fd, 66, bytes(100))[1][2::2])
"""
    assert ask(mptcp_two_paths, program, options=("--layout", "draft")) == [
        "0 2 True",
        f"0 True {links[1].address(client)} 34",
        "22",
        "0 False",
    ]


# What programs get wrong.


@needs_python
def test_wild_and_null_pointers_and_wrong_lengths(mptcp_two_paths: Paths, echo: Echo) -> None:
    program = r"""
import errno, mmap
wild = [0, 8, 2**47 - 4096, 2**63]
names = lambda error: errno.errorcode.get(error, error)
size = ctypes.c_uint32(512)
good = ctypes.create_string_buffer(512)
P = ctypes.c_void_p
for option in (66, 67, 68, 69, 71, 0x4000 + 66, 0x4000 + 69):
    errors = set()
    for address in wild:
        errors.add(call(libc.getsockopt, fd, option, good, P(address)))
        errors.add(call(libc.getsockopt, fd, option, P(address), ctypes.byref(size)))
    print(option, sorted(map(names, errors)), good.raw == bytes(512), size.value)
for option, length in ((66, -1), (66, 3), (67, 0), (68, 0), (68, 32), (69, 32), (69, 34), (71, 31)):
    error, _ = get(fd, option, bytes([1]) + end("127.0.0.1", 1) * 4, length)
    print(option, length, names(error))
print(names(call(libc.setsockopt, fd, 72, P(8), 32)), names(call(libc.setsockopt, fd, 72, good, 31)),
      names(call(libc.setsockopt, fd, 72, good, -1)))
# The pointers within.
first = ids(fd)[0]
def inner(optval, optlen):
    request = struct.pack("=BxxxiixxxxQQ", first, socket.IPPROTO_TCP, socket.TCP_INFO, optval, optlen)
    return names(get(fd, 71, request)[0])
size.value = 100
print({inner(address, ctypes.addressof(size)) for address in wild},
      {inner(ctypes.addressof(good), address) for address in wild})
print(size.value, good.raw == bytes(512))
def inner_set(optval, length):
    request = struct.pack("=BxxxiixxxxQIxxxx", first, socket.IPPROTO_IP, socket.IP_TOS, optval, length)
    return names(call(libc.setsockopt, fd, 72, request, len(request)))
print({inner_set(address, 4) for address in wild}, inner_set(ctypes.addressof(good), 1 << 30))
# Memory that ends in the middle of the reply, and memory that may only be read.
page = mmap.PAGESIZE
area = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
assert libc.mprotect(P(start + page), page, 0) == 0
size.value = 512
print(names(call(libc.getsockopt, fd, 66, P(start + page - 3), ctypes.byref(size))), area[page - 3:page], size.value)
assert libc.mprotect(P(start), page, mmap.PROT_READ) == 0
print(names(call(libc.getsockopt, fd, 66, P(start), ctypes.byref(size))), size.value)
print(len(ids(fd)))
"""
    lines = ask(mptcp_two_paths, program)
    assert lines[:7] == [
        "66 ['EFAULT'] True 512",
        "67 ['EFAULT'] True 512",
        "68 ['EFAULT'] True 512",
        "69 ['EFAULT'] True 512",
        "71 ['EFAULT'] True 512",
        "16450 ['EFAULT'] True 512",
        "16453 ['EFAULT'] True 512",
    ]
    wrong = [(66, -1), (66, 3), (67, 0), (68, 0), (68, 32), (69, 32), (69, 34), (71, 31)]
    assert lines[7:15] == [
        *(f"{option} {length} EINVAL" for option, length in wrong),
    ]
    assert lines[15] == "EFAULT EINVAL EINVAL"
    assert lines[16:18] == ["{'EFAULT'} {'EFAULT'}", "100 True"]
    assert lines[18] == "{'EFAULT'} EINVAL"
    assert lines[19:21] == [r"EFAULT b'\x00\x00\x00' 512", "EFAULT 512"]
    assert lines[21] == "1"


@needs_python
def test_no_subflow_is_opened_whose_id_cannot_be_told(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    program = rf"""
import mmap
area = mmap.mmap(-1, mmap.PAGESIZE)
tuple = bytes(4) + end({links[1].address(client)!r}, 0) + end({links[1].address(server)!r}, {PORT})
area[:len(tuple)] = tuple
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
assert libc.mprotect(ctypes.c_void_p(start), mmap.PAGESIZE, mmap.PROT_READ) == 0
size = ctypes.c_uint32(len(tuple))
print(call(libc.getsockopt, fd, 0x4000 + 69, ctypes.c_void_p(start), ctypes.byref(size)), len(ids(fd)))
"""
    assert ask(mptcp_two_paths, program) == ["14 1"]


@needs_python
def test_what_is_no_multipath_tcp_connection(mptcp_two_paths: Paths, echo: Echo) -> None:
    """A UDP socket, a file and a closed descriptor: as the kernel answers. TCP, and a connection that fell back:
    EOPNOTSUPP, as in 2016."""
    client, server, links = mptcp_two_paths
    program = r"""
def show(fd):
    print([get(fd, option, bytes(100))[0] for option in (66, 67, 68, 69, 71)],
          call(libc.setsockopt, fd, 72, bytes(32), 32))
file = open("/dev/null")
unix = socket.socket(socket.AF_UNIX)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for each in (file.fileno(), 999, -1, unix.fileno(), udp.fileno()):
    show(each)
"""
    bare = client.run([PYTHON, "-c", PRELUDE + program], capture_output=True, text=True, check=True)
    assert ask(mptcp_two_paths, program) == bare.stdout.splitlines()
    tcp = rf"""
fallen = socket.create_connection(({links[0].address(server)!r}, 5001))
show(fallen.fileno())
new = socket.socket()
show(new.fileno())
"""
    with server.socket(proto=6) as listener:
        listener.bind(("", 5001))
        listener.listen()
        lines = ask(mptcp_two_paths, program + tcp)
    fell_back, not_connected = [errno.EOPNOTSUPP] * 5, [errno.ENOTCONN] * 5
    assert lines[5:] == [f"{fell_back} {errno.EOPNOTSUPP}", f"{not_connected} {errno.ENOTCONN}"]


@needs_python
def test_a_socket_of_another_network_namespace_is_the_kernel_s_to_answer(mptcp_two_paths: Paths, echo: Echo) -> None:
    program = r"""
def connection():
    "Over loopback, by sockets that are Multipath TCP whoever makes them."
    os.system("ip link set lo up")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    own = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    own.connect(listener.getsockname())
    return own
def elsewhere():
    assert libc.unshare(0x40000000) == 0  # CLONE_NEWNET
    with connection() as own:
        print(get(own.fileno(), 66, bytes(100))[0])
thread = threading.Thread(target=elsewhere); thread.start(); thread.join()
print(get(fd, 66, bytes(100))[0])
"""
    bare = "\n".join([PRELUDE, program[: program.rindex("print")]])
    alone = mptcp_two_paths[0].run([PYTHON, "-c", bare], capture_output=True, text=True, timeout=60)
    assert alone.stdout.strip() in {str(errno.ENOPROTOOPT), str(errno.EOPNOTSUPP)}, alone.stderr
    assert ask(mptcp_two_paths, program) == [alone.stdout.strip(), "0"]


@needs_python
def test_an_accepted_connection_has_the_namespace_s_path_manager(mptcp_two_paths: Paths) -> None:
    """Under that of the kernel a server lists, reads and closes, and opens nothing."""
    client, server, links = mptcp_two_paths
    server.set_path_manager("kernel")
    program = rf"""
{PRELUDE}
{SET}
listener = socket.create_server(("", {PORT}))
print("--", "listens", flush=True)
sock, _ = listener.accept()
fd = sock.fileno()
sock.recv(1)
sock.sendall(b"x")
sys.stdin.readline()
errors = [open_subflow(fd, {links[1].address(server)!r}, 0, {links[1].address(client)!r}, {PORT})]
errors += [get(fd, 66, bytes(100))[0], get(fd, 68, b"\1" + bytes(99))[0]]
value, size = ctypes.create_string_buffer(200), ctypes.c_uint32(200)
pointers = ctypes.addressof(value), ctypes.addressof(size)
errors.append(get(fd, 71, struct.pack("=BxxxiixxxxQQ", 1, socket.IPPROTO_TCP, socket.TCP_INFO, *pointers))[0])
print(*(name(error) for error in errors), len(ids(fd)))
other = [each for each in ids(fd) if each != 1]
print(get(fd, 67, bytes(other))[0])
"""
    with Program((server, client, links), PYTHON, "-c", program) as running:
        running.until("listens")
        with client.create_connection((links[0].address(server), PORT), timeout=10) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            sock.open_subflow(links[1].address(client), links[1].address(server))
            assert eventually(lambda: len(tuples(server)) == 2)
            running.go_on()
            assert running.finish().splitlines() == ["EBUSY set set set 2", "0"]


@needs_python
def test_tcp_sockets_of_excepted_programs_are_no_multipath_tcp(mptcp_two_paths: Paths, echo: Echo) -> None:
    name = os.path.basename(os.path.realpath(PYTHON))
    assert ask(mptcp_two_paths, "print(get(fd, 66, bytes(100))[0])", options=("--except", name)) == ["95"]


@needs_python
def test_ids_of_closed_subflows(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    program = rf"""
before = ids(fd)
print(open_subflow(fd, {links[1].address(client)!r}, 0, {links[1].address(server)!r}, {PORT}))
[new] = set(ids(fd)) - set(before)
print(get(fd, 67, bytes([new]))[0], get(fd, 67, bytes([new]))[0], get(fd, 68, bytes([new]) + bytes(99))[0])
print(ids(fd) == before, get(fd, 67, bytes([200]))[0], get(fd, 67, bytes([0]))[0])
"""
    assert ask(mptcp_two_paths, program) == ["0", "0 22 22", "True 22 22"]


@needs_python
def test_blocking_mode_and_descriptors_stay_as_they_are(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    program = rf"""
import fcntl
for blocking in (False, True):
    sock.setblocking(blocking)
    before = fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD), os.listdir("/proc/self/fd")
    ids(fd)
    open_subflow(fd, {links[1].address(client)!r}, 0, {links[1].address(server)!r}, {PORT})
    get(fd, 71, bytes(32))
    print(before == (fcntl.fcntl(fd, fcntl.F_GETFL), fcntl.fcntl(fd, fcntl.F_GETFD), os.listdir("/proc/self/fd")))
"""
    assert ask(mptcp_two_paths, program) == ["True", "True"]


@needs_python
def test_descriptors_that_other_threads_close_and_replace(mptcp_two_paths: Paths, echo: Echo) -> None:
    """Every answer is one of what the descriptor was at some moment, and the supervisor serves on."""
    program = r"""
import errno
over = threading.Event()
number = os.dup(fd)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
seen = set()
def ask():
    while not over.is_set():
        error, reply = get(number, 66, bytes(100))
        seen.add(errno.errorcode.get(error, "no error"))
        assert error or reply[0] == 1, reply
threads = [threading.Thread(target=ask) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(2000):
    os.dup2(udp.fileno(), number)
    os.close(number)
    os.dup2(fd, number)
over.set()
for thread in threads: thread.join()
print(*sorted(seen - {"no error", "EBADF", "ENOPROTOOPT", "ENOTSUP"}), len(ids(fd)))
"""
    assert ask(mptcp_two_paths, program) == ["1"]


@needs_python
def test_a_thread_with_descriptors_of_its_own(mptcp_two_paths: Paths, echo: Echo) -> None:
    """The number means what it means in the calling thread."""
    program = r"""
CLONE_FILES = 0x400
def elsewhere():
    assert libc.unshare(CLONE_FILES) == 0
    os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
    print(get(fd, 66, bytes(100))[0])
thread = threading.Thread(target=elsewhere); thread.start(); thread.join()
print(len(ids(fd)))
"""
    assert ask(mptcp_two_paths, program) == ["88", "1"]


@needs_python
def test_killed_in_the_middle_of_calls(mptcp_two_paths: Paths, echo: Echo) -> None:
    """Threads that die while the supervisor serves them harm nobody."""
    program = r"""
import signal
for _ in range(10):
    child = os.fork()
    if child == 0:
        for _ in range(4):
            threading.Thread(target=lambda: [(ids(fd), socket.socket().close()) for _ in range(10**6)]).start()
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        signal.pause()
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGALRM
print(len(ids(fd)))
"""
    assert ask(mptcp_two_paths, program) == ["1"]


# Whose connections.


@needs_root
@needs_python
def test_an_unprivileged_program_controls_its_own_connection(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    local, remote = links[1].address(client), links[1].address(server)
    program = rf"""
import errno
print(os.getuid() != 0, ids(fd) == [1])
print(open_subflow(fd, {local!r}, 12345, {remote!r}, {PORT}))
while len(ids(fd)) < 2: pass
print(errno.errorcode[open_subflow(fd, {local!r}, 81, {remote!r}, {PORT})])
def set_option(level, option, value):
    data = ctypes.create_string_buffer(value, len(value))
    request = struct.pack("=BxxxiixxxxQIxxxx", 1, level, option, ctypes.addressof(data), len(value))
    return errno.errorcode.get(call(libc.setsockopt, fd, 72, request, len(request)), "set")
print(set_option(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("i", 5)),
      set_option(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"no_such"),
      set_option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, struct.pack("i", 77)),
      set_option(socket.SOL_SOCKET, 12, struct.pack("i", 7)), set_option(socket.SOL_SOCKET, 12, struct.pack("i", 3)))
print("--", "open", flush=True)
sys.stdin.readline()
[new] = set(ids(fd)) - {{1}}
print(get(fd, 67, bytes([new]))[0])
"""
    start = f"{PRELUDE}\nsock = connect({links[0].address(server)!r}, {PORT})\nfd = sock.fileno()\n"
    with Program(mptcp_two_paths, PYTHON, "-c", start + program, options=("--user", "nobody")) as running:
        lines = running.until("open")
        assert lines[:3] == ["True True", "0", "EACCES"]
        if has_bpf():
            # SO_MARK and a priority above 6 need CAP_NET_ADMIN of any program.
            assert lines[3].split() == ["EPERM", "ENOENT", "set", "EPERM", "set"]
        assert (f"{local}:12345", f"{remote}:{PORT}") in tuples(client)
        # The connection is the user's, its joined subflow too.
        assert [
            row for row in ss(client, "-e") if f"uid:{pwd.getpwnam('nobody').pw_uid}" not in row and row[0] == "ESTAB"
        ] == []
        running.go_on()
        assert running.finish() == "0\n"


@needs_root
@needs_python
def test_a_program_that_gave_its_privileges_up_itself(mptcp_two_paths: Paths, echo: Echo) -> None:
    """What counts is what the caller may do, not what the program could at its start."""
    client, server, links = mptcp_two_paths
    local, remote = links[1].address(client), links[1].address(server)
    program = rf"""
print(open_subflow(fd, {local!r}, 81, {remote!r}, {PORT}))
os.setresuid(65534, 65534, 65534)
new = socket.socket()
print(open_subflow(fd, {local!r}, 82, {remote!r}, {PORT}), os.fstat(new.fileno()).st_uid)
"""
    assert ask(mptcp_two_paths, program) == ["0", "13 65534"]


@needs_root
@needs_python
def test_another_process_s_connection_is_out_of_reach(mptcp_two_paths: Paths, echo: Echo) -> None:
    """A program names a connection by a descriptor of its own, and can get none of another user's."""
    client, server, links = mptcp_two_paths
    with client.create_connection((links[0].address(server), PORT), timeout=10) as other:
        other.sendall(b"x")
        assert other.recv(1) == b"x"
        program = rf"""
import errno
def show(result):
    print(errno.errorcode[ctypes.get_errno()] if result < 0 else result)
pid, number = {os.getpid()}, {other.fileno()}
show(libc.syscall(438, libc.syscall(434, pid, 0), number, 0))  # pidfd_getfd
errors = {{get(each, 66, bytes(100))[0] for each in range(64) if each != fd}}
print(errors <= {{errno.EBADF, errno.ENOTSOCK, errno.EOPNOTSUPP}})
"""
        assert ask(mptcp_two_paths, program, options=("--user", "nobody")) == ["EPERM", "True"]
        assert len(other.subflows()) == 1


@needs_python
def test_without_privilege_subflows_are_listed_and_not_opened(
    mptcp_two_paths: Paths, echo: Echo, prefix: list[str]
) -> None:
    if ROOT and not prefix:
        pytest.skip("needs a user without the privilege")
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    client, server, links = mptcp_two_paths
    program = rf"""
print(len(ids(fd)))
print(open_subflow(fd, {links[1].address(client)!r}, 0, {links[1].address(server)!r}, {PORT}))
print(get(fd, 68, b"\1" + bytes(99))[0], get(fd, 67, b"\1")[0], on_subflow(socket.IPPROTO_IP, socket.IP_TOS, INT(16)))
print(len(ids(fd)))
"""
    assert ask(mptcp_two_paths, SET + program, prefix=NO_CAPABILITIES) == ["1", "1", "0 1 EPERM", "1"]


# What a program may not do on a socket of its own it may not do on a subflow.


@needs_bpf
@needs_python
@pytest.mark.parametrize("user", ["nobody", "root"])
def test_a_bound_subflow_is_bound_anew_by_the_privileged_alone(mptcp_two_paths: Paths, echo: Echo, user: str) -> None:
    client, server, links = mptcp_two_paths
    first, second = (link.interface(client) for link in links)
    program = rf"""
{PRELUDE}
{SET}
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, {first.encode()!r})
sock.settimeout(30)
sock.connect(({links[0].address(server)!r}, {PORT}))
sock.sendall(b"x")
sock.recv(1)
fd = sock.fileno()
index = INT(socket.if_nametoindex({second!r}))
for option, value in ((socket.SO_BINDTODEVICE, {second.encode()!r}), (62, index)):  # SO_BINDTOIFINDEX
    print(on_subflow(socket.SOL_SOCKET, option, value),
          on_socket(socket.SOL_SOCKET, option, value, {first.encode()!r}))
"""
    options = ("--user", user) if user != "root" else ()
    with Program(mptcp_two_paths, PYTHON, "-c", program, options=options) as running:
        answer = "set" if user == "root" else "EPERM"
        assert running.finish().splitlines() == [f"{answer} {answer}"] * 2


@needs_bpf
@needs_python
def test_options_that_only_bpf_knows_are_refused(mptcp_two_paths: Paths, echo: Echo) -> None:
    program = r"""
for option in range(1001, 1020):
    print(on_subflow(socket.IPPROTO_TCP, option, INT(1)), end=" ")
for option in (1009, 50, 33, 32):  # SK_BPF_CB_FLAGS, SO_ATTACH_BPF, SO_RCVBUFFORCE, SO_SNDBUFFORCE
    print(on_subflow(socket.SOL_SOCKET, option, INT(1)), end=" ")
print(on_subflow(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, INT(77)))
"""
    assert ask(mptcp_two_paths, SET + program)[0].split() == ["EINVAL"] * 23 + ["set"]


#: A value for each option that docs/run.md says a program may set on one subflow. Others are ints.
VALUES = {"TCP_CONGESTION": b"reno", "SO_MAX_PACING_RATE": struct.pack("i", 10**6)}
NUMBERS = {
    "SO_REUSEADDR": (1, 2),
    "SO_SNDBUF": (1, 7),
    "SO_RCVBUF": (1, 8),
    "SO_KEEPALIVE": (1, 9),
    "SO_PRIORITY": (1, 12),
    "SO_REUSEPORT": (1, 15),
    "SO_BINDTODEVICE": (1, 25),
    "SO_MARK": (1, 36),
    "SO_MAX_PACING_RATE": (1, 47),
    "SO_BINDTOIFINDEX": (1, 62),
    "SO_TXREHASH": (1, 74),
    "TCP_NODELAY": (6, 1),
    "TCP_MAXSEG": (6, 2),
    "TCP_KEEPIDLE": (6, 4),
    "TCP_KEEPINTVL": (6, 5),
    "TCP_KEEPCNT": (6, 6),
    "TCP_SYNCNT": (6, 7),
    "TCP_WINDOW_CLAMP": (6, 10),
    "TCP_CONGESTION": (6, 13),
    "TCP_THIN_LINEAR_TIMEOUTS": (6, 16),
    "TCP_USER_TIMEOUT": (6, 18),
    "TCP_NOTSENT_LOWAT": (6, 25),
    "TCP_SAVE_SYN": (6, 27),
    "TCP_RTO_MAX_MS": (6, 44),
    "IP_TOS": (0, 1),
    "IPV6_TCLASS": (41, 67),
    "IPV6_AUTOFLOWLABEL": (41, 70),
}


@needs_bpf
@needs_python
@pytest.mark.skipif(KERNEL != (6, 18), reason="the page says what Linux 6.18 does")
def test_the_options_that_can_be_set_are_those_of_the_page(mptcp_two_paths: Paths, echo: Echo) -> None:
    text = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    listed = text[text.index("The options that can be set are these:") : text.index("## Another user")]
    assert set(re.findall(r"\b(?:SO|TCP|IP|IPV6)_[A-Z0-9_]+", listed)) == set(NUMBERS)
    values = {"SO_SNDBUF": 100000, "SO_RCVBUF": 100000, "TCP_MAXSEG": 1000, "TCP_WINDOW_CLAMP": 100000}
    values |= {"TCP_USER_TIMEOUT": 1000, "TCP_RTO_MAX_MS": 5000, "SO_BINDTOIFINDEX": 0}
    device = mptcp_two_paths[2][0].interface(mptcp_two_paths[0]).encode()
    known = {**VALUES, "SO_BINDTODEVICE": device}
    made = {name: known.get(name, struct.pack("i", values.get(name, 1))) for name in NUMBERS}
    program = rf"""
for option, (level, number) in {NUMBERS!r}.items():
    if level != 41:
        print(option, on_subflow(level, number, {made!r}[option]))
"""
    answers = dict(line.split() for line in ask(mptcp_two_paths, SET + program))
    assert {name: answer for name, answer in answers.items() if answer != "set"} == {}


@needs_bpf
@needs_python
@needs("setpriv")
def test_a_subflow_s_option_is_refused_where_that_of_a_socket_is(mptcp_two_paths: Paths, echo: Echo) -> None:
    """Whoever asks, and whatever is asked for."""
    program = r"""
names = open("/proc/sys/net/ipv4/tcp_available_congestion_control").read().split()
for each in [
    *((socket.SOL_SOCKET, socket.SO_MARK, INT(value)) for value in (0, 5)),
    *((socket.SOL_SOCKET, socket.SO_PRIORITY, INT(value)) for value in (-1, 0, 6, 7)),
    *((socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode()) for name in (*names, "no_such")),
    *((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, INT(value)) for value in (-1, 0, 1, 32767, 32768)),
    *((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, INT(value)) for value in (-1, 0, 1)),
    *((socket.IPPROTO_IP, socket.IP_TOS, INT(value)) for value in (0, 3, 16, 300)),
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"no_such"),
]:
    print(*each, SET_ON(*each))
"""
    # Without a supervisor: under one the socket would be Multipath TCP, too.
    bare = PRELUDE + SET + program.replace("SET_ON", "on_socket")
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    for prefix, options in (([], ()), (nobody, ("--user", "nobody"))):
        command = [*prefix, PYTHON, "-c", bare]
        expected = mptcp_two_paths[0].run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert len(expected) > 15
        assert {line.split()[-1] for line in expected} >= {"set", "EINVAL", "ENOENT", "ENODEV"}
        assert ask(mptcp_two_paths, SET + program.replace("SET_ON", "on_subflow"), options=options) == expected


@needs_bpf
@needs_python
@needs("unshare", "nsenter", "setpriv")
def test_the_rights_that_count_are_those_over_the_network(tmp_path: Path) -> None:
    """A user who made the network namespace may do there what its root may; one who is root elsewhere may not."""
    program = rf"""
{PRELUDE}
{SET}
listener = socket.create_server(("127.0.0.1", 0))
sock = socket.create_connection(listener.getsockname())
peer, _ = listener.accept()
for one, other in ((sock, peer), (peer, sock)):
    one.sendall(b"x")
    other.recv(1)
fd = sock.fileno()
print(on_subflow(socket.SOL_SOCKET, socket.SO_MARK, INT(5)), on_socket(socket.SOL_SOCKET, socket.SO_MARK, INT(5)))
"""
    file = tmp_path / "program.py"
    file.write_text(program)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    start = "ip link set lo up && echo ready && exec sleep 1000"
    command = [*nobody, "unshare", "--user", "--map-root-user", "--net", "sh", "-c", start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            if owner.stdout.readline() != "ready\n":
                pytest.skip("an ordinary user cannot make a network namespace here")

            def answers(*command: str, options: tuple[str, ...] = ()) -> list[str]:
                enter = ["nsenter", f"--net=/proc/{owner.pid}/ns/net"]
                done = subprocess.run(
                    [*enter, *RUN, *options, *command, PYTHON, str(file)], capture_output=True, text=True, timeout=60
                )
                assert done.stderr == ""
                return done.stdout.split()

            assert answers(options=("--user", "nobody")) == ["set", "set"]
            assert answers("setpriv", "--reuid=12345", "--clear-groups") == ["EPERM", "EPERM"]
            assert answers("unshare", "--user", "--map-root-user") == ["EPERM", "EPERM"]
        finally:
            owner.kill()


@needs_root
@needs_python
def test_subflows_count_as_descriptors(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    program = rf"""
import errno, resource
local, remote, port = {links[1].address(client)!r}, {links[1].address(server)!r}, {PORT}
other = connect({links[0].address(server)!r}, port)
open_now = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 5, open_now + 5))
def fill(fd):
    "How many can be opened."
    count = 0
    while not (error := open_subflow(fd, local, 0, remote, port)):
        count += 1
    return count, errno.errorcode[error]
print(*fill(fd), *fill(other.fileno()))
get(fd, 67, bytes([ids(fd)[0]]))
os.close(0)
while len(ids(fd)) > 5: pass
# The subflow counts until its SUB_CLOSED has been read.
more = 0
while more < 2: more += fill(other.fileno())[0]
print(more, *fill(other.fileno()), len(ids(fd)), len(ids(other.fileno())))
held = []
try:
    while True: held.append(socket.socket())
except OSError as error:
    print(len(held), errno.errorcode[error.errno])
"""
    assert ask(mptcp_two_paths, program, options=("--user", "nobody")) == [
        "5 EMFILE 0 EMFILE",
        "2 0 EMFILE 5 3",
        # Descriptors are the kernel's to count: it knows of no subflows.
        "6 EMFILE",
    ]


# What programs of 2016 do that this kernel would refuse.

#: The connection of a program over a path whose round trip takes 100 ms, and how long a call takes.
SLOW = r"""
import errno, time
def timed(call):
    start = time.monotonic()
    error, reply = call()
    return errno.errorcode.get(error, error), list(reply[:1]), time.monotonic() - start
sock = socket.create_connection((server, port), 30)
fd = sock.fileno()
tuple = b"\0" + end(local, 0) + end(remote, port)
"""


@needs_python
def test_a_subflow_is_opened_while_the_first_data_is_on_its_way() -> None:
    with mptcp.lab.two_paths(delay="50ms") as paths, contextlib.closing(Echo(paths[1])):
        client, server, links = paths
        ends = (links[0].address(server), links[1].address(client), links[1].address(server))
        program = rf"""
{PRELUDE}
(server, local, remote), port = {ends!r}, {PORT}
{SLOW}
print(*timed(lambda: get(fd, 69, tuple)))
sock.sendall(b"x")
print(*timed(lambda: get(fd, 69, tuple)))
print(len(ids(fd)))
"""
        with Program(paths, PYTHON, "-c", program) as running:
            without, with_data, count = (line.split() for line in running.finish().splitlines())
    # Nothing was sent, so nothing will be acknowledged: that is not waited for, which would take five seconds.
    assert without[0] == "ENOTCONN"
    assert float(without[-1]) < 2 * PATIENCE
    assert (with_data[0], count) == ("0", ["2"])
    assert 0.05 < float(with_data[-1]) < 2 * PATIENCE


@needs_python
def test_the_wait_for_data_on_its_way_ends(mptcp_two_paths: Paths, echo: Echo) -> None:
    """By the deadline, and by the end of the thread that waits."""
    client, server, links = mptcp_two_paths
    ends = (links[0].address(server), links[1].address(client), links[1].address(server))
    program = rf"""
{PRELUDE}
(server, local, remote), port = {ends!r}, {PORT}
{SLOW}
print("--", "connected", flush=True)
sys.stdin.readline()
sock.sendall(b"x")
if os.fork() == 0:
    get(fd, 69, tuple)
    os._exit(0)
print(*timed(lambda: get(fd, 69, tuple)))
"""
    with Program(mptcp_two_paths, PYTHON, "-c", program) as running:
        running.until("connected")
        links[0].down()
        running.go_on()
        answer = running.finish().split()
        links[0].up()
    assert answer[0] == "ENOTCONN"
    assert 4 < float(answer[-1]) < 20 * PATIENCE


@needs_python
def test_the_new_id_is_written_back_in_the_kernel_s_layout_too(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    local, remote = links[1].address(client), links[1].address(server)
    program = rf"""
import mmap
tuple = b"\0" + end({local!r}, 0) + end({remote!r}, {PORT})
error, reply = get(fd, 69, tuple)
print(error, len(reply), set(reply[:1]) == set(ids(fd)) - {{1}}, reply[1:] == tuple[1:])
# Where the kernel of 2016 would only read.
area = mmap.mmap(-1, mmap.PAGESIZE)
area[:len(tuple)] = tuple
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
assert libc.mprotect(ctypes.c_void_p(start), mmap.PAGESIZE, mmap.PROT_READ) == 0
size = ctypes.c_uint32(len(tuple))
print(call(libc.getsockopt, fd, 69, ctypes.c_void_p(start), ctypes.byref(size)), len(ids(fd)), area[0])
"""
    assert ask(mptcp_two_paths, program) == ["0 33 True True", "0 3 0"]


@needs_python
def test_addresses_without_a_family_and_of_another(mptcp_two_paths: Paths, echo: Echo) -> None:
    client, server, links = mptcp_two_paths
    v4 = (links[1].address(client), links[1].address(server))
    v6 = tuple(links[1].address(host, family=socket.AF_INET6) for host in (client, server))
    program = rf"""
import errno
def v6(host, port):
    return struct.pack("=HHL16sL", socket.AF_INET6, socket.htons(port), 0, socket.inet_pton(socket.AF_INET6, host), 0)
def without(end):
    return b"\0\0" + end[2:]
def open(*ends):
    return errno.errorcode.get(get(fd, 69, b"\0" + b"".join(ends))[0], "opened")
one, other = end({v4[0]!r}, 0), end({v4[1]!r}, {PORT})
print(open(without(one), without(other)), open(without(one), other), open(one, without(other)), len(ids(fd)))
one, other = v6({v6[0]!r}, 0), v6({v6[1]!r}, {PORT})
print(open(one, other), open(without(one), without(other)), len(ids(fd)))
"""
    assert ask(mptcp_two_paths, program) == ["opened opened opened 4", "EAFNOSUPPORT EAFNOSUPPORT 4"]


@needs_root
@needs_python
def test_connections_whose_locks_are_held_hold_up_no_other(mptcp_two_paths: Paths, echo: Echo) -> None:
    """A sender that waits for a page of its buffer has the connection's lock, for as long as its owner likes.
    The calls that wait take descriptors, of which the supervisor has more than its own limit at the start.
    """
    if not has_userfaultfd():
        pytest.skip("needs userfaultfd for system calls")
    client, server, links = mptcp_two_paths
    local, remote = links[1].address(client), links[1].address(server)
    program = rf"""
{STUCK_MEMORY}
import resource, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
stuck, threads = [], []
def start(call):
    threads.append(threading.Thread(target=call))
    threads[-1].start()
for number in range(24):
    other = connect({links[0].address(server)!r}, {PORT})
    stuck.append(Stuck())
    start(lambda other=other, memory=stuck[-1].memory: other.send(memory))
    stuck[-1].wait()
    # Each waits for the lock in its own way.
    start([
        lambda held=other.fileno(): ids(held),
        lambda held=other.fileno(): open_subflow(held, {local!r}, 0, {remote!r}, {PORT}),
    ][number % 2])
def waiting():
    count = 0
    for task in os.listdir(f"/proc/{{os.getppid()}}/task"):
        with open(f"/proc/{{os.getppid()}}/task/{{task}}/stat") as file:
            count += file.read().rpartition(")")[2].split()[0] == "D"
    return count
while waiting() < 8:
    os.sched_yield()
begin = time.monotonic()
print(socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), len(ids(fd)))
print(open_subflow(fd, {local!r}, 0, {remote!r}, {PORT}), len(ids(fd)))
print(time.monotonic() - begin < 4 * {PATIENCE})
while waiting() < 24:  # the last of them may be on their way
    os.sched_yield()
for each in stuck:
    each.release()
for thread in threads:
    thread.join()
print(len(ids(fd)))
"""
    few = ("sh", "-c", 'ulimit -S -n 32; exec "$@"', "sh")
    assert ask(mptcp_two_paths, program, prefix=few) == ["32", "262 1", "0 2", "True", "2"]


@needs_root
@needs_python
@pytest.mark.parametrize("short_of", ["threads", "calls"])
def test_a_call_too_many_is_refused(mptcp_two_paths: Paths, echo: Echo, short_of: str) -> None:
    """Where the supervisor cannot start one more thread for it, or serves as many calls as it does at a time."""
    if not has_userfaultfd():
        pytest.skip("needs userfaultfd for system calls")
    server = mptcp_two_paths[2][0].address(mptcp_two_paths[1])
    program = rf"""
{STUCK_MEMORY}
import errno, resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
threading.stack_size(128 << 10)
other = connect({server!r}, {PORT})
stuck = Stuck()
threads = [threading.Thread(target=lambda: other.send(stuck.memory))]
threads[0].start()
stuck.wait()
answers = []
def wait():
    answers.append(errno.errorcode.get(get(other.fileno(), 66, bytes(512))[0], "answered"))
def start():
    threads.append(threading.Thread(target=wait))
    threads[-1].start()
for _ in range(500): start()
# Those that are not waited for yet leave room.
while (error := get(fd, 66, bytes(512))[0]) == 0:
    if {short_of == "calls"} and answers:
        # This call was the last that could be served, and one of those was refused in its place.
        answers.remove("ENOBUFS")
        start()
    os.sched_yield()
print(errno.errorcode[error], "answered" in answers, socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
stuck.release()
for thread in threads: thread.join()
print(*sorted(set(answers)), len(answers), len(ids(fd)))
"""
    limit = ("sh", "-c", 'ulimit -S -v 1000000; exec "$@"', "sh") if short_of == "threads" else ()
    answers = "ENOBUFS answered" if short_of == "threads" else "answered"
    assert ask(mptcp_two_paths, program, prefix=limit) == ["ENOBUFS False 262", f"{answers} 500 1"]
