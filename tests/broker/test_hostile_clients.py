"""Clients that speak the protocol to do harm: to the broker's threads, to its quotas, and to who must wait for them."""

from __future__ import annotations

import os
import platform
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from brokered import CONNECT, HEAR, OTHER, RAW, Brokered, announcing, connection_of, held, server_of
from support import eventually


@pytest.fixture(scope="module")
def strict(make_brokered: Callable[[], Brokered]) -> Brokered:
    found = make_brokered()
    found.start("[[rule]]\nopens_per_second = 100000\nholds_per_second = 50\n")
    return found


def test_a_hold_ends_although_nobody_reads_its_reply(strict: Brokered) -> None:
    """Replies fill the queue, so that sending the one to HOLD has to wait."""
    strict.run(
        RAW
        + """
import fcntl
FIONREAD = 0x541B
def unread(raw):
    return struct.unpack("i", fcntl.ioctl(raw.socket, FIONREAD, bytes(4)))[0] // 32
full = Raw()
full.socket.setblocking(False)
try:
    while True: full.send(HELLO)
except BlockingIOError:
    pass
# As many as the queue has room for: no more have come for a second. No event tells how much waits there.
most, since = 0, time.monotonic()
while time.monotonic() < since + 1:
    if (now := unread(full)) != most: most, since = now, time.monotonic()
    time.sleep(0.01)
raw = Raw()
for _ in range(most): raw.send(HELLO)
end = time.monotonic() + 20
while unread(raw) < most and time.monotonic() < end:
    time.sleep(0.01)
raw.send(HOLD, b"userspace")
changed, last = 0, time.monotonic()
end = last + 3
while last < end:
    is_changed = mptcp.get_path_manager() != "kernel"
    now = time.monotonic()
    changed, last = changed + (now - last) * is_changed, now
assert changed < 1, changed
"""
    )


def test_a_close_that_takes_for_ever_does_not_keep_it_from_ending(make_brokered: Callable[[], Brokered]) -> None:
    brokered = make_brokered()
    brokered.start("[[rule]]\n")
    peer = brokered.server.popen(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.create_server(('', 6100)); print(flush=True); accepted = s.accept(); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert peer.stdout is not None
    peer.stdout.readline()
    client = brokered.popen(
        RAW
        + """
sock = socket.create_connection((s1, 6100))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
import select
sock.setblocking(False)
while select.select([], [sock], [], 0.5)[1]:  # until nobody has room for more
    sock.send(bytes(1 << 16))
print(flush=True)
sys.stdin.readline()
raw = Raw()
raw.send(COMMAND, create(1, c2, s1, 5000), [sock.fileno()])
os.close(sock.detach())
print(flush=True)
sys.stdin.read()
"""
    )
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        client.stdout.readline()
        pid = server_of(brokered)
        os.kill(pid, signal.SIGSTOP)  # until its descriptor is the last one
        client.stdin.write("\n")
        client.stdin.flush()
        client.stdout.readline()
        os.kill(pid, signal.SIGCONT)

        # The client's thread waits in close().
        close = "3" if platform.machine() == "x86_64" else "57"

        def is_closing() -> bool:
            calls = [Path(f"/proc/{pid}/task/{thread}/syscall").read_text() for thread in server_threads(pid)]
            return any(call.split()[0] == close for call in calls)

        assert eventually(is_closing, 20)
        brokered.stop()
    finally:
        for process in (client, peer):
            process.kill()
            process.communicate()


def test_a_broker_that_does_not_end_is_killed(make_brokered: Callable[[], Brokered]) -> None:
    brokered = make_brokered()
    brokered.start("[[rule]]\n")
    assert brokered.broker is not None
    os.kill(server_of(brokered), signal.SIGSTOP)
    brokered.broker.send_signal(signal.SIGTERM)
    _, log = brokered.broker.communicate(timeout=30)
    assert "killed by signal 9" in log
    assert brokered.broker.returncode == 1
    brokered.broker = None


def test_it_has_descriptors_for_all_connections(make_brokered: Callable[[], Brokered]) -> None:
    """A shell's limit is 1,024, of which each connection takes two."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    brokered = make_brokered()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))
    try:
        brokered.start("[[rule]]\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    allowed = Path(f"/proc/{server_of(brokered)}/limits").read_text().partition("Max open files")[2].split()[0]
    assert int(allowed) >= min(4096, limits[1])
    brokered.stop()


def test_descriptors_of_every_kind(strict: Brokered) -> None:
    """None of them proves anything, and none stays open."""
    pid = server_of(strict)
    attack = (
        RAW
        + CONNECT
        + """
import ctypes, select, tempfile
libc = ctypes.CDLL(None, use_errno=True)
O_PATH = os.O_PATH
listener = mptcp.create_server(("", 0))
fresh = mptcp.Socket()
ended = mptcp.create_connection((s1, 5000)); ended.shutdown(socket.SHUT_RDWR)
unix = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
fds = {
    "pidfd": os.pidfd_open(os.getpid()),
    "epoll": select.epoll().fileno(),
    "memfd": os.memfd_create("x"),
    "O_PATH": os.open("/proc/self/status", O_PATH),
    "O_PATH of a folder": os.open("/", O_PATH | os.O_DIRECTORY),
    "null": os.open("/dev/null", os.O_RDWR),
    "zero": os.open("/dev/zero", os.O_RDWR),
    "eventfd": libc.eventfd(0, 0),
    "timerfd": libc.timerfd_create(1, 0),
    "inotify": libc.inotify_init(),
    "namespace": os.open("/proc/self/ns/net", os.O_RDONLY),
    "pipe": os.pipe()[0],
    "unix": unix.fileno(),
    "to the broker": Raw().socket.fileno(),
    "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
    "netlink": socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16).detach(),
    "tcp": socket.create_connection((s1, 5000)).detach(),
    "listener": listener.fileno(),
    "not connected": fresh.fileno(),
    "ended": ended.fileno(),
    "io_uring": libc.syscall(425, 4, ctypes.create_string_buffer(120)),
}
epoll = select.epoll(); fds["epoll"] = epoll.fileno()
other = mptcp.create_connection((s1, 5000), path_manager="userspace"); other.sendall(b"x"); other.recv(1)
fds["another connection"] = other.fileno()
opened = 0
for name, fd in fds.items():
    if fd < 0: continue
    for kind, payload in ((COMMAND, create(sock.token, c2, s1, 5000)), (EVENTS, b""), (HELLO, b""), (RELEASE, b"")):
        raw = Raw()
        try:
            raw.send(kind, payload, [fd])
        except OSError:  # the kernel does not pass it on
            continue
        opened += 1
        try:
            raw.receive()
            assert kind in (HELLO, EVENTS), name
        except Denied as denied:
            assert kind in (COMMAND, RELEASE) and denied.refused, (name, denied)
assert opened > 60
assert len(sock.subflows()) == 1
"""
    )
    strict.run(attack)
    assert eventually(lambda: len(server_threads(pid)) <= 5, 20)
    before = held(pid)
    strict.run(attack)
    assert eventually(lambda: held(pid)[0] <= before[0] + 4, 20), (before, held(pid))


def server_threads(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/task")


def test_messages_that_are_almost_right(strict: Brokered) -> None:
    """Every kind of request with a few bytes changed, with descriptors and without, in one go; then all is well."""
    with connection_of(strict) as (token, _, _):
        strict.run(
            RAW
            + CONNECT
            + f"""
import random
seed = random.Random(19)
victim = {token}
[subflow] = sock.subflows()
ends = subflow.local, subflow.remote
one = by_tuple(subflow.cookie, *ends)
null = os.open("/dev/null", os.O_RDONLY)
good = [
    (HELLO, b""), (DESTROY, one), (RELEASE, b""), (SUBFLOWS, one * 5), (HOLD, b"userspace"), (USE, b"kernel"),
    (OPTIONS, one + struct.pack("=iiII", 6, 1, 1, 4) + bytes(4) + one + struct.pack("=iiII", 6, 13, 0, 16)),
]
for token in (victim, sock.token):
    good += [
        (COMMAND, create(token, c2, s1, 5000)), (COMMAND, announce(token, c2, 5)),
        (COMMAND, command(REMOVE, token, attribute(5, bytes([5])))),
        (COMMAND, command(SET_FLAGS, token, address(1, *ends[0], flags=4), address(6, *ends[1]))),
        (COMMAND, destroy(token, *ends)),
    ]
raw = Raw()
for number in range(3000):
    kind, payload = seed.choice(good)
    if seed.random() < 0.01: kind = seed.randrange(1 << 16)
    if kind in (HOLD, USE, EVENTS): continue  # each in a test of its own
    bad = bytearray(payload)
    for _ in range(seed.randrange(4)):
        if bad: bad[seed.randrange(len(bad))] = seed.choice((0, 1, 127, 128, 255, seed.randrange(256)))
    if seed.random() < 0.2: bad = bad[: seed.randrange(len(bad) + 1)]
    if seed.random() < 0.1: bad += seed.randbytes(seed.randrange(100))
    try:
        raw.ask(kind, bytes(bad), seed.choice(([], [], [sock.fileno()], [null])))
    except Denied:
        pass
raw.ask(HELLO)
"""
        )


def test_addresses_by_other_names(strict: Brokered) -> None:
    """IPv4-mapped ones, any, broadcast, loopback, a port that is not there."""
    strict.run(
        RAW
        + CONNECT
        + """
def outcome(payload):
    raw = Raw()
    try:
        raw.ask(COMMAND, payload)
    except Denied as denied:
        return denied
for remote, port in (("0.0.0.0", 5000), ("::", 5000), ("127.0.0.1", 5000), ("::1", 5000),
                     ("::ffff:127.0.0.1", 5000), ("255.255.255.255", 5000), ("224.0.0.1", 5000), (s1, 0),
                     ("::ffff:" + s1, 22), ("::ffff:" + s2, 5000), ("::" + s1, 5000), ("64:ff9b::" + s1, 5000)):
    denied = outcome(create(sock.token, c2, remote, port))
    assert denied and denied.refused and "announced" in denied.text, (remote, port, denied)
for local in ("192.0.2.1", "::ffff:192.0.2.1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255"):
    denied = outcome(announce(sock.token, local, 7))
    assert denied, local
# The kernel's own words, not a subflow from a foreign address.
assert outcome(create(sock.token, "192.0.2.1", s1, 5000))
assert outcome(create(sock.token, "::ffff:" + c2, s1, 5000)) is None or len(sock.subflows()) == 1
"""
    )


def test_what_is_announced_is_no_way_to_this_host_s_own_services(strict: Brokered) -> None:
    """A peer that works together with a local user announces a loopback address."""
    with announcing(strict, "127.0.0.1", 22, listen=False):
        strict.run(
            HEAR
            + """
try:
    sock.open_subflow(None, ("127.0.0.1", 22))
except PermissionError as error:
    assert "announced" in str(error), error
else:
    raise AssertionError
"""
        )


def test_options_of_wrong_lengths(strict: Brokered) -> None:
    strict.run(
        RAW
        + CONNECT
        + """
[subflow] = sock.subflows()
one = by_tuple(subflow.cookie, subflow.local, subflow.remote)
def option(level, name, value=None, room=4, sets=None, length=None):
    sets = int(value is not None) if sets is None else sets
    length = (room if value is None else len(value)) if length is None else length
    return one + struct.pack("=iiII", level, name, sets, length) + (value or b"")
def results(*options):
    reply, found = Raw().ask(OPTIONS, b"".join(options)), []
    while reply:
        status, errno, length = struct.unpack_from("=IiI", reply)
        found.append((status, errno, reply[12:12 + length])); reply = reply[12 + length:]
    return found
for malformed in (option(6, 1, b""), option(6, 1, bytes(129)), option(6, 1, room=0), option(6, 1, room=1 << 31),
                  option(6, 1, b"1234", length=100), option(6, 1, b"1234", sets=2), option(6, 1)[:-1]):
    assert Raw().denied(OPTIONS, malformed).errno == 74, malformed
for value in (b"\\7", b"\\7\\0", b"\\7\\0\\0", b"\\7\\0\\0\\0", b"\\7" + bytes(7), b"\\xff" * 4, b"\\0\\0\\0\\1"):
    assert results(option(1, 12, value))[0][0] == 1, value  # SO_PRIORITY above 6
for value in (b"\\0", b"reno" * 10, b"\\xff" * 16, b"reno "):
    assert results(option(6, 13, value))[0][:2] == (1, 1), value
assert results(option(6, 1, b"\\1"))[0][0] == 1  # TCP_NODELAY is an int
assert results(option(1, 36, b"\\1\\0\\0\\0"), option(6, 13, room=16))[0][:2] == (1, 1)  # SO_MARK
# What follows a NUL is no part of the name, to the kernel either.
assert results(option(6, 13, b"reno\\0bbr"), option(6, 13, room=16))[1][2].rstrip(b"\\0") == b"reno"
"""
    )


def test_streams_that_nobody_reads_keep_no_events_from_others(strict: Brokered) -> None:
    lazy = strict.popen(
        RAW
        + """
raws = []
while True:
    raw = Raw()
    try:
        raw.ask(EVENTS)
    except (Denied, EOFError, ConnectionError):
        break
    raws.append(raw)
print(len(raws), flush=True)
sys.stdin.readline()
# Events of others' connections are nobody else's.
kinds = set()
for raw in raws:
    raw.socket.setblocking(False)
    try:
        while message := raw.socket.recv(1 << 16): kinds.add(message[16])
    except BlockingIOError:
        pass
assert not kinds, kinds
""",
        61001,
    )
    assert lazy.stdout is not None
    assert int(lazy.stdout.readline()) >= 60
    strict.run(
        CONNECT
        + """
with sock.events() as events:
    for _ in range(100):
        subflow = sock.open_subflow(c2)
        while events.get(timeout=10).kind != EventKind.SUB_ESTABLISHED:
            pass
        subflow.close()
""",
        OTHER,
    )
    _, errors = lazy.communicate("\n", timeout=30)
    assert lazy.returncode == 0, errors


def test_a_flood_of_holds_leaves_others_their_turn(strict: Brokered) -> None:
    """Four users with many connections each want more holds than there are."""
    attackers = [
        strict.popen(
            RAW
            + """
def flood():
    raw = Raw()
    while time.monotonic() < end:
        try:
            raw.ask(HOLD, b"userspace")
            raw.ask(RELEASE)
        except Denied:
            pass
end = time.monotonic() + 60
threads = [threading.Thread(target=flood) for _ in range(50)]
for thread in threads: thread.start()
print(flush=True)
for thread in threads: thread.join()
""",
            61010 + number,
        )
        for number in range(4)
    ]
    try:
        for attacker in attackers:
            assert attacker.stdout is not None
            attacker.stdout.readline()
        strict.run(
            """
made, end = 0, time.monotonic() + 40
while made < 3 and time.monotonic() < end:
    try:
        mptcp.Socket(path_manager="userspace").close()
        made += 1
    except OSError as error:
        assert error.errno == 16, error  # the machine was too busy to make it within a hold
assert made == 3, made
""",
            OTHER,
        )
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.communicate()
    assert eventually(lambda: strict.client.get_path_manager() == "kernel", 20)


def test_waiting_for_a_turn_takes_as_long_as_it_must(make_brokered: Callable[[], Brokered]) -> None:
    """10 a second: after as many at once, the next ones take a tenth of a second each."""
    brokered = make_brokered()
    brokered.start("[[rule]]\nholds_per_second = 10\n")
    brokered.run(
        RAW
        + """
start = time.monotonic()
for _ in range(20): mptcp.Socket(path_manager="userspace").close()
assert 0.9 < time.monotonic() - start < 40, time.monotonic() - start
# Whoever does not wait for it gets none.
for _ in range(50):
    raw = Raw()
    raw.send(HOLD, b"userspace"); raw.send(HELLO)
    reply = raw.socket.recv(1 << 16)
    if struct.unpack_from("=i", reply, 8) == (11,):
        assert b"10 sockets a second" in reply, reply
        break
else:
    raise AssertionError
"""
    )
    brokered.stop()


def test_a_refused_announcement_does_not_count(strict: Brokered) -> None:
    strict.run(
        RAW
        + CONNECT
        + """
raw = Raw()
for number in range(20):
    # The kernel refuses the address id 0 with an announcement, and unknown flags; ours has neither.
    denied = raw.denied(COMMAND, announce(sock.token, c2, 0))
    assert not denied.refused, denied
plain = mptcp.create_connection((s1, 5000)); plain.sendall(b"x"); plain.recv(1)
for number in range(1, 21):
    denied = raw.denied(COMMAND, announce(plain.token, c2, number))
    assert not denied.refused, denied  # it is under the in-kernel path manager
"""
    )


def test_the_rights_are_those_of_who_connected(strict: Brokered) -> None:
    """A child that has the socket to the broker has the rights of its parent, whatever its own uid."""
    strict.run(
        RAW
        + CONNECT
        + """
raw = Raw()
read, write = os.pipe()
if not (pid := os.fork()):
    try:
        raw.ask(COMMAND, create(sock.token, c2, s1, 5000))
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert len(sock.subflows()) == 2
raw.sequence += 1
raw.ask(HELLO)
"""
    )


def test_a_program_that_becomes_another_user(strict: Brokered) -> None:
    """Its connections to the broker were the first user's, who may not change those of the second."""
    code = """
import encodings.idna, os, sys
import mptcp, mptcp._errors
c2, s1 = sys.argv[1:]
os.setgroups([])
os.setresuid(65533, 65533, 0)
mptcp.Socket(path_manager="userspace").close()
os.setresuid(0, 0, 0)
os.setresuid(65534, 65534, 65534)
sock = mptcp.create_connection((s1, 5000), path_manager="userspace")
sock.sendall(b"hello"); assert sock.recv(5) == b"hello"
sock.open_subflow(c2).close()
"""
    names = strict.names
    done = strict.client.run(
        [sys.executable, "-c", code, names["c2"], names["s1"]],
        env={**os.environ, "MPTCP_BROKER": str(strict.socket)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_socket_file_that_nobody_listens_on(make_brokered: Callable[[], Brokered]) -> None:
    """What a killed broker leaves: PermissionError as without one. The next broker takes its place."""
    brokered = make_brokered()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(brokered.socket))
    brokered.socket.chmod(0o666)
    brokered.run(
        """
try:
    mptcp.Socket(path_manager="userspace")
except PermissionError as error:
    assert "CAP_NET_ADMIN" in str(error), error
else:
    raise AssertionError
"""
    )
    brokered.start("[[rule]]\n")
    brokered.run(CONNECT)
    brokered.stop()


def test_a_request_that_it_does_not_know(strict: Brokered) -> None:
    """A later program's: the answer says what to do."""
    strict.run(
        RAW
        + """
raw = Raw()
for kind in (0, 10, 99, 65535):
    denied = raw.denied(kind)
    assert denied.errno == 95 and denied.refused and "restart" in denied.text, denied
raw.ask(HELLO)
"""
    )
