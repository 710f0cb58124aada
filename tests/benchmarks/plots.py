"""What it costs to draw a million rows: time, the memory that it takes at most, and the size of the image.

    .venv/bin/python tests/benchmarks/plots.py [--rows N] [--rounds N]

A transfer over four paths is recorded, and captured at both ends; both are repeated until they have that many rows, the
recording's of eight subflows. The recording is drawn by Recording.plot(), and by what one would write at first: the
same four panels with every row of each subflow given to matplotlib. The trace is drawn by plot.sequence(), and by a
point for each segment. Each is drawn in a process of its own, which reads the rows from a file in numpy's format first;
the time is that of drawing and writing the image. Memory is the process's peak resident set, the rows included. Of so
many rounds (3) the best counts, in which those compared take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
from mptcp.lab import Lab, Transfer

_PATHS = [{"rate": "20mbit", "delay": "10ms"}, {"rate": "10mbit", "delay": "30ms"}] * 2
_SUBFLOWS = 8
_SECONDS = 4.0


def draw_recording(recording: mptcp.Recording, image: Path) -> None:
    recording.plot().savefig(image, dpi=200)


def plain_recording(recording: mptcp.Recording, image: Path) -> None:
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


def draw_trace(trace: mptcp.Trace, image: Path) -> None:
    mptcp.plot.sequence(trace).figure.savefig(image, dpi=200)


def plain_trace(trace: mptcp.Trace, image: Path) -> None:
    import matplotlib.pyplot as plt

    rows = trace.packets
    figure, ax = plt.subplots(figsize=(6, 2.2), dpi=120, layout="constrained")
    for number in range(len(trace.subflows)):
        own = rows[(rows["subflow"] == number) & (rows["direction"] == 0)]
        ax.plot((own["time_ns"] - rows["time_ns"][0]) / 1e9, own["dsn"], ".", markersize=1, label=number)
    ax.legend()
    figure.savefig(image, dpi=200)


#: Ours, and the obvious alternative, by what is drawn.
COMPARED: dict[str, dict[str, Callable[[Any, Path], None]]] = {
    "recording": {"Recording.plot": draw_recording, "plain matplotlib": plain_recording},
    "trace": {"plot.sequence": draw_trace, "plain matplotlib": plain_trace},
}


def make(rows: int, folder: Path) -> None:
    """Write a recording and a trace of so many rows each."""
    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        links = [lab.link(client, server, **path) for path in _PATHS]
        files = [folder / f"{number}.pcapng" for number in range(len(links))]
        with contextlib.ExitStack() as stack:
            for link, file in zip(links, files, strict=True):
                stack.enter_context(link.capture(file, host="both"))
            with Transfer(client, server, links) as transfer, mptcp.Recorder(transfer.sock, 0.01) as rec:
                time.sleep(_SECONDS)
    trace = mptcp.read_trace(*files)
    save("recording", folder, samples=many_samples(rec.samples, rows), connections=rec.connections)
    save("trace", folder, packets=many_packets(trace.packets, rows), connections=trace.connections)
    np.save(folder / "trace-subflows.npy", trace.subflows)
    (folder / "recording.json").write_text(json.dumps({**rec.metadata, "subflows": []}))


def save(what: str, folder: Path, **arrays: Any) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{what}-{name}.npy", array)


def many_samples(samples: Any, rows: int) -> Any:
    samples = np.sort(samples[~samples["final"]], order=["time_ns", "cookie"])
    ticks = [tick for tick in np.unique(samples["time_ns"]) if (samples["time_ns"] == tick).sum() == len(_PATHS)]
    samples = samples[np.isin(samples["time_ns"], ticks)]
    copies = [samples.copy() for _ in range(_SUBFLOWS // len(_PATHS))]
    for number, copy in enumerate(copies):
        copy["cookie"] += np.uint64(number << 32)
    wide = np.concatenate(copies)
    wide = wide[np.argsort(wide["time_ns"], kind="stable")]
    made, repeat = repeated(wide, rows)
    made["time_ns"] += repeat * (ticks[-1] - ticks[0] + 10_000_000)
    for name in ("bytes_acked", "bytes_received", "bytes_sent"):
        made[name] += repeat * (samples[name].max() + 1)
    return made


def many_packets(packets: Any, rows: int) -> Any:
    made, repeat = repeated(packets, rows)
    length = packets["time_ns"].max() - packets["time_ns"].min() + 10_000_000
    for name in ("time_ns", "data_acked_ns", "data_delivered_ns", "received_ns"):
        made[name] += np.where(made[name] >= 0, repeat * length, 0)
    made["dsn"] += repeat * (packets["dsn"].max() + packets["length"].max())
    return made


def repeated(rows: Any, count: int) -> tuple[Any, Any]:
    times = -(-count // len(rows))
    return np.tile(rows, times)[:count], np.repeat(np.arange(times), len(rows))[:count]


def draw(what: str, how: str, suffix: str, folder: Path) -> None:
    """Draw in this process, and print what it cost."""
    import matplotlib
    import matplotlib.pyplot  # not part of the drawing

    matplotlib.use("agg")
    connections = np.load(folder / f"{what}-connections.npy")
    drawn: Any
    if what == "recording":
        metadata = json.loads((folder / "recording.json").read_text())
        drawn = mptcp.Recording(np.load(folder / "recording-samples.npy"), connections, [], metadata)
    else:
        packets, subflows = (np.load(folder / f"trace-{name}.npy") for name in ("packets", "subflows"))
        drawn = mptcp.Trace(packets, connections, subflows, [], {})
    image = folder / f"image{suffix}"
    begin = time.perf_counter()
    COMPARED[what][how](drawn, image)
    seconds = time.perf_counter() - begin
    print(seconds, peak() / 1024, image.stat().st_size / (1 << 20))


def peak() -> int:
    """Return this process's largest resident set in KiB. That of getrusage() may be its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def compare(what: str, suffix: str, rounds: int, folder: Path) -> None:
    best: dict[str, list[float]] = {}
    for _ in range(rounds):
        for how in COMPARED[what]:
            command = [sys.executable, __file__, "--draw", what, how, suffix, str(folder)]
            result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            figures = [float(word) for word in result.stdout.split()]
            best[how] = [min(pair) for pair in zip(best.get(how, figures), figures, strict=True)]
    print(f"{what + ' as ' + suffix[1:].upper():<18} {'time':>8} {'memory':>11} {'file':>11}")
    for how, (seconds, memory, file) in best.items():
        print(f"  {how:<16} {seconds:6.2f} s {memory:7,.0f} MiB {file:7,.2f} MiB")
    ratios = [one / other for one, other in zip(*best.values(), strict=True)]
    print(f"  {'ratio':<16} {ratios[0]:6.2f}   {ratios[1]:7.2f}     {ratios[2]:7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draw", nargs=4, metavar=("WHAT", "HOW", "SUFFIX", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        draw(*arguments.draw[:3], Path(arguments.draw[3]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(arguments.rows, folder)
        for what, array in (("recording", "samples"), ("trace", "packets")):
            size = (folder / f"{what}-{array}.npy").stat().st_size / (1 << 20)
            print(f"{arguments.rows:,} {array}, which are {size:,.0f} MiB")
            for suffix in (".png", ".pdf"):
                compare(what, suffix, arguments.rounds, folder)


if __name__ == "__main__":
    main()
