"""Files are written and read, and plots drawn, without a second copy of the rows."""

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


_LOAD = """
import sys
import numpy as np, mptcp
name, suffix = sys.argv[1] + "/load.", sys.argv[2]
def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024
if sys.argv[3:] == ["save"]:
    one = mptcp.load(sys.argv[1] + "/one.npz")
    rows = np.tile(one.samples, 600_000 // len(one.samples))
    rows["time_ns"] += np.arange(len(rows))
    mptcp.Recording(rows, one.connections, [], one.metadata).save(name + suffix)
    one.save(sys.argv[1] + "/one." + suffix)
else:
    mptcp.load(sys.argv[1] + "/one." + suffix)  # what is loaded at first use
    before = peak()
    many = mptcp.load(name + suffix)
    print((peak() - before) / many.samples.nbytes - 1)
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


@pytest.mark.parametrize(("suffix", "library"), [("npz", "numpy"), ("arrow", "pyarrow"), ("parquet", "pyarrow")])
def test_memory_beside_rows_that_are_loaded(folder: Path, suffix: str, library: str) -> None:
    pytest.importorskip(library, reason=f"needs {library}")
    command = [sys.executable, "-c", _LOAD, str(folder), suffix]
    subprocess.run([*command, "save"], check=True, timeout=100)
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    print(suffix, result.stdout)
    assert float(result.stdout) < 0.7
