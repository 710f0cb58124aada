"""What it costs to draw a recording of a million rows: time, and the memory that it takes at most.

    .venv/bin/python tests/benchmarks/plots.py [--rows N] [--subflows N]

A transfer over four paths is recorded and repeated until it has that many rows, of that many subflows (8 by default,
10 ms apart or less). It is drawn as a PNG image and as a PDF: by Recording.plot(); and by what one would write at
first, the same four panels with every row of each subflow given to matplotlib. Each is drawn in a process of its own,
which reads the rows from a file in numpy's format first; the time is that of drawing and writing the image. Memory is
the process's peak resident set, rows included, which alone are as much as "rows" says. Of three rounds the best counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mptcp
import numpy as np

_PATHS = [{"rate": "20mbit", "delay": "10ms"}, {"rate": "10mbit", "delay": "30ms"}] * 2


def ours(recording: mptcp.Recording, image: Path) -> None:
    recording.plot().savefig(image, dpi=200)


def plain(recording: mptcp.Recording, image: Path) -> None:
    import matplotlib.pyplot as plt

    rows = recording.samples
    start = rows["time_ns"].min()
    figure, (goodput, rtt, cwnd, share) = plt.subplots(4, figsize=(6, 5), dpi=120, layout="constrained")
    left = 0.0
    for cookie in np.unique(rows["cookie"]):
        one = rows[rows["cookie"] == cookie]
        seconds = (one["time_ns"] - start) / 1e9
        goodput.plot(seconds[1:], np.diff(one["bytes_acked"]) * 8 / np.maximum(np.diff(seconds), 1e-9), label=cookie)
        rtt.plot(seconds, one["rtt"] / 1e3)
        cwnd.plot(seconds, one["snd_cwnd"])
        carried = one["bytes_acked"][-1] - one["bytes_acked"][0]
        share.barh(0, carried, left=left)
        left += carried
    figure.legend(loc="outside upper left", ncols=4)
    figure.savefig(image, dpi=200)


HOW: dict[str, Callable[[mptcp.Recording, Path], None]] = {"Recording.plot": ours, "plain matplotlib": plain}


def recorded(rows: int, subflows: int, folder: Path) -> None:
    """Write a recording of so many rows."""
    from mptcp.lab import record_transfer

    one = record_transfer(_PATHS, 4.0, interval=0.01)
    samples = np.sort(one.samples[~one.samples["final"]], order=["time_ns", "cookie"])
    ticks = [tick for tick in np.unique(samples["time_ns"]) if (samples["time_ns"] == tick).sum() == len(_PATHS)]
    samples = samples[np.isin(samples["time_ns"], ticks)]
    copies = [samples.copy() for _ in range(-(-subflows // len(_PATHS)))]
    for number, copy in enumerate(copies):
        copy["cookie"] += np.uint64(number << 32)
    wide = np.concatenate(copies)
    wide = wide[np.isin(wide["cookie"], np.unique(wide["cookie"])[:subflows])]
    wide = wide[np.argsort(wide["time_ns"], kind="stable")]
    length = ticks[-1] - ticks[0] + 10_000_000
    times = -(-rows // len(wide))
    made = np.tile(wide, times)
    repeat = np.repeat(np.arange(times), len(wide))
    made["time_ns"] += repeat * length
    for name in ("bytes_acked", "bytes_received", "bytes_sent"):
        made[name] += repeat * (samples[name].max() + 1)
    np.save(folder / "samples.npy", made[:rows])
    np.save(folder / "connections.npy", one.connections)
    (folder / "metadata.json").write_text(json.dumps({**one.metadata, "subflows": []}))


def draw(how: str, suffix: str, folder: Path) -> None:
    """Draw in this process, and print what it cost."""
    import matplotlib
    import matplotlib.pyplot  # not part of the drawing

    matplotlib.use("agg")
    files = (np.load(folder / f"{name}.npy") for name in ("samples", "connections"))
    recording = mptcp.Recording(*files, [], json.loads((folder / "metadata.json").read_text()))
    begin = time.perf_counter()
    image = folder / f"image{suffix}"
    HOW[how](recording, image)
    seconds = time.perf_counter() - begin
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, image.stat().st_size / (1 << 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--subflows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draw", nargs=3, metavar=("HOW", "SUFFIX", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        draw(*arguments.draw[:2], Path(arguments.draw[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded(arguments.rows, arguments.subflows, folder)
        size = (folder / "samples.npy").stat().st_size / (1 << 20)
        print(f"{arguments.rows:,} rows of {arguments.subflows} subflows, which are {size:,.0f} MiB")
        for suffix in (".png", ".pdf"):
            compare(suffix, arguments.rounds, folder)


def compare(suffix: str, rounds: int, folder: Path) -> None:
    best: dict[str, list[float]] = {}
    for _ in range(rounds):
        for how in HOW:
            command = [sys.executable, __file__, "--draw", how, suffix, str(folder)]
            result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            figures = [float(word) for word in result.stdout.split()]
            best[how] = [min(pair) for pair in zip(best.get(how, figures), figures, strict=True)]
    print(f"{suffix[1:].upper():<18} {'time':>8} {'memory':>11} {'file':>11}")
    for how, (seconds, memory, file) in best.items():
        print(f"  {how:<16} {seconds:6.2f} s {memory:7,.0f} MiB {file:7,.2f} MiB")
    ratios = [one / other for one, other in zip(*best.values(), strict=True)]
    print(f"  {'ratio':<16} {ratios[0]:6.2f}   {ratios[1]:7.2f}     {ratios[2]:7.3f}")


if __name__ == "__main__":
    main()
