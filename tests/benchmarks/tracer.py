"""What a Tracer costs a sender at full speed over loopback, and whether it loses anything.

    sudo .venv/bin/python tests/benchmarks/tracer.py

Needs CAP_BPF and CAP_PERFMON. The sender, a process of its own, writes 1 MB at a time, and another one receives. The
processor time of the sender for each byte, traced and not, is taken in turns of a second: that of the programs at the
tracepoints is in it, that of the Tracer's thread is not, and has a row of its own. Then both ends are traced.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path

import mptcp
from sender import Sender, at_full_speed
from turns import Row, compare, publish, take_turns

PAIRS = 20
TURN = 1.0
LONG = 10.0
UNIT = "ms/GB"


def main() -> None:
    lost: list[int] = []
    records: list[float] = []
    threads: list[float] = []

    def turn(sender: Sender, *, traced: bool) -> float:
        own = time.process_time()
        with mptcp.Tracer(sender.connection) if traced else contextlib.nullcontext() as tracer:
            begin = time.monotonic(), used_by(sender.pid), sender.bytes_sent()
            time.sleep(TURN)
            used, sent = used_by(sender.pid) - begin[1], sender.bytes_sent() - begin[2]
            seconds = time.monotonic() - begin[0]
        if tracer is not None:
            lost.append(tracer.lost)
            # With the loading of the programs, and the making of rows.
            threads.append((time.process_time() - own) * 1e12 / sent)
            records.append((len(tracer.trace.packets) + len(tracer.candidates) + len(tracer.acks)) / seconds)
        return used * 1e3 / sent

    with at_full_speed() as sender:
        time.sleep(1)
        figures = take_turns(
            {
                "traced": lambda: turn(sender, traced=True),
                "not traced": lambda: turn(sender, traced=False),
            },
            PAIRS,
        )
        with mptcp.Tracer() as tracer:
            before = sender.bytes_sent()
            time.sleep(LONG)
            rate = (sender.bytes_sent() - before) / LONG / 1e9
    rows = len(tracer.trace.packets)
    publish(
        "A sender at full speed over loopback, its processor time for each GB",
        [
            compare(figures, "traced", "not traced", unit=UNIT, aim=1.05),
            Row("the Tracer's own thread", "", statistics.median(threads), unit=UNIT, missing="beside the sender"),
            Row("rows, of segments, candidates and ACKs", "", statistics.median(records), unit="a second", missing=""),
            Row("records lost in these turns", "", sum(lost), unit="", missing=""),
            Row(f"records lost in {LONG:g} s, both ends", "", tracer.lost, unit="", missing=f"{rows:,} segments"),
            Row("the sender's rate meanwhile", "", rate, unit="GB/s", missing=""),
        ],
    )


def used_by(pid: int) -> int:
    """The processor time of a process with one thread, nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


if __name__ == "__main__":
    main()
