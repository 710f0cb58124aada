"""Large captures: read as they come through a pipe, with memory that does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import mptcp
import numpy as np
import pytest
from bulk_frames import PAYLOAD, Capture
from mptcp.lab import Lab
from support import eventually
from trace_checks import check_options, connected, new_bytes

# docs/traces.md has a run with a gigabyte.
SIZE = int(os.environ.get("MPTCP_TEST_TRACE_BYTES", "20_000_000"))

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


@pytest.mark.parametrize("rate", [None, "400mbit"])
def test_a_transfer_at_high_speed(mptcp_lab: Lab, tmp_path: Path, rate: str | None) -> None:
    """Over two links, captured at the sender; without a limit frames have up to 64 KiB."""
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate=rate) for _ in range(2)]
    files = [tmp_path / f"{number}.pcap" for number in range(2)]
    captures = [link.capture(file) for link, file in zip(links, files, strict=True)]
    with connected(client, server, links) as (sock, peer):
        sock.settimeout(60)
        chunk = os.urandom(1 << 20)

        def send() -> None:
            left = SIZE
            while left:
                left -= sock.send(chunk[:left])

        thread = threading.Thread(target=send)
        thread.start()
        buffer, received = bytearray(1 << 20), 0
        while received < SIZE:
            received += peer.recv_into(buffer)
        thread.join()
        if sock.info().bytes_acked is None:
            pytest.skip("needs mptcpi_bytes_acked")
        assert eventually(lambda: sock.info().bytes_acked == SIZE + 1)
        tokens = [sock.token, peer.token]
    for capture in captures:
        capture.close()
    try:
        trace = mptcp.read_trace(*files)
        check_options(trace, files)
    finally:
        for file in files:
            file.unlink()
    (connection,) = trace.connections
    assert [connection["token"], connection["peer_token"]] == tokens
    assert connection["bytes_0"] + connection["missing_0"] == SIZE + 1
    # What the capture could not take in time is missing, and only that.
    dropped = sum(capture.dropped or 0 for capture in captures)
    if not dropped:
        assert new_bytes(trace, 0) == SIZE + 1
        assert trace.subflows["missing_0"].sum() == trace.subflows["unmapped_0"].sum() == 0
    frames = trace.metadata["counts"]["frames"]
    print(f"{frames:,} frames, {dropped:,} more dropped by the capture, {len(trace.packets):,} rows")
