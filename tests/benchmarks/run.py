"""What ``mptcp run`` costs: the throughput of iperf3 under it, and the calls that it serves.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/run.py

Needs iperf3, mptcpize (of mptcpd) and a C compiler, no privilege, and runs in a lab of its own for about a minute. A
benchmark, not a test: nothing fails for being slow.

mptcpize makes a program's sockets Multipath TCP by LD_PRELOAD, without a supervisor. It and ``mptcp run`` take turns,
in an order that chance decides, and each number is the median of its rounds. Both have one subflow, over a link that is
not shaped, so that the processor is the limit.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import mptcp
from mptcp.lab import Host, two_paths

PORT = 5000
ROUNDS = 10
SECONDS = 2
CALLS = 2000
IPPROTO_MPTCP = 262

RUN = [sys.executable, "-m", "mptcp", "run"]
HERE = Path(__file__).parent


def main() -> None:
    missing = [program for program in ("iperf3", "mptcpize", "cc") if shutil.which(program) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    with two_paths(rate=None) as (client, server, paths):
        address = paths[0].address(server)
        throughput(client, server, address)
        print()
        calls(client, server, address)


def throughput(client: Host, server: Host, address: str) -> None:
    contestants = {"mptcpize run": ["mptcpize", "run"], "mptcp run": RUN}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with server.popen(["mptcpize", "run", "iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL) as serving:
        while not server.run(["ss", "-Htln", f"sport = {PORT}"], capture_output=True).stdout:
            pass
        for _ in range(ROUNDS):
            for name in random.sample(list(contestants), len(contestants)):
                command = [*contestants[name], "iperf3", "-c", address, "-p", str(PORT), "-t", str(SECONDS), "-J"]
                done = client.run(command, capture_output=True, text=True, check=True, timeout=60)
                rates[name].append(json.loads(done.stdout)["end"]["sum_sent"]["bits_per_second"] / 1e9)
        serving.terminate()
    bare = statistics.median(rates["mptcpize run"])
    print(f"{f'iperf3, {ROUNDS} rounds of {SECONDS} s':32}{'Gbit/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>9}")
    for name, each in rates.items():
        median = statistics.median(each)
        print(f"{name:32}{median:10.2f}{min(each):10.2f}{max(each):10.2f}{median / bare:9.3f}")


def calls(client: Host, server: Host, address: str) -> None:
    """run_calls in both ways; without a supervisor it makes Multipath TCP sockets itself."""
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder, server.create_server(("", PORT)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        program = f"{folder}/run_calls"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "run_calls.c"], check=True)
        for _ in range(ROUNDS):
            for supervised in random.sample([False, True], 2):
                prefix, protocol = (RUN, 0) if supervised else ([], IPPROTO_MPTCP)
                command = [*prefix, program, address, str(PORT), str(CALLS), str(protocol)]
                done = client.run(command, capture_output=True, text=True, check=True, timeout=60)
                times[supervised].append([float(word) / 1e3 for word in done.stdout.split()])

    def median(supervised: bool, column: int) -> float:
        return statistics.median(each[column] for each in times[supervised])

    rows = [
        ("getsockopt(TCP_NODELAY)", False, 0),
        ("  in a supervised program", True, 0),
        ("getsockopt(MPTCP_INFO)", False, 1),
        ("  in a supervised program", True, 1),
        ("MPTCP_GET_SUB_IDS, served", True, 2),
        ("socket(IPPROTO_MPTCP), close()", False, 3),
        ("socket(), close(), served", True, 3),
    ]
    print(f"{f'{ROUNDS} rounds of {CALLS} calls':32}{'us':>10}{'ratio to getsockopt(TCP_NODELAY)':>36}")
    for name, supervised, column in rows:
        print(f"{name:32}{median(supervised, column):10.2f}{median(supervised, column) / median(False, 0):36.1f}")


def echo(listener: mptcp.Socket) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer, contextlib.suppress(OSError):
            peer.sendall(peer.recv(1))
            peer.recv(1)


if __name__ == "__main__":
    main()
