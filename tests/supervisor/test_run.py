"""``mptcp run``: what it does to a program's sockets, its signals, its end, and what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import pty
import pwd
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mptcp import cli
from mptcp.lab import Host, Lab, Link
from support import (
    NO_CAPABILITIES,
    PATIENCE,
    PORT,
    PYTHON,
    ROOT,
    RUN,
    eventually,
    lock_held,
    needs,
    needs_python,
    ss,
    subscribers,
)

Paths = tuple[Host, Host, tuple[Link, Link]]

needs_root = pytest.mark.skipif(not ROOT, reason="needs root")


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host("a")


def run(host: Host, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return host.run([*RUN, *arguments], capture_output=True, text=True, timeout=60, **options)


def python(program: str, *arguments: str) -> list[str]:
    return [PYTHON, "-c", program, *arguments]


#: Prints what protocol a new TCP socket has: 262 is Multipath TCP.
PROTOCOL = "import socket; print(socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), flush=True)"


# Sockets.


@needs_python
def test_every_kind_of_tcp_socket_is_made_multipath_tcp_and_no_other(host: Host) -> None:
    program = r"""
import fcntl, os, socket
def show(*arguments):
    try:
        sock = socket.socket(*arguments)
    except OSError as error:
        print(error.errno)
        return
    fd = sock.fileno()
    print(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), sock.family.name, sock.type.name,
          bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK), os.fstat(fd).st_uid == os.getuid())
for family in (socket.AF_INET, socket.AF_INET6):
    show(family, socket.SOCK_STREAM, 0)
    show(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
show(socket.AF_INET, socket.SOCK_STREAM, 262)
show(socket.AF_INET, socket.SOCK_DGRAM, 0)
show(socket.AF_UNIX, socket.SOCK_STREAM, 0)
show(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP)
show(socket.AF_INET, socket.SOCK_STREAM | 1 << 8, 0)
"""
    done = run(host, *python(program))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "262 AF_INET SOCK_STREAM False True",
        "262 AF_INET SOCK_STREAM True True",
        "262 AF_INET6 SOCK_STREAM False True",
        "262 AF_INET6 SOCK_STREAM True True",
        "262 AF_INET SOCK_STREAM False True",
        "17 AF_INET SOCK_DGRAM False True",
        "0 AF_UNIX SOCK_STREAM False True",
        "93",  # EPROTONOSUPPORT
        "22",  # EINVAL
    ]


@needs_python
def test_close_on_exec_is_as_asked(host: Host) -> None:
    # socket() of C, since Python's own always asks for close-on-exec.
    program = r"""
import ctypes, os, socket
libc = ctypes.CDLL(None)
fds = [libc.socket(socket.AF_INET, socket.SOCK_STREAM | flag, 0) for flag in (0, socket.SOCK_CLOEXEC)]
print(*(os.get_inheritable(fd) for fd in fds), *(os.readlink(f"/proc/self/fd/{fd}")[:7] for fd in fds))
"""
    assert run(host, *python(program)).stdout.split() == ["True", "False", "socket:", "socket:"]


@needs_python
def test_without_multipath_tcp_sockets_are_tcp(host: Host) -> None:
    host.sysctl("net.mptcp.enabled", "0")
    done = run(host, *python(PROTOCOL))
    assert (done.stdout, done.stderr, done.returncode) == ("6\n", "", 0)


@needs_python
def test_a_program_with_no_descriptor_left_is_told_so(host: Host) -> None:
    program = r"""
import os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
held = []
try:
    while True:
        held.append(socket.socket())
except OSError as error:
    print(error.errno, {sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) for sock in held})
"""
    assert run(host, *python(program)).stdout == "24 {262}\n"


@needs_python
@pytest.mark.parametrize("path_manager", ["kernel", "userspace"])
def test_the_path_manager(host: Host, path_manager: str) -> None:
    """The program's sockets have it, and the namespace keeps its own."""
    other = {"kernel": "userspace", "userspace": "kernel"}[path_manager]
    host.set_path_manager(other)
    assert latched(host, "--path-manager", path_manager) == path_manager
    assert host.get_path_manager() == other


@needs_python
def test_the_default_path_manager_is_userspace_where_the_privilege_is_there(host: Host) -> None:
    host.set_path_manager("kernel")
    assert latched(host) == "userspace"
    assert host.get_path_manager() == "kernel"


def latched(host: Host, *options: str) -> str:
    """The path manager of a connection that a program opens."""
    program = r"""
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("-", flush=True)
sys.stdin.read()
"""
    with host.create_server(("127.0.0.1", 0)) as listener:
        command = [*RUN, *options, *python(program, str(listener.getsockname()[1]))]
        with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            peer, _ = listener.accept()
            with peer:
                assert process.stdout.readline() == "-\n"
                [found] = [each for each in host.connections() if not each.server_side]
                path_manager = found.path_manager
            process.stdin.close()
            assert process.wait(60) == 0
    return path_manager


def test_a_socket_that_the_supervisor_holds_too_is_the_program_s(host: Host) -> None:
    """For a moment it does of each that it creates; of one that both inherit, on and on."""
    with host.create_server(("127.0.0.1", 0)) as listener, host.create_connection(listener.getsockname()) as sock:
        [conn] = [each for each in host.connections() if not each.server_side]
        with host.popen([*RUN, "cat"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()]) as process:
            assert process.stdin is not None
            sock.close()
            assert eventually(lambda: (conn.program, [conn.pid]) == ("cat", children(process.pid))), conn.program
            process.stdin.close()


@needs_python
def test_sockets_are_tcp_while_somebody_holds_the_lock(host: Host) -> None:
    host.set_path_manager("kernel")
    program = f"import time; start = time.monotonic(); {PROTOCOL}; {PROTOCOL}; print(time.monotonic() - start < 5)"
    with lock_held(host) as holder:
        assert run(host, *python(program)).stdout.split() == ["6", "6", "True"]
        done = run(host, "--path-manager", "userspace", "true")
        assert done.returncode == 1
        assert done.stderr.startswith(f"mptcp run: process {holder} holds the lock")
        done = run(host, "--hold-path-manager", *python(program))
        assert (done.stdout.split(), done.stderr) == (["262", "262", "True"], "")
        assert host.get_path_manager() == "kernel"
    assert run(host, *python(PROTOCOL)).stdout == "262\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--hold-path-manager"]], ids=["", "hold"])
def test_a_signal_ends_the_wait_for_the_lock(host: Host, number: signal.Signals, options: list[str]) -> None:
    host.set_path_manager("kernel")
    with lock_held(host), host.popen([*RUN, *options, "sleep", "1000"], stderr=subprocess.DEVNULL) as process:

        def waits() -> bool:
            for file in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if str(file.readlink()).startswith("net:"):
                        return True
            return False

        try:
            assert eventually(waits, 30)
            process.send_signal(number)
            # INT ends Python's commands by the status that a shell shows for it.
            assert process.wait(10 * PATIENCE) in (-number, 128 + number)
        finally:
            process.kill()
        assert host.get_path_manager() == "kernel"


@needs_python
def test_the_supervisor_is_subscribed_for_the_peer_s_joins(host: Host) -> None:
    before = subscribers(host)
    with host.popen([*RUN, "cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert eventually(lambda: subscribers(host) == before + 1)
    assert eventually(lambda: subscribers(host) == before)


@needs_python
def test_hold_path_manager(host: Host) -> None:
    host.set_path_manager("kernel")
    for options, held in ((["--hold-path-manager"], "userspace"), ([], "kernel")):
        # Older kernels (before 6.15) have this number alone.
        number = {"kernel": "0", "userspace": "1"}[held]
        assert run(host, *options, "cat", "/proc/sys/net/mptcp/pm_type").stdout == f"{number}\n"
        assert host.get_path_manager() == "kernel"


@needs_python
def test_a_killed_supervisor_leaves_the_held_path_manager_set(host: Host) -> None:
    host.set_path_manager("kernel")
    with host.popen([*RUN, "--hold-path-manager", "cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert eventually(lambda: bool(children(process.pid)))
        assert host.get_path_manager() == "userspace"
        process.kill()
        process.wait(60)
    assert host.get_path_manager() == "userspace"


@needs_python
def test_an_ordinary_user_s_sockets_are_multipath_tcp_too(host: Host) -> None:
    """Without any privilege: under the namespace's path manager."""
    if ROOT:
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if shutil.which("setpriv") is None or not readable_by_all(sys.executable):
            pytest.skip("needs setpriv of util-linux, and a Python that another user may execute")
    else:
        prefix = NO_CAPABILITIES
    done = host.run([*prefix, *RUN, *python(PROTOCOL)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("262\n", "")


def readable_by_all(path: str) -> bool:
    real = Path(path).resolve()
    return all(part.stat().st_mode & 0o5 == 0o5 for part in (real, *real.parents, *Path(path).absolute().parents))


@needs_python
def test_threads_forks_and_execs_are_served(host: Host) -> None:
    program = rf"""
import os, socket, subprocess, sys, threading
def show():
    {PROTOCOL}
show()
thread = threading.Thread(target=show); thread.start(); thread.join()
if os.fork() == 0:
    show()
    os.execv({PYTHON!r}, [{PYTHON!r}, "-c", {PROTOCOL!r}])
os.wait()
subprocess.run(["sh", "-c", "exec " + {PYTHON!r} + " -c '" + {PROTOCOL!r} + "'"], check=True)
"""
    assert run(host, *python(program)).stdout.split() == ["262"] * 5


@needs_python
def test_except(host: Host, tmp_path: Path) -> None:
    # An executable of its own name, and a script, whose executable is the interpreter.
    script = tmp_path / "my-script"
    script.write_text(f"#!{PYTHON}\n{PROTOCOL}\n")
    script.chmod(0o755)
    real = os.path.realpath(PYTHON)
    commands = f"{script}; exec {PYTHON} -c '{PROTOCOL}'"

    def protocols(*options: str) -> list[str]:
        return run(host, *options, "sh", "-c", commands).stdout.split()

    assert protocols() == ["262", "262"]
    assert protocols("--except", "my-script") == ["6", "262"]
    assert protocols("--except", "other", "--except", os.path.basename(real)) == ["6", "6"]
    assert protocols("--except", real) == ["6", "6"]
    assert protocols("--except", "/elsewhere/" + os.path.basename(real)) == ["262", "262"]


@needs_python
@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe\n\\Uid:\t0", b"\x1b[31m", b"\n", b""])
def test_a_process_may_have_any_bytes_for_its_name(host: Host, name: bytes) -> None:
    program = rf"""
import ctypes
assert ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0) == 0  # PR_SET_NAME
{PROTOCOL}
"""
    assert run(host, *python(program)).stdout == "262\n"
    # --except knows it by its bytes.
    if name.strip():
        done = host.run([*RUN, b"--except", name, *python(program)], capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("6\n", "")


@needs_python
@needs("unshare")
def test_another_network_namespace_is_left_alone(host: Host) -> None:
    # As a user namespace's root, so that an ordinary user can.
    show = f"{PYTHON} -c '{PROTOCOL}; import os; os.system(\"ls /sys/class/net >/dev/null\")'"
    done = run(host, "unshare", "--user", "--map-root-user", "--net", "sh", "-c", f"{show}; cat /proc/net/dev")
    assert done.stdout.splitlines()[0] == "6", done.stderr
    # A user namespace of its own alone changes nothing.
    assert run(host, "unshare", "--user", "sh", "-c", show).stdout == "262\n"


@needs_python
def test_a_thread_that_moves_to_another_network_is_left_alone_and_the_others_are_served(host: Host) -> None:
    program = rf"""
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
def show():
    {PROTOCOL}
def elsewhere():
    assert libc.unshare(0x40000000) == 0, ctypes.get_errno()
    show()
thread = threading.Thread(target=elsewhere); thread.start(); thread.join()
show()
"""
    done = run(host, *python(program))
    assert done.stdout.split() == ["6", "262"], done.stderr


@needs_python
def test_an_inherited_socket_stays_what_it_is(host: Host) -> None:
    program = r"""
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as inherited:
    print(inherited.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
"""
    with host.socket(proto=6) as inherited:
        number = inherited.fileno()
        assert run(host, *python(program, str(number)), pass_fds=[number]).stdout == "6\n"


@needs("unshare")
def test_the_proc_of_another_pid_namespace_is_refused(host: Host) -> None:
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", *RUN, "true"]
    done = host.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "needs the /proc of its own PID namespace" in done.stderr


#: Forbids itself every connect() of TCP by Landlock, then tries one; the errno, or 0.
LANDLOCK = r"""
import ctypes, errno, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
attributes = struct.pack("QQ", 0, 2)  # LANDLOCK_ACCESS_NET_CONNECT_TCP
ruleset = libc.syscall(444, attributes, len(attributes), 0)
if ruleset < 0:
    print("no Landlock", ctypes.get_errno())
    raise SystemExit
with socket.create_server(("127.0.0.1", 0)) as listener:
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    assert libc.syscall(446, ruleset, 0) == 0
    sock = socket.socket()
    print(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), sock.connect_ex(listener.getsockname()))
"""


@needs_python
def test_landlock_s_rules_hold_for_what_is_excepted(host: Host) -> None:
    host.run(["ip", "link", "set", "lo", "up"], check=True)
    bare = host.run(python(LANDLOCK), capture_output=True, text=True, check=True).stdout
    if bare.startswith("no Landlock"):
        pytest.skip("needs Landlock for TCP (Linux 6.7)")
    name = os.path.basename(os.path.realpath(PYTHON))
    assert run(host, "--except", name, *python(LANDLOCK)).stdout == bare == "6 13\n"


def connections(host: Host) -> list[tuple[str, str]]:
    """Local and remote ends of the established Multipath TCP connections, as ss shows them."""
    return [(row[4], row[5]) for row in ss(host, "-M") if row[:2] == ["mptcp", "ESTAB"]]


@needs("curl")
def test_curl(mptcp_two_paths: Paths) -> None:
    client, server, paths = mptcp_two_paths
    address = paths[0].address(server)
    with server.create_server(("", PORT)) as listener:
        command = [*RUN, "curl", "-sS", f"http://{address}:{PORT}/"]
        with client.popen(command, stdout=subprocess.PIPE, text=True) as process:
            peer, _ = listener.accept()
            with peer:
                request = peer.recv(4096)
                assert request.startswith(b"GET / HTTP/1.1\r\n")
                assert peer.is_mptcp
                assert [remote for _, remote in connections(client)] == [f"{address}:{PORT}"]
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                assert process.communicate(timeout=60) == ("hello", None)
        assert process.returncode == 0


@needs("iperf3")
def test_iperf3_at_both_ends(mptcp_two_paths: Paths) -> None:
    client, server, paths = mptcp_two_paths
    with server.popen([*RUN, "iperf3", "-s", "-1", "-p", str(PORT)], stdout=subprocess.DEVNULL) as serving:
        assert eventually(lambda: any(row[3].endswith(f":{PORT}") for row in ss(server, "-l")), 30)
        done = run(client, "iperf3", "-c", paths[0].address(server), "-p", str(PORT), "-n", "1M")
        assert done.returncode == 0, done.stdout + done.stderr
        assert serving.wait(60) == 0
    # The control connection and that of the data.
    assert client.counters()["MPCapableSYNACKRX"] == server.counters()["MPCapableACKRX"] == 2


JAVA = """
import java.net.*;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;

class Client {
    public static void main(String[] arguments) throws Exception {
        var server = new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1]));
        try (var channel = SocketChannel.open(server); var stream = new Socket()) {
            channel.write(ByteBuffer.wrap("channel".getBytes()));
            stream.connect(server);
            stream.getOutputStream().write("stream".getBytes());
            System.out.println(new String(stream.getInputStream().readAllBytes()));
        }
    }
}
"""


@needs("javac")
def test_java(mptcp_two_paths: Paths, tmp_path: Path) -> None:
    """Its sockets are of IPv6, and reach IPv4 by mapped addresses."""
    client, server, paths = mptcp_two_paths
    address = paths[0].address(server)
    source = tmp_path / "Client.java"
    source.write_text(JAVA)
    with server.create_server(("", PORT)) as listener:
        # A small virtual machine starts sooner.
        java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", str(source), address, str(PORT)]
        with client.popen([*RUN, *java], stdout=subprocess.PIPE, text=True) as process:
            channel, stream = listener.accept()[0], listener.accept()[0]
            with channel, stream:
                for peer, said in ((channel, b"channel"), (stream, b"stream")):
                    assert peer.is_mptcp
                    assert peer.recv(10) == said
                    [connection] = client.connections(port=peer.getpeername()[1])
                    assert [each.remote[0] for each in connection.subflows()] == [f"::ffff:{address}"]
                stream.sendall(b"hello")
            assert process.communicate(timeout=60) == ("hello\n", None)
        assert process.returncode == 0


# The program's start, signals and end.


def test_the_exit_status_and_the_streams_are_the_program_s(host: Host) -> None:
    done = run(host, "sh", "-c", "cat; echo complaint >&2; exit 7", input="words\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "words\n", "complaint\n")
    assert run(host, "--", "true").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_program_that_a_signal_ended(host: Host, number: signal.Signals) -> None:
    assert run(host, "sh", "-c", f"ulimit -c 0; kill -{number.value} $$").returncode == -number


def test_programs_that_cannot_be_executed(host: Host, tmp_path: Path) -> None:
    done = run(host, "no-such-program")
    assert (done.returncode, done.stderr) == (127, "mptcp run: no-such-program: No such file or directory\n")
    done = run(host, str(tmp_path))
    assert (done.returncode, done.stderr) == (126, f"mptcp run: {tmp_path}: Permission denied\n")
    script = tmp_path / "script"
    script.write_text("exit 3\n")
    script.chmod(0o755)
    assert run(host, str(script)).returncode == 3, "without #! it is the shell's, as execvp has it"


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--user", "no-such-user", "true"], ["--layout", "mine", "true"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", *arguments])
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("usage: mptcp run [options] PROGRAM")


@needs_python
def test_signals_are_passed_on(host: Host) -> None:
    program = r"""
import os, signal
# A signal's number is in the pipe even if it comes just before the reading, which pause() would miss.
signals, handler = os.pipe()
os.set_blocking(handler, False)
signal.set_wakeup_fd(handler)
names = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH]
for name in names:
    # Not print(), which must not be interrupted by itself.
    signal.signal(name, lambda number, frame: os.write(1, signal.Signals(number).name.encode() + b"\n"))
os.write(1, f"ready {sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))}\n".encode())
while True:
    os.read(signals, 1)
"""
    with host.popen([*RUN, *python(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready []\n"
        for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
            process.send_signal(getattr(signal, name))
            assert process.stdout.readline() == f"{name}\n"
        [program_pid] = children(process.pid)
        os.kill(program_pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL


@needs_python
def test_a_signal_to_the_program_s_group_reaches_it_once(host: Host) -> None:
    program = r"""
import os, signal
count = 0
def came(*_):
    global count
    count += 1
signal.signal(signal.SIGUSR1, came)
os.kill(0, signal.SIGUSR1)
# One that the supervisor passes on comes after those that it had before.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.write(1, b"sent\n")
signal.sigwait({signal.SIGUSR2})
print(count)
"""
    with host.popen([*RUN, *python(program)], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.read() == "1\n"
        assert process.wait(60) == 0


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@needs_python
def test_the_terminal_stays_the_program_s(host: Host) -> None:
    """Ctrl-C reaches it once, Ctrl-Z stops it and us, and the size of the window is told."""
    program = r"""
import os, signal, sys
def say(*words):
    # Not print(), which must not be interrupted by itself.
    os.write(1, " ".join(map(str, words)).encode() + b"\n")
count = 0
def interrupted(number, frame):
    global count
    count += 1
    say("interrupted", count)
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGCONT, lambda *_: say("continued"))
say("ready", os.isatty(0), os.tcgetpgrp(0) == os.getpgrp())
while True:
    line = sys.stdin.readline()
    if line == "end\n":
        break
    say("read", line.strip())
"""
    # As a shell does: the session's leader, which runs the command as a job in the foreground of the terminal.
    shell = r"""
import os, signal, subprocess, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the controlling terminal from now on
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[1:], process_group=0)
os.tcsetpgrp(0, job.pid)
_, status = os.waitpid(job.pid, os.WUNTRACED)
print("stopped", os.WIFSTOPPED(status), flush=True)
os.killpg(job.pid, signal.SIGCONT)
_, status = os.waitpid(job.pid, 0)
print("status", os.waitstatus_to_exitcode(status), flush=True)
"""
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-c", shell, *RUN, *python(program)]
    leader = host.popen(command, start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""

    def expect(words: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 60
        while words not in shown:
            assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(terminal, 4096)
        shown = shown.partition(words)[2]

    try:
        expect(b"ready True True")
        os.write(terminal, b"\x03")
        expect(b"interrupted 1")
        os.write(terminal, b"hello\n")
        expect(b"read hello")
        os.write(terminal, b"\x1a")
        expect(b"stopped True")
        expect(b"continued")
        os.write(terminal, b"\x03")
        expect(b"interrupted 2")
        os.write(terminal, b"end\n")
        expect(b"status 0")
        assert b"interrupted" not in shown
        assert leader.wait(60) == 0
    finally:
        # What is still there loses its terminal, and ends by SIGHUP.
        os.close(terminal)
        leader.kill()
        leader.wait()


@needs_python
def test_what_the_program_leaves_behind_is_served_until_it_ends(host: Host, tmp_path: Path) -> None:
    """The exit status is still the first program's."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    background = f"read line < {fifo}; {PYTHON} -c '{PROTOCOL}'"
    command = [*RUN, "sh", "-c", 'sh -c "$0" & exit 5', background]
    with host.popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # Opening waits for the one in the background.
        with open(fifo, "w") as writer:
            assert process.poll() is None
            writer.write("go\n")
        assert process.stdout.readline() == "262\n"
        assert process.wait(60) == 5


def test_a_signal_ends_the_wait_for_what_the_program_left_behind(host: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with host.popen([*RUN, "sh", "-c", f"cat {fifo} & exit 5"]) as process, open(fifo, "w"):
        assert eventually(lambda: not children(process.pid), 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 5


@needs_python
def test_without_its_supervisor_a_program_gets_errors(host: Host) -> None:
    program = r"""
import socket
for _ in range(2):
    print("ready", flush=True)
    input()
    try:
        print(socket.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
    command = [*RUN, *python(program)]
    with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def says(line: str) -> bool:
            assert process.stdout is not None
            return process.stdout.readline() == line

        def go_on() -> None:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        assert says("ready\n")
        go_on()
        assert says("262\n")
        assert says("ready\n")
        [program_pid] = children(process.pid)
        process.kill()
        process.wait(60)
        assert eventually(lambda: state(program_pid) == "S")  # in input()
        go_on()
        assert says("38\n"), "ENOSYS"
        assert eventually(lambda: not os.path.exists(f"/proc/{program_pid}") or state(program_pid) == "Z")


def test_a_supervisor_within_another_is_refused(host: Host) -> None:
    done = run(host, *RUN, "true")
    assert done.returncode == 1
    assert done.stderr.startswith("mptcp run: another supervisor, perhaps another mptcp run, already serves")
    assert "EBUSY" in done.stderr


@needs_python
def test_no_new_privileges_and_no_descriptor_of_the_supervisor(host: Host) -> None:
    program = r"""
import os
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("NoNewPrivs:", "Seccomp:"))])
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])
"""
    assert run(host, *python(program)).stdout.splitlines() == ["['1', '2']", "[0, 1, 2]"]


@needs_python
def test_many_threads_make_sockets_at_once(host: Host) -> None:
    program = r"""
import collections, socket, threading
seen = []
def make():
    for _ in range(50):
        with socket.socket() as sock:
            seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
threads = [threading.Thread(target=make) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(dict(collections.Counter(seen)))
"""
    host.set_path_manager("kernel")
    assert run(host, *python(program)).stdout == "{262: 1000}\n"
    assert host.get_path_manager() == "kernel"


# Another user.


@needs_root
@needs_python
def test_user(host: Host) -> None:
    nobody = pwd.getpwnam("nobody")
    program = r"""
import os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
sock = socket.socket()
print(os.getresuid(), os.getresgid(), os.getgroups(), status["CapEff"].strip(), status["CapPrm"].strip(),
      os.environ["USER"], os.fstat(sock.fileno()).st_uid, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
"""
    done = run(host, "--user", "nobody", *python(program))
    uid, gid = nobody.pw_uid, nobody.pw_gid
    groups = re.escape(str(os.getgrouplist("nobody", gid)))
    zeros = "0{16}"
    expected = rf"\({uid}, {uid}, {uid}\) \({gid}, {gid}, {gid}\) {groups} {zeros} {zeros} nobody {uid} 262\n"
    assert re.fullmatch(expected, done.stdout), done


def test_another_user_needs_privilege(host: Host, prefix: list[str]) -> None:
    if ROOT and not prefix:
        pytest.skip("needs a user without the privilege")
    done = host.run([*prefix, *RUN, "--user", "nobody", "true"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("mptcp run: "), done.stderr
