"""Control very many connections of several ordinary users through one broker:

    sudo .venv/bin/python tests/broker/scale.py [--connections 10000] [--users 4]

Each user has its share of the connections, opens and closes a subflow on each, one after the other beside the other
users, and listens to its events. Prints the time of a call, and what the broker had before, with all connections and
after they have ended: descriptors, threads, memory, and its processor time a call.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from brokered import Brokered, brokered_hosts, connections_of, held, server_of
from support import eventually

RULES = '[[rule]]\nremotes = ["10.0.0.0/8"]\nopens_per_second = 100000\nclients = 500\nhold = 600\n'

# Holds what it accepts, and answers the first byte, without a thread for each.
SERVER = """
import selectors, mptcp
listener = mptcp.create_server(("", 6000), backlog=4096)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
print(flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            accepted, _ = listener.accept()
            selector.register(accepted, selectors.EVENT_READ)
        elif data := key.fileobj.recv(100):
            key.fileobj.sendall(data)
        else:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"""

USER = """
count = int(sys.stdin.readline())
socks, times, failed = [], {{"open_subflow": [], "close_subflow": []}}, 0
with mptcp.use_path_manager("userspace"):
    for _ in range(count):
        sock = mptcp.create_connection((s1, 6000))
        sock.sendall(b"x"); sock.recv(1)
        socks.append(sock)
print(flush=True); sys.stdin.readline()
with mptcp.Events() as events:
    for sock in socks:
        try:
            start = time.perf_counter()
            subflow = sock.open_subflow(c2)
            times["open_subflow"].append(time.perf_counter() - start)
            start = time.perf_counter()
            sock.close_subflow(subflow)
            times["close_subflow"].append(time.perf_counter() - start)
        except OSError as error:
            failed += 1
            print(error, file=sys.stderr)
    told, overruns = set(), 0
    try:
        while event := events.get(timeout=1):
            overruns += event.kind == EventKind.OVERRUN
            if event.kind == EventKind.SUB_ESTABLISHED:
                told.add(event.token)
    except TimeoutError:
        pass
print(json.dumps([times, failed, len(told), overruns]), flush=True); sys.stdin.readline()
"""


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(what: str, pid: int) -> None:
    descriptors, kilobytes = held(pid)
    threads = len(os.listdir(f"/proc/{pid}/task"))
    print(f"{what:26} {descriptors:4} descriptors {threads:4} threads {kilobytes / 1024:7.1f} MiB", flush=True)


def run(brokered: Brokered, connections: int, users: int) -> None:
    server = brokered.server.popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    pid = server_of(brokered)
    show("before", pid)
    programs = [brokered.popen(USER.format(), 60000 + number) for number in range(users)]

    def step(line: str) -> list[str]:
        # Each has its pipes, which mypy cannot know.
        for program in programs:
            program.stdin.write(line + "\n")  # type: ignore[union-attr]
            program.stdin.flush()  # type: ignore[union-attr]
        told = [program.stdout.readline() for program in programs]  # type: ignore[union-attr]
        if not all(told):
            raise AssertionError([program.communicate()[1] for program in programs])
        return told

    try:
        step(str(connections // users))
        show(f"{connections} connections", pid)
        started, used = time.monotonic(), processor_time(pid)
        results = [json.loads(line) for line in step("")]
        elapsed, used = time.monotonic() - started - 1, processor_time(pid) - used
        show("after a call on each", pid)
        calls = 0
        for name in ("open_subflow", "close_subflow"):
            all_times = sorted(1e3 * each for times, *_ in results for each in times[name])
            calls += len(all_times)
            high = all_times[int(0.99 * len(all_times))]
            print(f"{name:26} {len(all_times)} calls, ms: median {statistics.median(all_times):.2f}, p99 {high:.2f}")
        cost = f"{1e6 * used / calls:.0f} us of the broker's processor each"
        print(f"{calls / elapsed:.0f} calls a second of {users} users; {cost}")
        for _, failed, told, overruns in results:
            print(f"a user: {failed} failed, events of {told} connections, {overruns} losses told")
    finally:
        for program in programs:
            program.kill()
            program.communicate()
        eventually(lambda: connections_of(brokered) == 0, 30)
        show("after their end", pid)
        server.kill()
        server.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=4)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with brokered_hosts() as brokered:
        brokered.client.sysctl("net.ipv4.ip_local_port_range", "10000 65000")
        brokered.start(RULES)
        run(brokered, arguments.connections, arguments.users)


if __name__ == "__main__":
    main()
