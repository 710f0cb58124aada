"""What ``mptcp run`` costs: the throughput of iperf3 under it, and the calls that it serves.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/run.py

Needs iperf3 and a C compiler, no privilege, and runs in a lab of its own for some two minutes. A
benchmark, not a test: nothing fails for being slow.

mptcpize makes a program's sockets Multipath TCP by LD_PRELOAD, without a supervisor. It and ``mptcp run`` take turns.
Both have one subflow, over a link that is not shaped, so that the processor is the limit. turns.py says how it is
measured.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import mptcp
from mptcp.lab import Host, two_paths
from turns import Missing, Round, compare, publish, take_turns

PORT = 5000
ROUNDS = 40  # iperf3 is now fast, now slow, by what runs on which processor
SECONDS = 1
CALLS = 2000
IPPROTO_MPTCP = 262

RUN = [sys.executable, "-m", "mptcp", "run"]
HERE = Path(__file__).parent


def main() -> None:
    missing = [program for program in ("iperf3", "cc") if shutil.which(program) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    with two_paths(rate=None) as (client, server, paths):
        address = paths[0].address(server)
        throughput(client, server, address)
        calls(client, server, address)


def throughput(client: Host, server: Host, address: str) -> None:
    def sending(prefix: list[str]) -> Round:
        command = [*prefix, "iperf3", "-c", address, "-p", str(PORT), "-t", str(SECONDS), "-J"]

        def run() -> float:
            done = client.run(command, capture_output=True, text=True, check=True, timeout=60)
            rate: float = json.loads(done.stdout)["end"]["sum_sent"]["bits_per_second"]
            return rate / 1e9

        return run

    ours, peer = "iperf3 by mptcp run", "by mptcpize run"
    contestants: dict[str, Round | Missing] = {
        ours: sending(RUN),
        peer: sending(["mptcpize", "run"]) if shutil.which("mptcpize") else Missing("mptcpize is not installed"),
    }
    with server.popen([*RUN, "iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL) as serving:
        while not server.run(["ss", "-Htln", f"sport = {PORT}"], capture_output=True).stdout:
            pass
        figures = take_turns(contestants, ROUNDS)
        serving.terminate()
    row = compare(figures, ours, peer, unit="Gbit/s", contestants=contestants)
    publish(f"Throughput of one subflow, {ROUNDS} rounds of {SECONDS} s: more is better", [row])


def calls(client: Host, server: Host, address: str) -> None:
    """run_calls in both ways; without a supervisor it makes Multipath TCP sockets itself."""
    with tempfile.TemporaryDirectory() as folder, server.create_server(("", PORT)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        program = f"{folder}/run_calls"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "run_calls.c"], check=True)

        def calling(names: list[str], prefix: list[str], protocol: int) -> Round:
            command = [*prefix, program, address, str(PORT), str(CALLS), str(protocol)]

            def run() -> Mapping[str, float]:
                done = client.run(command, capture_output=True, text=True, check=True, timeout=60)
                return dict(zip(names, map(float, done.stdout.split()), strict=True))

            return run

        bare = ["getsockopt(TCP_NODELAY)", "getsockopt(MPTCP_INFO)", "", "socket(IPPROTO_MPTCP), close()"]
        ours = [f"{name}, supervised" for name in bare[:2]] + ["MPTCP_GET_SUB_IDS, served", "socket(), close(), served"]
        figures = take_turns({"bare": calling(bare, [], IPPROTO_MPTCP), "supervised": calling(ours, RUN, 0)}, ROUNDS)
    pairs = [*zip(ours[:2], bare[:2], strict=True), (ours[2], bare[1]), (ours[3], bare[3])]
    publish(f"Calls of a program in C, {ROUNDS} rounds of {CALLS} calls", [compare(figures, *pair) for pair in pairs])


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
