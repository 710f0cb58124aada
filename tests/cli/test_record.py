"""``mptcp record``."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import mptcp
import pytest
from support import eventually

COMMAND = [sys.executable, "-W", "ignore", "-m", "mptcp", "record"]


@pytest.mark.parametrize("suffix", [".npz", ".arrow", ".parquet"])
def test_a_duration(pair: tuple[mptcp.Socket, mptcp.Socket], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / f"run{suffix}"
    options = ["--token", str(pair[0].token), "--duration", "0.2", "--interval", "0.01", "-o", str(path)]
    result = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "recording\n")
    recording = mptcp.load(path)
    assert set(recording.samples["token"]) == {pair[0].token}
    assert f"{len(recording.samples)} samples" in result.stdout
    assert {each.suffix for each in tmp_path.iterdir()} == {suffix}, "nothing else is left"


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_killed_it_leaves_what_it_had_under_the_name_given(
    pair: tuple[mptcp.Socket, mptcp.Socket], tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / f"run{suffix}"
    command = [*COMMAND, "--token", str(pair[0].token), "--interval", "0.001", "-o", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def is_under_way() -> bool:
            # One of its two files may not be there yet, or be empty.
            with contextlib.suppress(OSError, ValueError):
                return len(mptcp.load(path).samples) > 100
            return False

        try:
            assert eventually(is_under_way, 60)
        finally:
            process.kill()
    loaded = mptcp.load(path)
    assert set(loaded.samples["token"]) == {pair[0].token}
    assert loaded.metadata["complete"] is False
    assert {each.name for each in tmp_path.iterdir()} == {f"run{suffix}", f"run.connections{suffix}"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(
    pair: tuple[mptcp.Socket, mptcp.Socket], tmp_path: Path, number: signal.Signals
) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "run.arrow"
    port = str(pair[0].getsockname()[1])
    command = [*COMMAND, "--port", port, "-o", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as process:
        assert eventually(lambda: path.exists() and path.stat().st_size > 0, 30)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert str(path) in output
    assert mptcp.load(path).metadata["ticks"] > 0


def test_what_is_not_there_and_wrong_usage(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60)

    missing = run("--port", "1", "-o", str(tmp_path / "run.npz"))
    assert (missing.returncode, missing.stderr) == (1, "mptcp record: no connection matches\n")
    for options in (["-o", "run.csv"], ["-o", "/no/such/folder/run.npz"], [], ["-o", "run.npz", "--interval", "0"]):
        assert run(*options).returncode == 2
    assert list(tmp_path.iterdir()) == []
