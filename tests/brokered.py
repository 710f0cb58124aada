"""A broker in a network namespace, and programs of an ordinary user there. The namespaces belong to the host's own user
namespace, as any that root makes: nobody has a capability in them without root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mptcp.lab import Host, Link, two_paths
from support import KERNEL

NOBODY = 65534
OTHER = 65533

RULES = '[[rule]]\nremotes = ["10.0.0.0/8", "fd00::/8"]\n'

# The protocol by hand.
RAW = (Path(__file__).parent / "broker/raw.py").read_text()

# A connection of such a program, under the userspace path manager and established.
CONNECT = """
sock = mptcp.create_connection((s1, 5000), path_manager="userspace")
sock.sendall(b"hello"); assert sock.recv(5) == b"hello"
"""

# One to announcing(), which has announced its address.
HEAR = """
sock = mptcp.create_connection((s1, 5001), path_manager="userspace")
sock.sendall(b"hello"); sock.recv(5)
with sock.events() as events:
    sock.sendall(b"x")
    while events.get(timeout=10).kind != EventKind.ANNOUNCED:
        pass
"""

# The interpreter may be where an ordinary user cannot look: everything is imported first.
_BECOME = """
import asyncio, encodings.idna, json, os, socket, struct, sys, threading, time
import mptcp, mptcp.aio, mptcp.enhanced_api, mptcp.measures, mptcp.policies
from mptcp import Event, EventKind, Events, Recorder
import concurrent.futures.thread, difflib, email.parser, importlib.metadata, inspect, numpy
import mptcp._abilities
import mptcp.cli, mptcp.cli.run, mptcp.cli.policy, mptcp.cli._policy_file, mptcp.cli._in_process
import mptcp._policy._checks, mptcp._policy._runtime, mptcp._recording._arrow
mptcp.policies.Prefer, mptcp.policies.FullMesh
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
"""


def become(uid: int) -> str:
    """Return the beginning of a program that imports everything and becomes an ordinary user."""
    return _BECOME.format(uid=uid)


@dataclass
class Brokered:
    """A client host with a broker, and a server that it has two paths to."""

    client: Host
    server: Host
    paths: tuple[Link, Link]
    socket: Path
    broker: subprocess.Popen[str] | None = None

    @property
    def names(self) -> dict[str, str]:
        """The addresses of both hosts on both paths."""
        hosts = {"c": self.client, "s": self.server}
        return {
            f"{name}{i}": path.address(host) for i, path in enumerate(self.paths, 1) for name, host in hosts.items()
        }

    def start(self, rules: str = RULES) -> None:
        file = self.socket.with_suffix(".toml")
        file.write_text(rules)
        command = [sys.executable, "-m", "mptcp", "broker", "--socket", str(self.socket), "--rules", str(file)]
        self.broker = self.client.popen(command, stderr=subprocess.PIPE, text=True)
        assert self.broker.stderr is not None
        line = self.broker.stderr.readline()
        assert "listening" in line, line + self.broker.stderr.read()

    def stop(self) -> str:
        """End it and return its log."""
        assert self.broker is not None
        self.broker.send_signal(signal.SIGTERM)
        _, log = self.broker.communicate(timeout=20)
        assert self.broker.returncode == 0, log
        self.broker = None
        return log

    def popen(self, code: str, uid: int = NOBODY, broker: bool = True) -> subprocess.Popen[str]:
        """Start a program of an ordinary user in the client; the hosts' addresses are c1, c2, s1 and s2."""
        names = f"kernel = {KERNEL}\n" + "".join(f"{name} = {address!r}\n" for name, address in self.names.items())
        text = become(uid) + names + textwrap.dedent(code)
        environment = {**os.environ, "MPTCP_BROKER": str(self.socket) if broker else "/nonexistent"}
        return self.client.popen(
            [sys.executable, "-c", text],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, uid: int = NOBODY, broker: bool = True) -> str:
        """Run such a program to its end and return what it printed."""
        process = self.popen(code, uid, broker)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output


def server_of(brokered: Brokered) -> int:
    """Return the process that serves: the child of the command, which keeps it."""
    assert brokered.broker is not None
    (child,) = Path(f"/proc/{brokered.broker.pid}/task/{brokered.broker.pid}/children").read_text().split()
    return int(child)


def connections_of(brokered: Brokered) -> int:
    """Return how many sockets of the broker's path are connected."""
    shown = Path(f"/proc/{server_of(brokered)}/net/unix").read_text()
    return sum(line.endswith(f" {brokered.socket}") and line.split()[5] == "03" for line in shown.splitlines())


def held(pid: int) -> tuple[int, int]:
    """Return a process's number of descriptors and its KiB of memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    return len(os.listdir(f"/proc/{pid}/fd")), int(kilobytes)


@contextmanager
def brokered_hosts() -> Iterator[Brokered]:
    """Yield two hosts on two paths, the second with an echo server, and the first without a broker as yet."""
    with ExitStack() as stack:
        client, server, paths = stack.enter_context(two_paths())
        # Everybody may connect, which pytest's own folders do not allow.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mptcp-broker-")))
        folder.chmod(0o755)
        client.set_path_manager("kernel")
        found = Brokered(client, server, (paths[0], paths[1]), folder / "broker.sock")
        stack.callback(lambda: found.broker and found.stop())
        # The subscription has joins accepted.
        stack.enter_context(server.events())
        stack.enter_context(echo(server))
        yield found


def echo(server: Host) -> _Ending:
    code = textwrap.dedent(
        """
        import threading, mptcp
        listener = mptcp.create_server(("", 5000))
        def serve(sock):
            try:
                while data := sock.recv(1 << 16):
                    sock.sendall(data)
            except OSError:
                pass
        print(flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        """
    )
    process = server.popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return _Ending(process)


class _Ending:
    """Ends a process that would go on for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> _Ending:
        return self

    def __exit__(self, *unused: object) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def connection_of(brokered: Brokered, uid: int = OTHER) -> Iterator[tuple[int, tuple[str, int], tuple[str, int]]]:
    """A connection of another user: its token and ends. It must be as it was at the end."""
    victim = brokered.popen(
        CONNECT
        + """
print(sock.token, *sock.getsockname(), *sock.getpeername(), flush=True)
sys.stdin.read()
[subflow] = sock.subflows()
assert not subflow.backup
sock.sendall(b"hello"); assert sock.recv(5) == b"hello"
""",
        uid,
    )
    assert victim.stdout is not None
    token, local, local_port, remote, remote_port = victim.stdout.readline().split()
    try:
        yield int(token), (local, int(local_port)), (remote, int(remote_port))
    finally:
        _, errors = victim.communicate(timeout=30)
    assert victim.returncode == 0, errors


@contextmanager
def announcing(brokered: Brokered, address: str, port: int | None = None, listen: bool = True) -> Iterator[None]:
    """A server at port 5001 that answers once, and announces an address when it receives another byte."""
    code = f"""
import mptcp
listener = mptcp.create_server(("", 5001))
print(flush=True)
sock, _ = listener.accept()
sock.recv(5); sock.sendall(b"hello"); sock.recv(1)
sock.announce_address({address!r}, {port}, listen={listen})
sock.recv(1)
"""
    peer = brokered.server.popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with _Ending(peer):
        assert peer.stdout is not None
        peer.stdout.readline()
        yield
