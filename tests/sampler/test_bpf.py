"""Reading by BPF: each column is what inet_diag tells, whatever the subflow is doing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import Any

import mptcp
import numpy as np
import pytest
from support import KERNEL, Connection, eventually, exchange, has_bpf

pytestmark = pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")

# Each reading has its own time; and the clocks of the last segments go on between two.
MOVING = {"time_ns", "wait_ns", "last_data_sent", "last_data_recv", "last_ack_recv"}
# That only ever grow.
COUNTERS = (
    "bytes_sent",
    "bytes_acked",
    "bytes_received",
    "bytes_retrans",
    "segs_out",
    "segs_in",
    "data_segs_out",
    "data_segs_in",
    "delivered",
    "total_retrans",
    "busy_time",
)


def known(id: int | None) -> int | None:
    """The id in a row: before 6.5 a subflow has none in the kernel's memory."""
    return id if KERNEL >= (6, 5) else -1


def differences(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    def same(a: Any, b: Any) -> bool:
        return bool(a == b or (np.isnan(a) and np.isnan(b)))

    names = set(one.dtype.names) - MOVING - {"subflow"}
    return {name: (one[name], other[name]) for name in sorted(names) if not same(one[name], other[name])}


def readings(sources: list[Any], method: Any) -> Any:
    with mptcp.Recorder(sources, 0.005, method=method) as recorder:
        assert eventually(lambda: recorder.metadata["ticks"] > 10)
    assert recorder.metadata["method"] == method
    assert recorder.metadata["failure"] is None
    return recorder.samples


def test_an_idle_connection_reads_as_by_inet_diag(connection: Connection) -> None:
    """After data both ways, a backup subflow and drops on the way."""
    connection.sock.open_subflow(*connection.second, backup=True)
    connection.paths[0].set(loss="5%")
    for sender, receiver in ((connection.sock, connection.peer), (connection.peer, connection.sock)):
        sending = threading.Thread(target=sender.sendall, args=(bytes(300_000),))
        sending.start()
        left = 300_000
        while left:
            left -= len(receiver.recv(1 << 16))
        sending.join()
    ends = [connection.sock, connection.peer]

    def is_quiet() -> bool:
        return all(subflow.tcp_info.unacked == 0 for sock in ends for subflow in sock.subflows())

    assert eventually(is_quiet)
    before, by_bpf, after = (readings(ends, method) for method in ("inet_diag", "bpf", "inet_diag"))
    cookies = set(np.unique(before["cookie"]))
    assert len(cookies) == 4
    assert set(np.unique(by_bpf["cookie"])) == cookies
    for cookie in cookies:
        first, last = (rows[rows["cookie"] == cookie][-1] for rows in (before, after))
        assert not differences(first, last), "the connection is not idle"
        for row in by_bpf[by_bpf["cookie"] == cookie]:
            assert not differences(row, first)
        # Milliseconds since, at the moment of the reading.
        row = by_bpf[by_bpf["cookie"] == cookie][0]
        for name in ("last_data_sent", "last_data_recv", "last_ack_recv"):
            assert first[name] <= row[name] <= last[name], name


def test_counters_lie_between_two_readings_of_inet_diag(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    stop = threading.Event()

    def send() -> None:
        with connection.sock:
            while not stop.is_set():
                connection.sock.sendall(bytes(1 << 18))

    def receive() -> None:
        while connection.peer.recv(1 << 18):
            pass

    threads = [threading.Thread(target=run) for run in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        [known] = connection.client.connections(token=connection.sock.token)
        with mptcp.Recorder(connection.sock, 0.001, method="bpf") as recorder:
            for _ in range(50):
                before = {subflow.cookie: subflow.tcp_info for subflow in known.subflows()}
                rows = len(recorder.samples)
                assert eventually(lambda rows=rows: len(recorder.samples) >= rows + 4)
                new = recorder.samples[rows:]
                after = {subflow.cookie: subflow.tcp_info for subflow in known.subflows()}
                for row in new:
                    for name in COUNTERS:
                        low, high = (getattr(read[int(row["cookie"])], name) for read in (before, after))
                        assert low <= row[name] <= high, name
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for cookie in np.unique(recorder.samples["cookie"]):
        rows = recorder.samples[recorder.samples["cookie"] == cookie]
        for name in COUNTERS:
            assert (np.diff(rows[name]) >= 0).all(), name


def test_backup_changes_in_the_rows(connection: Connection) -> None:
    opened = connection.sock.open_subflow(*connection.second)
    with mptcp.Recorder([connection.sock, connection.peer], 0.001, method="bpf") as recorder:
        opened.set_backup(True)

        def backup(sock: mptcp.Socket) -> bool:
            rows = recorder.samples
            return bool(rows[(rows["token"] == sock.token) & (rows["local_id"] > 0)]["backup"][-1:].any())

        assert eventually(lambda: backup(connection.sock))


def test_ipv6_and_mapped_addresses_have_their_slot() -> None:
    """What the kernel does not find has its row by inet_diag, without an id: that takes a descriptor or BPF."""
    any_address = ("::", 0)
    for address in ("::1", "::ffff:127.0.0.1"):
        with (
            mptcp.create_server(any_address, family=socket.AF_INET6, dualstack_ipv6=True) as listener,
            mptcp.create_connection((address, listener.getsockname()[1]), timeout=10) as sock,
        ):
            peer, _ = listener.accept()
            with peer:
                exchange(sock, peer)
                handles = [found for end in (sock, peer) for found in mptcp.connections(token=end.token)]
                assert set(readings(handles, "inet_diag")["subflow"]) == {-1}
                rows = readings(handles, "bpf")
                assert set(rows["subflow"]) == {known(1)}
                assert set(rows["token"]) == {sock.token, peer.token}


def test_a_subflow_bound_to_an_interface_is_found(connection: Connection) -> None:
    interface = connection.paths[1].interface(connection.client)
    local, remote = connection.second
    try:
        opened = connection.sock.open_subflow(local, remote, interface=interface)
    except mptcp.UnsupportedError as error:
        pytest.skip(f"needs Linux 6.3: {error}")
    rows = readings(connection.client.connections(token=connection.sock.token), "bpf")
    # By inet_diag it would have no id.
    assert dict(zip(rows["cookie"], rows["subflow"], strict=True))[opened.cookie] == known(opened.id)


def test_more_subflows_than_slots_take_a_larger_map(connection: Connection) -> None:
    """There are 64 at first, and 64 are read by one run of the program."""
    local, remote = connection.second
    with mptcp.Recorder(connection.sock, 0.005, method="bpf") as recorder:
        opened = [connection.sock.open_subflow((local, port), remote) for port in range(20000, 20140)]

        def all_are_there() -> bool:
            rows = recorder.samples
            rows = rows[rows["time_ns"] == rows["time_ns"][-1]]
            return len(rows) == 141 and set(rows["subflow"]) == {known(id) for id in range(1, 142)}

        assert eventually(all_are_there)
        for subflow in opened[::2]:
            connection.sock.close_subflow(subflow)
        assert eventually(lambda: recorder.samples["final"].sum() == 70)
    assert recorder.metadata["failure"] is None


def test_without_the_privilege_it_says_what_to_use_instead() -> None:
    program = "import mptcp\ntry: mptcp.Recorder(None, method='bpf')\nexcept PermissionError as error: print(error)\n"
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "CAP_BPF" in output
    assert "method='inet_diag'" in output
