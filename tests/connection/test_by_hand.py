"""Between two network namespaces made by hand with `ip netns`, the server with plain sockets: nothing of the lab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for `ip netns add`")

SERVER = """
import socket, sys
listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listener.bind(("::", 5000))
listener.listen()
print("listening", flush=True)
while True:
    sock, _ = listener.accept()
    while data := sock.recv(100):
        sock.sendall(data)
    sock.close()
"""

CLIENT = """
import json, subprocess, sys, mptcp
remote, opens = json.loads(sys.argv[1])
sock = mptcp.create_connection((remote, 5000), timeout=10, path_manager="userspace")
def exchange():
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
exchange()
outcomes = []
for local, remote in opens:
    try:
        subflow = sock.open_subflow(tuple(local), tuple(remote), timeout=10)
        outcomes.append([list(subflow.local[:2]), list(subflow.remote[:2])])
    except mptcp.SubflowError as error:
        outcomes.append([error.errno, len(sock.subflows())])
    exchange()
ss = subprocess.run(["ss", "-Htn"], capture_output=True, text=True, check=True).stdout
print(json.dumps({"outcomes": outcomes, "ss": [line.split()[3:5] for line in ss.splitlines()],
                  "path_manager": mptcp.get_path_manager()}))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Pair:
    """Client and server namespaces with two veth links: 10.0.n.1 and fd00:n::1 to 10.0.n.2 and fd00:n::2."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"mptcp-hand-{os.getpid()}-{role}" for role in ("client", "server")]
        self.folder = folder
        self.server: subprocess.Popen[str] | None = None
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        client, server = self.names
        for n in (1, 2):
            ip("-n", client, "link", "add", f"path{n}", "type", "veth", "peer", f"path{n}", "netns", server)
            for end, name in enumerate(self.names, 1):
                ip("-n", name, "address", "add", f"10.0.{n}.{end}/24", "dev", f"path{n}")
                ip("-n", name, "address", "add", f"fd00:{n}::{end}/64", "dev", f"path{n}", "nodad")
                ip("-n", name, "link", "set", f"path{n}", "up")

    def start_server(self) -> None:
        command = ["ip", "netns", "exec", self.names[1], sys.executable, "-c", SERVER]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "listening\n"

    def client(self, remote: str, *opens: tuple[tuple[str, int], tuple[str, int]]) -> dict[str, Any]:
        """Connects to the server, opens subflows and tells what came of each, and what ss shows."""
        command = ["ip", "netns", "exec", self.names[0], sys.executable, "-c", CLIENT, json.dumps([remote, opens])]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return dict(json.loads(result.stdout))

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
        for name in self.names:
            ip("netns", "delete", name)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    made = Pair(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_the_slides_tuple(pair: Pair) -> None:
    pair.start_server()
    said = pair.client("10.0.1.2", (("10.0.2.1", 12345), ("10.0.2.2", 5000)))
    assert said["outcomes"] == [[["10.0.2.1", 12345], ["10.0.2.2", 5000]]]
    assert ["10.0.2.1:12345", "10.0.2.2:5000"] in said["ss"]
    assert said["path_manager"] == "kernel", "the namespace's own choice is as it was"


def test_ipv6(pair: Pair) -> None:
    pair.start_server()
    said = pair.client("fd00:1::2", (("fd00:2::1", 12345), ("fd00:2::2", 5000)))
    assert said["outcomes"] == [[["fd00:2::1", 12345], ["fd00:2::2", 5000]]]
    assert ["[fd00:2::1]:12345", "[fd00:2::2]:5000"] in said["ss"]


def test_an_ipv4_subflow_of_an_ipv6_connection(pair: Pair) -> None:
    pair.start_server()
    said = pair.client("fd00:1::2", (("10.0.2.1", 12345), ("10.0.2.2", 5000)))
    assert said["outcomes"] == [[["10.0.2.1", 12345], ["10.0.2.2", 5000]]]
    assert ["10.0.2.1:12345", "10.0.2.2:5000"] in said["ss"]


def test_a_peer_at_its_limit(pair: Pair) -> None:
    """It answers the SYN and refuses at the third ACK: never taken for success."""
    set_limits = [sys.executable, "-c", "import mptcp; mptcp.set_limits(subflows=1)"]
    subprocess.run(["ip", "netns", "exec", pair.names[1], *set_limits], check=True)
    pair.start_server()
    opens = [(("10.0.2.1", port), ("10.0.2.2", 5000)) for port in (12345, 12346)]
    said = pair.client("10.0.1.2", *opens)
    assert said["outcomes"] == [[["10.0.2.1", 12345], ["10.0.2.2", 5000]], [103, 2]]
