"""Captures of what goes wrong on the way, with the kernel's counters as witness."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from support import PORT, eventually
from trace_checks import check_content, check_options, connected, is_quiet, new_bytes

SIZE = 1_500_000


WAYS = pytest.mark.parametrize(
    "way",
    [(socket.AF_INET, 0), (socket.AF_INET6, 0), (socket.AF_INET, 1), (socket.AF_INET6, 1)],
    ids=["IPv4 up", "IPv6 up", "IPv4 down", "IPv6 down"],
)
# A family, and the direction of the data.
Way = tuple[int, int]


@dataclass
class Seen:
    """A transfer, what it was captured as, and what the kernel counted at its sender's end."""

    trace: mptcp.Trace
    subflows: list[mptcp.Subflow]
    info: mptcp.Info

    def counted(self, name: str) -> int:
        return sum(getattr(subflow.tcp_info, name) for subflow in self.subflows)


def captured(
    lab: Lab,
    folder: Path,
    links: list[dict[str, Any]],
    way: Way = (socket.AF_INET, 0),
    meanwhile: Callable[[list[Link], mptcp.Socket], None] = lambda links, sock: None,
    prepare: Callable[[Host, Host], None] = lambda client, server: None,
    **options: Any,
) -> Seen:
    client, server = lab.host("client"), lab.host("server")
    prepare(client, server)
    made = [lab.link(client, server, **each) for each in links]
    files = [folder / f"{number}.pcapng" for number in range(len(made))]
    captures = [link.capture(file, host="both") for link, file in zip(made, files, strict=True)]
    content = os.urandom(SIZE)
    family, direction = way
    peer_host = server if direction == 0 else client
    with connected(client, server, made, family, **options) as both:
        sock, peer = both if direction == 0 else reversed(both)
        sock.settimeout(60)
        received = bytearray()

        def receive() -> None:
            while len(received) < SIZE:
                received.extend(peer.recv(1 << 16))

        thread = threading.Thread(target=receive)
        thread.start()
        sock.sendall(content[: SIZE // 3])
        meanwhile(made, sock)
        sock.sendall(content[SIZE // 3 :])
        thread.join()
        assert received == content
        if sock.info().bytes_acked is None:
            pytest.skip("needs mptcpi_bytes_acked")
        assert eventually(lambda: sock.info().bytes_acked == SIZE + 1)
        # A subflow may still send again what another has delivered, and count that.
        up = [link.address(peer_host, family=family) for link in made if link.is_up]
        assert eventually(lambda: all(is_quiet(sock, address) for address in up))
        subflows, info, tokens = list(sock.subflows()), sock.info(), [each.token for each in both]
    for capture in captures:
        capture.close()
        assert capture.dropped == 0
    trace = mptcp.read_trace(*files)
    check_options(trace, files)
    (connection,) = trace.connections
    assert connection["complete"]
    assert [connection["token"], connection["peer_token"]] == tokens
    assert new_bytes(trace, direction) == connection[f"bytes_{direction}"] == SIZE + 1
    check_content(trace, files, direction, b"x" + content)
    assert connection["missing_0"] == connection["missing_1"] == 0
    for name in ("missing_0", "missing_1", "unmapped_0", "unmapped_1"):
        assert trace.subflows[name].sum() == 0
    # Only of what was sent again after the last DATA_ACK there is none.
    unacked = trace.packets[trace.packets["data_acked_ns"] == -1]
    assert (unacked["retransmitted"] | unacked["reinjected"]).all()
    return Seen(trace, subflows, info)


@WAYS
def test_loss_and_reordering(mptcp_lab: Lab, tmp_path: Path, way: Way) -> None:
    links = [
        {"rate": "20mbit", "delay": "5ms", "loss": "2%"},
        {"rate": "20mbit", "delay": "5ms", "jitter": "4ms", "reorder": True},
    ]
    seen = captured(mptcp_lab, tmp_path, links, way)
    _, direction = way
    subflows = seen.trace.subflows
    packets = seen.trace.packets[seen.trace.packets["direction"] == direction]
    # Links lose behind the host, so that TCP counts each transmission once.
    assert subflows[f"bytes_{direction}"].sum() == seen.counted("bytes_sent")
    assert subflows[f"retransmitted_{direction}"].sum() == seen.counted("bytes_retrans") > 0
    reinjected = seen.counted("bytes_sent") - seen.counted("bytes_retrans") - seen.info.bytes_sent
    name = f"reinjected_{direction}"
    assert subflows[name].sum() == seen.trace.connections[name] == reinjected
    lost = packets["received_ns"] == -1
    assert 0 < lost.sum() < len(packets) // 2
    assert (packets["subflow"][lost] == 0).all()
    # What was lost has arrived later, by another transmission.
    assert (packets["data_delivered_ns"] != -1).all()
    # A copy may be sent when the data has been delivered already.
    first_sent = ~packets["retransmitted"] & ~packets["reinjected"]
    assert (packets["data_delivered_ns"] > packets["time_ns"])[first_sent].all()
    late = packets["data_delivered_ns"] - packets["received_ns"]
    assert (late[~lost & first_sent] >= 0).all()


@WAYS
def test_failover(mptcp_lab: Lab, tmp_path: Path, way: Way) -> None:
    def fail(links: list[Link], sock: mptcp.Socket) -> None:
        # Twenty segments take 60 ms: they are on their way when the link goes down.
        assert eventually(lambda: sock.subflows()[0].tcp_info.unacked > 20)
        links[0].down()

    links = [{"rate": "4mbit", "delay": "10ms"}, {"rate": "20mbit", "delay": "10ms"}]
    seen = captured(mptcp_lab, tmp_path, links, way, fail)
    _, direction = way
    subflows, name = seen.trace.subflows, f"reinjected_{direction}"
    assert subflows[name][1] > 0
    assert seen.trace.connections[name] == subflows[name].sum()
    # What was sent on the link that is down did not arrive.
    packets = seen.trace.packets[seen.trace.packets["direction"] == direction]
    first = packets[packets["subflow"] == 0]
    assert (first["received_ns"] == -1).any()
    assert (first["data_delivered_ns"] != -1).all()
    # The kernel counts only what its own timer sends again: docs/traces.md.
    assert subflows[name].sum() >= seen.info.bytes_retrans


@WAYS
def test_backup(mptcp_lab: Lab, tmp_path: Path, way: Way) -> None:
    links = [{"rate": "40mbit", "delay": "2ms"}, {"rate": "40mbit", "delay": "2ms"}]
    seen = captured(mptcp_lab, tmp_path, links, way, backup=True)
    subflows = seen.trace.subflows
    assert subflows["backup_0"].tolist() == [False, True]
    assert subflows[f"bytes_{way[1]}"].tolist()[1] == 0
    kinds = [event.kind for event in seen.trace.events if event.details.get("backup")]
    assert set(kinds) <= {"MP_JOIN", "MP_PRIO"}
    assert kinds


def test_checksums(mptcp_lab: Lab, tmp_path: Path) -> None:
    def prepare(*hosts: Host) -> None:
        for host in hosts:
            host.sysctl("net.mptcp.checksum_enabled", 1)

    links = [{"rate": "40mbit", "delay": "2ms"}, {"rate": "40mbit", "delay": "2ms"}]
    seen = captured(mptcp_lab, tmp_path, links, prepare=prepare)
    assert seen.trace.connections["checksum"]
    for direction in (0, 1):
        assert seen.trace.subflows[f"checksums_{direction}"].sum() > 0
        assert seen.trace.subflows[f"checksum_errors_{direction}"].sum() == 0


@WAYS
def test_fallback(mptcp_lab: Lab, tmp_path: Path, way: Way) -> None:
    family, direction = way
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    link = mptcp_lab.link(client, server, rate="40mbit", delay="2ms")
    file = tmp_path / "x.pcapng"
    content = os.urandom(100_000)
    with (
        link.capture(file, host="both"),
        server.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener,
    ):
        listener.bind(("" if family == socket.AF_INET else "::", PORT))
        listener.listen()
        with client.create_connection((link.address(server, family=family), PORT), timeout=10) as sock:
            peer, _ = listener.accept()
            with peer:
                sender, receiver = (sock, peer) if direction == 0 else (peer, sock)
                sender.sendall(content)
                sender.shutdown(socket.SHUT_WR)
                received = bytearray()
                while data := receiver.recv(1 << 16):
                    received += data
                assert received == content
    trace = mptcp.read_trace(file)
    check_options(trace, [file])
    assert trace.connections["fallback"]
    assert not trace.connections["complete"]
    assert new_bytes(trace, direction) == 100_000
    check_content(trace, [file], direction, content)
    assert [event.details["by"] for event in trace.events if event.kind == "FALLBACK"] == ["the handshake"]


@pytest.mark.parametrize("host", ["client", "server"])
def test_a_capture_of_one_end_knows_which(mptcp_lab: Lab, tmp_path: Path, host: str) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    link = mptcp_lab.link(client, server, rate="40mbit", delay="50ms")
    file = tmp_path / "x.pcap"
    with link.capture(file, host=client if host == "client" else server), connected(client, server, [link]):
        pass
    trace = mptcp.read_trace(file)
    subflow = trace.subflows[0]
    assert [bool(subflow["received_0"]), bool(subflow["received_1"])] == [host == "server", host == "client"]
    there = trace.packets["direction"] == (0 if host == "server" else 1)
    assert (trace.packets["received_ns"] == trace.packets["time_ns"])[there].all()
    assert (trace.packets["data_delivered_ns"] >= trace.packets["time_ns"])[there].all()
    assert (trace.packets["received_ns"] == -1)[~there].all()
