"""What rules change for the library's calls: a descriptor as proof, the path manager of the namespace, other rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from brokered import CONNECT, NOBODY, OTHER, Brokered
from support import eventually


@pytest.fixture(scope="module")
def by_descriptor(make_brokered: Callable[[], Brokered]) -> Brokered:
    """Where the uid proves nothing."""
    found = make_brokered()
    found.start("[[rule]]\nown = false\nremotes = ['10.0.0.0/8']\n")
    return found


def test_a_socket_proves_by_its_descriptor_that_it_is_the_caller_s(by_descriptor: Brokered) -> None:
    by_descriptor.run(
        CONNECT
        + """
assert mptcp._core.find_broker()[1] == ["path_manager", "options"]
assert sock.path_manager == "userspace"
first = sock.open_subflow(c2, s2)
first.set_backup(True)
first.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
assert next(s for s in sock.subflows() if s.id == first.id).getsockopt(6, 13, 16).rstrip(b"\\0") == b"reno"
address_id = sock.announce_address(c1, 6000, listen=False)
sock.remove_address(address_id)
first.close()
assert len(sock.subflows()) == 1
async def main():
    subflow = await mptcp.aio.open_subflow(sock, c2, s2)
    assert subflow.local[0] == c2
asyncio.run(main())
kernel = mptcp.create_connection((s1, 5000), path_manager="kernel")
kernel.sendall(b"hello"); kernel.recv(5)
kernel.close_subflow(kernel.subflows()[0], force=True)  # SOCK_DESTROY
assert mptcp.Events().source == "polling"
sock.sendall(b"hello"); assert sock.recv(5) == b"hello"
"""
    )


def test_a_connection_without_a_descriptor_is_refused(by_descriptor: Brokered) -> None:
    """Another process of the same user, which knows the token only."""
    owner = by_descriptor.popen(CONNECT + "print(sock.token, flush=True); sys.stdin.read()")
    assert owner.stdout is not None
    token = int(owner.stdout.readline())
    by_descriptor.run(
        f"""
[connection] = mptcp.connections(token={token})
[subflow] = connection.subflows()
for call in (lambda: connection.open_subflow(c2, s2), lambda: subflow.set_backup(True), subflow.close,
             lambda: connection.announce_address(c2, listen=False),
             lambda: subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)):
    try:
        call()
    except PermissionError as error:
        assert "want a descriptor" in str(error) and "Socket" in str(error), error
    else:
        raise AssertionError
"""
    )
    owner.communicate(timeout=20)


def test_a_closed_socket_proves_nothing(by_descriptor: Brokered) -> None:
    """The number of its descriptor is another file's by now; the connection lives on in a child."""
    by_descriptor.run(
        CONNECT
        + """
sock.open_subflow(c2, s2).close()
[connection] = mptcp.connections(token=sock.token)
connection.open_subflow(c2, s2)  # by the descriptor of the Socket in this process
copy = os.dup(sock.fileno())
sock.close()
other = os.open("/dev/null", os.O_RDONLY)
try:
    connection.open_subflow(c2, s2)
except PermissionError as error:
    assert "want a descriptor" in str(error), error
else:
    raise AssertionError
mptcp.wrap(copy).open_subflow(c2, s2)
"""
    )


def test_a_rule_lets_a_server_s_connections_be_under_the_userspace_path_manager(
    make_brokered: Callable[[], Brokered],
) -> None:
    brokered = make_brokered()
    brokered.start(f"[[rule]]\nusers = [{OTHER}]\n[[rule]]\nhold = 4\n")
    manager = brokered.client.get_path_manager
    brokered.run(
        """
assert "hold" in mptcp._core.find_broker()[1]
with mptcp.use_path_manager("userspace"):
    assert mptcp.get_path_manager() == "userspace"
    with mptcp.use_path_manager("userspace"):  # as another program of the namespace
        pass
    assert mptcp.get_path_manager() == "userspace"
    assert mptcp.Socket(path_manager="kernel").proto  # a short hold beneath it
    assert mptcp.get_path_manager() == "userspace"
    listener = mptcp.create_server(("127.0.0.1", 0))
    client = mptcp.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    client.sendall(b"x"); accepted.recv(1)
    assert accepted.path_manager == "userspace"
    try:
        with mptcp.use_path_manager("kernel"):
            raise AssertionError
    except OSError as error:
        assert "in use" in str(error), error
assert mptcp.get_path_manager() == "kernel"
try:
    with mptcp.use_path_manager("userspace"):
        end = time.monotonic() + 20
        while mptcp.get_path_manager() == "userspace" and time.monotonic() < end:
            time.sleep(0.05)
except TimeoutError as error:
    assert "4.0 s" in str(error) or "4 s" in str(error), error
else:
    raise AssertionError
"""
    )
    assert manager() == "kernel"
    brokered.run(
        """
try:
    with mptcp.use_path_manager("userspace"):
        raise AssertionError
except PermissionError as error:
    assert "hold" in str(error), error
""",
        OTHER,
    )
    killed = brokered.popen('with mptcp.use_path_manager("userspace"): print(flush=True); sys.stdin.read()')
    assert killed.stdout is not None
    killed.stdout.readline()
    assert manager() == "userspace"
    killed.kill()
    killed.communicate()
    assert eventually(lambda: manager() == "kernel", 3), "before its time was over"
    holder = brokered.popen('with mptcp.use_path_manager("userspace"): print(flush=True); sys.stdin.read()')
    assert holder.stdout is not None
    holder.stdout.readline()
    log = brokered.stop()
    assert manager() == "kernel"
    assert "net.mptcp.path_manager userspace for 4 s: done" in log
    _, errors = holder.communicate(timeout=20)
    assert "the broker ended" in errors


def test_the_path_manager_is_kept_until_the_last_program_s_end(make_brokered: Callable[[], Brokered]) -> None:
    brokered = make_brokered()
    brokered.start("[[rule]]\nhold = 600\n")
    code = 'with mptcp.use_path_manager("userspace"): print(flush=True); sys.stdin.read()'
    programs = [brokered.popen(code, uid) for uid in (NOBODY, OTHER)]
    for number, program in enumerate(programs):
        assert program.stdout is not None
        assert program.stdout.readline(), number
    for program, left in zip(programs, ("userspace", "kernel"), strict=True):
        _, errors = program.communicate(timeout=30)
        assert program.returncode == 0, errors
        assert brokered.client.get_path_manager() == left


def test_other_rules_hold_from_the_broker_s_next_start(make_brokered: Callable[[], Brokered]) -> None:
    """A client that has asked it before learns of them with its next call."""
    brokered = make_brokered()
    brokered.start("[[rule]]\nremotes = ['10.0.0.0/8']\n")
    program = brokered.popen(
        CONNECT
        + """
sock.open_subflow(c2, s2).close()
print(flush=True)
sys.stdin.readline()
sock.open_subflow(c2, s2).close()  # its descriptor goes along now
assert mptcp._core.find_broker()[1] == ["path_manager"]
print(flush=True)
sys.stdin.readline()
try:
    sock.open_subflow(c2, s2)
except PermissionError as error:
    assert "its rules allow nothing" in str(error), error
else:
    raise AssertionError
"""
    )
    assert program.stdin is not None
    assert program.stdout is not None
    for rules in ("own = false\noptions = false\nremotes = ['10.0.0.0/8']", "allow = false"):
        program.stdout.readline()
        brokered.stop()
        brokered.start(f"[[rule]]\n{rules}\n")
        program.stdin.write("\n")
        program.stdin.flush()
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 0, errors
