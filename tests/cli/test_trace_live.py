"""``mptcp trace --live``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import mptcp
import pytest
from support import NO_CAPABILITIES, exchange, has_bpf, needs

COMMAND = [sys.executable, "-W", "ignore", "-m", "mptcp", "trace"]
needs_bpf = pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")


@needs_bpf
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_until_a_signal(pair: tuple[mptcp.Socket, mptcp.Socket], tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "live.npz"
    command = [*COMMAND, "--live", "--token", str(pair[0].token), "--json", "-o", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "tracing\n"
            exchange(*pair)
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    (connection,) = json.loads(output)["connections"]
    assert connection["token"] == pair[0].token
    # Only the connecting side's token was asked for: of what it sends and of what it receives there are rows.
    assert (connection["bytes_0"], connection["bytes_1"]) == (1, 1)
    assert mptcp.read_trace(path).packets["length"].tolist() == [1, 1]


@needs_bpf
def test_a_duration(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    command = [*COMMAND, "--live", "--token", str(pair[1].token), "--duration", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no Multipath TCP\n", "tracing\n")


@pytest.mark.parametrize(
    "arguments", [[], ["--live", "a.pcap"], ["a.pcap", "--duration", "1"], ["a.pcap", "--token", "1"]]
)
def test_wrong_arguments(arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--live" in done.stderr
    assert done.stdout == ""


@needs("setpriv")
def test_without_privilege() -> None:
    command = [*COMMAND, "--live", "--duration", "0.01"]
    if has_bpf():
        command = [*NO_CAPABILITIES, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "CAP_BPF" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_connection() -> None:
    done = subprocess.run([*COMMAND, "--live", "--token", "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "mptcp trace: no connection matches\n"
