"""Kill clients of a broker, and the broker itself, at random moments:

    sudo .venv/bin/python tests/broker/kills.py NUMBER     (of each)

Afterwards the broker has the descriptors that it had and less than 1 MB more memory, another user's connection is as it
was, and so is the path manager of the namespace, after each kill.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from brokered import CONNECT, OTHER, RAW, Brokered, brokered_hosts, connections_of, held, server_of
from support import eventually

RULES = '[[rule]]\nremotes = ["10.0.0.0/8"]\nholds_per_second = 50\nopens_per_second = 100000\nclients = 500\n'


# Forks a client for each line and kills it after so many seconds: starting Python anew would take far longer.
CLIENTS = (
    RAW
    + """
import itertools, random, signal
def client(seed):
    seed = random.Random(seed)
    sock = None
    for _ in itertools.count():
        try:
            kind = seed.randrange(7)
            if sock is None or kind == 0:
                sock = mptcp.Socket(path_manager="userspace")
                sock.connect((s1, 5000)); sock.sendall(b"hello"); sock.recv(5)
            elif kind == 1:
                sock.open_subflow(c2, s2)
            elif kind == 2:
                for subflow in sock.subflows()[1:]: subflow.close()
            elif kind == 3:
                events = sock.events()
            elif kind == 4:
                raw = Raw(); raw.send(COMMAND, create(sock.token, c2, s1, 5000), [sock.fileno()])
            elif kind == 5:
                raw = Raw(); raw.send(HOLD, b"userspace")
            else:
                raw = Raw(); raw.send(EVENTS); raw.send(seed.randrange(9), seed.randbytes(100))
        except (OSError, Denied, EOFError):
            pass
print(flush=True)
for line in sys.stdin:
    number, seconds = line.split()
    if not (pid := os.fork()):
        try:
            client(int(number))
        finally:
            os._exit(0)
    time.sleep(float(seconds))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(flush=True)
"""
)

# Forks a broker for each line, for the same reason.
BROKERS = """
import os, sys
import mptcp.cli, mptcp.cli.broker
for _ in sys.stdin:
    if not (pid := os.fork()):
        os._exit(mptcp.cli.main(["broker", "--socket", sys.argv[1], "--rules", sys.argv[2]]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

VICTIM = (
    CONNECT
    + """
before = [(s.id, s.local, s.remote, s.backup) for s in sock.subflows()]
print(flush=True)
sys.stdin.read()
assert [(s.id, s.local, s.remote, s.backup) for s in sock.subflows()] == before
assert sock.path_manager == "userspace"
sock.sendall(b"hello"); assert sock.recv(5) == b"hello"
"""
)

LATCHERS = """
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        mptcp.Socket(path_manager="userspace").close()
    except OSError:
        pass
"""


@dataclass
class Kept:
    """What the broker had, in descriptors and KiB, before and after."""

    before: tuple[int, int]
    after: tuple[int, int]

    def check(self) -> None:
        # It keeps up to four netlink sockets that it once needed at the same time.
        assert self.after[0] <= self.before[0] + 4, self
        assert self.after[1] - self.before[1] < 1024, self


def settled(brokered: Brokered, connections: int) -> tuple[int, int]:
    """Return what the broker has once the connections of those who were killed have ended, streams of events too."""
    assert eventually(lambda: connections_of(brokered) <= connections, 30)
    return held(server_of(brokered))


def kill_clients(brokered: Brokered, number: int, seed: random.Random) -> Kept:
    """Kill clients at random moments of what they do."""
    victim = brokered.popen(VICTIM, OTHER)
    clients = brokered.popen(CLIENTS)
    assert victim.stdout is not None
    assert clients.stdin is not None
    assert clients.stdout is not None
    # Their pipes are there; mypy forgets that in a loop and in a function inside.
    for started in (victim, clients):
        if not started.stdout.readline():  # type: ignore[union-attr]
            raise AssertionError(started.communicate()[1])

    def kill(count: int) -> None:
        for _ in range(count):
            clients.stdin.write(f"{seed.randrange(1 << 30)} {seed.random() * 0.05}\n")  # type: ignore[union-attr]
            clients.stdin.flush()  # type: ignore[union-attr]
            clients.stdout.readline()  # type: ignore[union-attr]

    connections = connections_of(brokered)  # the victim's
    kill(min(20, number))  # what it keeps from its first requests on
    before = settled(brokered, connections)
    kill(number)
    after = settled(brokered, connections)
    for ended in (clients, victim):
        _, errors = ended.communicate(timeout=60)
        assert ended.returncode == 0, errors
    assert brokered.client.get_path_manager() == "kernel"
    return Kept(before, after)


def kill_brokers(brokered: Brokered, number: int, seed: random.Random) -> None:
    """Kill the broker and start it again, while clients latch sockets without end."""
    if brokered.broker:
        brokered.stop()
    rules = brokered.socket.with_suffix(".toml")
    rules.write_text(RULES)
    client = brokered.popen(LATCHERS)
    brokers = brokered.client.popen(
        [sys.executable, "-c", BROKERS, str(brokered.socket), str(rules)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert brokers.stdin is not None
    assert brokers.stdout is not None
    assert brokers.stderr is not None
    for _ in range(number):
        brokers.stdin.write("\n")
        brokers.stdin.flush()
        pid = int(brokers.stdout.readline())
        assert "listening" in (line := brokers.stderr.readline()), line
        time.sleep(seed.random() / 10)  # the moment of the kill is what is tried
        (server,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(server), signal.SIGKILL)
        assert int(brokers.stdout.readline()) == 1
        assert "killed by signal 9" in (line := brokers.stderr.readline()), line
        assert brokered.client.get_path_manager() == "kernel"
    for ended, end in ((brokers, None), (client, "\n")):
        _, errors = ended.communicate(end, timeout=30)
        assert ended.returncode == 0, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int)
    number = parser.parse_args().number
    seed = random.Random()
    with brokered_hosts() as brokered:
        brokered.start(RULES)
        kept = kill_clients(brokered, number, seed)
        print(f"{number} clients killed: descriptors and KiB before {kept.before}, after {kept.after}", flush=True)
        kept.check()
        kill_brokers(brokered, number, seed)
        print(f"{number} brokers killed: the path manager was put back each time")


if __name__ == "__main__":
    main()
