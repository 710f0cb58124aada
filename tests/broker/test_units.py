"""The systemd units that the package has, by systemd's own tools, and a broker whose socket was passed to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokered import Brokered, become
from support import ROOT, eventually, needs

UNITS = ["mptcp-broker.service", "mptcp-broker.socket", "mptcp-broker@.service", "mptcp-broker@.socket"]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    folder = tmp_path / "units"
    command = [sys.executable, "-m", "mptcp", "broker", "--install", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / name) for name in UNITS]
    for path in folder.glob("*.service"):
        # What it starts need not be executable for systemd-analyze's user here.
        path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.MULTILINE))
    return folder


@needs("systemd-analyze")
def test_the_units_are_sound_and_hardened(units: Path) -> None:
    names = [name.replace("@.", "@blue.") for name in UNITS]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *(str(units / name) for name in names)], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified
    assert str(units) not in verified.stderr, verified.stderr
    for name in ("mptcp-broker.service", "mptcp-broker@.service"):
        command = ["systemd-analyze", "security", "--offline=true", str(units / name)]
        told = subprocess.run(command, capture_output=True, text=True).stdout
        exposure = re.search(r"Overall exposure level for \S+ ([\d.]+)", told)
        assert exposure, told
        assert float(exposure[1]) <= 2.0


@needs("systemd-socket-activate")
def test_it_takes_a_socket_that_was_passed(brokered: Brokered, tmp_path: Path) -> None:
    """In the client's namespace, beside the other broker, and with the message that it is ready."""
    path = brokered.socket.with_name("activated.sock")
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(str(tmp_path / "notify"))
    ready.settimeout(20)
    process = brokered.client.popen(
        [
            "systemd-socket-activate",
            "--seqpacket",
            f"--listen={path}",
            f"--setenv=NOTIFY_SOCKET={tmp_path / 'notify'}",
            sys.executable,
            "-m",
            "mptcp",
            "broker",
        ],
        stderr=subprocess.PIPE,
    )
    try:
        assert eventually(path.exists, 20)
        path.chmod(0o666)
        before, brokered.socket = brokered.socket, path
        try:
            brokered.run('assert mptcp.Socket(path_manager="userspace").proto == socket.IPPROTO_TCP')
        finally:
            brokered.socket = before
        assert ready.recv(100) == b"READY=1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        ready.close()
        path.unlink(missing_ok=True)
    assert not os.path.exists(path)


# What the unit's user has, before it becomes the command: its own uid, three capabilities, and no more. The interpreter
# may be where that user cannot look, so everything is imported first.
_AS_THE_UNIT = """
import ctypes, json, os, struct, sys
import mptcp, mptcp.cli, encodings.idna, numpy
assert mptcp.cli.main(["broker", "--check", "/dev/null"]) == 2
uid, capabilities, arguments = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
bits = sum(1 << number for number in capabilities)
words = [(bits >> shift) & 0xffffffff for shift in (0, 32)]
header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
assert libc.capset(header, struct.pack("=6I", *[word for each in words for word in (each, each, 0)])) == 0
assert os.environ["LISTEN_PID"] == str(os.getpid())
sys.exit(mptcp.cli.main(arguments))
"""

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}


@pytest.fixture
def named_namespace() -> Iterator[str]:
    if not ROOT:
        pytest.skip("needs root")
    name = f"mptcp-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@needs("systemd-socket-activate", "nsenter", "ip")
def test_an_instance_for_a_named_namespace(named_namespace: str, tmp_path: Path) -> None:
    """What the units of an instance say, by systemd-socket-activate, and an ordinary user's program there."""
    folder = tmp_path / "units"
    subprocess.run([sys.executable, "-m", "mptcp", "broker", "--install", str(folder)], capture_output=True, check=True)

    def settings(unit: str) -> dict[str, str]:
        lines = (folder / unit).read_text().replace("%i", named_namespace).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    socket_unit, service = settings("mptcp-broker@.socket"), settings("mptcp-broker@.service")
    assert socket_unit["ListenSequentialPacket"] == f"/run/mptcp/broker-{named_namespace}.sock"
    enter = ["nsenter", f"--net={service['NetworkNamespacePath']}"]
    capabilities = [CAPABILITIES[name] for name in service["AmbientCapabilities"].split()]
    arguments = service["ExecStart"].split()[1:]
    with tempfile.TemporaryDirectory(prefix="mptcp-broker-") as public:
        Path(public).chmod(0o755)
        # In a folder of ours, where the unit's path would be the host's own.
        path = Path(public, Path(socket_unit["ListenSequentialPacket"]).name)
        wanted = json.dumps([61184, capabilities, arguments])
        activate = ["systemd-socket-activate", "--seqpacket", f"--listen={path}"]
        program = [sys.executable, "-c", _AS_THE_UNIT, wanted]
        broker = subprocess.Popen([*enter, *activate, *program], stderr=subprocess.PIPE, text=True)
        try:
            assert eventually(path.exists, 20)
            path.chmod(int(socket_unit["SocketMode"], 8))
            code = (
                become(65534)
                + """
listener = mptcp.create_server(("127.0.0.1", 0))
address = listener.getsockname()
sock = mptcp.create_connection(address, path_manager="userspace")
accepted, _ = listener.accept()
sock.sendall(b"x"); accepted.recv(1); accepted.sendall(b"y"); sock.recv(1)
subflow = sock.open_subflow("127.0.0.2")
assert (subflow.local[0], subflow.remote) == ("127.0.0.2", address)
subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
sock.close_subflow(subflow)
assert len(sock.subflows()) == 1
print(mptcp._core.find_broker()[0])
"""
            )
            environment = {**os.environ, "MPTCP_BROKER": str(path)}
            run = [*enter, sys.executable, "-c", code]
            done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60)
            # A program of the host's namespace does not find it, for it serves another.
            outside = [sys.executable, "-c", "import mptcp; assert mptcp._core.find_broker() is None"]
            other = subprocess.run(outside, env=environment, timeout=60)
        finally:
            broker.send_signal(signal.SIGTERM)
            _, log = broker.communicate(timeout=20)
    assert done.returncode == 0, (done.stderr, log)
    assert done.stdout.strip() == str(path)
    assert other.returncode == 0
    assert broker.returncode == 0, log
    assert "uid 65534" in log
