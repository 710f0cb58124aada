"""Figures that two witnesses confirm: transfers between two hosts, recorded and captured at both ends.

The captures are read by tshark and by read_trace(), and both say the same of every subflow. For each transfer: the
bytes of every subflow at the sender and at the receiver are the capture's, the shares are within their stated error,
the reinjection ratio within 0.001, and the time to recover from a failure within one window.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mptcp
import numpy as np
import pytest
import witness
from mptcp import measures
from mptcp.lab import Host, Lab, Link
from support import PORT, eventually, exchange, needs

pytestmark = needs("tshark", "mergecap")

WINDOW = 0.2


class Transfer:
    """One that goes on until it is stopped, with what a case may do to it meanwhile."""

    def __init__(self, client: Host, server: Host, links: list[Link], family: int, download: bool) -> None:
        self.client, self.server, self.links, self.family = client, server, links, family
        self._stack = contextlib.ExitStack()
        any_address = "" if family == socket.AF_INET else "::"
        listener = self._stack.enter_context(server.create_server((any_address, PORT), family=family))
        self.sock = client.create_connection((links[0].address(server, family=family), PORT), timeout=20)
        self.peer, _ = listener.accept()
        exchange(self.sock, self.peer)
        self.subflows = [self.open(link) for link in links[1:]]
        self.sender, self.receiver = (self.peer, self.sock) if download else (self.sock, self.peer)
        # What is done to a transfer is done after a while of it.
        self.failure_ns: int | None = None
        self.stop_ns = 0
        self.received = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._send, self._receive)]

    def open(self, link: Link, **options: Any) -> mptcp.Subflow:
        local, remote = (link.address(host, family=self.family) for host in (self.client, self.server))
        return self.sock.open_subflow(local, remote, **options)

    def fail(self) -> None:
        self.failure_ns = time.monotonic_ns()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        self.sender.settimeout(60)
        while not self._stop.is_set():
            self.sender.sendall(bytes(50_000))
        self.sender.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        self.receiver.settimeout(60)
        while got := len(self.receiver.recv(1 << 18)):
            self.received += got

    def goes_on(self, count: int) -> None:
        """Wait until so many more bytes have arrived."""
        wanted = self.received + count
        assert eventually(lambda: self.received >= wanted, 60)

    def stop(self) -> None:
        self.stop_ns = time.monotonic_ns()
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        self.sock.close()
        self.peer.close()
        self._stack.close()


@dataclass(frozen=True)
class Case:
    rates: tuple[str, ...]
    then: Callable[[Transfer], None] | None = None
    download: bool = False
    family: int = socket.AF_INET
    loss: str | None = None
    method: Literal["auto", "inet_diag", "full_info"] = "auto"
    # Bytes before and after what is done to it.
    count: int = 1_000_000
    # What the sender may send into a link that is down: TCP counts it, and it is on no wire.
    own_drops: int = 0


def second_is_opened_and_closed(transfer: Transfer) -> None:
    opened = transfer.open(transfer.links[1])
    transfer.goes_on(700_000)
    transfer.sock.close_subflow(opened)


def second_link_goes_down_and_up(transfer: Transfer) -> None:
    transfer.fail()
    transfer.links[1].down()
    transfer.goes_on(400_000)
    transfer.links[1].up()
    transfer.open(transfer.links[1])


def first_link_goes_down(transfer: Transfer) -> None:
    transfer.fail()
    transfer.links[0].down()
    transfer.sock.close_subflow(transfer.sock.subflows()[0])


def second_loses_everything(transfer: Transfer) -> None:
    transfer.fail()
    transfer.links[1].set(loss="100%")
    transfer.goes_on(1_000_000)
    transfer.links[1].set(loss=None)


def second_is_reset(transfer: Transfer) -> None:
    transfer.fail()
    local, remote = (transfer.links[1].address(host) for host in (transfer.client, transfer.server))
    transfer.client.run(["ss", "-K", "src", local, "dst", remote], capture_output=True, check=True)


def backup_takes_over(transfer: Transfer) -> None:
    first, second = transfer.sock.subflows()
    second.set_backup(True)
    transfer.goes_on(300_000)
    second.set_backup(False)
    first.set_backup(True)


EQUAL, UNEQUAL = ("16mbit", "16mbit"), ("20mbit", "8mbit")
IPV6 = socket.AF_INET6
CASES = {
    "upload-1": Case(("20mbit",)),
    "download-1": Case(("20mbit",), download=True, family=IPV6),
    "upload-2-equal": Case(EQUAL, method="inet_diag"),
    "upload-2-unequal": Case(UNEQUAL, family=IPV6),
    "download-2-unequal": Case(UNEQUAL, download=True),
    "upload-4-equal": Case(("10mbit",) * 4, method="full_info"),
    "download-4-unequal": Case(("12mbit", "9mbit", "6mbit", "3mbit"), download=True, family=IPV6),
    "loss": Case(UNEQUAL, loss="1%"),
    "download-loss": Case(EQUAL, loss="1%", download=True, method="inet_diag"),
    "opened-and-closed": Case(("20mbit", "10mbit"), second_is_opened_and_closed),
    "opened-and-closed-download": Case(("20mbit", "10mbit"), second_is_opened_and_closed, download=True),
    "link-down-and-up": Case(("20mbit", "10mbit"), second_link_goes_down_and_up, own_drops=30_000, count=2_000_000),
    "link-down-ipv6": Case(
        UNEQUAL, second_link_goes_down_and_up, family=IPV6, method="inet_diag", own_drops=30_000, count=2_000_000
    ),
    "first-link-down": Case(("10mbit", "20mbit"), first_link_goes_down, own_drops=30_000, count=2_000_000),
    "failover": Case(("20mbit", "10mbit"), second_loses_everything, count=2_000_000),
    "failover-download": Case(("20mbit", "10mbit"), second_loses_everything, download=True, count=2_000_000),
    "reset": Case(("20mbit", "10mbit"), second_is_reset, count=2_000_000),
    "backup": Case(EQUAL, backup_takes_over),
}


@dataclass
class Result:
    sender: mptcp.Recorder
    receiver: mptcp.Recorder
    sent: list[witness.Segment]
    arrived: list[witness.Segment]
    traces: dict[str, mptcp.Trace]  # of the same captures as "sent" and "arrived"
    failure_ns: int | None
    stop_ns: int


def carry_out(case: Case, folder: Path) -> Result:
    with Lab() as lab, contextlib.ExitStack() as stack:
        client, server = lab.host("client"), lab.host("server")
        links = [
            lab.link(client, server, name=f"link{number}", rate=rate, delay="5ms", loss=case.loss, queue="1s")
            for number, rate in enumerate(case.rates)
        ]
        for number, link in enumerate(links):
            for host in (client, server):
                stack.enter_context(link.capture(folder / f"{number}.{host.name}", host=host))
        transfer = Transfer(client, server, links, case.family, case.download)
        recorders = [
            stack.enter_context(mptcp.Recorder(sock, 0.01, method=case.method, connection_interval=0.05))
            for sock in (transfer.sender, transfer.receiver)
        ]
        transfer.start()
        try:
            transfer.goes_on(case.count)
            if case.then is not None:
                case.then(transfer)
                transfer.goes_on(case.count)
        finally:
            transfer.stop()
        # All has arrived; what is still in flight was sent twice.
        assert eventually(
            lambda: all(s.tcp_info.unacked == 0 for s in transfer.sender.subflows() if s.tcp_info.state == 1), 60
        )
        # One reading of everything that has begun after that, and has ended.
        read = [(r, len(np.unique(r.connections["time_ns"])), r.metadata["ticks"]) for r in recorders]
        assert eventually(
            lambda: all(
                len(np.unique(r.connections["time_ns"])) > rows + 1 and r.metadata["ticks"] > ticks + 1
                for r, rows, ticks in read
            )
        )
        transfer.close()
        for recorder in recorders:
            recorder.close()
    sides = [[folder / f"{number}.{name}" for number in range(len(links))] for name in ("client", "server")]
    here, there = reversed(sides) if case.download else sides
    sent, arrived = witness.segments(*here), witness.segments(*there)
    traces = {"sent": mptcp.read_trace(*here), "arrived": mptcp.read_trace(*there)}
    return Result(recorders[0], recorders[1], sent, arrived, traces, transfer.failure_ns, transfer.stop_ns)


def last_rows(recorder: mptcp.Recorder) -> dict[witness.Flow, Any]:
    """The last row of each subflow, by its local and remote end."""
    samples, rows = recorder.samples, {}
    for each in recorder.metadata["subflows"]:
        of_it = samples[samples["cookie"] == each["cookie"]]
        if len(of_it):
            rows[tuple(each["local"][:2]), tuple(each["remote"][:2])] = of_it[-1]
    return rows


# The others take a minute or two: `MPTCP_ALL_FIGURES=1 pytest tests/figures`.
QUICK = {"download-1", "upload-2-unequal", "loss", "opened-and-closed-download", "link-down-ipv6", "failover", "reset"}
ALL = bool(os.environ.get("MPTCP_ALL_FIGURES"))
needs_time = pytest.mark.skipif(not ALL, reason="carried out if the environment has MPTCP_ALL_FIGURES")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=needs_time) for name in CASES])
def test_a_capture_confirms(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    result = carry_out(case, tmp_path)
    # Towards the receiver.
    sent, arrived = (
        witness.by_flow(segment for segment in side if (segment.flow[0][1] == PORT) == case.download)
        for side in (result.sent, result.arrived)
    )
    here, there = last_rows(result.sender), last_rows(result.receiver)
    problems = []

    def expect(what: str, found: float, wanted: float, error: float = 0.0) -> None:
        print(f"{name}: {what}: {found} of {wanted}, allowed {error}")
        if found != wanted and not abs(found - wanted) <= error:
            problems.append(f"{what}: {found}, and the capture says {wanted} (allowed: {error})")

    # One witness by the other.
    for side, segments in (("sent", result.sent), ("arrived", result.arrived)):
        by_tshark, by_trace = witness.findings(segments), witness.findings(result.traces[side])
        for what in ("bytes", "reinjected", "data_acks", "fins", "resets"):
            one, other = getattr(by_tshark, what), getattr(by_trace, what)
            if one != other:
                problems.append(f"{side}, {what}: {one} by tshark, {other} by read_trace()")

    for flow, (total, once) in sent.items():
        row = here[flow]
        expect(f"{flow} sent", row["bytes_sent"], total, case.own_drops)
        expect(f"{flow} sent once", row["bytes_sent"] - row["bytes_retrans"], once, case.own_drops)
    fins = {segment.flow for segment in result.arrived if segment.fin}
    resets = {flow for segment in result.arrived if segment.reset for flow in (segment.flow, segment.flow[::-1])}
    for flow, acknowledged in witness.acknowledged(result.arrived).items():
        if flow in sent:
            # A FIN counts as received. What arrived last before a reset, or over a link that is down now, may not have
            # been acknowledged.
            late = arrived[flow][1] - acknowledged if flow in resets or case.own_drops else 0
            expect(f"{flow} received", there[flow[::-1]]["bytes_received"], acknowledged, (flow in fins) + late)

    offset = result.sender.metadata["realtime_offset_ns"] / 1e9
    begin = int(result.sender.samples["time_ns"].min()) / 1e9 + offset
    shares, bounds = measures.share(result.sender.samples, error=True)
    delivered = dict.fromkeys(sent, 0)
    for at, flow, new in witness.acknowledgements(result.sent):
        if flow in sent and at > begin:
            delivered[flow] += new
    for flow, count in delivered.items():
        cookie = int(here[flow]["cookie"])
        expect(f"{flow} share", shares[cookie], count / sum(delivered.values()), bounds[cookie])

    ratio, bound = measures.reinjection_ratio(result.sender.samples, result.sender.connections, error=True)
    expect(
        f"reinjection ratio (bound {bound})",
        ratio,
        witness.reinjection_ratio(s for s in result.sent if s.flow in sent),
        0.001,
    )

    if result.failure_ns is not None:
        # Of the transfer only: its end would look like a loss.
        samples = result.receiver.samples
        samples = samples[samples["time_ns"] <= result.stop_ns]
        begin, failure, end = (
            ns / 1e9 + offset for ns in (int(samples["time_ns"].min()), result.failure_ns, result.stop_ns)
        )
        arrivals = ((at, new) for at, flow, new in witness.acknowledgements(result.arrived) if flow in sent)
        wanted = witness.recovery(((at, new) for at, new in arrivals if at <= end), begin, failure, WINDOW)
        found = measures.time_to_recover(samples, result.failure_ns, window=WINDOW, direction="received")
        expect("recovery", found, wanted, WINDOW)
    assert not problems
    assert np.isfinite(ratio)
