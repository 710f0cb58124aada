"""The broker lives through what its clients do and its clients through its death; nothing is left changed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from brokered import CONNECT, RAW, Brokered, held, server_of
from kills import RULES as KILLS
from kills import kill_brokers, kill_clients
from support import eventually

RULES = '[[rule]]\nremotes = ["10.0.0.0/8"]\n'


def test_it_has_few_privileges(brokered: Brokered) -> None:
    # It has dropped the others once it says that it listens.
    status = Path(f"/proc/{server_of(brokered)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    wanted = f"{1 << 12:016x}"  # CAP_NET_ADMIN
    assert fields["CapEff"] == fields["CapPrm"] == wanted
    assert fields["CapInh"] == "0" * 16
    assert set(fields["Uid"].split()) == {"65534"}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Groups"].strip() == ""


def test_floods_leave_nothing_behind(brokered: Brokered) -> None:
    pid = server_of(brokered)
    # It keeps up to four netlink sockets that it once needed.
    most = held(pid)[0] + 4
    flood = (
        RAW
        + CONNECT
        + """
import random
seed = random.Random(len(sys.argv))
null = os.open("/dev/null", os.O_RDONLY)
for round in range(300):
    raw = Raw()
    try:
        for _ in range(seed.randrange(4)):
            raw.send(seed.randrange(9), seed.randbytes(seed.randrange(300)), [null] * seed.randrange(5) or None)
    except ConnectionError:
        pass  # an event stream is closed whose reader writes
    if seed.random() < 0.5:
        raw.socket.close()
    elif seed.random() < 0.2:
        stream = Raw(); stream.send(EVENTS); stream.socket.close()
"""
    )
    brokered.run(flood)
    before = None
    for _ in range(3):
        brokered.run(flood)
        assert eventually(lambda: len(os.listdir(f"/proc/{pid}/task")) <= 6, 10)
        # Streams that nobody reads any more are found by the second.
        if before is None:
            assert eventually(lambda: held(pid)[0] <= most, 10), held(pid)
            before = held(pid)
    assert eventually(lambda: held(pid)[0] <= before[0], 10), (before, held(pid))
    assert held(pid)[1] - before[1] < 1024, (before, held(pid))


def test_its_death_and_return(make_brokered: Callable[[], Brokered]) -> None:
    """A stream of events goes on with OVERRUN and the state read back; calls meanwhile say that there is no broker."""
    brokered = make_brokered()
    brokered.start(RULES)
    program = brokered.popen(
        CONNECT
        + """
events = sock.events()
first = sock.open_subflow(c2, s2)
while events.get(timeout=10).kind != EventKind.SUB_ESTABLISHED:
    pass
print("ready", flush=True)
sys.stdin.readline()
try:
    sock.open_subflow(c2, s2)
except OSError as error:
    assert not isinstance(error, mptcp.SubflowError), error
else:
    raise AssertionError
print("dead", flush=True)
sys.stdin.readline()
kinds = []
while EventKind.SUB_ESTABLISHED not in kinds:
    kinds.append(events.get(timeout=10).kind)
assert EventKind.OVERRUN in kinds, kinds
end = time.monotonic() + 10
while True:
    try:
        second = sock.open_subflow(c2, s2)
        break
    except OSError:
        if time.monotonic() > end: raise
        time.sleep(0.05)
while True:
    event = events.get(timeout=10)
    if event.kind == EventKind.SUB_ESTABLISHED and event.local == second.local:
        break
sock.close_subflow(second)
print("done", flush=True)
"""
    )
    assert program.stdout is not None
    assert program.stdin is not None
    assert brokered.broker is not None

    def step(word: str) -> None:
        assert program.stdout is not None
        if program.stdout.readline().strip() != word:
            raise AssertionError(program.communicate()[1])

    step("ready")
    os.kill(server_of(brokered), signal.SIGKILL)
    _, log = brokered.broker.communicate(timeout=20)
    assert "killed by signal 9" in log
    assert not brokered.socket.exists()
    program.stdin.write("\n")
    program.stdin.flush()
    step("dead")
    brokered.start(RULES)
    program.stdin.write("\n")
    program.stdin.flush()
    step("done")
    program.communicate(timeout=20)
    brokered.stop()


@pytest.mark.timeout(300)
def test_random_kills_leave_nothing_behind(make_brokered: Callable[[], Brokered]) -> None:
    """A thousand of them are a command: kills.py, whose result is in docs/broker.md."""
    brokered, seed = make_brokered(), random.Random(3)
    brokered.start(KILLS)
    kept = kill_clients(brokered, 100, seed)
    kept.check()
    kill_brokers(brokered, 20, seed)


def test_usage(tmp_path: Path) -> None:
    def mptcp(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mptcp", "broker", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    file = tmp_path / "rules.toml"
    for text, words in {
        "": "at least one",
        "x": "rules.toml",
        "[[rule]]\nuser = [1]\n": "there is no user",
        "[[rule]]\nusers = []\n": "must not be empty",
        "[[rule]]\nusers = ['no-such-user']\n": "no-such-user",
        "[[rule]]\nremotes = ['10.0.0.1/8']\n": "host bits",
        "[[rule]]\nallow = 1\n": "true or false",
        "[[rule]]\nclients = 0\n": "from 1 to 1024",
        "[rules]\n": "[[rule]]",
    }.items():
        file.write_text(text)
        for arguments in (("--check", str(file)), ("--rules", str(file), "--socket", str(tmp_path / "s"))):
            done = mptcp(*arguments)
            assert done.returncode == 2, (text, done)
            assert words in done.stderr, (text, done)
    file.write_text("[[rule]]\nusers = [1, 'root']\ngroups = ['root']\nremotes = ['10.0.0.0/8', 'fd00::1']\n")
    done = mptcp("--check", str(file))
    assert done.returncode == 0
    assert done.stdout == f"{file}: 1 rule\n"
    assert "must not be root" in mptcp("--user", "root").stderr
