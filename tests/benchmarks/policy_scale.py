"""What a policy costs a connection: FullMesh gives each of 2,000 a second subflow, and another watches 10,000.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/policy_scale.py [--connections 2000] [--watched 10000]

It runs in labs of its own, without privilege, and takes about a minute. It needs two descriptors a connection: the soft
limit is raised, and the hard one may allow fewer connections. A benchmark, not a test: nothing fails for being slow,
but it ends with an error if a subflow was not accepted.

First `mptcp policy --builtin fullmesh`, twice: it is there before the connections, which then come one after the other,
or comes when all are there, and opens all the subflows at once; the time until all are accepted is then from its start.
Accepted is what the client's kernel says, by inet_diag.

Then a policy with on_connection(), on_subflow_lost() and on_closed() that does nothing in them, on connections of one
subflow: what it takes to hear of all that are there when it starts, to watch them, which is nothing but the look for
those that end without an event, and to hear of the end of all.

Memory and processor time are those of the policy's process, by /proc/PID, beyond what it has without a connection.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mptcp
from mptcp.lab import Host, Lab, Link

PORT = 5000
DEADLINE = 120.0
WATCHED_FOR = 10.0
COMMAND = [sys.executable, "-m", "mptcp", "policy"]
FULL_MESH = [*COMMAND, "--builtin", "fullmesh"]

#: Counts what it is told of in a file, a byte each, so that nothing else is needed to see how far it is.
WATCHING = """
import mptcp


class Watching(mptcp.Policy):
    def __init__(self):
        self.file = open({name!r}, "ab", buffering=0)

    def on_connection(self, conn):
        self.file.write(b"+")

    def on_subflow_lost(self, conn, event):
        pass

    def on_closed(self, conn):
        self.file.write(b"-")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--watched", type=int, default=10_000)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    possible = (most - 200) // 2
    if number := min(arguments.connections, possible):
        print(f"{f'FullMesh, {number} connections':40}{'all accepted':>14}{'memory':>16}{'processor':>16}")
        for is_first in (True, False):
            with Lab() as lab:
                print_row(lab, number, is_first)
    if number := min(arguments.watched, possible):
        print(f"{f'watched, {number} connections':40}{'time':>14}{'memory':>16}{'processor':>16}")
        with Lab() as lab:
            print_watched(lab, number)


def print_row(lab: Lab, number: int, is_first: bool) -> None:
    client, server = lab.host("client"), lab.host("server")
    links = [lab.link(client, server) for _ in range(2)]
    # What accepts takes no process.
    server.set_path_manager("kernel")
    server.set_limits(subflows=8)
    with contextlib.ExitStack() as stack:
        if is_first:
            name, process = "the policy before the connections", start(client)
            before = usage(process.pid)
            begin = time.monotonic()
            connect(client, server, links, number, stack)
        else:
            before = idle(client, FULL_MESH)
            connect(client, server, links, number, stack)
            begin = time.monotonic()
            name, process = "the connections before the policy", start(client, wait=False)
        wait_until_accepted(client, links, number)
        taken = time.monotonic() - begin
        now = usage(process.pid)
        end(process)
    print_line(name, taken, before, now, number)


def print_watched(lab: Lab, number: int) -> None:
    client, server = lab.host("client"), lab.host("server")
    links = [lab.link(client, server)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        told, policy = Path(folder, "told"), Path(folder, "watching.py")
        policy.write_text(WATCHING.format(name=str(told)))
        command = [*COMMAND, str(policy)]
        before = idle(client, command)
        connect(client, server, links, number, stack)
        begin = time.monotonic()
        process = start(client, command, wait=False)
        wait_until_told(told, number)
        there, seen = usage(process.pid), time.monotonic()
        print_line("until it was told of all", seen - begin, before, there, number)
        time.sleep(WATCHED_FOR)
        watched = usage(process.pid)
        print_line("watching them", time.monotonic() - seen, there, watched, number)
        begin = time.monotonic()
        stack.close()
        wait_until_told(told, 2 * number)
        print_line("until it was told of the end of all", time.monotonic() - begin, watched, usage(process.pid), number)
        end(process)


def print_line(name: str, taken: float, before: tuple[float, float], now: tuple[float, float], number: int) -> None:
    memory, processor = (one - then for one, then in zip(now, before, strict=True))
    columns = f"{taken:12.2f} s{memory / number / 1024:12.2f} KiB{processor / number * 1e3:13.3f} ms"
    print(f"{name:40}{columns}  a connection", flush=True)


def idle(client: Host, command: list[str]) -> tuple[float, float]:
    """What the policy has used before it has connections."""
    process = start(client, command)
    used = usage(process.pid)
    end(process)
    return used


def wait_until_told(told: Path, count: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while (size := told.stat().st_size if told.exists() else 0) < count:
        if time.monotonic() > deadline:
            sys.exit(f"the policy was told {size} of {count} times in {DEADLINE:.0f} s")
        time.sleep(0.005)


def start(client: Host, command: list[str] = FULL_MESH, wait: bool = True) -> subprocess.Popen[str]:
    process = client.popen(command, stderr=subprocess.PIPE, text=True)
    if wait:
        assert process.stderr is not None
        process.stderr.readline()  # "running"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    _, errors = process.communicate()
    if process.returncode != 0 or "Error" in errors:
        sys.exit(errors)


def connect(client: Host, server: Host, links: list[Link], number: int, stack: contextlib.ExitStack) -> None:
    listener = stack.enter_context(server.create_server(("", PORT), backlog=1024))
    address = links[0].address(server)
    for _ in range(number):
        sock = stack.enter_context(client.create_connection((address, PORT), timeout=30))
        peer = stack.enter_context(listener.accept()[0])
        for sender, receiver in ((sock, peer), (peer, sock)):
            sender.sendall(b"x")
            receiver.recv(1)


def wait_until_accepted(client: Host, links: list[Link], number: int) -> None:
    """Until the peer has accepted a subflow of every connection on the second path."""
    local = links[1].address(client)
    deadline = time.monotonic() + DEADLINE
    handles = client.connections()
    assert len(handles) == number, f"{len(handles)} connections"
    while True:
        read = mptcp._connection.subflows_of(handles)
        done = sum(any(one.local[0] == local and one._accepted for one in subflows or ()) for subflows in read)
        if done == number:
            return
        if time.monotonic() > deadline:
            sys.exit(f"{done} of {number} subflows were accepted in {DEADLINE:.0f} s")
        # Every look costs some milliseconds, which the policy lacks.
        time.sleep(0.02)


def usage(pid: int) -> tuple[float, float]:
    """Bytes of memory of its own, and seconds of processor time."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    memory = sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Private_"))
    # To the nanosecond, of the threads that there are; /proc/PID/stat counts in hundredths of a second.
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return memory, sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


if __name__ == "__main__":
    main()
