"""Which link packets take: by every pair of addresses, whoever opens, in both families, and when a link is down."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mptcp
import pytest
from mptcp import policies
from mptcp._policy import LocalAddress
from mptcp.lab import Host, Lab, Link, two_paths
from mptcp.plot import _flows
from mptcp.policies import Path
from support import PATIENCE, PORT, connected, eventually, exchange, has_joined, tuples

FAMILIES = [socket.AF_INET, socket.AF_INET6]
DEADLINE = 10.0 * PATIENCE
# Of a policy, seconds from a link's going down until data goes on.
FAILOVER = 2.0 * PATIENCE


def frame_bytes(link: Link) -> list[int]:
    """The bytes that the link has carried, in each direction."""
    return [direction.bytes for direction in link.stats()]


def talk(opener: Host, other: Host, source: str | None, target: str, size: int = 100_000) -> None:
    """Open a TCP connection and send ``size`` bytes each way."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with other.socket(family, proto=socket.IPPROTO_TCP) as listener:
        # The kernel takes an IPv6 address away with its link, but what it is bound to by none is still reached.
        listener.bind(("::" if family == socket.AF_INET6 else "", 0))
        listener.listen()
        listener.settimeout(DEADLINE)
        with opener.socket(family, proto=socket.IPPROTO_TCP) as near:
            near.settimeout(DEADLINE)
            if source is not None:
                near.bind((source, 0))
            near.connect((target, listener.getsockname()[1]))
            far, _ = listener.accept()
            with far:
                far.settimeout(DEADLINE)
                for one, another in ((near, far), (far, near)):
                    with ThreadPoolExecutor(1) as pool:
                        sending = pool.submit(one.sendall, bytes(size))
                        left = size
                        while left:
                            left -= len(another.recv(min(left, 1 << 16)))
                        sending.result()


@pytest.mark.parametrize("limited", [False, True], ids=["redirected", "emulated"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server_addresses", [2, 1])
def test_a_subflows_link_is_that_of_its_address_at_the_first_host(
    server_addresses: int, family: int, limited: bool
) -> None:
    size = 100_000
    with two_paths(rate=None, delay="1ms" if limited else None, server_addresses=server_addresses) as (
        client,
        server,
        paths,
    ):
        remotes = {path.address(server, family) for path in paths}
        assert len(remotes) == server_addresses
        for own, remote in itertools.product(paths, sorted(remotes)):
            for opener in (client, server):
                before = {path: frame_bytes(path) for path in paths}
                ends = [(client, own.address(client, family)), (server, remote)]
                if opener is server:
                    ends.reverse()
                (near, source), (far, target) = ends
                talk(near, far, source, target, size)
                for path in paths:
                    carried = [now - then for now, then in zip(frame_bytes(path), before[path], strict=True)]
                    if path is own:
                        assert min(carried) > size
                    else:
                        assert max(carried) < size / 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server_addresses", [2, 1])
@pytest.mark.parametrize("cut", [0, 1])
def test_with_a_link_down_its_address_stops_and_all_others_go_on(server_addresses: int, family: int, cut: int) -> None:
    with two_paths(rate=None, server_addresses=server_addresses) as (client, server, paths):
        down, up = paths[cut], paths[1 - cut]
        down.down()
        for path in paths:
            # From the other address, and from none.
            talk(client, server, up.address(client, family), path.address(server, family))
            talk(client, server, None, path.address(server, family))
            with pytest.raises(OSError, match=r"unreachable|No route|assign"):
                talk(client, server, down.address(client, family), path.address(server, family))
        with (
            server.socket(family, proto=socket.IPPROTO_TCP) as sock,
            pytest.raises(OSError, match=r"unreachable|No route"),
        ):
            sock.connect((down.address(client, family), PORT))
        talk(
            server, client, down.address(server, family), up.address(client, family)
        ) if family == socket.AF_INET else None
        down.up()
        talk(client, server, down.address(client, family), down.address(server, family))
        talk(server, client, None, down.address(client, family))


def test_a_connection_on_a_link_that_goes_down_waits_for_it() -> None:
    with (
        two_paths(rate=None) as (client, server, (first, second)),
        server.create_server(("", PORT)) as listener,
        client.create_connection((first.address(server), PORT), DEADLINE) as near,
    ):
        far, _ = listener.accept()
        with far:
            exchange(near, far)
            before = frame_bytes(second)
            first.down()
            near.sendall(b"later")
            far.settimeout(0.5)
            with pytest.raises(TimeoutError):
                far.recv(5)
            first.up()
            far.settimeout(DEADLINE)
            assert far.recv(5) == b"later"
            assert [now - then < 1000 for now, then in zip(frame_bytes(second), before, strict=True)] == [True, True]


def test_parallel_links(mptcp_lab: Lab) -> None:
    a, b = mptcp_lab.host("a"), mptcp_lab.host("b")
    link = mptcp_lab.link(a, b, parallel=4, rate="100mbit")
    assert link.parallel == 4
    assert a.addresses == ["10.0.1.1", "fd00:0:0:1::1"]
    for family in FAMILIES:
        # The hash of the ports chooses: of so many connections all four are used.
        before = counters(a)
        for _ in range(32):
            talk(a, b, None, link.address(b, family), 3000)
        used = [now - then > 1500 for now, then in zip(counters(a), before, strict=True)]
        assert used == [True] * 4
    link.down()
    with pytest.raises(OSError, match=r"unreachable|No route"):
        talk(a, b, None, link.address(b))
    link.up()
    for family in FAMILIES:
        talk(b, a, None, link.address(a, family))
    assert sum(direction.frames for direction in link.stats()) > 32 * 2


def counters(host: Host) -> list[int]:
    """The bytes that each interface of the host has sent."""
    text = host.run(["cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    return [int(line.split(":")[1].split()[8]) for line in text.splitlines() if line.strip().startswith("eth")]


def test_names(mptcp_lab: Lab) -> None:
    a, b = mptcp_lab.host("a"), mptcp_lab.host("b")
    wifi, other = mptcp_lab.link(a, b, name="wifi"), mptcp_lab.link(a, b)
    assert (wifi.name, other.name) == ("wifi", "eth2")
    assert "wifi" in repr(wifi)
    for wrong in ("", "a b", "x" * 64, "-a"):
        with pytest.raises(ValueError, match="name"):
            mptcp_lab.link(a, b, name=wrong)
    with pytest.raises(TypeError, match="name"):
        mptcp_lab.link(a, b, name=1)  # type: ignore[arg-type]
    for taken in ("wifi", "eth2"):
        with pytest.raises(ValueError, match="already"):
            mptcp_lab.link(a, b, name=taken)
    assert mptcp_lab.links == [wifi, other]


def test_two_paths_with_values_for_each_link_and_direction() -> None:
    with two_paths(
        rate=(("20mbit", "5mbit"), "10mbit"),
        delay=("10ms", ("1ms", None)),
        names=("wifi", "lte"),
        loss=(0, "1%"),
        mtu=1400,
    ) as (_, _, paths):
        assert [path.name for path in paths] == ["wifi", "lte"]
        assert [path.rate for path in paths] == [(20_000_000, 5_000_000), 10_000_000]
        assert [path.delay for path in paths] == [0.01, (0.001, None)]
        assert [path.loss for path in paths] == [(None, 0.01)] * 2
        assert [path.mtu for path in paths] == [1400, 1400]
    for wrong in ({"names": ("a",)}, {"names": "ab"}, {"server_addresses": 3}, {"delay": ("1ms",)}):
        with pytest.raises(ValueError, match=next(iter(wrong))), two_paths(**wrong):  # type: ignore[arg-type]
            pass


class Checked(threading.Thread):
    """Sends numbered blocks one way, without end; the receiver checks that none is missing."""

    BLOCK = 1000

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sender, self.receiver = sender, receiver
        self.received = 0
        self.wrong: str | None = None
        self.stopping = threading.Event()
        self.feeding = threading.Thread(target=self._feed, daemon=True)

    def _feed(self) -> None:
        for number in itertools.count():
            if self.stopping.is_set():
                break
            self.sender.sendall(number.to_bytes(8, "big") * (self.BLOCK // 8))
        self.sender.shutdown(socket.SHUT_WR)

    def run(self) -> None:
        self.feeding.start()
        data = b""
        while chunk := self.receiver.recv(1 << 16):
            data += chunk
            while len(data) >= self.BLOCK:
                block, data = data[: self.BLOCK], data[self.BLOCK :]
                if block != (self.received // self.BLOCK).to_bytes(8, "big") * (self.BLOCK // 8):
                    self.wrong = f"after {self.received} bytes"
                    return
                self.received += self.BLOCK
        if data:
            self.wrong = f"{len(data)} bytes too many"

    def stop(self) -> None:
        self.stopping.set()
        self.join(DEADLINE)
        assert not self.is_alive(), "the rest has not come"
        assert self.wrong is None


POLICIES = {
    "Prefer": lambda first, second: policies.Prefer(first, second),
    "Backup": lambda first, second: policies.Backup(first, second),
    "FullMesh": lambda first, second: policies.FullMesh(),
    "Handover": lambda first, second: policies.Handover(first, second),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", [0, 1], ids=["first address", "second address"])
def test_failover(policy: str, upload: bool, family: int, target: int) -> None:
    """A connection to either address of the server goes on by the other link within two seconds, no byte is lost."""
    with (
        two_paths(rate="10mbit", delay="5ms") as (client, server, (first, second)),
        client.run_policy(POLICIES[policy](first, second)),
        server.create_server(("" if family == socket.AF_INET else "::", PORT), family=family) as listener,
        client.create_connection(
            ((first, second)[target].address(server, family), PORT), DEADLINE, (first.address(client, family), 0)
        ) as near,
    ):
        far, _ = listener.accept()
        with far:
            exchange(near, far)
            for sock in (near, far):
                sock.settimeout(None)
            transfer = Checked(near, far) if upload else Checked(far, near)
            transfer.start()
            if policy in ("Backup", "FullMesh"):
                assert eventually(lambda: len(tuples(client)) >= 2), "no second subflow"
            assert eventually(lambda: transfer.received > 100_000)
            first.down()
            start, before = time.monotonic(), transfer.received
            # What had arrived already is not counted. The rest takes a quarter of a second.
            assert eventually(lambda: transfer.received > before + 300_000, 10), "it does not go on"
            assert time.monotonic() - start < FAILOVER + 0.25
            transfer.stop()


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_full_mesh_uses_both_paths(upload: bool) -> None:
    """16 MiB over 2 x 10 Mbit/s in either direction."""
    size = 16 << 20

    def measured() -> float:
        with (
            two_paths(rate="10mbit") as (client, server, (first, _)),
            client.run_policy(policies.FullMesh()),
            server.create_server(("", PORT)) as listener,
            client.create_connection((first.address(server), PORT), DEADLINE) as near,
        ):
            far, _ = listener.accept()
            with far, ThreadPoolExecutor(1) as pool:
                exchange(near, far)
                assert eventually(lambda: len(tuples(client)) >= 2)
                for sock in (near, far):
                    sock.settimeout(None)
                sender, receiver = (near, far) if upload else (far, near)
                start = time.perf_counter()
                sending = pool.submit(sender.sendall, bytes(size))
                left = size
                while left:
                    left -= len(receiver.recv(min(left, 1 << 16)))
                sending.result()
                return size * 8 / (time.perf_counter() - start)

    rates: list[float] = []
    while not rates or rates[-1] < 16.5e6 / PATIENCE:
        assert len(rates) < 3, f"{rates} bit/s"
        rates.append(measured())


def test_names_and_limits_are_in_a_recordings_metadata() -> None:
    with two_paths(names=("wifi", "lte"), loss="0.1%", seed=7) as (client, server, (first, _)):
        with (
            server.create_server(("", PORT)) as listener,
            client.create_connection((first.address(server), PORT), DEADLINE) as near,
        ):
            far, _ = listener.accept()
            with far, mptcp.Recorder(near) as recorder:
                exchange(near, far)
        (lab,) = recorder.metadata["labs"]
    done = recorder.metadata["links"]
    assert [link["name"] for link in done] == ["wifi", "lte"]
    assert done[0]["directions"][0]["frames"] > 0
    assert done[0]["directions"][0]["late_max_ns"] > 0
    links: list[dict[str, Any]] = lab["links"]
    assert [link["name"] for link in links] == ["wifi", "lte"]
    assert [link["loss"] for link in links] == [0.001, 0.001]
    assert lab["seed"] == 7
    assert [link["first_addresses"][0] for link in links] == ["10.0.1.1", "10.0.2.1"]


def test_names_of_links_are_in_plots() -> None:
    """At either host: by the local or the remote address."""
    with two_paths(names=("wifi", "lte")) as paths, connected(*paths) as made:
        made.sock.open_subflow(*made.second)
        with mptcp.Recorder(made.sock) as near, mptcp.Recorder(made.peer) as far:
            exchange(made.sock, made.peer)
            assert eventually(lambda: len(set(near.samples["cookie"])) == len(set(far.samples["cookie"])) == 2)
        for recorder in (near, far):
            assert sorted(flow.label for flow in _flows.flows_of(recorder)) == ["lte", "wifi"]


def test_a_policy_of_the_second_host_finds_a_subflows_link_by_its_remote_address() -> None:
    """The subflow from the address on link 1 to the client's address on link 2 is on link 2."""
    with two_paths(rate=None) as (client, server, (first, second)), connected(client, server, (first, second)) as made:
        subflow = made.sock.open_subflow(second.address(client), first.address(server))
        assert eventually(lambda: has_joined(made.peer, subflow))
        (there,) = [one for one in made.peer.subflows() if one.remote == subflow.local]
        local = LocalAddress(there.local[0], first.interface(server))
        assert [Path(link).carries(there, local) for link in (first, second)] == [False, True]
