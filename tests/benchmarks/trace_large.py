"""A capture of a gigabyte, and one of a hundred million packets that is read from a pipe: time and memory.

    .venv/bin/python tests/benchmarks/trace_large.py [--gigabytes N] [--millions N]

Both are made up, the same each time: a connection over two subflows that sends frames of 1514 bytes, each with a DSS,
of which one in a hundred is sent again, and a DATA_ACK for every other frame. The first is a file with whole frames, in
the page cache; it is read into memory, and into an .arrow file. The second has the first 94 bytes of each frame; it is
made while it is read, on the other processor, and goes into an .arrow file. Memory is how much the process's peak grew.
Everything is written below the directory for temporary files, and deleted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bulk_frames import Capture

# The peak of the process is measured anew after 5 was written to clear_refs: it began as its parent's.
READ = """
import json, re, sys, time, mptcp, numpy, pyarrow
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before, begin = peak(), time.perf_counter()
trace = mptcp.read_trace(sys.argv[1], path=sys.argv[2] if len(sys.argv) > 2 else None)
taken = time.perf_counter() - begin
counts = trace.metadata["counts"]
size = int(trace.connections["bytes_0"][0])
print(json.dumps([taken, time.process_time(), peak() - before, counts["segments"], size]))
"""


def measured(capture: Capture, file: Path | None, path: Path | None) -> list[float]:
    """Return the seconds, the processor seconds and the bytes of memory that it takes to read a file, or a pipe."""
    command = [sys.executable, "-c", READ, str(file or "-"), *([str(path)] if path else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if file is None:
            for chunk in capture.chunks():
                process.stdin.write(chunk)
        process.stdin.close()
        *found, segments, count = json.loads(process.stdout.read())
    if (segments, count) != (capture.frames, capture.bytes_of_data):
        raise SystemExit(
            f"{segments} segments and {count} bytes were read of {capture.frames}, {capture.bytes_of_data}"
        )
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--millions", type=float, default=100.0)
    arguments = parser.parse_args()
    # A round of three frames has this many bytes in a file.
    capture = Capture(int(arguments.gigabytes * 1e9 * 2 / (2 * 1530 + 94)) + 2)
    print(f"{'':48}packets   seconds   packets/s   CPU s      memory   file written")
    with tempfile.TemporaryDirectory() as folder:
        file, arrow = Path(folder, "large.pcap"), Path(folder, "trace.arrow")
        capture.write(file)
        for name, path in (("into memory", None), ("into an .arrow file", arrow)):
            taken = measured(capture, file, path)
            show(f"{file.stat().st_size / 1e9:.2f} GB, {name}", capture, taken, path)
    capture = Capture(int(arguments.millions * 1e6 * 2 / 3), snap=94)
    with tempfile.TemporaryDirectory() as folder:
        arrow = Path(folder, "trace.arrow")
        taken = measured(capture, None, arrow)
        show("a pipe, into an .arrow file", capture, taken, arrow)


def show(name: str, capture: Capture, taken: list[float], written: Path | None) -> None:
    seconds, processor, memory = taken
    size = f"{written.stat().st_size / 2**20:,.0f} MiB" if written else "-"
    print(
        f"{name:36}{capture.frames:>19,}{seconds:>10.1f}{capture.frames / seconds:>12,.0f}{processor:>8.1f}"
        f"{memory / 2**20:>8,.0f} MiB{size:>15}",
        flush=True,
    )


if __name__ == "__main__":
    main()
