"""Traces by tracepoints, with captures of the same transfers and the kernel's counters as witnesses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
import pytest
from mptcp.lab import Lab
from support import eventually, exchange, has_bpf
from trace_checks import connected, is_quiet

HERE = Path(__file__).parent
needs_bpf = pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")
SIZE = 3_000_000


def transfer(sock: mptcp.Socket, peer: mptcp.Socket, size: int = SIZE) -> None:
    """Send bytes in pieces of odd lengths, and wait until they are acknowledged."""
    content, before = os.urandom(size), sock.info().snd_una
    received = bytearray()

    def receive() -> None:
        while len(received) < size:
            received.extend(peer.recv(1 << 16))

    thread = threading.Thread(target=receive)
    thread.start()
    sent = 0
    for number in range(1, sys.maxsize):
        piece = content[sent : sent + 1 + number * 7919 % 100_000]
        sock.sendall(piece)
        sent += len(piece)
        if sent == size:
            break
    thread.join()
    assert bytes(received) == content
    assert eventually(lambda: (sock.info().snd_una - before) % 2**64 == size)


def is_acked(tracer: mptcp.Tracer, size: int) -> bool:
    """Whether the last DATA_ACK was traced: the application may learn of it first."""
    return tracer.trace.connections["data_acked_0"].tolist() == [size]


def first_sent(trace: mptcp.Trace, subflow: Any) -> Any:
    """The rows of a subflow of direction 0 that are no retransmissions, by their sequence numbers."""
    rows = trace.packets[(trace.packets["subflow"] == subflow) & (trace.packets["direction"] == 0)]
    rows = rows[~rows["retransmitted"]]
    return rows[np.argsort((rows["sequence"] - rows["sequence"][0]).astype(np.int32), kind="stable")]


def new_data(trace: mptcp.Trace) -> int:
    rows = trace.packets
    return int(rows["length"][~rows["reinjected"] & ~rows["retransmitted"]].sum())


def subflow_at(trace: mptcp.Trace, port: int) -> int:
    (number,) = np.flatnonzero(trace.subflows["port_0"] == port)
    return int(number)


def check_segments(tracer: mptcp.Trace, capture: mptcp.Trace, only: Sequence[int] | None = None) -> int:
    """Compare what each subflow sent, segment by segment, and return how many segments there were.

    TCP may send what Multipath TCP gave it in parts: the captured rows lie within those of the tracer, and fill them.
    """
    count = 0
    for port in tracer.subflows["port_0"][slice(None) if only is None else list(only)]:
        ours, theirs = (first_sent(trace, subflow_at(trace, port)) for trace in (tracer, capture))
        begin = ours["sequence"][0]
        theirs = theirs[(theirs["sequence"] - begin).astype(np.int32) >= 0]
        at = np.searchsorted(
            (ours["sequence"] - begin).astype(np.int32), (theirs["sequence"] - begin).astype(np.int32), side="right"
        )
        filled = np.zeros(len(ours), np.int64)
        for number, part in zip(at - 1, theirs, strict=True):
            whole = ours[number]
            offset = int(np.int32(part["sequence"] - whole["sequence"]))
            assert part["dsn"] == whole["dsn"] + offset
            assert offset + part["length"] <= whole["length"]
            if only is None:
                assert part["reinjected"] == whole["reinjected"]
            assert part["time_ns"] >= whole["time_ns"] - 1_000_000
            filled[number] += part["length"]
        assert filled.tolist() == ours["length"].tolist()
        count += len(ours)
    return count


@needs_bpf
@pytest.mark.parametrize("paths", [1, 2, 4])
def test_a_capture_of_the_same_transfer_has_the_same_segments(mptcp_lab: Lab, tmp_path: Path, paths: int) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    # Reno does not pace. A pacing timer may interrupt a task in which the kernel runs no program: docs/traces.md.
    links = [
        mptcp_lab.link(
            client, server, rate="100mbit", delay=f"{2 + 3 * number}ms", loss="0.3%", congestion_control="reno"
        )
        for number in range(paths)
    ]
    files = [tmp_path / f"{number}.pcapng" for number in range(paths)]
    captures = [link.capture(file, host="both") for link, file in zip(links, files, strict=True)]
    with connected(client, server, links) as (sock, peer), mptcp.Tracer([sock, peer]) as tracer:
        tokens = sock.token, peer.token
        before = sum(subflow.tcp_info.bytes_retrans for subflow in sock.subflows())
        transfer(sock, peer)
        assert eventually(lambda: is_acked(tracer, SIZE + 1))
        assert eventually(lambda: is_quiet(sock))
        subflows, info = list(sock.subflows()), sock.info()
    for made in captures:
        made.close()
        assert made.dropped == 0
    trace, capture = tracer.trace, mptcp.read_trace(*files)
    assert tracer.lost == 0
    (connection,) = trace.connections
    assert (connection["token"], connection["peer_token"]) == tokens
    assert connection["complete"]
    assert not connection["fallback"]
    for name in ("idsn_0", "idsn_1", "token", "peer_token", "subflows"):
        assert connection[name] == capture.connections[0][name], name
    assert connection["bytes_0"] == SIZE
    assert connection["data_acked_0"] == SIZE + 1 == capture.connections[0]["data_acked_0"]
    assert connection["missing_0"] == 0
    assert check_segments(trace, capture) >= len(subflows)
    # The first byte was sent before there was a tracer.
    captured = capture.packets[(capture.packets["direction"] == 0) & (capture.packets["dsn"] > 0)]
    assert trace.subflows["bytes_0"].sum() == captured["length"].sum()
    assert trace.subflows["reinjected_0"].sum() == capture.subflows["reinjected_0"].sum()
    again = trace.packets[trace.packets["retransmitted"]]
    seen = captured[captured["retransmitted"]]
    for subflow in trace.subflows:
        ours = again[again["subflow"] == subflow_at(trace, subflow["port_0"])]
        theirs = seen[seen["subflow"] == subflow_at(capture, subflow["port_0"])]
        assert sorted(ours["dsn"].tolist()) == sorted(theirs["dsn"].tolist())
    retransmitted = sum(subflow.tcp_info.bytes_retrans for subflow in subflows) - before
    assert trace.subflows["retransmitted_0"].sum() == seen["length"].sum() == retransmitted
    assert info.bytes_sent in (SIZE + 1, None)  # None before Linux 6.5
    fresh = trace.packets[~trace.packets["retransmitted"] & ~trace.packets["reinjected"]]
    assert (fresh["data_acked_ns"] > fresh["time_ns"]).all()
    assert (fresh["received_ns"] > fresh["time_ns"]).all()
    # What was reinjected may be delivered by its copy before it arrives itself.
    copies = trace.packets[trace.packets["reinjected"]]
    begin, end = copies["dsn"], copies["dsn"] + copies["length"]
    alone = np.array([not ((begin < row["dsn"] + row["length"]) & (row["dsn"] < end)).any() for row in fresh])
    assert (fresh["data_delivered_ns"] >= fresh["received_ns"])[alone].all()


@needs_bpf
def test_failover_over_ipv6(mptcp_lab: Lab, tmp_path: Path) -> None:
    """What the scheduler has no tracepoint for: data that is given to another subflow again."""
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate=rate, delay="10ms") for rate in ("4mbit", "20mbit")]
    files = [tmp_path / f"{number}.pcapng" for number in range(2)]
    captures = [link.capture(file, host="both") for link, file in zip(links, files, strict=True)]
    with connected(client, server, links, family=socket.AF_INET6) as (sock, peer), mptcp.Tracer([sock, peer]) as tracer:

        def fail() -> None:
            assert eventually(lambda: sock.subflows()[0].tcp_info.unacked > 20)
            links[0].down()

        thread = threading.Thread(target=fail)
        thread.start()
        transfer(sock, peer, 1_500_000)
        thread.join()
        assert eventually(lambda: is_acked(tracer, 1_500_001))
        assert eventually(lambda: is_quiet(sock, links[1].address(server, family=socket.AF_INET6)))
        token = sock.token
    for made in captures:
        made.close()
    trace, capture = tracer.trace, mptcp.read_trace(*files)
    assert trace.connections["token"].tolist() == [token]
    assert set(trace.subflows["address_0"].tolist()) == {link.address(client, family=socket.AF_INET6) for link in links}
    (number,) = np.flatnonzero(trace.subflows["address_0"] == links[1].address(client, family=socket.AF_INET6)).tolist()
    assert trace.subflows["reinjected_0"][number] > 0
    assert trace.connections["bytes_0"].tolist() == [1_500_000]
    assert check_segments(trace, capture, [number]) > 100


@needs_bpf
def test_the_scheduler_and_the_senders(mptcp_lab: Lab) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate="50mbit", delay=delay) for delay in ("2ms", "20ms")]
    with connected(client, server, links) as (sock, peer), mptcp.Tracer(sock) as tracer:
        transfer(sock, peer, 1_000_000)
        while_running = tracer.trace
    trace, candidates, acks = tracer.trace, tracer.candidates, tracer.acks
    assert new_data(while_running) == new_data(trace) == 1_000_000
    assert set(trace.packets["direction"].tolist()) == {0}
    assert (trace.packets["received_ns"] == -1).all(), "the receiver is not traced"
    assert set(candidates["subflow"].tolist()) == {0, 1}
    assert candidates["chosen"].any()
    assert not candidates["backup"].any()
    assert (np.diff(candidates["time_ns"]) >= 0).all()
    # Each choice is followed by data on that subflow.
    fresh = trace.packets[~trace.packets["reinjected"] & ~trace.packets["retransmitted"]]
    for choice in candidates[candidates["chosen"]][:50]:
        assert (fresh["subflow"][fresh["time_ns"] >= choice["time_ns"]] == choice["subflow"]).any()
    (number,) = np.flatnonzero(trace.subflows["address_0"] == links[1].address(client))
    slow = acks[acks["subflow"] == number]
    assert slow["srtt_us"][-1] >= 20_000
    assert (acks["snd_cwnd"] > 0).all()
    assert ((acks["snd_nxt"] - acks["snd_una"]).astype(np.int32) >= 0).all()


@needs_bpf
def test_a_receiver_alone(mptcp_lab: Lab) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate="50mbit", delay=delay) for delay in ("2ms", "10ms")]
    with connected(client, server, links) as (sock, peer), mptcp.Tracer(peer) as tracer:
        transfer(sock, peer, 1_000_000)
        assert eventually(
            lambda: tracer.trace.packets["length"][~tracer.trace.packets["reinjected"]].sum() == 1_000_000
        )
        token = sock.token
    trace = tracer.trace
    packets = trace.packets
    assert trace.connections["token"].tolist() == [token]
    assert set(packets["direction"].tolist()) == {0}
    assert trace.subflows["received_0"].all()
    assert (packets["received_ns"] == packets["time_ns"]).all()
    assert (packets["data_delivered_ns"] >= packets["received_ns"]).all()
    fresh = np.sort(packets[~packets["reinjected"]], order="dsn")
    assert (fresh["dsn"][1:] == (fresh["dsn"] + fresh["length"])[:-1]).all()
    # The byte of exchange() came before.
    assert fresh["dsn"][0] == 1


@needs_bpf
def test_a_network_namespace_and_nothing_else(mptcp_lab: Lab, pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    link = mptcp_lab.link(client, server)
    with mptcp.Tracer() as tracer:
        with connected(client, server, [link]) as (sock, _):
            elsewhere = sock.token
        exchange(*pair)
        with (
            mptcp.create_server(("127.0.0.1", 0)) as listener,
            mptcp.create_connection(listener.getsockname(), timeout=10) as sock,
            listener.accept()[0] as peer,
        ):
            exchange(sock, peer)
            token = sock.token
    tokens = tracer.trace.connections["token"].tolist()
    assert token in tokens, "a connection that began meanwhile"
    assert pair[0].token in tokens, "one that was there"
    assert elsewhere not in tokens
    rows = tracer.trace.packets
    rows = rows[rows["token"] == token]
    assert rows["direction"].tolist() == [0, 1]
    assert rows["dsn"].tolist() == [0, 0]
    assert rows["length"].tolist() == [1, 1]
    assert (rows["received_ns"] != -1).all()


@needs_bpf
def test_another_connection_is_not_traced(connection: Any, pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    with mptcp.Tracer(connection.sock) as tracer:
        exchange(*pair)
        exchange(connection.sock, connection.peer)
    assert tracer.trace.connections["token"].tolist() == [connection.sock.token]


@needs_bpf
def test_a_file(connection: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "trace.arrow"
    with mptcp.Tracer(connection.sock, path=file) as tracer:
        transfer(connection.sock, connection.peer, 300_000)
        with pytest.raises(ValueError, match="close the Tracer"):
            _ = tracer.trace
    trace = tracer.trace
    assert new_data(trace) == 300_000
    assert len(tracer.acks) == len(tracer.candidates) == 0
    again = mptcp.read_trace(file)
    assert (again.packets == trace.packets).all()
    assert again.metadata == trace.metadata
    with pytest.raises(OSError, match="no-such-folder"):
        mptcp.Tracer(connection.sock, path=tmp_path / "no-such-folder" / "x.arrow")


@needs_bpf
def test_a_trace_of_tracepoints_is_saved_and_converted(connection: Any, tmp_path: Path) -> None:
    with mptcp.Tracer(connection.sock) as tracer:
        exchange(connection.sock, connection.peer)
    tracer.close()
    trace = tracer.trace
    trace.save(tmp_path / "trace.npz")
    assert (mptcp.read_trace(tmp_path / "trace.npz").packets == trace.packets).all()
    assert trace.metadata["tracepoints"] == {"lost": 0, "unknown": tracer.unknown}


@needs_bpf
def test_a_forked_child_leaves_the_tracer_alone(connection: Any) -> None:
    with mptcp.Tracer(connection.sock) as tracer:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                tracer.close()
                with pytest.raises(OSError, match="process that started it"):
                    _ = tracer.trace
                # As at the end of an interpreter.
                del tracer
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        exchange(connection.sock, connection.peer)
    assert new_data(tracer.trace) == 2


@needs_bpf
def test_an_unclosed_tracer_warns_and_ends(connection: Any) -> None:
    with pytest.warns(ResourceWarning, match="unclosed Tracer"):
        mptcp.Tracer(connection.sock).__del__()


@pytest.mark.parametrize("sources", ["x", 3, [None], b"y"])
def test_wrong_sources(sources: Any) -> None:
    with pytest.raises(TypeError, match="source"):
        mptcp.Tracer(sources)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        mptcp.Tracer([])
    with pytest.raises(ValueError, match="suffix"):
        mptcp.Tracer(path=tmp_path / "trace.npz")


@needs_bpf
def test_what_cannot_be_traced() -> None:
    with mptcp.Socket() as sock, pytest.raises(OSError, match="not connected"):
        mptcp.Tracer(sock)


def test_without_privilege() -> None:
    program = "import mptcp\ntry: mptcp.Tracer()\nexcept PermissionError as error: print(error)\n"
    command = [sys.executable, str(HERE.parent / "denied.py"), "EPERM", "bpf", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "CAP_BPF" in done.stdout, done
