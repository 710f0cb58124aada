"""qlog files: the draft's schema, and what qvis reads of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
import pytest
from frames import ACK, SYN, Recorded, Side, dss, join_syn, option
from mptcp.lab import Host, Link
from support import PORT, eventually, exchange, has_bpf
from trace_checks import connected

FROM_TCPDUMP = Path(__file__).parents[1] / "data" / "captures"
SIZE = 600_000


def written(write: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    """What is in the file, after it was checked against the schema and as qvis's loader does."""
    jsonschema = pytest.importorskip("jsonschema")
    path = folder / "x.qlog"
    write(path)
    text = path.read_text()
    schema = json.loads(Path(__file__).with_name("qlog.schema.json").read_text())
    file: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(file)
    # It looks at the first 1,024 characters for these, refuses other versions, and wants times in order.
    assert '"qlog_version":"0.3"' in text[:1024]
    assert '"qlog_format":"JSON"' in text[:1024]
    for trace in file["traces"]:
        times = [event["time"] for event in trace["events"]]
        assert times == sorted(times)
        assert trace["common_fields"]["time_format"] == "relative"
    return file


class Congestion:
    """What qvis's congestion view makes of a trace: packets by number, linked to their acknowledgments and losses."""

    def __init__(self, trace: dict[str, Any]) -> None:
        events = trace["events"]
        self.sent = {
            event["data"]["header"]["packet_number"]: event
            for event in events
            if event["name"] == "transport:packet_sent" and event["data"]["raw"]["length"]
        }
        self.received = [event for event in events if event["name"] == "transport:packet_received"]
        self.acked: dict[int, dict[str, Any]] = {}
        for event in self.received:
            for frame in event["data"]["frames"]:
                for span in frame.get("acked_ranges", ()):
                    for number in range(span[0], span[-1] + 1):
                        assert number in self.sent, "acknowledged, but not sent"
                        self.acked.setdefault(number, event)
        self.lost = [
            event["data"]["header"]["packet_number"] for event in events if event["name"] == "recovery:packet_lost"
        ]
        self.metrics = [event["data"] for event in events if event["name"] == "recovery:metrics_updated"]

    def bytes_sent(self) -> int:
        return sum(event["data"]["raw"]["length"] for event in self.sent.values())


def test_a_trace_and_a_recording_of_one_transfer(
    mptcp_two_paths: tuple[Host, Host, tuple[Link, Link]], tmp_path: Path
) -> None:
    client, server, links = mptcp_two_paths
    files = [tmp_path / f"{number}.pcapng" for number in range(2)]
    captures = [link.capture(file, host="both") for link, file in zip(links, files, strict=True)]
    with server.create_server(("", PORT)) as listener:
        sock = client.create_connection((links[0].address(server), PORT), timeout=10, path_manager="userspace")
        with sock, listener.accept()[0] as peer, mptcp.Recorder(sock, interval=0.005) as recorder:
            peer.settimeout(20)
            exchange(sock, peer)
            sock.open_subflow(local=links[1].address(client), remote=(links[1].address(server), PORT), timeout=10)
            sock.settimeout(20)
            peer.settimeout(20)
            left = SIZE
            while left:
                sock.sendall(bytes(min(left, 60_000)))
                left -= min(left, 60_000)
                got = 0
                while got < 60_000:
                    got += len(peer.recv(60_000 - got))
            if sock.info().bytes_acked is None:
                pytest.skip("needs mptcpi_bytes_acked")
            assert eventually(lambda: sock.info().bytes_acked == SIZE + 1)
            token = sock.token
    for capture in captures:
        capture.close()
    trace = mptcp.read_trace(*files)
    file = written(trace.to_qlog, tmp_path)
    whole, *parts = file["traces"]
    assert len(parts) == len(trace.subflows) == 2
    assert {each["common_fields"]["group_id"] for each in file["traces"]} == {f"{token:08x}"}
    assert {each["vantage_point"]["type"] for each in file["traces"]} == {"client"}
    for each, rows in (
        (whole, trace.packets),
        *((part, trace.packets[trace.packets["subflow"] == number]) for number, part in enumerate(parts)),
    ):
        view = Congestion(each)
        sent = rows[rows["direction"] == 0]
        assert view.bytes_sent() == sent["length"].sum()
        acked = sent["data_acked_ns"] != -1
        assert len(view.acked) == acked.sum()
        # The times of the acknowledgments, to the nanosecond, from the one reference.
        start = trace.connections["start_ns"].min()
        expected = np.sort(sent["data_acked_ns"][acked] - start) / 1e6
        assert np.allclose(np.sort([event["time"] for event in view.acked.values()]), expected, rtol=0, atol=1e-6)
        assert view.metrics[-1]["bytes_in_flight"] == 0
        assert min(each["latest_rtt"] for each in view.metrics if "latest_rtt" in each) > 0
    streams = {
        (event["subflow"], event["data"]["frames"][0]["stream_id"])
        for event in whole["events"]
        if event["name"] == "transport:packet_sent"
    }
    assert streams == {(0, 0), (1, 4)}
    kinds = [event["name"] for event in parts[1]["events"]]
    assert kinds[0] == "connectivity:connection_started"
    assert kinds.count("mptcp:mp_join") >= 3

    file = written(recorder.to_qlog, tmp_path)
    whole, *parts = file["traces"]
    assert len(parts) == 2
    assert whole["vantage_point"]["type"] in ("client", "unknown"), "unknown where nobody heard it begin"
    # As far as the counters go: the last samples are of before the last byte, or after.
    for part in parts:
        view = Congestion(part)
        rows = recorder.samples[recorder.samples["subflow"] == int(part["title"].split()[1])]
        assert view.bytes_sent() == rows["bytes_sent"].max()
        assert max(each.get("congestion_window", 0) for each in view.metrics) == (
            (rows["snd_cwnd"] * rows["snd_mss"]).max()
        )
        rtt = [each["smoothed_rtt"] for each in view.metrics if "smoothed_rtt" in each]
        assert max(rtt) == rows["rtt"].max() / 1000
    assert Congestion(whole).bytes_sent() == recorder.connections["bytes_sent"].max()
    names = [event["name"] for event in whole["events"]]
    assert names.count("mptcp:sub_established") == sum(
        event.kind == mptcp.EventKind.SUB_ESTABLISHED for event in recorder.events
    )


def test_losses_reinjections_and_the_other_direction(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    other, there = ("10.0.2.1", 41000), ("10.0.2.2", 5000)
    recorded.segment(other, there, 0, SYN, join_syn(side.peer_token))
    recorded.segment(there, other, 0, SYN | ACK, option(1, 0, bytes([3]) + bytes(12)), ack=1)
    side.send(0, b"a" * 100)
    side.send(100, b"b" * 100)
    side.send(0, b"a" * 100)
    recorded.segment(other, there, 1, ACK, dss(dsn=side.idsn + 101, subflow=1, length=100), b"b" * 100)
    recorded.segment(side.there, side.here, 5001, ACK, dss(dsn=side.peer_idsn + 1, subflow=1, length=9), b"x" * 9)
    side.acknowledge(200)
    trace = mptcp.read_trace(recorded.write(tmp_path / "x.pcap"))
    file = written(trace.to_qlog, tmp_path)
    whole, first, second = file["traces"]
    view = Congestion(whole)
    assert [event["data"]["frames"][0]["offset"] for event in view.sent.values()] == [0, 100, 0, 100]
    assert [event.get("retransmitted", False) for event in view.sent.values()] == [False, False, True, False]
    assert [event.get("reinjected", False) for event in view.sent.values()] == [False, False, False, True]
    assert view.lost == [0]
    assert sorted(view.acked) == [0, 1, 2, 3]
    assert view.received[0]["data"]["raw"]["length"] == 9
    assert Congestion(first).lost == [0]
    # Of a subflow, offsets are its own.
    assert [event["data"]["frames"][0]["offset"] for event in Congestion(second).sent.values()] == [0]
    # A key has more than 53 bits' room: JavaScript would round it.
    keys = [event["data"]["key"] for event in whole["events"] if event["data"].get("key")]
    assert keys == [2, 1]


def test_the_sender_is_the_vantage_point(tmp_path: Path) -> None:
    trace = mptcp.read_trace(FROM_TCPDUMP / "mptcp-v0.pcap")
    file = written(trace.to_qlog, tmp_path)
    down = trace.connections["bytes_1"] > trace.connections["bytes_0"]
    assert {each["vantage_point"]["type"] for each in file["traces"]} == {"server" if down else "client"}
    keys = [event["data"]["key"] for each in file["traces"] for event in each["events"] if "key" in event["data"]]
    assert {int(key) for key in keys} >= {
        event.details["key"] for event in trace.events if event.kind == "MP_CAPABLE" and "key" in event.details
    }


@pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")
def test_a_trace_of_tracepoints(mptcp_two_paths: tuple[Host, Host, tuple[Link, Link]], tmp_path: Path) -> None:
    client, server, links = mptcp_two_paths
    with connected(client, server, list(links)) as (sock, peer), mptcp.Tracer([sock, peer]) as tracer:
        peer.sendall(bytes(300_000))
        left = 300_000
        while left:
            left -= len(sock.recv(left))
    file = written(tracer.trace.to_qlog, tmp_path)
    assert {each["vantage_point"]["type"] for each in file["traces"]} == {"server"}
    packets = tracer.trace.packets[tracer.trace.packets["direction"] == 1]
    assert Congestion(file["traces"][0]).bytes_sent() == packets["length"].sum() >= 300_000


def test_a_trace_without_connections(tmp_path: Path) -> None:
    trace = mptcp.read_trace(Recorded().write(tmp_path / "x.pcap"))
    assert written(trace.to_qlog, tmp_path)["traces"] == []


@pytest.mark.parametrize("path", ["x.txt", "x", 3])
def test_a_path_that_qvis_would_refuse(path: Any) -> None:
    trace = mptcp.read_trace(FROM_TCPDUMP / "mptcp-v1.pcap")
    with pytest.raises((ValueError, TypeError), match=r"suffix must be \.qlog or \.json|must be a str"):
        trace.to_qlog(path)
