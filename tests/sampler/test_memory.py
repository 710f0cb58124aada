"""Files are written and plots drawn without a second copy of the rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mptcp.lab import record_transfer

_PROGRAM = """
import sys
import numpy as np, mptcp, mptcp.plot
if sys.argv[2] == "plot":
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot
elif sys.argv[2] != "npz":
    import pyarrow.parquet
one = mptcp.load(sys.argv[1] + "/one.npz")
def peak():
    # That of getrusage() may be the parent's.
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024
def do(recording):
    if sys.argv[2] == "plot":
        recording.plot().savefig(sys.argv[1] + "/many.png")
    else:
        recording.save(sys.argv[1] + "/many." + sys.argv[2])
do(one)  # what is loaded at first use
times = 400_000 // len(one.samples)
rows = np.tile(one.samples, times)
rows["time_ns"] += np.repeat(np.arange(times), len(one.samples)) * 1_000_000_000
many = mptcp.Recording(rows, one.connections, [], one.metadata)
before = peak()
do(many)
print((peak() - before) / rows.nbytes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    record_transfer([{"rate": "20mbit"}, {"rate": "10mbit"}], 0.5).save(folder / "one.npz")
    return folder


@pytest.mark.parametrize(
    ("what", "library", "part"),
    [
        ("npz", "numpy", 0.3),
        ("arrow", "pyarrow", 0.5),
        ("parquet", "pyarrow", 0.7),
        ("plot", "matplotlib", 0.7),
    ],
)
def test_memory_beside_the_rows(folder: Path, what: str, library: str, part: float) -> None:
    pytest.importorskip(library, reason=f"needs {library}")
    command = [sys.executable, "-c", _PROGRAM, str(folder), what]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    print(what, result.stdout)
    assert float(result.stdout) < part
