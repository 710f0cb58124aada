"""docs/sweeps.md: what runs a sweep elsewhere than in the page's own commands, and a sweep that is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import mptcp
import pytest
from support import PATIENCE, eventually

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"
CELLS = 8
DEADLINE = 60.0 * PATIENCE

pytestmark = pytest.mark.mptcp_needs("in_lab", "links")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's programs."""
    for name, program in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(program)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    # On a busy machine a lab warns that frames were late.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore", **more}


def run(folder: Path, *command: str, **more: str) -> list[str]:
    """Run a command in a folder, and return the lines that it prints."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=2 * DEADLINE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def results(folder: Path) -> dict[str, int]:
    """The files of cells that are done, with the time of each."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("queue=*.npz")}


def test_a_sweep_goes_on_where_it_was_interrupted(folder: Path) -> None:
    command = [sys.executable, "processes.py"]
    options = {"cwd": folder, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **options) as sweep:  # type: ignore[call-overload]
        assert eventually(lambda: results(folder), DEADLINE)
        os.killpg(sweep.pid, signal.SIGKILL)
    before = results(folder)
    assert 0 < len(before) < CELLS
    assert len(run(folder, *command)) == CELLS
    after = results(folder)
    assert len(after) == CELLS
    assert {name: after[name] for name in before} == before, "these were measured again"
    for name in after:
        recording = mptcp.load(folder / "results" / name)
        (lab,) = recording.metadata["labs"]
        assert name.endswith(f"-seed={lab['seed']}.npz")
        assert [len(link["directions"]) for link in recording.metadata["links"]] == [2, 2]
    *rows, last = run(folder, sys.executable, "table.py")
    assert last == f"{CELLS} of {CELLS} cells are done"
    for row in rows:
        assert re.fullmatch(r"rate=\d+ queue=\d+ms seed=[12] mbits=[\d.]+ late_ms=[\d.e+-]+", row)


def test_dask(folder: Path) -> None:
    pytest.importorskip("distributed", reason="needs distributed: pip install 'mptcp[recipes]'")
    names = run(folder, sys.executable, "on_dask.py")
    assert sorted(names) == sorted(results(folder))
    assert len(names) == CELLS


def test_the_command_of_slurm(folder: Path) -> None:
    [script] = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert f"#SBATCH --array=0-{CELLS - 1}%" in script
    (folder / "sweep.sh").write_text(script)
    assert run(folder, "bash", "sweep.sh", SLURM_ARRAY_TASK_ID="7") == ["queue=200ms-rate=10-seed=2.npz"]
    assert set(results(folder)) == {"queue=200ms-rate=10-seed=2.npz"}


def test_the_command_of_kubernetes(folder: Path) -> None:
    [job] = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert f"completions: {CELLS}\n" in job
    [command] = re.findall(r"command: \[sh, -c, (.*)\]$", job, re.MULTILINE)
    assert run(folder, "sh", "-c", command, JOB_COMPLETION_INDEX="0") == ["queue=20ms-rate=2-seed=1.npz"]
