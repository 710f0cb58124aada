"""The systemd units that the package has, by systemd's own tools, and a broker whose socket was passed to it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from brokered import Brokered
from support import eventually, needs

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
