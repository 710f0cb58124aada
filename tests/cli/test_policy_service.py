"""`mptcp policy` as a service: its configuration file, SIGHUP, sd_notify, what SIGKILL leaves, and the unit."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mptcp import cli
from mptcp.lab import Host, Link
from support import Marked, connected, eventually, needs

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

COMMAND = [sys.executable, "-W", "error", "-m", "mptcp", "policy"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What stands for the service manager: the socket of sd_notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def service(tmp_path: Path) -> list[str]:
    """The command with the environment that systemd gives it."""
    return ["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", f"RUNTIME_DIRECTORY={tmp_path}", *COMMAND]


def test_a_configuration_that_changes(mptcp_two_paths: TwoPaths, tmp_path: Path, manager: socket.socket) -> None:
    client, _, paths = mptcp_two_paths
    first, second = (path.address(client) for path in paths)
    config = tmp_path / "policy.toml"
    config.write_text(f'[[policy]]\nname = "FullMesh"\nexclude = "{second}"\n')
    client.set_path_manager("kernel")
    command = [*service(tmp_path), "--config", str(config)]
    with (
        client.popen(command, stderr=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert manager.recv(100) == b"READY=1"
        assert (tmp_path / "path_manager").read_text() == "kernel"
        with connected(*mptcp_two_paths) as made:
            assert [subflow.local[0] for subflow in made.sock.subflows()] == [first]
            # What is wrong changes nothing.
            for wrong in ("[[policy]]\nname = 3\n", '[[policy]]\nname = "Prefer"\narguments = ["eth99"]\n'):
                config.write_text(wrong)
                process.send_signal(signal.SIGHUP)
                assert manager.recv(100).startswith(b"RELOADING=1\n")
                assert manager.recv(100) == b"READY=1"
                assert client.get_path_manager() == "userspace"
            config.write_text(f'[[policy]]\nname = "prefer"\narguments = ["{second}"]\nbind = false\n')
            process.send_signal(signal.SIGHUP)
            assert manager.recv(100).startswith(b"RELOADING=1\n")
            assert manager.recv(100) == b"READY=1"
            assert eventually(lambda: [subflow.local[0] for subflow in made.sock.subflows()] == [second])
        process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(60) == 0
        assert process.stderr is not None
        told = process.stderr.read()
        assert "name must be one of" in told
        assert "'eth99' does not exist" in told
    assert client.get_path_manager() == "kernel"
    assert not (tmp_path / "path_manager").exists()


def test_after_sigkill(mptcp_two_paths: TwoPaths, tmp_path: Path, manager: socket.socket) -> None:
    client = mptcp_two_paths[0]
    client.set_path_manager("kernel")
    with client.popen([*service(tmp_path), "--builtin", "fullmesh"], stderr=subprocess.DEVNULL) as process:
        assert manager.recv(100) == b"READY=1"
        put_back = [*service(tmp_path), "--put-back"]
        # Not while it runs.
        assert client.run(put_back, capture_output=True).returncode == 1
        assert client.get_path_manager() == "userspace"
        process.kill()
        process.wait(60)
    assert client.get_path_manager() == "userspace"
    client.run(put_back, check=True)
    assert client.get_path_manager() == "kernel"
    # There is nothing to put back any more.
    client.set_path_manager("userspace")
    client.run(put_back, check=True)
    assert client.get_path_manager() == "userspace"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[policy]]\n", "policy 1: name must be one of announce, "),
        ("policy = 3\n", "must have a table"),
        ('[[policy]]\nname = "FullMesh"\n[other]\n', "must have a table"),
        ('[[policy]]\nname = "FullMesh"\nexclud = "eth0"\n', "policy 1: .*unexpected keyword argument 'exclud'"),
        (
            '[[policy]]\nname = "FullMesh"\n[[policy]]\nname = "Budget"\narguments = ["eth0", 0]\n',
            "policy 2: bytes_per",
        ),
        ('[[policy]]\nfile = "none.py"\n', "none.py"),
        ("[[policy\n", "policy.toml: "),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    done = subprocess.run([*COMMAND, "--config", str(tmp_path / "policy.toml")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


@needs("systemd-analyze")
def test_the_unit_is_sound_and_hardened(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--install", str(tmp_path)], capture_output=True, text=True, check=True)
    unit = tmp_path / "mptcp-policy.service"
    assert done.stdout.split() == [str(unit)]
    # What it starts need not be executable for systemd-analyze's user here.
    unit.write_text(re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", unit.read_text(), flags=re.MULTILINE))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert verified.returncode == 0, verified
    assert str(unit) not in verified.stderr, verified.stderr
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)], capture_output=True, text=True
    ).stdout
    exposure = re.search(r"Overall exposure level for \S+ ([\d.]+)", told)
    assert exposure, told
    assert float(exposure[1]) <= 3.0


def test_a_command_that_fails_blocks_no_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for command in (["policy", "/nonexistent/file.py"], ["broker", "--socket", "/proc/nonexistent/socket"]):
        assert cli.main(command) != 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@contextlib.contextmanager
def running(host: Host, marked: Marked) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, "--builtin", "fullmesh"]
    environment = {name: value for name, value in marked.environment.items() if name != "RUNTIME_DIRECTORY"}
    with host.popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            assert "running FullMesh" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def helper_of(marked: Marked) -> int:
    """The process that outlives the command, which gives itself its name."""

    def named() -> list[int]:
        names = {pid: (Path("/proc") / str(pid) / "comm").read_text() for pid in marked.processes()}
        return [pid for pid, name in names.items() if name == "mptcp-put-back\n"]

    assert eventually(lambda: len(named()) == 1)
    return named()[0]


def test_after_sigkill_outside_of_a_service(mptcp_two_paths: TwoPaths) -> None:
    client, marked = mptcp_two_paths[0], Marked()
    client.set_path_manager("kernel")
    with running(client, marked) as process:
        assert client.get_path_manager() == "userspace"
        assert helper_of(marked)
        process.kill()
        process.wait(60)
        assert eventually(lambda: client.get_path_manager() == "kernel")
        # Nothing of it is left, and nobody waits for a pipe that it holds.
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert eventually(lambda: not marked.processes())
    # The next ones begin at once.
    for _ in range(3):
        with running(client, marked) as process:
            process.kill()
            process.wait(60)
        assert eventually(lambda: client.get_path_manager() == "kernel")


def test_an_orderly_end_ends_the_helper_too(mptcp_two_paths: TwoPaths) -> None:
    client, marked = mptcp_two_paths[0], Marked()
    client.set_path_manager("kernel")
    with running(client, marked) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not marked.processes()
    assert client.get_path_manager() == "kernel"
    # Where there is nothing to put back there is no helper.
    client.set_path_manager("userspace")
    with running(client, marked) as process:
        assert marked.processes() == {process.pid}
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert client.get_path_manager() == "userspace"


def test_signals_of_the_terminal_spare_the_helper(mptcp_two_paths: TwoPaths) -> None:
    """SIGTERM and SIGHUP to each, as at a shutdown, and SIGKILL to the process group of the command."""
    client, marked = mptcp_two_paths[0], Marked()
    client.set_path_manager("kernel")
    with running(client, marked) as process:
        helper = helper_of(marked)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(helper, number)
        assert os.getpgid(helper) != os.getpgid(process.pid)
        process.kill()
        process.wait(60)
        assert eventually(lambda: client.get_path_manager() == "kernel")


def test_policies_that_start_before_it_is_put_back(mptcp_two_paths: TwoPaths) -> None:
    """The next policies keep the path manager that they need, and it is put back when they have ended."""
    client, marked, others = mptcp_two_paths[0], Marked(), Marked()
    client.set_path_manager("kernel")
    with running(client, marked) as process:
        helper = helper_of(marked)
        os.kill(helper, signal.SIGSTOP)
        process.kill()
        process.wait(60)
        with running(client, others) as second:
            os.kill(helper, signal.SIGCONT)
            # It waits for something else than its parent now.
            assert eventually(lambda: len(list(Path(f"/proc/{helper}/fd").iterdir())) > 5)
            assert client.get_path_manager() == "userspace"
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0
        assert eventually(lambda: client.get_path_manager() == "kernel")
        assert eventually(lambda: not marked.processes())


def test_what_was_changed_by_hand_stays(mptcp_two_paths: TwoPaths) -> None:
    client, marked = mptcp_two_paths[0], Marked()
    client.set_path_manager("kernel")
    with running(client, marked) as process:
        client.set_path_manager("kernel")
        process.kill()
        process.wait(60)
        assert eventually(lambda: not marked.processes())
    assert client.get_path_manager() == "kernel"
