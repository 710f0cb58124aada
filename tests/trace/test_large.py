"""Large captures: read as they come through a pipe, with memory that does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mptcp
import numpy as np
import pytest
from bulk_frames import PAYLOAD, Capture

# The peak of the process is measured anew after 5 was written to clear_refs: it began as its parent's.
READ = """
import json, re, sys, mptcp, numpy, pyarrow
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
trace = mptcp.read_trace("-", path=sys.argv[1] if len(sys.argv) > 1 else None)
print(json.dumps([peak() - before, trace.metadata["counts"]["segments"], int(trace.connections["bytes_0"][0])]))
"""


def streamed(capture: Capture, path: Path | None) -> int:
    """Read a capture from a pipe, and return the memory that it took at most."""
    command = [sys.executable, "-c", READ, *([str(path)] if path else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for chunk in capture.chunks():
            process.stdin.write(chunk)
        process.stdin.close()
        memory, segments, count = json.loads(process.stdout.read())
    assert segments == capture.frames
    assert count == capture.bytes_of_data
    return int(memory)


def test_streaming_takes_as_much_memory_for_ten_times_the_packets(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    small, large = Capture(100_000, snap=94), Capture(1_000_000, snap=94)
    path = tmp_path / "trace.arrow"
    few, many = streamed(small, tmp_path / "small.arrow"), streamed(large, path)
    # The rows have 72 bytes each.
    more = 72 * (large.data_frames - small.data_frames)
    assert many - few < more / 2
    assert streamed(large, None) - streamed(small, None) > more
    trace = mptcp.read_trace(path)
    assert len(trace.packets) == large.data_frames
    assert trace.connections["token"] == large.token
    assert (trace.packets["length"] == PAYLOAD).all()
    assert (trace.packets["data_acked_ns"] > trace.packets["time_ns"]).all()
    assert (np.diff(trace.packets["time_ns"]) > 0).all()
    assert trace.packets["reinjected"].mean() == pytest.approx(0.01)
    new = trace.packets[~trace.packets["reinjected"]]
    assert (new["dsn"] == PAYLOAD * np.arange(len(new))).all()
    # TCP's sequence numbers wrap at 4 GiB; these of the two subflows have not yet, but short DSNs would have.
    assert not trace.packets["retransmitted"].any()
