"""What is said where no socket can be made, or a sysctl not be read: the reason, and that it is about Multipath TCP."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from support import PORT, exchange

DENIED = Path(__file__).parents[1] / "denied.py"

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])


def says(program: str, *before: str) -> str:
    """The last line on standard error of a program that fails."""
    command = [*before, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@FAMILIES
@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("EPERM", "PermissionError: [Errno 1]"),
        ("EACCES", "PermissionError: [Errno 13]"),
        ("EINVAL", "mptcp.UnsupportedError: [Errno 38]"),
        ("EPROTONOSUPPORT", "mptcp.UnsupportedError: [Errno 38]"),
        ("EAFNOSUPPORT", "OSError: [Errno 97]"),
        ("ENOMEM", "OSError: [Errno 12]"),
    ],
)
def test_why_there_is_no_socket(family: socket.AddressFamily, number: str, text: str) -> None:
    denied = (sys.executable, str(DENIED), number, f"socket:{family}")
    line = says(f"import mptcp; mptcp.Socket({family})", *denied)
    assert line.startswith(text)
    assert "Multipath TCP" in line


@FAMILIES
def test_another_type(family: socket.AddressFamily) -> None:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK):
        with pytest.raises(ValueError, match="type must be SOCK_STREAM"):
            mptcp.Socket(family, kind)
    mptcp.Socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC).close()


def test_another_family(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    makers: tuple[Callable[[int], object], ...] = (
        mptcp.Socket,
        lambda family: mptcp.Socket(family, path_manager="userspace"),
        host.socket,
    )
    for make in makers:
        with pytest.raises(ValueError, match="family must be AF_INET or AF_INET6 for Multipath TCP, not AF_UNIX"):
            make(socket.AF_UNIX)
        with pytest.raises(ValueError, match=r"family must be .*, not 99"):
            make(99)


_SHORT = """
import resource, mptcp
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
refused = 0
for limit in range(3, 24):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        mptcp.get_path_manager()
    except OSError as error:
        assert (error.errno, type(error)) == (24, OSError), (limit, repr(error))
        assert "RLIMIT_NOFILE" in str(error), (limit, error)
        refused += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What was short then is not missing for good.
    mptcp.get_path_manager()
assert refused >= 3, refused
"""


def test_a_sysctl_that_there_is_no_descriptor_for() -> None:
    """It was "this kernel has neither"."""
    done = subprocess.run([sys.executable, "-c", _SHORT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@FAMILIES
def test_a_reset_does_not_say_why(mptcp_lab: Lab, family: socket.AddressFamily) -> None:
    """The listener of another host does not know the token; the kernel's answer is that of a closed port."""
    a, b, c = (mptcp_lab.host(name) for name in "abc")
    first: Link = mptcp_lab.link(a, b)
    second: Link = mptcp_lab.link(a, c)

    def listen(host: Host) -> mptcp.Socket:
        return host.create_server(("" if family == socket.AF_INET else "::", PORT), family=family)

    with (
        listen(b) as listener,
        listen(c),
        a.create_connection((first.address(b, family=family), PORT), timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        exchange(sock, peer)
        for port in (PORT, PORT + 1):
            with pytest.raises(mptcp.SubflowError, match="a reset answered the SYN") as caught:
                sock.open_subflow(second.address(a, family=family), (second.address(c, family=family), port))
            assert caught.value.errno == errno.ECONNREFUSED
            assert isinstance(caught.value, ConnectionRefusedError)
            assert "does not know this connection" in str(caught.value)
        assert c.counters()["MPJoinNoTokenFound"] == 1
