"""What a policy costs a connection: FullMesh gives each of 2,000 connections a second subflow.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/policy_scale.py [--connections 2000]

It runs in a lab of its own, without privilege, and takes less than a minute. It needs two descriptors a connection; the
soft limit is raised. A benchmark, not a test: nothing fails for being slow, but it ends with an error if a subflow was
not accepted.

Twice: `mptcp policy --builtin fullmesh` is there before the connections, which then come one after the other, or comes
when all are there, and opens all the subflows at once; the time until all are accepted is then from its start. Memory
and processor time are those of its process, by /proc/PID, beyond what it has without a connection. Accepted is what the
client's kernel says, by inet_diag.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import time
from pathlib import Path

import mptcp
from mptcp.lab import Host, Lab, Link

PORT = 5000
DEADLINE = 120.0
POLICY = [sys.executable, "-m", "mptcp", "policy", "--builtin", "fullmesh"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2000)
    number = parser.parse_args().connections
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"{f'{number} connections':40}{'all accepted':>14}{'memory':>16}{'processor':>16}")
    for is_first in (True, False):
        with Lab() as lab:
            print_row(lab, number, is_first)


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
            # What it has before it has connections.
            idle = start(client)
            before = usage(idle.pid)
            end(idle)
            connect(client, server, links, number, stack)
            begin = time.monotonic()
            name, process = "the connections before the policy", start(client, wait=False)
        wait_until_accepted(client, links, number)
        taken = time.monotonic() - begin
        memory, processor = (now - then for now, then in zip(usage(process.pid), before, strict=True))
        end(process)
    columns = f"{taken:12.2f} s{memory / number / 1024:12.2f} KiB{processor / number * 1e3:13.3f} ms"
    print(f"{name:40}{columns}  a connection")


def start(client: Host, wait: bool = True) -> subprocess.Popen[str]:
    process = client.popen(POLICY, stderr=subprocess.PIPE, text=True)
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
