"""Subflows that end: each has its rows, however short it lived, and the last counters, or says that it has not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
import pytest
import witness
from mptcp.lab import two_paths
from support import (
    PORT,
    Connection,
    computing,
    connected,
    events_are_read_late,
    eventually,
    exchange,
    has_bpf,
    needs,
)

HERE = Path(__file__).parent
needs_bpf = pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")


def replaced(method: str, count: int, capture: Path, *before: str) -> list[dict[str, Any]]:
    command = [*before, sys.executable, "-W", "error", str(HERE / "replaced.py"), method, str(count), str(capture)]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=110, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stderr
    ends: list[dict[str, Any]] = json.loads(result.stdout)
    assert [end["failure"] for end in ends] == [None, None]
    return ends


WITHOUT_BPF = [sys.executable, str(HERE.parent / "denied.py"), "EPERM", "bpf"]
CASES = [
    pytest.param("bpf", [], marks=needs_bpf, id="bpf"),
    pytest.param("inet_diag", [], marks=needs_bpf, id="inet_diag"),
    pytest.param("full_info", [], marks=needs_bpf, id="full_info"),
    pytest.param("inet_diag", WITHOUT_BPF, id="inet_diag-without-bpf"),
    pytest.param("full_info", WITHOUT_BPF, id="full_info-without-bpf"),
]


@needs("tshark", "mergecap")
@pytest.mark.parametrize(("method", "before"), CASES)
def test_subflows_that_live_for_less_than_a_tick_are_recorded(method: str, before: list[str], tmp_path: Path) -> None:
    """Each with the bytes that a capture shows; read once a second."""
    count = 300 if method in ("bpf", "inet_diag") else 60
    here, there = replaced(method, count, tmp_path / "capture", *before)
    assert here["method"] == method
    for end in (here, there):
        assert len(end["events"]) == count
        assert set(end["events"]) <= set(end["rows"])
        assert len(end["rows"]) == count + 1
    found = witness.segments(tmp_path / "capture.0", tmp_path / "capture.1")
    sent = {flow: each for flow, each in witness.by_flow(found).items() if flow[1][1] == PORT}
    fins = {segment.flow for segment in found if segment.fin}
    # The initial subflow began before the capture.
    assert len(sent) == count
    for flow, (total, once) in sent.items():
        one, other = (f"{end[0]}:{end[1]}" for end in flow)
        row, at_peer = here["rows"][f"{one} {other}"], there["rows"][f"{other} {one}"]
        assert row["final"] == 1
        assert row["wait_ns"] == 0
        assert row["sent"] == total
        # The kernel counts a FIN as a byte received.
        assert at_peer["received"] == once + (flow in fins)


@pytest.mark.parametrize("method", ["inet_diag", "full_info", pytest.param("bpf", marks=needs_bpf)])
def test_a_subflow_closed_before_its_first_tick_that_waits_for_its_peer(connection: Connection, method: Any) -> None:
    """It is in no list of the connection's any more, and its socket is not destroyed when the recording ends."""
    with mptcp.Recorder(connection.sock, 60, method=method) as recorder:
        opened = connection.sock.open_subflow(*connection.second)
        connection.paths[1].set(loss="100%")
        connection.sock.close_subflow(opened)

        def closed() -> bool:
            return mptcp.EventKind.SUB_CLOSED in {event.kind for event in recorder.events}

        assert eventually(closed)
    connection.paths[1].set(loss=None)
    assert recorder.metadata["failure"] is None
    [row] = recorder.samples[recorder.samples["cookie"] == opened.cookie]
    assert not row["final"]
    assert row["state"] not in (1, 7)
    assert row["segs_out"] > 0
    assert opened.cookie in {each["cookie"] for each in recorder.metadata["subflows"]}


def test_a_connection_that_has_come_and_gone_before_its_events_are_read(connection: Connection) -> None:
    """Other programs keep the reader of events from running until the recording ends."""
    client, address = connection.client, connection.sock.getpeername()
    with client._in_namespace() as fd:
        recorder = mptcp.Recorder._of_namespace(fd)
    with recorder, events_are_read_late(), computing(4):
        with client.create_connection(address, timeout=10) as sock, connection.listener.accept()[0] as peer:
            exchange(sock, peer)
            token = sock.token
        recorder.close()
    told = [event.kind for event in recorder.events if event.token == token]
    assert told[:2] == [mptcp.EventKind.CREATED, mptcp.EventKind.ESTABLISHED]
    assert len({*recorder.samples["cookie"][recorder.samples["token"] == token]}) == 1


def test_the_witness_counts_what_is_sent_again_once() -> None:
    intervals = witness.Intervals()
    added = [intervals.add(*each) for each in ((10, 20), (30, 40), (15, 35), (0, 5), (5, 10), (0, 50))]
    assert added == [10, 10, 10, 5, 5, 10]
    flows = (("10.0.0.1", 1), ("10.0.0.2", 5000)), (("10.0.1.1", 1), ("10.0.1.2", 5000))

    def segment(flow: int, sequence: int, dsn: int) -> witness.Segment:
        return witness.Segment(0.0, flows[flow], sequence, 100, dsn)

    found = [segment(0, 1, 0), segment(0, 1, 0), segment(1, 1, 100), segment(1, 101, 0)]
    assert witness.by_flow(found) == {flows[0]: (200, 100), flows[1]: (200, 200)}
    assert witness.reinjection_ratio(found) == pytest.approx(1 / 3)
    back = flows[0][::-1]
    found = [
        witness.Segment(0.0, back, 1, 0, ack=1),
        witness.Segment(1.0, back, 1, 0, ack=101),
        witness.Segment(2.0, flows[0], 201, 0, fin=True),
        witness.Segment(3.0, back, 1, 0, ack=202),
        witness.Segment(4.0, back, 1, 0, ack=202),
    ]
    assert list(witness.acknowledgements(found)) == [(1.0, flows[0], 100), (3.0, flows[0], 100)]


def transfer(sender: mptcp.Socket, receiver: mptcp.Socket, count: int) -> None:
    thread = threading.Thread(target=sender.sendall, args=(bytes(count),))
    thread.start()
    left = count
    while left:
        left -= len(receiver.recv(1 << 16))
    thread.join()


def finals(recorder: mptcp.Recorder) -> Any:
    rows = recorder.samples
    return rows[rows["final"]]


def close_by_peer(made: Connection) -> None:
    """The peer ends the connection, and then we do."""
    made.peer.close()
    assert made.sock.recv(1) == b""
    made.sock.close()


def close_initial(made: Connection) -> None:
    """The initial subflow alone: its socket stays until the connection ends."""
    made.sock.open_subflow(*made.second)
    made.sock.close_subflow(made.sock.subflows()[0])


def abort(made: Connection) -> None:
    made.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    made.peer.close()
    assert eventually(lambda: not made.client.connections())
    made.sock.close()


WAYS = [close_by_peer, close_initial, abort]
COUNT = 3_000_000


@needs_bpf
@pytest.mark.parametrize("method", ["bpf", "inet_diag", "full_info"])
@pytest.mark.parametrize("end", WAYS)
def test_final_rows_have_the_last_counters(end: Any, method: Any) -> None:
    """Also of an initial subflow, whose counters the kernel clears before its socket is destroyed."""
    with two_paths(rate=None) as (client, server, paths), connected(client, server, paths) as made:
        with mptcp.Recorder([made.sock, made.peer], 5.0, method=method) as recorder:
            sock, peer = made.sock.token, made.peer.token
            initial = {int(recorder.samples["cookie"][recorder.samples["token"] == token][0]) for token in (sock, peer)}
            transfer(made.peer, made.sock, COUNT)
            end(made)
            assert eventually(lambda: initial <= set(finals(recorder)["cookie"].tolist()))
        rows = finals(recorder)
    last = {int(row["token"]): row for row in rows if int(row["cookie"]) in initial}
    assert len(last) == 2
    sent = last[peer]["bytes_sent"] - last[peer]["bytes_retrans"]
    # A byte each way before, and what the connection sent again on a busy machine. The kernel counts a FIN as received.
    assert sent >= COUNT + 1
    assert last[sock]["bytes_received"] - sent in (0, 1)
    for row in last.values():
        assert row["wait_ns"] == 0
        assert row["state"] == 7


CLEARED = """
import sys, socket, mptcp
from mptcp.lab import two_paths
from support import connected, eventually
from test_endings import close_by_peer, transfer
with two_paths(rate=None) as (client, server, paths), connected(client, server, paths) as made:
    with mptcp.Recorder(made.sock, 60.0, method="inet_diag") as recorder:
        transfer(made.peer, made.sock, 3_000_000)
        close_by_peer(made)
        assert eventually(lambda: bool(recorder.samples["final"].any()))
    assert len(recorder.samples) == 2, recorder.samples
    shares, bounds = mptcp.measures.share(recorder.samples, direction="received", error=True)
    before, last = recorder.samples
    print(last["bytes_received"], before["bytes_received"], last["wait_ns"], before["time_ns"] - last["time_ns"])
"""


def test_a_final_row_without_the_last_counters_says_so() -> None:
    """Without BPF nothing has them: the row repeats the reading before, and says how old that is."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*WITHOUT_BPF, sys.executable, "-c", CLEARED],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    received, before, wait_ns, age = map(int, result.stdout.split())
    assert received == before
    assert wait_ns == age < 0


@pytest.mark.parametrize("method", ["inet_diag", "full_info", pytest.param("bpf", marks=needs_bpf)])
def test_backup_is_as_recent_as_the_row(connection: Connection, method: Any) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    with mptcp.Recorder(connection.sock, 0.005, method=method) as recorder:
        for backup in (True, False) * 5:
            opened.set_backup(backup)
            ticks = recorder.metadata["ticks"]
            # One that had begun before, and one that has ended.
            assert eventually(lambda ticks=ticks: recorder.metadata["ticks"] >= ticks + 2)
            rows = recorder.samples
            assert rows[rows["cookie"] == opened.cookie]["backup"][-1] == backup
    assert len(np.unique(recorder.samples["cookie"])) == 2
