"""Latching a path manager, in namespaces of our own, and what is left without privilege."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import mptcp
from mptcp.lab import Host, Lab, Link
from support import PATIENCE, PORT, Connection, connected, lock_held

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


def run_in(host: Host, program: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Any:
    """Runs a Python program in a host; what it prints is JSON."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    result = host.run(command, check=True, capture_output=True, text=True, pass_fds=pass_fds)
    return json.loads(result.stdout)


CHOOSE = """
import json, mptcp
said = [mptcp.get_path_manager(), mptcp.set_path_manager("kernel"), mptcp.get_path_manager()]
with mptcp.use_path_manager("userspace"):
    said.append(mptcp.get_path_manager())
said.append(mptcp.get_path_manager())
try:
    with mptcp.use_path_manager("userspace"):
        raise KeyError
except KeyError:
    said.append(mptcp.get_path_manager())
print(json.dumps(said))
"""


def test_choosing_for_the_namespace(mptcp_lab: Lab) -> None:
    said = run_in(mptcp_lab.host("a"), CHOOSE)
    assert said == ["userspace", "userspace", "kernel", "userspace", "kernel", "kernel"]


LATCH = """
import json, sys, mptcp
said = []
with mptcp.use_path_manager("kernel"), mptcp.create_server(("127.0.0.1", 0)) as listener:
    for wanted in ("userspace", "kernel", None):
        with mptcp.create_connection(listener.getsockname(), path_manager=wanted) as sock:
            peer, _ = listener.accept()
            with peer:
                said.append([sock.path_manager, peer.path_manager, mptcp.get_path_manager()])
print(json.dumps(said))
"""


def test_one_socket_latches_and_the_namespace_is_as_before(mptcp_lab: Lab) -> None:
    said = run_in(mptcp_lab.host("a"), LATCH)
    assert said == [["userspace", "kernel", "kernel"], ["kernel", "kernel", "kernel"], ["kernel", "kernel", "kernel"]]


TOGGLE = """
import mptcp, threading
def latch():
    for _ in range(200):
        mptcp.Socket(path_manager="userspace").close()
threads = [threading.Thread(target=latch) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_many_that_latch_at_once_leave_the_namespace_as_it_was(mptcp_lab: Lab) -> None:
    """Threads and processes: without the lock one would put back what another had set."""
    host = mptcp_lab.host("a")
    host.set_path_manager("kernel")
    programs = [host.popen([sys.executable, "-c", TOGGLE]) for _ in range(3)]
    assert [program.wait(60) for program in programs] == [0, 0, 0]
    assert run_in(host, "import mptcp, json; print(json.dumps(mptcp.get_path_manager()))") == "kernel"


def unprivileged(*command: str) -> list[str]:
    """The command without CAP_NET_ADMIN and CAP_SYS_ADMIN over any namespace of the test's."""
    if os.geteuid() == 0:
        return ["setpriv", "--bounding-set=-net_admin,-sys_admin", *command]
    return ["unshare", "--user", *command]


UNPRIVILEGED = """
import json, mptcp, os, sys
said = {}
def note(name, call):
    try:
        said[name] = repr(call())
    except OSError as error:
        said[name] = [type(error).__name__, error.errno, str(error)]
with mptcp.create_server(("127.0.0.1", 0)) as listener, mptcp.create_connection(listener.getsockname()) as sock:
    peer, _ = listener.accept()
    with peer:
        sock.sendall(b"x"); peer.sendall(peer.recv(1)); sock.recv(1)
        [subflow] = sock.subflows()
        said["cookie"] = subflow.cookie
        said["last_ack_recv"] = sock.info().last_ack_recv
        note("path_manager", lambda: sock.path_manager)
        note("open", sock.open_subflow)
        note("close", subflow.close)
        if os.geteuid() != 0:  # root may write the sysctl without any capability: it owns the file
            note("set", lambda: mptcp.set_path_manager("userspace"))
            note("latch", lambda: mptcp.Socket(path_manager="userspace"))
        said["still"] = len(sock.subflows())
print(json.dumps(said))
"""


def test_without_privilege() -> None:
    """Reading works; what changes something names the capability, and changes nothing."""
    before = mptcp.get_path_manager()
    command = unprivileged(sys.executable, "-W", "error", "-c", UNPRIVILEGED)
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert said["cookie"]
    for call in {"open", "close", "set"} & said.keys():
        assert said[call][0] == "PermissionError"
        assert "CAP_NET_ADMIN" in said[call][2]
    if said["last_ack_recv"] is None:
        assert said["path_manager"] == "None"  # before Linux 6.10 the kernel tells only the privileged
    else:
        assert said["path_manager"] == repr(before)
    if "latch" in said and before != "userspace":
        assert said["latch"][0] == "PermissionError"
    assert said["still"] == 1
    assert mptcp.get_path_manager() == before


FOREIGN = """
import json, mptcp, sys
sock = mptcp.Socket(fileno=int(sys.argv[1]))
said = {"token": sock.info().token, "is_mptcp": sock.is_mptcp}
for name in ("subflows", "open_subflow"):
    try:
        getattr(sock, name)()
    except OSError as error:
        said[name] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def test_a_socket_whose_namespace_cannot_be_entered(connection: Connection) -> None:
    """It still has info() and says what it lacks."""
    fd = connection.sock.fileno()
    command = unprivileged(sys.executable, "-W", "error", "-c", FOREIGN, str(fd))
    result = subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=[fd])
    said = json.loads(result.stdout)
    assert said["token"] == connection.sock.token
    assert said["is_mptcp"] is True
    for call in ("subflows", "open_subflow"):
        kind, text = said[call]
        assert kind == "PermissionError"
        assert "another network namespace" in text
        assert "CAP_SYS_ADMIN" in text


def test_a_server_within_use_path_manager(mptcp_two_paths: TwoPaths) -> None:
    """A socket latches at the handshake, not when its listener was made."""
    client, server, paths = mptcp_two_paths
    server.set_path_manager("kernel")
    with server.create_server(("", PORT)) as listener:
        for name in ("userspace", "kernel"):
            server.set_path_manager(name)
            with client.create_connection((paths[0].address(server), PORT)):
                peer, _ = listener.accept()
                with peer:
                    assert peer.path_manager == name
    with connected(client, server, paths) as made:
        made.sock.open_subflow(*made.second)


# Any process may hold the lock, for ever too.

CREATE = """
import errno, sys, time, mptcp
for _ in range(3):
    start = time.monotonic()
    try:
        mptcp.Socket(path_manager=sys.argv[1]).close()
        print("made", time.monotonic() - start)
    except OSError as error:
        print(errno.errorcode[error.errno], time.monotonic() - start, error.strerror)
"""


def test_who_holds_the_lock_is_waited_for_once_and_not_for_long(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    host.set_path_manager("kernel")
    with lock_held(host) as holder:

        def create(path_manager: str) -> list[list[str]]:
            command = [sys.executable, "-W", "error", "-c", CREATE, path_manager]
            done = host.run(command, capture_output=True, text=True, check=True, timeout=60)
            return [line.split(maxsplit=2) for line in done.stdout.splitlines()]

        made = create("userspace")
        assert [name for name, *_ in made] == ["EBUSY"] * 3
        assert all(f"process {holder} holds the lock" in text for *_, text in made)
        first, *others = (float(seconds) for _, seconds, _ in made)
        assert 0.9 < first < 3 * PATIENCE
        assert max(others) < 0.5 * PATIENCE
        # What needs no change is made. Setting it for good is no change for a moment, and waits for nobody for ever.
        assert [name for name, *_ in create("kernel")] == ["made"] * 3
        assert host.set_path_manager("userspace") == "kernel"
        assert [name for name, *_ in create("userspace")] == ["made"] * 3
    assert [name for name, *_ in create("kernel")] == ["made"] * 3
    assert host.get_path_manager() == "userspace"
