"""Packets a second of read_trace(), beside tshark and dpkt, and memory a packet.

    .venv/bin/pip install dpkt           # and tshark with the system's package manager
    .venv/bin/python tests/benchmarks/trace.py

The capture is made up, the same each time: a connection over two subflows that sends frames of 1514 bytes, each with a
DSS, of which one in a hundred is sent again, and a DATA_ACK for every other frame. Each program reads it from the page
cache three times, the best counts, less what the same program takes for the handshakes alone. tshark prints the fields
of which our rows are made; dpkt decodes Ethernet, IP, TCP and its options, in Python.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bulk_frames import Capture

FRAMES = 190_000
FIELDS = (
    "frame.time_epoch",
    "tcp.stream",
    "tcp.seq",
    "tcp.len",
    "tcp.options.mptcp.subtype",
    "tcp.options.mptcp.rawdataseqno",
    "tcp.options.mptcp.rawdataack",
)

READ = "import mptcp, sys; print(len(mptcp.read_trace(sys.argv[1]).packets))"
# The peak of the process is measured anew after 5 was written to clear_refs: it began as its parent's.
MEMORY = """
import re, sys, mptcp
import numpy
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
trace = mptcp.read_trace(sys.argv[1])
print(peak() - before)
"""
DPKT = """
import sys, dpkt
with open(sys.argv[1], "rb") as file:
    for when, frame in dpkt.pcap.Reader(file):
        tcp = dpkt.ethernet.Ethernet(frame).data.data
        for kind, value in dpkt.tcp.parse_opts(tcp.opts):
            pass
"""


def seconds(command: list[str]) -> float:
    """The best of three."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=FRAMES)
    frames = parser.parse_args().frames
    with tempfile.TemporaryDirectory() as folder:
        file, small = Path(folder, "large.pcap"), Path(folder, "small.pcap")
        capture = Capture(frames)
        capture.write(file)
        Capture(0).write(small)
        python = [sys.executable, "-c"]
        fields = [word for field in FIELDS for word in ("-e", field)]
        programs = {"read_trace": [*python, READ]}
        if shutil.which("tshark"):
            programs["tshark"] = ["tshark", "-n", "-T", "fields", *fields, "-r"]
        try:
            import dpkt  # type: ignore[import-not-found,import-untyped]  # noqa: F401

            programs["dpkt"] = [*python, DPKT]
        except ModuleNotFoundError:
            pass
        count = capture.frames
        rates = {}
        for name, command in programs.items():
            taken = seconds([*command, str(file)]) - seconds([*command, str(small)])
            rates[name] = count / taken
        peak = subprocess.run([*python, MEMORY, str(file)], capture_output=True, text=True, check=True).stdout
    print(f"A capture of {count:,} packets, of which {frames:,} are frames of 1514 bytes.\n")
    print("| program | packets a second | ratio | aim |")
    print("|---|---|---|---|")
    for name, rate in rates.items():
        ratio = "" if name == "read_trace" else f"{rates['read_trace'] / rate:.1f}"
        aim = {"tshark": 15, "dpkt": 8}.get(name)
        met = "" if aim is None else f"{aim}: {'met' if float(ratio) >= aim else 'MISSED'}"
        print(f"| {name} | {rate:,.0f} | {ratio} | {met} |")
    print(f"\nread_trace() took {int(peak) / count:.0f} bytes of memory a packet, {int(peak) / frames:.0f} a row.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
