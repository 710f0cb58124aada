"""What the broker adds: each call by an ordinary user through it, beside the same call as root.

    sudo .venv/bin/python tests/benchmarks/broker.py [--calls N]

In a lab of two hosts, whose namespaces belong to the host's own user namespace. Rounds alternate; the aim is 0.15 ms
more at the median and 1 ms at p99.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mptcp.lab import Host, two_paths

NOBODY = 65534
ROUNDS = 5

# Opening and closing towards an address of the peer, as a program does it.
CALLS = """
import encodings.idna, json, os, socket, sys, time
import mptcp
local, remote, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
if os.environ.get("MPTCP_BROKER"):
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
times = {}
def timed(name, call, *arguments, **named):
    start = time.perf_counter()
    result = call(*arguments, **named)
    times.setdefault(name, []).append(time.perf_counter() - start)
    return result
sock = mptcp.create_connection((remote, 5000), path_manager="userspace")
sock.sendall(b"x"); sock.recv(1)
for _ in range(count):
    subflow = timed("open_subflow", sock.open_subflow, local)
    timed("set_backup", subflow.set_backup, True)
    timed("setsockopt on a subflow", subflow.setsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    timed("close_subflow", sock.close_subflow, subflow)
for _ in range(count // 2):
    timed("Socket(path_manager=)", mptcp.Socket, path_manager="userspace").close()
    time.sleep(0.03)  # fewer a second than a user may have: the wait for a turn is not the call's cost
print(json.dumps(times))
"""

SERVER = """
import mptcp
listener = mptcp.create_server(("", 5000))
print(flush=True)
while True:
    sock, _ = listener.accept()
    sock.sendall(sock.recv(1))
    sock.recv(1)
"""


def measure(host: Host, local: str, remote: str, count: int, broker: Path | None) -> dict[str, list[float]]:
    environment = {**os.environ, "MPTCP_BROKER": str(broker)} if broker else os.environ
    command = [sys.executable, "-c", CALLS, local, remote, str(count)]
    done = host.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    times: dict[str, list[float]] = json.loads(done.stdout)
    return times


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="calls of each kind in each of five rounds")
    count = parser.parse_args().calls
    with two_paths() as (client, server, paths), tempfile.TemporaryDirectory() as folder, server.events():
        os.chmod(folder, 0o755)
        client.set_path_manager("kernel")
        path, rules = Path(folder) / "broker.sock", Path(folder) / "rules.toml"
        rules.write_text("[[rule]]\nopens_per_second = 100000\nholds_per_second = 50\n")
        serving = server.popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
        command = [sys.executable, "-m", "mptcp", "broker", "--socket", str(path), "--rules", str(rules)]
        broker = client.popen(command, stderr=subprocess.PIPE)
        assert serving.stdout is not None
        assert broker.stderr is not None
        serving.stdout.readline()
        broker.stderr.readline()
        # Its journal is long, and a full pipe would stop it.
        drain = subprocess.Popen(["cat"], stdin=broker.stderr, stdout=subprocess.DEVNULL)
        local, remote = paths[1].address(client), paths[0].address(server)
        ours: dict[str, list[float]] = {}
        roots: dict[str, list[float]] = {}
        try:
            for _ in range(ROUNDS):
                for into, by in ((roots, None), (ours, path)):
                    for name, times in measure(client, local, remote, count, by).items():
                        into.setdefault(name, []).extend(times)
        finally:
            broker.send_signal(signal.SIGTERM)
            serving.kill()
            for process in (broker, serving, drain):
                process.wait()
    print(f"{'':26}{'root':>9}{'broker':>9}{'more':>9}   {'root':>9}{'broker':>9}{'more':>9}")
    print(f"{'us':26}{'median':>27}   {'p99':>27}")
    for name in roots:
        middle = [1e6 * statistics.median(each[name]) for each in (roots, ours)]
        high = [1e6 * quantile(each[name], 0.99) for each in (roots, ours)]
        figures = [f"{a:9.1f}{b:9.1f}{b - a:9.1f}" for a, b in (middle, high)]
        print(f"{name:26}{figures[0]}   {figures[1]}")


if __name__ == "__main__":
    main()
