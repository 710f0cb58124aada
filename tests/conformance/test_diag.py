"""The scenarios of diag.sh: what inet_diag and the counters tell of connections in one host, none to hundreds."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

import mptcp
import pytest
from mptcp.lab import Host, Lab
from scenario import counted
from support import KERNEL, eventually, exchange, ss

pytestmark = pytest.mark.conformance

MANY = 100
FALLBACK, REMOTE_KEY_RECEIVED = 1, 2
"""MPTCP_INFO_FLAG_*, <linux/mptcp.h>"""


@pytest.fixture
def host(mptcp_lab: Lab) -> Host:
    return mptcp_lab.host("host")


def loopback(family: int) -> str:
    return "127.0.0.1" if family == socket.AF_INET else "::1"


@contextlib.contextmanager
def connected(host: Host, listener: mptcp.Socket) -> Iterator[tuple[mptcp.Socket, mptcp.Socket]]:
    with host.create_connection(listener.getsockname()[:2], timeout=10) as sock, listener.accept()[0] as peer:
        peer.settimeout(10)
        exchange(sock, peer)
        yield sock, peer


def uses(host: Host, sockets: int) -> None:
    """Waits until /proc/net/protocols has so many Multipath TCP sockets; Linux 6.2 began to count them."""
    if KERNEL >= (6, 2):
        eventually(lambda: _in_use(host) == sockets, 10)
        assert _in_use(host) == sockets


def _in_use(host: Host) -> int:
    rows = host.run(["cat", "/proc/net/protocols"], capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(int(row.split()[2]) for row in rows if row.split()[0] in ("MPTCP", "MPTCPv6"))


def listening(host: Host) -> tuple[int, int]:
    """How many listeners ss shows, Multipath TCP's and their subflows'."""
    found = [host.run(["ss", "-Hnl", kind], capture_output=True, text=True, check=True) for kind in ("-M", "-t")]
    return len(found[0].stdout.splitlines()), len(found[1].stdout.splitlines())


def test_nothing_but_a_listener(host: Host, family: int) -> None:
    """It is no connection, and is found by its own port and address only."""
    assert host.connections() == []
    with host.create_server((loopback(family), 10000), family=family):
        assert host.connections() == []
        assert host.connections(port=10000) == []
        rows = {
            words: host.run(["ss", "-HMnl", *words.split()], capture_output=True, text=True, check=True).stdout.split()
            for words in ("", "sport = 10000", "dport = 10000", f"src [{loopback(family)}]:10000")
        }
        assert rows["dport = 10000"] == []
        assert rows[""] == rows["sport = 10000"] == rows[f"src [{loopback(family)}]:10000"] != []
        uses(host, 1)
    uses(host, 0)


def test_a_connection(host: Host, family: int) -> None:
    with host.create_server((loopback(family), 10000), family=family) as listener:
        with connected(host, listener) as ends:
            listed = {connection.token: connection for connection in host.connections()}
            assert listed.keys() == {end.token for end in ends}
            for end in ends:
                flags = end.info().flags
                assert flags is not None
                assert flags & REMOTE_KEY_RECEIVED
                assert not flags & FALLBACK
                assert listed[end.token].info().flags == flags
            uses(host, 3)
            counted(host, MPCurrEstab=2)
        uses(host, 1)
        counted(host, MPCurrEstab=0)
        assert eventually(lambda: host.connections() == [], 10)


def test_the_times_since_data_and_acknowledgements(host: Host, family: int) -> None:
    """They grow while nothing is sent."""
    names = ("last_data_sent", "last_data_recv", "last_ack_recv")
    with host.create_server((loopback(family), 10000), family=family) as listener, connected(host, listener) as ends:
        if ends[0].info().last_data_sent is None:
            pytest.skip("needs last_data_sent in struct mptcp_info (Linux 6.10)")

        def times() -> list[int]:
            return [getattr(info, name) for info in [end.info() for end in ends] for name in names]

        before = times()

        def grown() -> bool:
            return all(now > then + 250 for now, then in zip(times(), before, strict=True))

        assert eventually(grown, 10)
        handles = host.connections()
        assert len(handles) == 2
        for handle in handles:
            assert all(getattr(handle.info(), name) > 250 for name in names)


def test_a_fallback(host: Host, family: int) -> None:
    """The client's socket stays one of Multipath TCP to the kernel; the package says what became of it."""
    with host.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind((loopback(family), 10001))
        listener.listen()
        with connected(host, listener) as (sock, peer):
            assert (sock.is_mptcp, peer.is_mptcp) == (False, False)
            assert host.connections() == []
            uses(host, 1)
            counted(host, MPCurrEstab=1, MPCapableFallbackSYNACK=1)
        uses(host, 0)
        counted(host, MPCurrEstab=0)


def test_many_connections(host: Host, family: int) -> None:
    enough_descriptors()
    with contextlib.ExitStack() as stack:
        ends = []
        for port in range(10002, 10002 + MANY):
            listener = stack.enter_context(host.create_server((loopback(family), port), family=family))
            ends += stack.enter_context(connected(host, listener))
        assert {connection.token for connection in host.connections()} == {end.token for end in ends}
        uses(host, 3 * MANY)
        counted(host, MPCurrEstab=2 * MANY)
    uses(host, 0)
    counted(host, MPCurrEstab=0)
    assert eventually(lambda: host.connections() == [], 10)


def test_many_listeners(host: Host, family: int) -> None:
    enough_descriptors()
    assert listening(host) == (0, 0)
    with contextlib.ExitStack() as stack:
        for port in range(20002, 20002 + MANY):
            stack.enter_context(host.create_server((loopback(family), port), family=family))
        assert listening(host) == (MANY, MANY)
        assert len(ss(host, "-l")) == MANY
        assert host.connections() == []
        uses(host, MANY)
    assert eventually(lambda: listening(host) == (0, 0), 10)
    uses(host, 0)


def enough_descriptors() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 5 * MANY:
        pytest.skip(f"needs an RLIMIT_NOFILE of {5 * MANY}")
