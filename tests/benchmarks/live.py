"""What Recorder.live() costs the recording, in a notebook's kernel.

    .venv/bin/python tests/benchmarks/live.py [--rounds N] [--seconds N]

A transfer over two paths of 20 and 10 Mbit/s is recorded again and again in one kernel, every 10 ms and every 1 ms:
without live(), with a figure 0.5 s after the last one, as by default, and with one after 0.1 s, the least. They take
turns, in random order. Once as root, whose recording thread runs under SCHED_FIFO, and once without any capability.

Of all rounds together: the ticks that were missed, wait_ns in the median and of 99 in 100 rows, how much later than
the tick before plus the interval a tick began, of 99 in 100, and the processor time of this process's other threads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from typing import Any

import nbclient
import nbformat

VARIANTS = (None, 0.5, 0.1)
INTERVALS = (0.01, 0.001)
CELL = """
import json, time
import mptcp
import numpy as np
from mptcp.lab import Transfer, two_paths

def measured(interval, live, seconds):
    with two_paths(delay="10ms") as (client, server, paths), Transfer(client, server, paths) as transfer:
        begin = time.process_time()
        with mptcp.Recorder(transfer.sock, interval) as rec:
            if live is not None:
                rec.live(interval=live)
            time.sleep(seconds)
        processor = (time.process_time() - begin) / seconds
    rows = rec.samples[~rec.samples["final"]]
    ticks = np.unique(rows["time_ns"])
    late = np.maximum(np.diff(ticks) - interval * 1e9, 0)
    print(json.dumps({
        "missed": rec.missed, "ticks": rec.metadata["ticks"], "wait": rows["wait_ns"].tolist(), "late": late.tolist(),
        "processor": processor, "how": rec.metadata["method"] + ", " + rec.metadata["scheduler"],
    }))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--here", action="store_true", help="with the privileges that there are, only")
    chosen = parser.parse_args()
    if chosen.here or os.geteuid():
        measure(chosen.rounds, chosen.seconds)
        return
    same = [sys.executable, *sys.argv, "--here"]
    print(f"{'':52}{'missed':>15}{'wait_ns':>10}{'99 %':>8}{'late, 99 %':>12}{'processor':>10}", flush=True)
    subprocess.run(same, check=True)
    if shutil.which("setpriv") is None:
        print("without capabilities: needs setpriv of util-linux")
    else:
        subprocess.run(["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all", *same], check=True)


def measure(rounds: int, seconds: float) -> None:
    runs: dict[tuple[float, float | None], list[dict[str, Any]]] = {}
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=120, kernel_name="python3")
    with client.setup_kernel():
        run(client, CELL)
        for _ in range(rounds):
            turns = [(interval, live) for interval in INTERVALS for live in VARIANTS]
            for interval, live in random.sample(turns, len(turns)):
                runs.setdefault((interval, live), []).append(run(client, f"measured({interval}, {live}, {seconds})"))
    for interval in INTERVALS:
        for live in VARIANTS:
            report(interval, live, runs[interval, live])


def run(client: nbclient.NotebookClient, source: str) -> dict[str, Any]:
    """Run a cell, and return what it printed, if that is JSON."""
    client.nb.cells = [nbformat.v4.new_code_cell(source)]
    cell = client.execute_cell(client.nb.cells[0], 0)
    printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    found: dict[str, Any] = json.loads("".join(printed) or "{}")
    return found


def report(interval: float, live: float | None, found: list[dict[str, Any]]) -> None:
    wait, late = (sorted(value for each in found for value in each[name]) for name in ("wait", "late"))
    missed, ticks = (sum(each[name] for each in found) for name in ("missed", "ticks"))
    how = sorted(each["how"] for each in found)[len(found) // 2]
    what = f"every {1000 * interval:.0f} ms ({how}), " + ("no live()" if live is None else f"live({live})")
    processor = sum(each["processor"] for each in found) / len(found)
    middle, most, latest = (
        values[len(values) * part // 100] / 1e3 for values, part in ((wait, 50), (wait, 99), (late, 99))
    )
    times = f"{middle:>7.0f} µs{most:>5.0f} µs{latest:>9.0f} µs"
    print(f"{what:52}{missed:>6} of {ticks:>5}{times}{processor:>10.0%}", flush=True)


if __name__ == "__main__":
    main()
