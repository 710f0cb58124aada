"""Split: the shares of the bytes, as the links count them, and what is left when it ends.

tests/benchmarks/split.py is the longer version, with captures.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from mptcp.policies import Split
from support import connected, eventually, has_bpf

UNLIMITED = 2**32 - 1

needs_bpf = pytest.mark.mptcp_needs("bpf")

Site = tuple[Host, Host, tuple[Link, Link]]


@pytest.fixture
def site(mptcp_lab: Lab) -> Site:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate="20mbit", delay="10ms", congestion_control="reno") for _ in "ab"]
    server.set_path_manager("kernel")
    server.set_limits(subflows=8)
    server.sysctl("net.ipv4.tcp_rmem", "4096 4194304 16777216")
    return client, server, (links[0], links[1])


@contextlib.contextmanager
def transfer(site: Site) -> Iterator[mptcp.Socket]:
    """As fast as it goes, over the first link to begin with."""
    over = threading.Event()
    with connected(*site) as made:

        def send() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    made.sock.sendall(bytes(1 << 15))

        def receive() -> None:
            with contextlib.suppress(OSError):
                while made.peer.recv(1 << 18):
                    pass

        threads = [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        try:
            yield made.sock
        finally:
            over.set()
            with contextlib.suppress(OSError):
                made.sock.shutdown(2)
            for thread in threads:
                thread.join(30)


def carried(site: Site) -> list[int]:
    return [link.stats()[0].bytes for link in site[2]]


@needs_bpf
@pytest.mark.parametrize("asked", [80, 50, 20])
def test_the_shares(site: Site, asked: int) -> None:
    """The tolerance is twice that of the benchmark, for a machine that has other things to do."""
    check_shares(site, asked)


@needs_bpf
def test_the_shares_of_unequal_links_with_bbr(mptcp_lab: Lab) -> None:
    """Half of the bytes over a link of a quarter of the other's rate, and of four times its delay."""
    if "bbr" not in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split():
        pytest.skip("needs the congestion control bbr")
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [
        mptcp_lab.link(client, server, rate=rate, delay=delay, congestion_control="bbr")
        for rate, delay in (("20mbit", "5ms"), ("5mbit", "20ms"))
    ]
    server.set_path_manager("kernel")
    server.set_limits(subflows=8)
    server.sysctl("net.ipv4.tcp_rmem", "4096 4194304 16777216")
    check_shares((client, server, (links[0], links[1])), 50)


def check_shares(site: Site, asked: int) -> None:
    links = site[2]
    with site[0].run_policy(Split({links[0]: asked, links[1]: 100 - asked})), transfer(site) as sock:
        assert eventually(lambda: len(sock.subflows()) == 2)

        def is_met() -> bool:
            before = carried(site)
            time.sleep(3)  # what is measured
            first, second = (now - then for now, then in zip(carried(site), before, strict=True))
            return abs(100 * first / (first + second) - asked) <= 10

        assert eventually(is_met, 25)


def rates(sock: mptcp.Socket) -> list[int]:
    return [subflow.tcp_info.max_pacing_rate for subflow in sock.subflows()]


@needs_bpf
def test_caps_are_put_back(site: Site) -> None:
    links = site[2]
    with transfer(site) as sock:
        with site[0].run_policy(Split({links[0]: 20, links[1]: 80})):
            assert eventually(lambda: any(rate < UNLIMITED for rate in rates(sock)), 30)
        assert len(rates(sock)) == 2
        assert all(rate >= UNLIMITED for rate in rates(sock))


@pytest.mark.skipif(has_bpf(), reason="needs a user without CAP_BPF")
def test_without_the_right_to_set_options(site: Site) -> None:
    before = site[0].get_path_manager()
    with pytest.raises(mptcp.UnsupportedError, match="pace single subflows"):
        site[0].run_policy(Split(dict.fromkeys(site[2], 1)))
    assert site[0].get_path_manager() == before


def test_as_if_without_the_right(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root too: what the kernel would refuse is refused when the policy starts."""

    def refuse(fd: int) -> None:
        raise PermissionError(1, "needs CAP_BPF")

    monkeypatch.setattr("mptcp._core.probe_subflow_options", refuse)
    policy = Split(dict.fromkeys(site[2], 1))
    with pytest.raises(mptcp.UnsupportedError, match="pace single subflows: needs CAP_BPF"):
        site[0].run_policy(policy)
    assert policy._runtime is None
