"""The socket options that docs/run.md lists as refused on a Multipath TCP socket: what this kernel does with each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mptcp.lab import Host, Lab
from support import KERNEL, PYTHON, RUN, needs_python

PAGE = Path(__file__).parents[2] / "docs" / "run.md"

#: Name, level, number, and a value that a TCP socket takes.
ON_A_NEW_SOCKET = {
    "SO_ATTACH_FILTER": (1, 26, "filter"),
    "SO_BUF_LOCK": (1, 72, 0),
    "SO_CNX_ADVICE": (1, 53, 1),
    "SO_LOCK_FILTER": (1, 44, 0),
    "SO_MAX_PACING_RATE": (1, 47, 100000),
    "SO_OOBINLINE": (1, 10, 1),
    "SO_PEEK_OFF": (1, 42, 0),
    "SO_RCVMARK": (1, 75, 1),
    "SO_TXREHASH": (1, 74, 1),
    "SO_ZEROCOPY": (1, 60, 1),
    "TCP_LINGER2": (6, 8, 5),
    "TCP_QUICKACK": (6, 12, 1),
    "TCP_SAVE_SYN": (6, 27, 1),
    "TCP_SYNCNT": (6, 7, 3),
    "TCP_THIN_DUPACK": (6, 17, 0),
    "TCP_THIN_LINEAR_TIMEOUTS": (6, 16, 1),
    "TCP_TX_DELAY": (6, 37, 0),
    "TCP_USER_TIMEOUT": (6, 18, 1000),
    "TCP_WINDOW_CLAMP": (6, 10, 70000),
    "IP_CHECKSUM": (0, 23, 1),
    "IP_MINTTL": (0, 21, 1),
    "IP_MTU_DISCOVER": (0, 10, 0),
    "IP_MULTICAST_ALL": (0, 49, 1),
    "IP_MULTICAST_LOOP": (0, 34, 1),
    "IP_OPTIONS": (0, 4, ""),
    "IP_PASSSEC": (0, 18, 1),
    "IP_PKTINFO": (0, 8, 1),
    "IP_RECVERR": (0, 11, 1),
    "IP_RECVERR_RFC4884": (0, 26, 1),
    "IP_RECVOPTS": (0, 6, 1),
    "IP_RECVORIGDSTADDR": (0, 20, 1),
    "IP_RECVTOS": (0, 13, 1),
    "IP_RECVTTL": (0, 12, 1),
    "IP_RETOPTS": (0, 7, 1),
    "IP_TTL": (0, 2, 8),
    "IP_UNICAST_IF": (0, 50, 0),
    "IPV6_2292PKTOPTIONS": (41, 6, 1),
    "IPV6_ADDR_PREFERENCES": (41, 72, 1),
    "IPV6_AUTOFLOWLABEL": (41, 70, 1),
    "IPV6_DONTFRAG": (41, 62, 1),
    "IPV6_FLOWINFO": (41, 11, 1),
    "IPV6_FLOWINFO_SEND": (41, 33, 1),
    "IPV6_MINHOPCOUNT": (41, 73, 1),
    "IPV6_MTU": (41, 24, 0),
    "IPV6_MTU_DISCOVER": (41, 23, 1),
    "IPV6_MULTICAST_ALL": (41, 29, 1),
    "IPV6_MULTICAST_LOOP": (41, 19, 1),
    "IPV6_RECVDSTOPTS": (41, 58, 1),
    "IPV6_RECVERR": (41, 25, 1),
    "IPV6_RECVERR_RFC4884": (41, 31, 1),
    "IPV6_RECVFRAGSIZE": (41, 77, 1),
    "IPV6_RECVHOPLIMIT": (41, 51, 1),
    "IPV6_RECVHOPOPTS": (41, 53, 1),
    "IPV6_RECVORIGDSTADDR": (41, 74, 1),
    "IPV6_RECVPATHMTU": (41, 60, 1),
    "IPV6_RECVPKTINFO": (41, 49, 1),
    "IPV6_RECVRTHDR": (41, 56, 1),
    "IPV6_RECVTCLASS": (41, 66, 1),
    "IPV6_ROUTER_ALERT_ISOLATE": (41, 30, 1),
    "IPV6_TCLASS": (41, 67, 16),
    "IPV6_UNICAST_HOPS": (41, 16, 8),
    "IPV6_UNICAST_IF": (41, 76, 0),
}
NEEDS_PRIVILEGE = {"TCP_REPAIR": (6, 19, 1)}
ONCE_CONNECTED = {
    "SO_BINDTODEVICE": (1, 25, "lo"),
    "SO_BINDTOIFINDEX": (1, 62, 1),
    "SO_REUSEADDR": (1, 2, 1),
    "SO_REUSEPORT": (1, 15, 1),
    "IP_BIND_ADDRESS_NO_PORT": (0, 24, 1),
    "IP_FREEBIND": (0, 15, 1),
    "IP_LOCAL_PORT_RANGE": (0, 51, 0),
    "IP_TRANSPARENT": (0, 19, 1),
    "IPV6_FREEBIND": (41, 78, 1),
    "IPV6_TRANSPARENT": (41, 75, 1),
}
#: These take another structure, or a module that need not be there, before a TCP socket takes them.
UNTRIED = {"TCP_MD5SIG", "TCP_ULP"}

#: Sets each option on a socket of its own; prints the name and "set" or the error's name.
PROGRAM = r"""
import ctypes, errno, socket, struct
def set_option(sock, level, number, value):
    if value == "filter":
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 65535))
        value = struct.pack("HxxxxxxQ", 1, ctypes.addressof(instruction))
    elif isinstance(value, str):
        value = value.encode()
    try:
        sock.setsockopt(level, number, value)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "set"
peers = []
def connected(family):
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listener:
        sock = socket.socket(family)
        sock.connect(listener.getsockname())
        peers.append(listener.accept()[0])
        return sock
for name, (level, number, value) in OPTIONS.items():
    family = socket.AF_INET6 if level == 41 else socket.AF_INET
    with MAKE(family) as sock:
        print(name, set_option(sock, level, number, value))
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        host = lab.host("a")
        host.run(["ip", "link", "set", "lo", "up"], check=True)
        yield host


def answers(host: Host, options: dict[str, tuple[int, int, object]], make: str, *start: str) -> dict[str, str]:
    program = PROGRAM.replace("OPTIONS", repr(options)).replace("MAKE", make)
    done = host.run([*start, PYTHON, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return dict(line.split() for line in done.stdout.splitlines())


@needs_python
@pytest.mark.skipif(KERNEL != (6, 18), reason="the page says what Linux 6.18 does")
@pytest.mark.parametrize("make", ["socket.socket", "connected"])
def test_each_option_is_refused_and_works_with_except(host: Host, make: str) -> None:
    options = {**ON_A_NEW_SOCKET, **(NEEDS_PRIVILEGE if make == "socket.socket" else ONCE_CONNECTED)}
    multipath = answers(host, options, make, *RUN)
    assert {name: answer for name, answer in multipath.items() if answer == "set"} == {}
    assert set(multipath.values()) <= {"EOPNOTSUPP", "ENOTSUP", "ENOPROTOOPT", "EINVAL"}
    interpreter = os.path.basename(os.path.realpath(PYTHON))
    tcp = answers(host, options, make, *RUN, "--except", interpreter)
    assert {name: answer for name, answer in tcp.items() if answer != "set"} == {}
    if make == "socket.socket":
        # Before it is connected the socket takes them.
        before = answers(host, ONCE_CONNECTED, make, *RUN)
        assert set(before.values()) == {"set"}


def test_the_page_names_these_options() -> None:
    text = PAGE.read_text()
    section = text[text.index("\n## Options that are refused") :]
    section = section[: section.index("\n## ", 1)]
    [new, connected] = re.findall(r"^- \*\*([^*]+)\*\*(.*?)(?=^- |^$)", section, re.MULTILINE | re.DOTALL)
    names = [set(re.findall(r"\b(?:SO|TCP|IP|IPV6)_[A-Z0-9_]+", part[1])) for part in (new, connected)]
    assert names == [{*ON_A_NEW_SOCKET, *NEEDS_PRIVILEGE, *UNTRIED}, set(ONCE_CONNECTED)]
