"""What the broker refuses, tried by programs that mean ill: others' connections, addresses, descriptors, quotas."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest
from brokered import CONNECT, HEAR, NOBODY, OTHER, RAW, Brokered, announcing, connection_of
from support import eventually

RULES = "[[rule]]\n"


@pytest.fixture(scope="module")
def strict(make_brokered: Callable[[], Brokered]) -> Brokered:
    """With the default rules."""
    found = make_brokered()
    found.start(RULES)
    return found


def test_another_user_s_connection(strict: Brokered) -> None:
    with connection_of(strict, OTHER) as (token, local, remote):
        strict.run(
            RAW
            + f"""
token, local, remote = {token}, {local}, {remote}
attempts = [
    (COMMAND, create(token, c2, *remote)),
    (COMMAND, announce(token, c2, 5)),
    (COMMAND, command(REMOVE, token, attribute(5, bytes([5])))),
    (COMMAND, command(SET_FLAGS, token, address(1, *local, flags=4), address(6, *remote))),
    (COMMAND, destroy(token, local, remote)),
]
for kind, payload in attempts:
    denied = Raw().denied(kind, payload)
    assert denied.refused and "of uid {OTHER}" in denied.text, denied
[connection] = mptcp.connections(token=token)
[subflow] = connection.subflows()
for call in (subflow.close, lambda: subflow.set_backup(True),
             lambda: subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)):
    try:
        call()
    except PermissionError as error:
        assert "of uid" in str(error), error
    else:
        raise AssertionError(call)
""",
        )


def test_root_s_connection_and_root_by_its_uid(strict: Brokered) -> None:
    with strict.client.create_connection((strict.names["s1"], 5000), path_manager="userspace") as sock:
        sock.sendall(b"hello")
        strict.run(RAW + f'assert "of uid 0" in Raw().denied(COMMAND, create({sock.token}, c2, s1, 5000)).text')
        code = (
            f"import os, socket\nos.environ['MPTCP_BROKER'] = {str(strict.socket)!r}\n{RAW}\n"
            f"denied = Raw().denied(COMMAND, create({sock.token}, '10.0.2.1', '10.0.1.2', 5000))\n"
            "assert 'descriptor' in denied.text, denied"
        )
        assert strict.client.run([sys.executable, "-c", code]).returncode == 0
        assert len(sock.subflows()) == 1


def test_remote_ends_that_the_peer_has_not_announced(strict: Brokered) -> None:
    strict.run(
        CONNECT
        + """
for remote in ((s2, 5000), (s1, 22), ("192.0.2.1", 5000)):
    try:
        sock.open_subflow(c2, remote)
    except PermissionError as error:
        assert "announced" in str(error), error
    else:
        raise AssertionError(remote)
assert sock.open_subflow(c2).remote == (s1, 5000)
"""
    )


def test_what_the_peer_announces_is_allowed(strict: Brokered) -> None:
    with announcing(strict, strict.names["s2"]):
        strict.run(HEAR + "assert sock.open_subflow(c2, (s2, 5001)).remote == (s2, 5001)")


def test_low_ports_interfaces_and_foreign_addresses(strict: Brokered) -> None:
    strict.run(
        RAW
        + CONNECT
        + """
def refused(words, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except PermissionError as error:
        assert words in str(error), error
        return
    raise AssertionError((call, arguments))
refused("ip_unprivileged_port_start", sock.open_subflow, (c2, 1023))
interface = {index: name for index, name in socket.if_nameindex()}
name = next(name for name in interface.values() if name != "lo")
refused("interface", sock.open_subflow, c2, interface=name)
assert "not an address of this host" in Raw().denied(COMMAND, announce(sock.token, "192.0.2.7", 9)).text
refused("ip_unprivileged_port_start", sock.announce_address, c2, 80, listen=False)
ids = [sock.announce_address(c2, 7000 + n, listen=False) for n in range(8)]
refused("announce 8 addresses", sock.announce_address, c2, 7999, listen=False)
sock.remove_address(ids[0])
sock.announce_address(c2, 7999, listen=False)
[subflow] = sock.subflows()
for level, name, value in ((socket.SOL_SOCKET, socket.SO_MARK, 1), (socket.SOL_SOCKET, socket.SO_PRIORITY, 7),
                           (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"), (socket.IPPROTO_TCP, 1001, 100),
                           (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"dctcp")):
    refused("", subflow.setsockopt, level, name, value)
subflow.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
"""
    )


def test_descriptors_that_prove_nothing(strict: Brokered) -> None:
    with connection_of(strict, OTHER) as (token, _, remote):
        strict.run(
            RAW
            + CONNECT
            + f"""
token, remote = {token}, {remote}
wanted = create(token, c2, *remote)
plain = socket.socket()
null = os.open("/dev/null", os.O_RDONLY)
reader, writer = os.pipe()
for fd, words in ((plain.fileno(), "not that of a Multipath"), (null, "not that of a Multipath"),
                  (reader, "not that of a Multipath"), (sock.fileno(), "of another connection")):
    assert words in Raw().denied(COMMAND, wanted, [fd]).text
assert "one descriptor" in Raw().denied(COMMAND, wanted, [null, null]).text
assert "one descriptor" in Raw().denied(COMMAND, wanted, [null] * 100).text
# One's own, which proves what the uid has proved.
Raw().ask(COMMAND, create(sock.token, c2, s1, 5000), [sock.fileno()])
# SO_LINGER: closing this last descriptor may take seconds.
linger = mptcp.create_connection((s1, 5000))
linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
before = time.monotonic()
one = Raw(); one.send(COMMAND, wanted, [linger.fileno()]); linger.close()
other = Raw(); other.ask(HELLO)
assert time.monotonic() - before < 3
"""
        )


def test_a_socket_of_another_namespace(strict: Brokered) -> None:
    """Its descriptor comes from the server's namespace."""
    with strict.server.socket() as foreign:
        fd = foreign.fileno()
        code = (
            f"import os, socket, mptcp\nos.environ['MPTCP_BROKER'] = {str(strict.socket)!r}\n{RAW}\n"
            f"denied = Raw().denied(COMMAND, create(1, '10.0.2.1', '10.0.1.2', 5000), [{fd}])\n"
            "assert 'another network namespace' in denied.text, denied"
        )
        done = strict.client.run([sys.executable, "-c", code], pass_fds=[fd], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_messages_that_are_none(strict: Brokered) -> None:
    strict.run(
        RAW
        + CONNECT
        + """
import random
seed = random.Random(7)
for version in (0, 2, 65535):
    raw = Raw(); raw.send(HELLO, version=version)
    try:
        raw.receive()
    except Denied as denied:
        assert "version 1" in denied.text
    else:
        raise AssertionError
assert "nothing to release" in Raw().denied(RELEASE).text
raw = Raw()
for _ in range(500):
    raw.socket.send(seed.randbytes(seed.randrange(1, 200)))
    raw.socket.recv(1 << 16)
good = create(sock.token, c2, s1, 5000)
for _ in range(500):
    bad = bytearray(good)
    for _ in range(seed.randrange(1, 6)):
        bad[seed.randrange(len(bad))] = seed.randrange(256)
    try:
        raw.ask(COMMAND, bytes(bad[:seed.randrange(len(bad) + 1)]))
    except Denied:
        pass
for kind in (DESTROY, OPTIONS, HOLD):
    for length in (0, 1, 8, 60, 4000):
        try:
            raw.ask(kind, seed.randbytes(length))
        except Denied:
            pass
raw.ask(HELLO)
"""
    )


def test_quotas(strict: Brokered) -> None:
    strict.run(
        RAW
        + CONNECT
        + """
raws = []
try:
    while len(raws) < 100:
        raws.append(Raw()); raws[-1].ask(HELLO)
except (Denied, EOFError, ConnectionError) as denied:
    assert isinstance(denied, Denied) and "64 connections" in denied.text or not isinstance(denied, Denied)
assert 50 < len(raws) <= 64
for raw in raws: raw.socket.close()
""",
        OTHER,
    )
    strict.run(
        RAW
        + CONNECT
        + """
raw = Raw()
outcomes = []
wanted = destroy(sock.token, (c2, 9), (s1, 9))
for _ in range(300):
    try:
        raw.ask(COMMAND, create(sock.token, c2, s1, 5000))
    except Denied as denied:
        outcomes.append(denied.text)
assert any("100 subflows a second" in text for text in outcomes), outcomes[-3:]
"""
    )


def test_a_loop_of_holds_hardly_touches_the_sockets_of_others(strict: Brokered) -> None:
    """20 a second of 1 ms at most: 2 % of the time at most, where without limits it was most of it."""
    attacker = strict.popen(
        RAW
        + """
raw = Raw()
print(flush=True)
end = time.monotonic() + 4
while time.monotonic() < end:
    try:
        raw.ask(HOLD, b"userspace")
        time.sleep(0.05)  # never released in time
        raw.ask(RELEASE)
    except Denied:
        pass
"""
    )
    assert attacker.stdout is not None
    attacker.stdout.readline()
    strict.run(
        """
managers = []
for _ in range(300):
    sock = mptcp.create_connection((s1, 5000))
    managers.append(sock.path_manager)
    sock.close()
assert managers.count("userspace") <= 30, managers.count("userspace")
""",
        OTHER,
    )
    _, errors = attacker.communicate(timeout=30)
    assert attacker.returncode == 0, errors
    assert eventually(lambda: strict.client.get_path_manager() == "kernel")


def test_clients_that_do_not_read_and_die_in_mid_request(strict: Brokered) -> None:
    lazy = strict.popen(
        RAW
        + """
raws = [Raw() for _ in range(20)]
for raw in raws[:10]:
    raw.ask(EVENTS)
for raw in raws[10:]:
    raw.socket.setblocking(False)
    try:
        for _ in range(5000): raw.send(HELLO)
    except BlockingIOError:
        pass
print(flush=True)
sys.stdin.read()
"""
    )
    assert lazy.stdout is not None
    lazy.stdout.readline()
    strict.run(
        "for _ in range(30):\n"
        + "    "
        + "    ".join(CONNECT.strip().splitlines(keepends=True))
        + "\n    sock.close()\n"
    )
    for _ in range(20):
        victim = strict.popen(
            RAW + CONNECT + "raw = Raw()\nfor _ in range(99): raw.send(COMMAND, create(sock.token, c2, s1, 5000))"
        )
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    strict.run(CONNECT + "assert sock.open_subflow(c2)")
    lazy.kill()
    lazy.communicate()


def test_rules_that_allow_nothing_or_less(make_brokered: Callable[[], Brokered]) -> None:
    brokered = make_brokered()
    brokered.start(
        f"[[rule]]\nusers = [{NOBODY}]\nallow = false\n"
        f"[[rule]]\ngroups = [{OTHER}]\nown = false\npath_manager = false\noptions = false\n"
    )
    brokered.run(
        """
assert mptcp._core.find_broker() is None
try:
    mptcp.Socket(path_manager="userspace")
except PermissionError as error:
    assert "CAP_NET_ADMIN" in str(error)
else:
    raise AssertionError
"""
    )
    brokered.run(
        RAW
        + """
assert mptcp._core.find_broker()[1] == []
try:
    mptcp.Socket(path_manager="userspace")
except PermissionError as error:
    assert "rules do not allow" in str(error), error
else:
    raise AssertionError
sock = mptcp.create_connection((s1, 5000))
sock.sendall(b"hello"); sock.recv(5)
assert "rules want a descriptor" in Raw().denied(COMMAND, create(sock.token, c2, s1, 5000)).text
denied = Raw().denied(COMMAND, create(sock.token, c2, s1, 5000), [sock.fileno()])
assert not denied.refused, denied  # the kernel: the connection is under the in-kernel path manager
assert "rules do not allow" in Raw().denied(OPTIONS).text
""",
        OTHER,
    )
    brokered.stop()
