"""Ordinary users control their own connections through the broker: what root's calls do, with the same results."""

from __future__ import annotations

import json
import signal
import sys

import pytest
from brokered import CONNECT, RAW, Brokered
from support import needs_python


def test_the_example_of_the_readme(brokered: Brokered) -> None:
    brokered.run(
        CONNECT
        + """
assert sock.path_manager == "userspace"
sf = sock.open_subflow(local=(c2, 12345), remote=(s2, 5000))
assert (sf.local, sf.remote, sf.id) == ((c2, 12345), (s2, 5000), 2) and sf.tcp_info.rtt > 0
assert [s.local[0] for s in sock.subflows()] == [c1, c2]
sf.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
read = [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0") for s in sock.subflows()]
assert read[1] == b"reno", read
sock.close_subflow(sf)
assert len(sock.subflows()) == 1
sock.sendall(b"hello"); assert sock.recv(5) == b"hello"
"""
    )


def test_without_a_broker_each_call_is_refused(brokered: Brokered) -> None:
    brokered.run(
        """
def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except PermissionError:
        return
    raise AssertionError(call)
refused(mptcp.Socket, path_manager="userspace")
sock = mptcp.create_connection((s1, 5000))
sock.sendall(b"hello"); sock.recv(5)
refused(sock.open_subflow, c2, s2)
refused(sock.close_subflow, sock.subflows()[0], force=True)
refused(sock.announce_address, c2)
[subflow] = sock.subflows()
refused(subflow.set_backup, True)
refused(subflow.setsockopt, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if kernel >= (6, 15):
    assert mptcp.Events().source == "polling"
else:
    # The kernel does not tell an ordinary user of subflows, which polling would look for.
    refused(mptcp.Events)
""",
        broker=False,
    )


def test_backup_announcing_and_removing(brokered: Brokered) -> None:
    brokered.run(
        CONNECT
        + """
with sock.events() as events:
    sf = sock.open_subflow(c2, s2, backup=True)
    assert sf.backup
    sf.set_backup(False)
    assert not next(s for s in sock.subflows() if s.id == sf.id).backup
    # The connection's own ESTABLISHED may come late.
    while events.get(timeout=10).kind != EventKind.SUB_ESTABLISHED:
        pass
    address_id = sock.announce_address(c1, 6000)
    if kernel >= (6, 10):
        assert address_id in {address.id for address in sock.addresses()}
    sock.remove_address(address_id)
"""
    )


def test_under_the_in_kernel_path_manager(brokered: Brokered) -> None:
    """Opening is refused with the same exception as root's, closing works."""
    brokered.run(
        """
sock = mptcp.create_connection((s1, 5000))
sock.sendall(b"hello"); sock.recv(5)
assert sock.path_manager == "kernel"
try:
    sock.open_subflow(c2, s2)
except mptcp.PathManagerError:
    pass
else:
    raise AssertionError
sock.close_subflow(sock.subflows()[0], force=True)
"""
    )


def test_events_of_one_s_own_connections_alone(brokered: Brokered) -> None:
    brokered.run(
        """
with mptcp.Events() as events:
    assert events.source == "netlink"
    sock = mptcp.create_connection((s1, 5000), path_manager="userspace")
    sock.sendall(b"hello"); sock.recv(5)
    sock.open_subflow(c2, s2)
    token = sock.token
    sock.close()
    kinds = []
    while EventKind.CLOSED not in kinds:
        event = events.get(timeout=10)
        if not event.kind.name.startswith(("LINK", "ADDRESS", "LISTENER")):
            assert event.token == token
            kinds.append(event.kind)
    wanted = [EventKind.CREATED, EventKind.ESTABLISHED, EventKind.SUB_ESTABLISHED]
    assert kinds[:3] == wanted and kinds[-1] == EventKind.CLOSED, kinds
"""
    )


def test_nobody_waits_for_another_broker(brokered: Brokered) -> None:
    """The thread that reads events does, meanwhile streams begin and recordings end."""
    program = brokered.popen(
        CONNECT
        + """
with mptcp.Events() as events, Recorder(sock) as recorder:
    print("ready", flush=True)
    while events.get(timeout=30).kind != EventKind.OVERRUN:
        pass
    with sock.events():
        pass
    recorder.close()
    assert sock.explain().token == sock.token
"""
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n", program.communicate()[1]
    brokered.stop()
    try:
        _, errors = program.communicate(timeout=60)
    finally:
        program.kill()
        brokered.start()
    assert program.returncode == 0, errors


def test_a_server_hears_of_connections_before_it_accepts_them(brokered: Brokered) -> None:
    brokered.run(
        """
listener = mptcp.create_server(("127.0.0.1", 0))
with mptcp.Events() as events:
    client = mptcp.create_connection(listener.getsockname())
    seen = []
    while len([e for e in seen if e.kind == EventKind.CREATED]) < 2:
        seen.append(events.get(timeout=10))
    assert {e.server_side for e in seen if e.kind == EventKind.CREATED} == {True, False}
    accepted, _ = listener.accept()
    client.sendall(b"x"); accepted.recv(1)
    assert accepted.token in {e.token for e in seen}
"""
    )


def test_asyncio(brokered: Brokered) -> None:
    brokered.run(
        """
async def main():
    reader, writer = await mptcp.aio.open_connection(s1, 5000, path_manager="userspace")
    writer.write(b"hello"); assert await reader.readexactly(5) == b"hello"
    sock = mptcp.wrap(writer.get_extra_info("socket"))
    subflow = await mptcp.aio.open_subflow(sock, c2, s2)
    assert subflow.local[0] == c2
    sock.close_subflow(subflow)
    task = asyncio.create_task(mptcp.aio.open_subflow(sock, c2, "10.255.255.1"))
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    assert len(sock.subflows()) == 1
    writer.close()
asyncio.run(main())
"""
    )


def test_policies_and_recordings(brokered: Brokered) -> None:
    brokered.run(
        """
with mptcp.run_policy(mptcp.policies.FullMesh()):
    sock = mptcp.create_connection((s1, 5000), path_manager="userspace")
    with Recorder(sock, interval=0.01) as recorder:
        for _ in range(100):
            sock.sendall(b"hello" * 100); sock.recv(1000)
            if len(sock.subflows()) == 2:
                break
            time.sleep(0.05)
        else:
            raise AssertionError(sock.subflows())
        sock.close_subflow(sock.subflows()[1])
        end = time.monotonic() + 10
        closed = lambda: EventKind.SUB_CLOSED in {event.kind for event in recorder.events}
        while not closed() and time.monotonic() < end:
            time.sleep(0.01)
    assert len(numpy.unique(recorder.samples["cookie"])) >= 2
    assert closed()
"""
    )


@pytest.mark.parametrize("method", ["inet_diag", "full_info"])
def test_a_subflow_that_is_closed_at_once_is_recorded(brokered: Brokered, method: str) -> None:
    """Though the recording ends before the kernel has told that its socket was destroyed."""
    brokered.run(
        f"""
sock = mptcp.create_connection((s1, 5000), path_manager="userspace")
sock.sendall(b"hello" * 100); sock.recv(1000)
lost = []
for number in range(30):
    with Recorder(sock, interval=10, method={method!r}) as recorder:
        opened = sock.open_subflow(c2, s2)
        sock.close_subflow(opened)
        closed = lambda: EventKind.SUB_CLOSED in {{event.kind for event in recorder.events}}
        end = time.monotonic() + 10
        while not closed() and time.monotonic() < end:
            time.sleep(0.001)
    if opened.cookie not in recorder.samples["cookie"]:
        lost.append([number, *recorder.events])
assert not lost, lost
"""
    )


def test_the_command_policy_for_one_s_own_connections(brokered: Brokered) -> None:
    """Without root, and without effect on the namespace."""
    with brokered.popen(
        """
        sys.exit(mptcp.cli.main(["policy", "--builtin", "fullmesh", "--own", "--json"]))
        """
    ) as policy:
        try:
            assert policy.stderr is not None
            assert policy.stdout is not None
            assert "running FullMesh" in policy.stderr.readline()
            brokered.run(
                """
                sock = mptcp.create_connection((s1, 5000), path_manager="userspace")
                sock.sendall(b"hello"); sock.recv(5)
                end = time.monotonic() + 20
                while len(sock.subflows()) < 2 and time.monotonic() < end:
                    time.sleep(0.01)
                assert {subflow.local[0] for subflow in sock.subflows()} == {c1, c2}
                """
            )
            decision = json.loads(policy.stdout.readline())
            assert decision["policy"] == "FullMesh"
            assert brokered.client.get_path_manager() == "kernel"
            policy.send_signal(signal.SIGTERM)
            assert policy.wait(60) == 0
        finally:
            policy.kill()
    assert brokered.client.get_path_manager() == "kernel"


def test_a_socket_of_another_namespace_keeps_its_own_error(brokered: Brokered) -> None:
    code = f"""
import os, mptcp
os.environ["MPTCP_BROKER"] = {str(brokered.socket)!r}
import mptcp._errors
os.setresuid(65534, 65534, 65534)
try:
    mptcp.Socket(path_manager="kernel")
except PermissionError as error:
    assert "broker" not in str(error), error
else:
    raise AssertionError
"""
    assert brokered.server.run([sys.executable, "-c", code]).returncode == 0


def test_the_namespace_is_left_as_it_was(brokered: Brokered) -> None:
    brokered.run(CONNECT * 5)
    assert brokered.client.get_path_manager() == "kernel"


def test_the_doctor_tells(brokered: Brokered) -> None:
    """What is tried in a lab fails here, where the interpreter's own files cannot be read."""
    code = """
import mptcp._abilities as abilities
found = {finding.name: finding for finding in abilities.find(["broker", "here"])}
print(found["broker"].available, found["here"].available, found["broker"].advice)
"""
    available, here, allowed = brokered.run(code).split(None, 2)
    assert (available, here) == ("True", "True")
    assert str(brokered.socket) in allowed
    assert "of this user's connections, Socket(path_manager=), options on one subflow" in allowed
    assert "use_path_manager" not in allowed, "a rule would have to say so"
    told = brokered.run(code, broker=False)
    assert told.startswith("False False none listens")


@needs_python
def test_programs_under_mptcp_run(brokered: Brokered) -> None:
    """The six options of 2016 for an unchanged program of an ordinary user."""
    program = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 5000)); s.sendall(b'hello'); s.recv(5); "
        "assert s.getsockopt(socket.SOL_SOCKET, 38) == 262; n = s.getsockopt(6, 66, 100); print(len(n))"
    )
    code = f"""
import mptcp.cli, mptcp.cli.run, mptcp.cli._policy_file, mptcp.cli._in_process
sys.exit(mptcp.cli.main(["run", "--path-manager", "userspace", "/usr/bin/python3", "-c", {program!r}, s1]))
"""
    assert int(brokered.run(code)) >= 4


def test_what_makes_sockets_subflows(brokered: Brokered) -> None:
    """The broker tells what the kernel tells everybody since Linux 6.15, and no more, on any kernel."""
    brokered.run(
        RAW
        + CONNECT
        + """
SO_COOKIE = 57
sf = sock.open_subflow(c2, s2, backup=True)
plain = socket.create_connection((s1, 5000))
raw = Raw()
def told(*asked):
    reply = raw.ask(SUBFLOWS, b"".join(by_tuple(*one) for one in asked))
    return list(struct.iter_unpack("=IIIBBH", reply))
initial, joined = sock.subflows()
ends = [(s.local, s.remote) for s in (initial, joined)]
(cookie,) = struct.unpack("=Q", plain.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
answers = told(
    (initial.cookie, *ends[0]),
    (joined.cookie, *ends[1]),
    (joined.cookie + 1, *ends[1]),
    (initial.cookie, *ends[1]),
    (cookie, plain.getsockname(), plain.getpeername()),
)
assert [answer[:2] for answer in answers] == [(1, sock.token)] * 2 + [(0, 0)] * 3, answers
assert answers[0][3:5] == (0, 0) and answers[1][3:5] == (joined.local_id, joined.remote_id), answers
assert told() == []
one = by_tuple(joined.cookie, *ends[1])
for malformed in (one[:-1], one + b"x", one * 257, bytes(52)):
    assert raw.denied(SUBFLOWS, malformed).errno == 74
assert len(raw.ask(SUBFLOWS, one * 256)) == 16 * 256
"""
    )
