"""``mptcp run --user``: what a program of another user gets of ours, and how it could reach what is not its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import pwd
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mptcp.lab import Host, Lab, Link
from support import PATIENCE, PORT, PYTHON, ROOT, RUN, eventually, needs, needs_python

pytestmark = [pytest.mark.skipif(not ROOT, reason="needs root"), needs_python]

NOBODY = [*RUN, "--user", "nobody"]


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host("a")


def python(program: str, *arguments: str) -> list[str]:
    return [PYTHON, "-c", program, *arguments]


class Shell:
    """root's interactive shell in a terminal of its own."""

    def __init__(self, host: Host) -> None:
        self.terminal, theirs = pty.openpty()
        self.resize(24, 80)
        # The first terminal that a session's leader opens controls it.
        start = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execvp(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", start, "bash", "--norc", "--noprofile", "--noediting", "-i"]
        environment = {**os.environ, "PS1": "root$ ", "TERM": "vt100", "SECRET": "root's"}
        self.process = host.popen(
            command, start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.shown = ""
        self.expect(r"root\$ ")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def foreground(self) -> tuple[str, str]:
        """The name and the state of the job that the terminal belongs to."""
        stat = Path(f"/proc/{os.tcgetpgrp(self.terminal)}/stat").read_text()
        name, state = re.match(r"\d+ \((.*)\) (\S)", stat).groups()  # type: ignore[union-attr]  # proc(5) has both
        return name, state

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until the pattern is shown, and take everything up to its end."""
        deadline = time.monotonic() + 20 * PATIENCE
        while (found := re.search(pattern, self.shown)) is None:
            ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, (pattern, self.shown)
            self.shown += os.read(self.terminal, 4096).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found

    def command(self, *words: str) -> str:
        """What a command shows until the shell's next prompt, without what was typed."""
        line = " ".join(words)
        self.type(f"{line}; echo status $?.\n")
        self.expect(r"echo status \$\?\.\r\n")
        before = self.shown
        found = self.expect(r"(?s)(.*)status (\d+)\.\r\n.*?root\$ ")
        del before
        assert found[2] == "0", found[0]
        return found[1]

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *unused: object) -> None:
        os.close(self.terminal)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def shell(host: Host) -> Iterator[Shell]:
    with Shell(host) as shell:
        yield shell


def script(folder: Path, program: str) -> str:
    """A program in Python in a file that everybody may execute; its path."""
    for parent in (folder, *folder.parents[: len(folder.parents) - 2]):
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest-", folder.name)):
            parent.chmod(0o755)
    path = folder / "program"
    path.write_text(f"#!{PYTHON}\n{program}")
    path.chmod(0o755)
    return str(path)


RUN_AS_NOBODY = " ".join(NOBODY)


# The environment, descriptors and keys.


def test_the_environment_is_the_user_s(host: Host) -> None:
    nobody = pwd.getpwnam("nobody")
    environment = {
        **os.environ, "SECRET": "root's", "LD_PRELOAD": "", "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PATH": os.environ["PATH"] + ":/opt/root", "TERM": "vt100", "LANG": "C.UTF-8", "LC_TIME": "C", "GIVEN": "ours",
    }  # fmt: skip
    command = [*NOBODY, "--env", "GIVEN", "--env", "SET=a=b", "--env", "MISSING", "env"]
    done = host.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == ""
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == {
        "TERM": "vt100",
        "LANG": "C.UTF-8",
        "LC_TIME": "C",
        "HOME": nobody.pw_dir,
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SHELL": nobody.pw_shell,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "GIVEN": "ours",
        "SET": "a=b",
    }


def test_a_program_is_looked_for_on_the_path_that_it_has(host: Host, tmp_path: Path) -> None:
    folder = str(Path(script(tmp_path, "print('found')\n")).parent)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    found = [
        host.run([*NOBODY, *options, "program"], capture_output=True, text=True, timeout=60, env=environment)
        for options in ([], ["--env", "PATH"])
    ]
    assert [(each.returncode, each.stdout) for each in found] == [(127, ""), (0, "found\n")]


def test_only_the_descriptors_that_are_named_are_passed_on(host: Host) -> None:
    with open("/dev/null") as file, open("/dev/null") as other:
        fds = (file.fileno(), other.fileno())
        # The listing has its own descriptor, which is closed by the time that the links are looked at.
        show = python(
            "import os; fds = os.listdir('/proc/self/fd');"
            "print(sorted(int(fd) for fd in fds if os.path.lexists(f'/proc/self/fd/{fd}')))"
        )
        for options, expected in (([], [0, 1, 2]), (["--fd", str(fds[1])], [0, 1, 2, fds[1]])):
            command = [*NOBODY, *options, *show]
            done = host.run(command, capture_output=True, text=True, timeout=60, pass_fds=fds)
            assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_folder_umask_and_limits_remain_ours(host: Host) -> None:
    program = """
import os, resource
limits = [resource.getrlimit(each) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
print(os.getcwd(), oct(os.umask(0)), *limits)
"""
    start = ["sh", "-c", 'cd / && umask 027 && ulimit -n 77 && ulimit -c 0 && exec "$@"', "sh"]
    done = host.run([*start, *NOBODY, *python(program)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("/ 0o27 (77, 77) (0, 0)\n", "")


@pytest.mark.parametrize("options", [["--fd", "999"], ["--fd", "x"], ["--fd", "-1"], ["--env", "=x"]])
def test_what_cannot_be_passed_on_is_a_wrong_usage(host: Host, options: list[str]) -> None:
    done = host.run([*NOBODY, *options, "true"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"argument {options[0]}" in done.stderr


def test_env_and_fd_need_user(host: Host) -> None:
    done = host.run([*RUN, "--env", "A=b", "true"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "need --user" in done.stderr


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


#: Prints the id of the session keyring, and makes one in which there is a key if asked.
KEYRING = r"""
import ctypes, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
SESSION, JOIN, GET_ID = ctypes.c_long(-3), 1, 0
if sys.argv[1:]:
    if libc.syscall(keyctl, JOIN, b"mptcp-test") < 0:
        print("no keys", ctypes.get_errno(), flush=True)
        raise SystemExit
    assert libc.syscall(add_key, b"user", b"mptcp-test", b"secret", 6, SESSION) > 0
print(libc.syscall(keyctl, GET_ID, SESSION, 0), flush=True)
if sys.argv[1:]:
    os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_session_keyring_of_its_own(host: Host) -> None:
    command = [sys.executable, "-c", KEYRING, *NOBODY, *python(KEYRING)]
    done = host.run(command, capture_output=True, text=True, timeout=60)
    if "no keys" in done.stdout:
        pytest.skip(f"keyctl: {os.strerror(int(done.stdout.split()[-1]))}")
    ours, theirs = map(int, done.stdout.split())
    assert theirs not in (ours, -1), done.stderr


# The terminal.


def as_nobody(*words: str) -> str:
    return " ".join([*NOBODY, *words])


def test_a_terminal_of_its_own(shell: Shell, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        r"""
import os
names = {os.ttyname(fd) for fd in (0, 1, 2)}
controlling = os.open("/dev/tty", os.O_RDWR)
print("names", *names, os.stat(0).st_uid == os.getuid(), os.tcgetpgrp(controlling) == os.getpgrp() == os.getsid(0))
""",
    )
    ours = shell.command("tty").strip()
    shown = shell.command(as_nobody(program))
    theirs = re.search(r"names (\S+) True True\r\n", shown)
    assert theirs is not None, shown
    assert theirs[1] != ours


def test_the_terminal_s_size_follows(shell: Shell, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        r"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
print("began", *os.get_terminal_size(0), flush=True)
signal.sigwait([signal.SIGWINCH])
print("changed", *os.get_terminal_size(0), flush=True)
while input() != "end":
    pass
""",
    )
    shell.resize(30, 100)
    shell.type(as_nobody(program) + "\n")
    shell.expect("began 100 30")
    shell.resize(31, 101)
    shell.expect("changed 101 31")
    shell.type("end\n")
    shell.expect(r"root\$ ")


def test_job_control_in_bash(shell: Shell, tmp_path: Path) -> None:
    before = shell.command("stty -g")
    shell.type(as_nobody("bash", "--norc", "--noprofile", "--noediting", "-i") + "\n")
    greeting = shell.expect(r"(?s).*\n(bash-\S+\$ )")
    assert "job control" not in greeting[0]
    prompt = re.escape(greeting[1])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    script(tmp_path, "")  # makes the folder readable
    # A job in the foreground, which has begun when the other end is open.
    shell.type(f"cat > {fifo}\n")
    with open(fifo):
        shell.type("\x1a")
        shell.expect(r"Stopped\s+cat")
        shell.expect(prompt)
        shell.type("fg\n")
        shell.expect(r"\ncat > ")
        shell.type("\x03")
        shell.expect(prompt)
    shell.type("echo $?; exit\n")
    shell.expect(r"\n130\r\n(.|\n)*root\$ ")
    assert shell.command("stty -g") == before


@pytest.mark.parametrize("end", ["exit 3", "kill -KILL $$", signal.SIGINT, signal.SIGTERM])
def test_the_modes_of_our_terminal_are_put_back(shell: Shell, tmp_path: Path, end: str | signal.Signals) -> None:
    before = shell.command("stty -g")
    # What it changes is its own.
    command = end if isinstance(end, str) else "exec sleep 1000"
    shell.type(as_nobody("sh", "-c", repr(f"stty raw -echo; echo begins; {command}")) + "\n")
    shell.expect(r"\nbegins")
    if isinstance(end, signal.Signals):
        [supervisor] = children(shell.process.pid)
        os.kill(supervisor, end)
    shell.expect(r"root\$ ")
    assert shell.command("stty -g") == before


def test_without_its_supervisor_a_program_loses_its_terminal(shell: Shell, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    program = script(
        tmp_path,
        rf"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
print("begins", flush=True)
signal.sigwait([signal.SIGHUP])
with open({str(fifo)!r}, "w") as file:
    print(repr(os.read(0, 1)), file=file)
""",
    )
    shell.type(as_nobody(program) + "\n")
    shell.expect(r"\nbegins")
    [supervisor] = children(shell.process.pid)
    os.kill(supervisor, signal.SIGKILL)
    # SIGHUP came, and the terminal is at its end.
    assert fifo.read_text() == "b''\n"
    shell.expect(r"root\$ ")


def test_nothing_is_typed_into_our_shell(shell: Shell, tmp_path: Path) -> None:
    """TIOCSTI puts characters into a terminal's input, where the shell that comes next finds them."""
    program = script(
        tmp_path,
        r"""
import fcntl, os, termios
def type(fd, text):
    for byte in text:
        fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte]))
for name in (0, 1, 2, "/dev/tty", *(f"/dev/pts/{name}" for name in os.listdir("/dev/pts") if name.isdecimal())):
    try:
        type(os.open(name, os.O_RDWR) if isinstance(name, str) else name, b"touch $HOME/typed\n")
    except OSError:
        pass
print("tried", flush=True)
""",
    )
    typed = tmp_path / "typed"
    shell.command(f"HOME={tmp_path}")
    for command in (as_nobody(program), f"{as_nobody(program)} </dev/null", f"{as_nobody(program)} 2>/dev/null"):
        assert "tried" in shell.command(command)
    assert shell.command("echo done").endswith("done\r\n")
    assert not typed.exists()


def test_standard_input_that_is_a_pipe_stays_one(shell: Shell, tmp_path: Path) -> None:
    before = shell.command("stty -g")
    program = script(
        tmp_path,
        r"""
import os, stat, sys
print("pipe", stat.S_ISFIFO(os.stat(0).st_mode), os.isatty(1), os.isatty(2), repr(sys.stdin.read()))
""",
    )
    ours = shell.command("tty").strip()
    assert "pipe True True True 'words\\n'\r\n" in shell.command(f"echo words | {as_nobody(program)}")
    shown = shell.command(f"echo words | {as_nobody(program)} | cat")
    assert "pipe True False True 'words\\n'\r\n" in shown
    shown = shell.command(f"echo | {as_nobody('sh', '-c', repr('tty </dev/tty; tty <&2'))}")
    assert ours not in shown.split()
    assert shell.command("stty -g") == before


def test_ctrl_c_and_ctrl_z_reach_a_program_whose_input_is_a_pipe(shell: Shell, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        r"""
import os, signal
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"goes on\n"))
os.write(1, b"begins\n")
while True:
    signal.pause()
""",
    )
    shell.type(f"sleep 1000 | {as_nobody(program)}\n")
    shell.expect(r"\nbegins")
    shell.type("\x1a")
    shell.expect(r"Stopped\s+sleep 1000(.|\n)*root\$ ")
    shell.type("fg\n")
    shell.expect(r"\ngoes on")
    shell.type("\x03")
    shell.expect(r"root\$ ")
    assert shell.command("echo $?; jobs") == "130\r\n"


def test_a_large_paste_and_a_large_output_meet(shell: Shell, tmp_path: Path) -> None:
    program = script(
        tmp_path,
        r"""
import sys
print("begins", flush=True)
for number, line in zip(range(2000), sys.stdin):
    print(number, "y" * 70, flush=number % 100 == 0)
print("ends", number, flush=True)
""",
    )
    shell.type(as_nobody(program) + "\n")
    shell.expect(r"\nbegins")
    for _ in range(20):
        shell.type("x\n" * 100)
    shell.expect(r"\nends 1999")
    shell.expect(r"root\$ ")


# Whose the sockets are.

#: Counts the segments of TCP that a host sends, by the user and the group of the socket.
NFTABLES = """
table inet mptcp_test {{
    chain output {{
        type filter hook output priority 0; policy accept;
        tcp dport {port} meta skuid {uid} meta skgid {gid} counter comment "theirs"
        tcp dport {port} meta skuid != {uid} counter comment "others"
        tcp dport {port} meta skgid != {gid} counter comment "others"
    }}
}}
"""


@needs("nft")
def test_the_firewall_sees_the_user_in_every_subflow(
    mptcp_two_paths: tuple[Host, Host, tuple[Link, Link]],
) -> None:
    client, server, links = mptcp_two_paths
    nobody = pwd.getpwnam("nobody")
    rules = NFTABLES.format(port=PORT, uid=nobody.pw_uid, gid=nobody.pw_gid)
    client.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    program = r"""
import ctypes, socket, struct, sys
server, local, remote, port = *sys.argv[1:4], int(sys.argv[4])
sock = socket.create_connection((server, port), 30)
sock.sendall(b"x")
sock.recv(1)
def end(host, port):
    return struct.pack("=HHL8x", socket.AF_INET, socket.htons(port), *struct.unpack("=L", socket.inet_aton(host)))
buffer = ctypes.create_string_buffer(b"\0" + end(local, 0) + end(remote, port), 33)
assert ctypes.CDLL(None).getsockopt(sock.fileno(), 6, 69, buffer, ctypes.byref(ctypes.c_uint32(33))) == 0
print("opened", flush=True)
sys.stdin.read()
sock.sendall(b"y" * 10000)
"""
    ends = (links[0].address(server), links[1].address(client), links[1].address(server), str(PORT))
    with server.create_server(("", PORT)) as listener:
        command = [*NOBODY, *python(program, *ends)]
        with client.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            peer, _ = listener.accept()
            with peer:
                peer.sendall(peer.recv(1))
                assert process.stdout.readline() == "opened\n"
                assert eventually(lambda: len(peer.subflows()) == 2)
                process.stdin.close()
                assert process.wait(60 * PATIENCE) == 0
                while peer.recv(1 << 16):
                    pass
    listed = client.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    counts = [(who, int(packets)) for packets, who in re.findall(r'packets (\d+) bytes \d+ comment "(\w+)"', listed)]
    assert [who for who, packets in counts if packets] == ["theirs"], counts


def test_the_sockets_of_a_program_that_changes_its_user_follow(host: Host) -> None:
    program = r"""
import os, socket
def show():
    sock = socket.socket()
    status = os.fstat(sock.fileno())
    print(status.st_uid, status.st_gid)
show()
os.setresgid(54322, 54322, 54322)
os.setresuid(54321, 54321, 54321)
show()
"""
    done = host.run([*RUN, *python(program)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0 0\n54321 54322\n", "")
