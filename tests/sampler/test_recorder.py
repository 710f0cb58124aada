"""Recording: what the rows hold, how they come about, and what is left when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import mptcp
import numpy as np
import pytest
from mptcp.lab import Host, Lab, two_paths
from support import (
    KERNEL,
    PATIENCE,
    PORT,
    Connection,
    connected,
    eventually,
    exchange,
    has_bpf,
    held,
    holds_no_more_than,
    nft,
    threads,
)

needs_bpf = pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")
needs_no_bpf = pytest.mark.skipif(has_bpf(), reason="where BPF is allowed, auto takes it and measures nothing")
METHODS = ["inet_diag", "full_info", pytest.param("bpf", marks=needs_bpf)]
Method = Literal["inet_diag", "full_info", "bpf"]


def of_subflow(rows: Any, subflow: mptcp.Subflow) -> Any:
    return rows[rows["cookie"] == subflow.cookie]


def last_rows(samples: Any) -> dict[int, Any]:
    return {int(cookie): samples[samples["cookie"] == cookie][-1] for cookie in np.unique(samples["cookie"])}


@contextlib.contextmanager
def receiving(peer: mptcp.Socket) -> Iterator[None]:
    """Another thread that reads all that comes until the end, and closes."""

    def read() -> None:
        with peer:
            while peer.recv(1 << 16):
                pass

    peer.settimeout(60)
    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def acknowledged(sock: mptcp.Socket) -> bool:
    info = sock.info()
    return info.snd_una == info.write_seq


def known(id: int | None, method: str) -> int | None:
    """The id in a row: inet_diag has none of its own, and MPTCP_FULL_INFO and the kernel's memory tell it since 6.5."""
    return id if method == "full_info" or KERNEL >= (6, 5) else -1


@pytest.mark.parametrize("method", METHODS)
def test_rows_say_what_the_snapshot_says(connection: Connection, method: Method) -> None:
    opened = connection.sock.open_subflow(*connection.second, backup=True)
    with mptcp.Recorder(connection.sock, 0.001, method=method) as recorder:
        assert eventually(lambda: recorder.metadata["ticks"] > 20)
        subflows = connection.sock.subflows()
    samples = recorder.samples
    assert {row.id for row in subflows} == {1, opened.id}
    assert set(samples["subflow"]) == {known(1, method), known(opened.id, method)}
    assert set(samples["token"]) == {connection.sock.token}
    for subflow in subflows:
        row = of_subflow(samples, subflow)[-1]
        assert (row["subflow"], row["state"]) == (known(subflow.id, method), 1)
        for name in ("local_id", "remote_id", "backup"):
            assert row[name] == getattr(subflow, name), name
        assert not row["final"]
        told = subflow.tcp_info.asdict()
        for name in ("snd_mss", "advmss", "bytes_sent", "bytes_received", "rcv_wscale"):
            assert row[name] == told[name], name
        assert told["max_pacing_rate"] == 2**64 - 1
        assert np.isinf(row["max_pacing_rate"])
    connections = recorder.connections
    told = connection.sock.info().asdict()
    assert set(connections["token"]) == {told["token"]}
    for name in ("write_seq", "rcv_nxt", "bytes_sent", "bytes_received", "subflows"):
        if KERNEL < (6, 5) and told[name] is None:  # not in this kernel
            assert np.isnan(connections[-1][name]), name
        else:
            assert connections[-1][name] == told[name], name
    assert recorder.metadata["method"] == method


@pytest.mark.parametrize("method", METHODS)
def test_ticks_are_on_an_absolute_clock(connection: Connection, method: Method) -> None:
    begin = time.monotonic_ns()
    with mptcp.Recorder(connection.sock, 0.002, method=method) as recorder:
        # Python is busy, which holds nothing up.
        assert eventually(lambda: sum(range(1000)) > 0 and recorder.metadata["ticks"] > 200, 30)
    end = time.monotonic_ns()
    times = np.unique(recorder.samples["time_ns"])
    assert begin < times[0] < times[-1] < end
    # Between the first reading, in the constructor, and the last, in close(), are those of the clock, missed or not.
    assert len(times) == recorder.metadata["ticks"]
    clocked = len(times) - 2 + recorder.missed
    # Those that passed while close() waited for the thread nobody counts.
    assert (times[-1] - times[0]) / 2e6 - 5 * PATIENCE < clocked <= (times[-1] - times[0]) / 2e6 + 1
    assert (recorder.samples["wait_ns"] > 0).all()


def test_no_tick_is_missed_until_the_thread_of_the_ticks_runs(connection: Connection) -> None:
    """A new thread waits for the processor beside busy processes; the clock begins when it has its priority."""
    busy = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        missed = []
        for _ in range(15):
            with mptcp.Recorder(connection.sock, 0.005, method="inet_diag") as recorder:
                assert eventually(lambda: recorder.metadata["ticks"] >= 4)
                missed.append(recorder.missed)
            if recorder.metadata["scheduler"] != "SCHED_FIFO":
                pytest.skip("needs CAP_SYS_NICE in the initial user namespace, or RLIMIT_RTPRIO")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    # Most recordings; one or the other may meet something that delays any thread.
    assert sorted(missed)[len(missed) // 2] == 0, missed


def test_a_new_subflow_and_a_closed_one(connection: Connection) -> None:
    with mptcp.Recorder(connection.sock, 0.005) as recorder:
        opened = connection.sock.open_subflow(*connection.second)
        assert eventually(lambda: bool(len(of_subflow(recorder.samples, opened))))
        connection.sock.sendall(bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(connection.peer.recv(1 << 16))
        assert eventually(lambda: acknowledged(connection.sock))
        before = {subflow.id: subflow.tcp_info.bytes_sent for subflow in connection.sock.subflows()}
        connection.sock.close_subflow(opened)
        assert eventually(lambda: bool(of_subflow(recorder.samples, opened)["final"].any()))
    rows = of_subflow(recorder.samples, opened)
    assert (rows["subflow"][-2:] == opened.id).all()
    assert rows["final"].sum() == 1
    assert rows[-1]["final"]
    assert rows[-1]["bytes_sent"] >= before[opened.id]
    assert rows[-1]["state"] == 7


@pytest.mark.parametrize("method", METHODS)
def test_the_end_of_a_connection_has_final_rows(connection: Connection, method: Method) -> None:
    connection.sock.open_subflow(*connection.second)
    with mptcp.Recorder(connection.sock, 0.01, method=method) as recorder:
        subflows = connection.sock.subflows()
        connection.sock.sendall(bytes(10_000))
        assert connection.peer.recv(1)
        connection.sock.close()
        connection.peer.close()
        assert eventually(lambda: recorder.samples["final"].sum() == 2, 20)
    for subflow in subflows:
        rows = of_subflow(recorder.samples, subflow)
        assert rows[-1]["final"]
        assert rows[-1]["subflow"] == known(subflow.id, method)
        assert rows[-1]["bytes_sent"] >= rows["bytes_sent"].max()


def test_a_recorder_keeps_no_connection_open(connection: Connection) -> None:
    with mptcp.Recorder([connection.sock, connection.peer], 0.01):
        connection.sock.close()
        assert connection.peer.recv(1) == b""


def test_somebody_elses_descriptor_is_not_taken_for_the_socket(connection: Connection) -> None:
    remote = connection.paths[0].address(connection.server), PORT + 1
    with (
        connection.server.create_server(("", PORT + 1)) as listener,
        connection.client.create_connection(remote) as other,
    ):
        peer, _ = listener.accept()
        with peer, mptcp.Recorder(connection.sock, 0.005, method="full_info") as recorder:
            exchange(other, peer)
            number, token = connection.sock.fileno(), connection.sock.token
            connection.sock.close()
            os.dup2(other.fileno(), number)
            try:
                ticks = recorder.metadata["ticks"]
                assert eventually(lambda: recorder.metadata["ticks"] > ticks + 10)
                assert set(recorder.samples["token"]) == {token}
                assert eventually(lambda: len(recorder.connections) > 1)
                assert set(recorder.connections["token"]) == {token}
            finally:
                os.close(number)


def test_connections_and_the_whole_namespace(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    tokens = {sock.token for sock in pair}
    handles = [found for token in tokens for found in mptcp.connections(token=token)]
    with mptcp.Recorder(handles, 0.01) as some, mptcp.Recorder(None, 0.01) as everything:
        assert eventually(lambda: some.metadata["ticks"] > 3 and everything.metadata["ticks"] > 3)
        with (
            mptcp.create_server(("127.0.0.1", 0)) as listener,
            mptcp.create_connection(listener.getsockname(), timeout=10) as later,
        ):
            peer, _ = listener.accept()
            with peer:
                exchange(later, peer)
                assert eventually(lambda: later.token in everything.samples["token"])
                assert eventually(lambda: later.token in everything.connections["token"])
    assert set(some.samples["token"]) == tokens
    assert set(some.connections["token"]) == tokens
    if not has_bpf():
        assert (some.samples["subflow"] == -1).all(), "only a descriptor tells ids"
    assert tokens < set(everything.samples["token"])


def test_many_subflows_are_read_in_batches(connection: Connection) -> None:
    local, remote = connection.second
    for port in range(20000, 20070):
        connection.sock.open_subflow((local, port), remote)
    rows = {}
    methods: list[Method] = ["inet_diag", "full_info", *(["bpf"] if has_bpf() else [])]  # type: ignore[list-item]
    for method in methods:
        with mptcp.Recorder(connection.sock, 0.01, method=method) as recorder:
            assert eventually(lambda: recorder.metadata["ticks"] > 10)
        rows[method] = recorder.samples
        counts = np.unique(recorder.samples["time_ns"], return_counts=True)[1]
        assert set(counts) == {71}
    for method in methods:
        assert set(rows[method]["subflow"]) == {known(id, method) for id in range(1, 72)}
    ids = {method: dict(zip(found["cookie"], found["subflow"], strict=True)) for method, found in rows.items()}
    assert ids["inet_diag"] == {cookie: known(id, "inet_diag") for cookie, id in ids["full_info"].items()}


def counters(host: Host) -> dict[str, dict[str, int]]:
    output = host.run(["nft", "-j", "list", "counters"], capture_output=True, text=True, check=True).stdout
    found = [item["counter"] for item in json.loads(output)["nftables"] if "counter" in item]
    return {counter["name"]: counter for counter in found}


def test_the_bytes_of_subflows_add_up_with_a_forced_reinjection() -> None:
    """What the subflows carried is what the connection sent and sent again, and nftables counted it on its way."""
    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        # Queues that lose nothing: what the host's own queue refuses, TCP counts as sent, and not as retransmitted.
        links = [lab.link(client, server, rate=rate, queue="5s") for rate in ("20mbit", "10mbit")]
        # What is sent again since a subflow is stale, mptcp_info does not count.
        client.sysctl("net.mptcp.stale_loss_cnt", "200")
        names = ("first", "second")
        counted = [
            f'oifname "{link.interface(client)}" tcp dport {PORT} counter name {name}'
            for link, name in zip(links, names, strict=True)
        ]
        defined = [f"counter {name} {{\n}}" for name in names]
        nft(
            client,
            "table inet t {",
            *defined,
            "chain c {",
            "type filter hook postrouting priority 0",
            *counted,
            "}",
            "}",
        )
        nft(server, "table inet t {", "chain c {", "type filter hook input priority 0", "}", "}")
        with connected(client, server, (links[0], links[1])) as made:
            sock, peer = made.sock, made.peer
            if KERNEL < (6, 5) and sock.info().bytes_retrans is None:
                pytest.skip("needs bytes_retrans in struct mptcp_info (Linux 6.5)")
            with receiving(peer), mptcp.Recorder(sock, 0.01) as recorder:
                short = sock.open_subflow((made.second[0], 20001), made.second[1])
                sock.sendall(bytes(200_000))
                assert eventually(lambda: acknowledged(sock), 30)
                sock.close_subflow(short)
                assert eventually(lambda: bool(of_subflow(recorder.samples, short)["final"].any()), 30)
                opened = sock.open_subflow((made.second[0], 20002), made.second[1])

                stop = threading.Event()

                def send() -> None:
                    while not stop.is_set():
                        sock.sendall(bytes(100_000))

                sender = threading.Thread(target=send)
                sender.start()
                try:
                    assert eventually(lambda: sock.subflows()[-1].tcp_info.bytes_sent > 300_000, 30)
                    # The second path loses everything until what it held was sent again over the first.
                    nft(server, f'add rule inet t c iifname "{links[1].interface(server)}" drop')
                    assert eventually(lambda: (sock.info().bytes_retrans or 0) > 0, 30)
                    nft(server, "flush chain inet t c")
                finally:
                    stop.set()
                    sender.join()
                assert eventually(lambda: acknowledged(sock), 60)
                seen = counters(client)
                total = sock.info()
                sock.close()
                # The initial subflow's notice and the others'.
                assert eventually(lambda: recorder.samples["final"].sum() == 3, 30)
    rows = last_rows(recorder.samples)
    assert len(rows) == 3
    assert {int(row["subflow"]) for row in rows.values()} == {1, short.id, opened.id}
    carried = sum(int(row["bytes_sent"] - row["bytes_retrans"]) for row in rows.values())
    assert total.bytes_retrans
    assert total.bytes_sent is not None
    assert carried == total.bytes_sent + total.bytes_retrans
    assert int(recorder.connections[-1]["bytes_retrans"]) == total.bytes_retrans
    # nftables counts the headers too, once for each packet: from 20 + 20 bytes to 20 + 60.
    first = rows[recorder.samples["cookie"][0]]["bytes_sent"]
    second = sum(int(row["bytes_sent"]) for row in rows.values()) - first
    for name, sent in zip(names, (first, second), strict=True):
        assert sent + 40 * seen[name]["packets"] <= seen[name]["bytes"] <= sent + 80 * seen[name]["packets"], name


@pytest.mark.parametrize("method", METHODS)
def test_after_a_fallback_the_recording_goes_on(connection: Connection, method: Method) -> None:
    """A middlebox that takes Multipath TCP's options from segments makes a connection fall back."""
    ends = connection.sock, connection.peer
    tokens = {sock.token for sock in ends}
    with contextlib.ExitStack() as stack:
        recorders = [stack.enter_context(mptcp.Recorder(sock, 0.01, method=method)) for sock in ends]
        for host in (connection.client, connection.server):
            strip = "tcp option mptcp exists reset tcp option mptcp"
            nft(host, "table inet t {", "chain c {", "type filter hook prerouting priority -300", strip, "}", "}")
        exchange(*ends)
        assert eventually(lambda: not any(sock.is_mptcp for sock in ends))

        def fallbacks() -> set[int | None]:
            events = [event for recorder in recorders for event in recorder.events]
            return {event.token for event in events if event.kind is mptcp.EventKind.FALLBACK}

        assert eventually(lambda: fallbacks() == tokens)
        connection.sock.sendall(bytes(1000))
        assert eventually(lambda: bool(recorders[0].samples["bytes_sent"][-1] >= 1002))
    for recorder in recorders:
        assert len(np.unique(recorder.samples["cookie"])) == 1
        assert recorder.connections["flags"][-1] & 1
        assert recorder.metadata["failure"] is None


def test_events_are_in_the_time_of_the_rows(connection: Connection, tmp_path: Path) -> None:
    with mptcp.Recorder(connection.sock, 0.01) as recorder:
        opened = connection.sock.open_subflow(*connection.second)
        assert eventually(lambda: opened.cookie in recorder.samples["cookie"])
        connection.paths[1].down()
        connection.paths[1].up()
        kinds = mptcp.EventKind.SUB_ESTABLISHED, mptcp.EventKind.LINK_DOWN, mptcp.EventKind.LINK_UP
        assert eventually(lambda: set(kinds) <= {event.kind for event in recorder.events})
    [event] = [event for event in recorder.events if event.kind is mptcp.EventKind.SUB_ESTABLISHED]
    assert (event.token, event.local) == (connection.sock.token, opened.local)
    times = recorder.samples["time_ns"]
    assert times[0] < event.time_ns < times[-1]
    recorder.save(tmp_path / "run.npz")
    assert mptcp.load(tmp_path / "run.npz").events == recorder.events


def test_events_are_in_the_stream(connection: Connection, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "run.arrow"
    with mptcp.Recorder(connection.sock, 0.01, path=path) as recorder:
        opened = connection.sock.open_subflow(*connection.second)
        begun = mptcp.EventKind.SUB_ESTABLISHED
        assert eventually(lambda: begun in {event.kind for event in recorder.events}, 30)
        early = mptcp.load(path).events
        connection.sock.close_subflow(opened)
        ended = mptcp.EventKind.SUB_CLOSED
        assert eventually(lambda: ended in {event.kind for event in recorder.events}, 30)
    assert recorder.events[: len(early)] == early
    kinds = [event.kind for event in recorder.events]
    assert kinds.count(begun) == kinds.count(ended) == 1
    recorder.save(tmp_path / "run.npz")
    assert mptcp.load(tmp_path / "run.npz").events == recorder.events


@needs_no_bpf
def test_auto_takes_what_the_measurement_says(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    with mptcp.Recorder(connection.sock, 0.001) as recorder:
        assert eventually(lambda: recorder.metadata["ticks"] > 20)
    metadata = recorder.metadata
    trial = metadata["method_trials"][-1]
    full_info, inet_diag = trial["full_info"], trial["inet_diag"]
    assert full_info["subflows"] == inet_diag["subflows"] == 2
    assert min(full_info["cpu_ns"], inet_diag["cpu_ns"]) > 0
    if full_info["cpu_ns"] < inet_diag["cpu_ns"] and "lock" not in metadata["method_reason"]:
        assert metadata["method"] == "full_info"
    else:
        assert metadata["method"] == "inet_diag"
    counts = np.unique(recorder.samples["time_ns"], return_counts=True)[1]
    assert set(counts) == {2}, "what was measured is not recorded"


@needs_no_bpf
def test_auto_leaves_full_info_when_that_waits(connection: Connection) -> None:
    """A sender holds the connection's lock: readings go on by inet_diag, of the same subflows with the same ids."""
    opened = connection.sock.open_subflow(*connection.second)
    with receiving(connection.peer), mptcp.Recorder(connection.sock, 0.001) as recorder:
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                connection.sock.sendall(bytes(1 << 20))

        sender = threading.Thread(target=send)
        sender.start()
        try:
            # At once, if the measurement before had it cheaper.
            assert eventually(lambda: recorder.metadata["method"] == "inet_diag", 60)
            ticks = recorder.metadata["ticks"]
            assert eventually(lambda: recorder.metadata["ticks"] > ticks + 20)
        finally:
            stop.set()
            sender.join()
        connection.sock.close()
        assert eventually(lambda: recorder.samples["final"].sum() == 2, 20)
    samples = recorder.samples
    assert set(samples["subflow"]) == {1, opened.id}
    alive = samples[~samples["final"]]
    assert len(np.unique(alive["time_ns"])) <= recorder.metadata["ticks"]
    assert {int(row["subflow"]) for row in samples[samples["final"]]} == {1, opened.id}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("sock",), TypeError),
        ((["sock"],), TypeError),
        (([],), ValueError),
        ((None, 0), ValueError),
        ((None, -1.0), ValueError),
        ((None, float("nan")), ValueError),
        ((None, "1"), TypeError),
        ((None, True), TypeError),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        mptcp.Recorder(*arguments)


def test_wrong_choices_are_refused(pair: tuple[mptcp.Socket, mptcp.Socket], tmp_path: Path) -> None:
    for options in ({"method": "ss"}, {"method": "full_info"}, {"connection_interval": 0}, {"path": "run.npz"}):
        with pytest.raises(ValueError, match=r"method|seconds|suffix"):
            mptcp.Recorder(None, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path"):
        mptcp.Recorder(None, path=3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        mptcp.Recorder(pair[0], path=tmp_path / "missing" / "run.arrow")
    with pytest.raises(mptcp.NotMultipathError), socket.socket() as tcp, mptcp.wrap(tcp) as plain:
        mptcp.Recorder(plain)
    with pytest.raises(OSError, match="not connected"), mptcp.Socket() as idle:
        mptcp.Recorder(idle)
    [handle] = mptcp.connections(token=pair[0].token)
    pair[0].close()
    pair[1].close()
    assert eventually(lambda: not mptcp.connections(token=handle.token))
    with pytest.raises(OSError, match="ended"):
        mptcp.Recorder(handle)


def test_nothing_is_left_behind(pair: tuple[mptcp.Socket, mptcp.Socket], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    with mptcp.Recorder(pair, 0.01, path=tmp_path / "first.arrow"):
        pass
    before = held()
    for _ in range(5):
        with mptcp.Recorder(pair, 0.001, path=tmp_path / "run.arrow") as recorder:
            assert threads() > before[1]
        recorder.close()
        with mptcp.Recorder(pair, 0.001, method="full_info"):
            pass
    del recorder
    assert holds_no_more_than(before), held()


def test_an_unclosed_recorder_is_ended_and_told(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    before = held()
    recorder = mptcp.Recorder(pair)
    assert threads() > before[1]
    with pytest.warns(ResourceWarning, match="unclosed Recorder"):
        del recorder
    assert holds_no_more_than(before), held()


def test_a_forked_child_leaves_the_recording_alone(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    program = """
import os, sys, mptcp
listener = mptcp.create_server(("127.0.0.1", 0))
sock = mptcp.create_connection(listener.getsockname())
with mptcp.Recorder(sock, 0.001) as recorder:
    child = os.fork()
    if child == 0:
        recorder.close()
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    ticks = recorder.metadata["ticks"]
    while recorder.metadata["ticks"] < ticks + 20:
        pass
print(len(recorder.samples) > 20)
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_import_needs_no_numpy() -> None:
    program = "import sys, mptcp; print(sorted({'numpy', 'pyarrow', 'pandas', 'asyncio'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# Files.


def test_saved_and_loaded_is_the_same(connection: Connection, tmp_path: Path) -> None:
    with mptcp.Recorder(connection.sock, 0.01) as recorder:
        assert eventually(lambda: recorder.metadata["ticks"] > 5)
    for suffix in (".npz", ".parquet", ".arrow"):
        if suffix != ".npz":
            pytest.importorskip("pyarrow", reason="needs pyarrow")
        path = tmp_path / f"run{suffix}"
        recorder.save(path)
        loaded = mptcp.load(path)
        for one, other in ((loaded.samples, recorder.samples), (loaded.connections, recorder.connections)):
            assert one.dtype.names == other.dtype.names
            for name in other.dtype.names or ():
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert loaded.metadata == recorder.metadata
        assert loaded.events == recorder.events
        assert loaded.missed == recorder.missed
    with pytest.raises(ValueError, match="suffix"):
        recorder.save(tmp_path / "run.csv")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a recording"):
        mptcp.load(tmp_path / "other.npz")


def test_a_stream_has_every_row(connection: Connection, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "run.arrow"
    with mptcp.Recorder(connection.sock, 0.001, path=path) as recorder:
        assert eventually(lambda: path.stat().st_size > 0 and len(mptcp.load(path).samples) > 100, 30)
    loaded = mptcp.load(path)
    assert len(np.unique(loaded.samples["time_ns"])) == recorder.metadata["ticks"]
    assert recorder.metadata["dropped"] == 0
    assert loaded.metadata == recorder.metadata
    assert len(recorder.samples) == len(loaded.samples)


KILLED = """
import sys, mptcp
listener = mptcp.create_server(("127.0.0.1", 0))
recorder = mptcp.Recorder(None, 0.0005, path=sys.argv[1])
sock = mptcp.create_connection(listener.getsockname())
peer, _ = listener.accept()
sock.sendall(b"x"); peer.recv(1); peer.sendall(b"y"); sock.recv(1)
print(sock.token, flush=True)
sys.stdin.read()
"""


def test_a_killed_recorder_leaves_a_readable_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "run.arrow"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        token = int(process.stdout.readline())
        assert eventually(lambda: len(mptcp.load(path).samples) > 1000, 30)
        assert eventually(lambda: token in {event.token for event in mptcp.load(path).events}, 30)
        whole = len(mptcp.load(path).samples)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    loaded = mptcp.load(path)
    assert len(loaded.samples) >= whole
    assert len(loaded.connections) > 0
    assert loaded.metadata["interval"] == 0.0005
    begun = {event.kind for event in loaded.events if event.token == token}
    assert {mptcp.EventKind.CREATED, mptcp.EventKind.ESTABLISHED} & begun
    ends = {each["cookie"] for each in loaded.metadata["subflows"] if each["token"] == token}
    assert ends == set(loaded.samples["cookie"][loaded.samples["token"] == token])
    assert loaded.metadata["complete"] is False
    # Cut anywhere, it is readable to the batch before.
    data = path.read_bytes()
    for cut in (len(data) - 1, len(data) // 2, len(data) // 3):
        path.write_bytes(data[:cut])
        assert len(mptcp.load(path).samples) < len(loaded.samples)


def test_a_saved_file_is_told_from_a_cut_one_and_read_by_others(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "run.arrow"
    with mptcp.Recorder(None, 0.01) as recorder:
        assert eventually(lambda: recorder.metadata["ticks"] > 3)
    many = mptcp.Recording(np.repeat(_example(), 200_000), recorder.connections, [], recorder.metadata)
    many.save(path)
    assert "complete" not in mptcp.load(path).metadata
    with pyarrow.memory_map(str(path)) as file:
        table = pyarrow.ipc.open_file(file).read_all()
    assert table.num_rows == 200_000
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    cut = mptcp.load(path)
    assert 0 < len(cut.samples) < 200_000
    assert cut.metadata["complete"] is False
    # A stream of Arrow's, as earlier versions wrote, is read as before.
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert len(mptcp.load(path).samples) == 200_000
    assert "complete" not in mptcp.load(path).metadata


def _example() -> Any:
    """One row."""
    with (
        mptcp.create_server(("127.0.0.1", 0)) as listener,
        mptcp.create_connection(listener.getsockname(), timeout=10) as sock,
    ):
        peer, _ = listener.accept()
        with peer, mptcp.Recorder(sock, 0.01) as recorder:
            exchange(sock, peer)
    return recorder.samples[:1]


GROWING = """
import resource, sys, time, mptcp
listener = mptcp.create_server(("127.0.0.1", 0), backlog=100)
pairs = []
for _ in range(50):
    sock = mptcp.create_connection(listener.getsockname())
    pairs += [sock, listener.accept()[0]]
peaks = []
with mptcp.Recorder(pairs, 0.001, path=sys.argv[1]) as recorder:
    for rows in (100_000, 400_000):
        while recorder.metadata["ticks"] * 100 < rows:
            time.sleep(0.01)  # no event tells of ticks; asking without a pause would keep the writer from its work
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(*peaks, recorder.metadata["dropped"])
"""


def test_memory_does_not_grow_with_a_path(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    command = [sys.executable, "-W", "ignore", "-c", GROWING, str(tmp_path / "run.arrow")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert result.stderr == ""
    first, second, _ = map(int, result.stdout.split())
    # 300,000 rows more would be 190 MB; what waits for the writer on a busy machine is less.
    assert second - first < 100_000, "KiB"


def test_to_pandas_and_arrow(connection: Connection) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    with mptcp.Recorder(connection.sock) as recorder:
        assert eventually(lambda: recorder.metadata["ticks"] > 2)
    samples = recorder.samples
    frame = recorder.to_pandas()
    assert [name for name in frame.columns if name in (samples.dtype.names or ())] == list(samples.dtype.names or ())
    assert np.shares_memory(frame["rtt"].to_numpy(), samples)
    np.testing.assert_allclose(frame["time_s"], (samples["time_ns"] - recorder.metadata["start_ns"]) / 1e9)
    assert 0 < frame["time_s"].iloc[0] < 60
    assert frame.attrs["mptcp"]["method"] == recorder.metadata["method"]
    table = recorder.to_arrow("connections")
    assert table.column("write_seq").to_pylist() == list(recorder.connections["write_seq"])
    with pytest.raises(ValueError, match="'samples', 'connections' or 'events'"):
        recorder.to_pandas("links")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'samples' or 'connections'"):
        recorder.to_arrow("events")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_frames_name_links_and_hosts(family: int, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    with (
        two_paths(names=("wifi", "lte")) as (client, server, paths),
        connected(client, server, paths, family) as made,
        mptcp.Recorder([made.sock, made.peer]) as recorder,
    ):
        local, remote = (paths[1].address(host, family=family) for host in (client, server))
        opened = made.sock.open_subflow(local, remote)
        assert eventually(lambda: len(np.unique(recorder.samples["cookie"])) == 4)
        assert eventually(lambda: "SUB_ESTABLISHED" in {event.kind.name for event in recorder.events})
        token = made.sock.token
    recorder.save(tmp_path / "run.npz")
    for recording in (recorder, mptcp.load(tmp_path / "run.npz")):
        frame = recording.to_pandas()
        place = ["local", "remote", "link", "host", "peer"]
        at = list(frame.columns).index("cookie")
        assert list(frame.columns[at + 1 : at + 6]) == place
        here = frame[frame["token"] == token].drop_duplicates("cookie")[place].to_numpy().tolist()
        there = frame[frame["token"] != token].drop_duplicates("cookie")[place].to_numpy().tolist()
        written = [
            f"[{end[0]}]:{end[1]}" if ":" in end[0] else f"{end[0]}:{end[1]}" for end in (opened.local, opened.remote)
        ]
        assert {row[2] for row in here} == {"wifi", "lte"}
        assert [*written, "lte", "client", "server"] in here
        assert [*reversed(written), "lte", "server", "client"] in there
        told = recording.to_pandas("events")
        assert len(told) == len(recording.events)
        row = told[(told["kind"] == "SUB_ESTABLISHED") & (told["token"] == token)].iloc[0]
        assert [row[name] for name in place] == [*written, "lte", "client", "server"]
        assert 0 < row["time_s"] < 60
        assert recording.to_pandas("connections")["time_s"].min() >= 0


def test_frames_without_rows_and_without_a_lab(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    with mptcp.Recorder(None) as recorder:
        pass
    empty = mptcp.Recording(recorder.samples[:0], recorder.connections[:0], [], recorder.metadata)
    for table in ("samples", "connections", "events"):
        frame = empty.to_pandas(table)  # type: ignore[arg-type]
        assert len(frame) == 0
        assert "time_s" in frame.columns


def test_metadata_can_be_written_and_names_the_lab() -> None:
    with two_paths(rate=("20mbit", "10mbit")) as (client, server, paths), connected(client, server, paths) as made:
        client.sysctl("net.mptcp.stale_loss_cnt", "77")
        client.sysctl("net.ipv4.tcp_congestion_control", "reno")
        token = made.sock.token
        with mptcp.Recorder(made.sock) as recorder:
            pass
        metadata = json.loads(json.dumps(recorder.metadata))
        [lab] = [lab for lab in metadata["labs"] if set(lab["hosts"]) == {client.name, server.name}]
    assert [link["rate"] for link in lab["links"]] == [20_000_000, 10_000_000]
    assert metadata["kernel"].startswith(os.uname().release)
    [namespace] = metadata["namespaces"]
    assert namespace["tokens"] == [token]
    assert namespace["sysctls"]["net.mptcp.enabled"] == "1"
    assert namespace["sysctls"]["net.mptcp.stale_loss_cnt"] == "77", "the client's, not the caller's"
    assert namespace["sysctls"]["net.ipv4.tcp_congestion_control"] == "reno"
    assert metadata["scheduler"] in ("SCHED_FIFO", "SCHED_OTHER")
    now = time.time_ns() - time.monotonic_ns()
    for name in ("realtime_offset_ns", "realtime_offset_end_ns"):
        assert abs(metadata[name] - now) < 60e9
    assert metadata["start_ns"] < time.monotonic_ns()


# The documentation of the arrays.

MEASURING = Path(__file__).parents[2] / "docs" / "measuring.md"


def test_every_field_is_documented_with_its_type(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    with mptcp.Recorder(pair[0]) as recorder:
        pass
    tables = re.split(r"^## ", MEASURING.read_text(), flags=re.MULTILINE)
    for heading, rows in (("The samples", recorder.samples), ("The connections", recorder.connections)):
        [text] = [table for table in tables if table.startswith(heading)]
        documented = re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
        dtype = rows.dtype
        assert documented == [(name, str(dtype[name])) for name in dtype.names or ()]
