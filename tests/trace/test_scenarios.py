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
from trace_checks import check_options, connected, new_bytes

SIZE = 1_500_000


@dataclass
class Seen:
    """A transfer from the client, what it was captured as, and what the kernel counted at its end."""

    trace: mptcp.Trace
    subflows: list[mptcp.Subflow]
    info: mptcp.Info

    def counted(self, name: str) -> int:
        return sum(getattr(subflow.tcp_info, name) for subflow in self.subflows)


def captured(
    lab: Lab,
    folder: Path,
    links: list[dict[str, Any]],
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
    with connected(client, server, made, **options) as (sock, peer):
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
        assert eventually(lambda: sock.info().bytes_acked == SIZE + 1)
        subflows, info = list(sock.subflows()), sock.info()
    for capture in captures:
        capture.close()
        assert capture.dropped == 0
    trace = mptcp.read_trace(*files)
    check_options(trace, files)
    (connection,) = trace.connections
    assert connection["complete"]
    assert new_bytes(trace, 0) == connection["bytes_0"] == SIZE + 1
    assert connection["missing_0"] == 0
    assert trace.subflows["missing_0"].sum() == trace.subflows["unmapped_0"].sum() == 0
    # Only of what was sent again after the last DATA_ACK there is none.
    unacked = trace.packets[trace.packets["data_acked_ns"] == -1]
    assert (unacked["retransmitted"] | unacked["reinjected"]).all()
    return Seen(trace, subflows, info)


def test_loss_and_reordering(mptcp_lab: Lab, tmp_path: Path) -> None:
    links = [
        {"rate": "20mbit", "delay": "5ms", "loss": "2%"},
        {"rate": "20mbit", "delay": "5ms", "jitter": "4ms", "reorder": True},
    ]
    seen = captured(mptcp_lab, tmp_path, links)
    packets, subflows = seen.trace.packets, seen.trace.subflows
    # Links lose behind the host, so that TCP counts each transmission once.
    assert subflows["bytes_0"].sum() == seen.counted("bytes_sent")
    assert subflows["retransmitted_0"].sum() == seen.counted("bytes_retrans") > 0
    reinjected = seen.counted("bytes_sent") - seen.counted("bytes_retrans") - seen.info.bytes_sent
    assert subflows["reinjected_0"].sum() == seen.trace.connections["reinjected_0"] == reinjected
    lost = packets["received_ns"] == -1
    assert 0 < lost.sum() < len(packets) // 2
    assert (packets["subflow"][lost & (packets["direction"] == 0)] == 0).all()
    # What was lost has arrived later, by another transmission.
    assert (packets["data_delivered_ns"] != -1).all()
    assert (packets["data_delivered_ns"] > packets["time_ns"])[~packets["retransmitted"]].all()
    late = packets["data_delivered_ns"] - packets["received_ns"]
    assert (late[~lost & ~packets["retransmitted"] & ~packets["reinjected"]] >= 0).all()


def test_failover(mptcp_lab: Lab, tmp_path: Path) -> None:
    def fail(links: list[Link], sock: mptcp.Socket) -> None:
        # Twenty segments take 60 ms: they are on their way when the link goes down.
        assert eventually(lambda: sock.subflows()[0].tcp_info.unacked > 20)
        links[0].down()

    links = [{"rate": "4mbit", "delay": "10ms"}, {"rate": "20mbit", "delay": "10ms"}]
    seen = captured(mptcp_lab, tmp_path, links, fail)
    subflows = seen.trace.subflows
    assert subflows["reinjected_0"][1] > 0
    assert seen.trace.connections["reinjected_0"] == subflows["reinjected_0"].sum()
    # What was sent on the link that is down did not arrive.
    first = seen.trace.packets[seen.trace.packets["subflow"] == 0]
    assert (first["received_ns"] == -1).any()
    assert (first["data_delivered_ns"] != -1).all()
    # The kernel counts only what its own timer sends again: docs/traces.md.
    assert subflows["reinjected_0"].sum() >= seen.info.bytes_retrans


def test_backup(mptcp_lab: Lab, tmp_path: Path) -> None:
    links = [{"rate": "40mbit", "delay": "2ms"}, {"rate": "40mbit", "delay": "2ms"}]
    seen = captured(mptcp_lab, tmp_path, links, backup=True)
    subflows = seen.trace.subflows
    assert subflows["backup_0"].tolist() == [False, True]
    assert subflows["bytes_0"].tolist()[1] == 0
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


def test_fallback(mptcp_lab: Lab, tmp_path: Path) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    link = mptcp_lab.link(client, server, rate="40mbit", delay="2ms")
    file = tmp_path / "x.pcapng"
    with (
        link.capture(file, host="both"),
        server.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener,
    ):
        listener.bind(("", PORT))
        listener.listen()
        with client.create_connection((link.address(server), PORT), timeout=10) as sock:
            peer, _ = listener.accept()
            with peer:
                sock.sendall(bytes(100_000))
                sock.shutdown(socket.SHUT_WR)
                received = 0
                while count := len(peer.recv(1 << 16)):
                    received += count
                assert received == 100_000
    trace = mptcp.read_trace(file)
    check_options(trace, [file])
    assert trace.connections["fallback"]
    assert not trace.connections["complete"]
    assert new_bytes(trace, 0) == 100_000
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
