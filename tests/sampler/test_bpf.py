"""Reading by BPF: each column is what inet_diag tells, whatever the subflow or the connection is doing."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import mptcp
import numpy as np
import pytest
from support import KERNEL, PORT, STUCK_MEMORY, Connection, eventually, exchange, has_bpf, has_userfaultfd, nft

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


def of_token(rows: Any, token: int | None) -> Any:
    return rows[rows["token"] == token]


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
                # A tick that began before may have its rows after.
                since = time.monotonic_ns()
                assert eventually(lambda since=since: (recorder.samples["time_ns"] > since).sum() >= 4)
                rows = recorder.samples
                new = rows[rows["time_ns"] > since]
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


def connection_rows(sources: list[mptcp.Socket], method: Any) -> Any:
    with mptcp.Recorder(sources, 0.005, method=method, connection_interval=0.005) as recorder:
        # The first reading is the kernel's own under every method.
        assert eventually(lambda: len(np.unique(recorder.connections["time_ns"])) > 10)
    assert recorder.metadata["failure"] is None
    return recorder.connections


def check_connections(ends: list[mptcp.Socket]) -> None:
    """That idle connections have rows by BPF as by inet_diag."""
    before, by_bpf, after = (connection_rows(ends, method) for method in ("inet_diag", "bpf", "inet_diag"))
    for sock in ends:
        first, last = of_token(before, sock.token)[-1], of_token(after, sock.token)[-1]
        assert not differences(first, last), "the connection is not idle"
        rows = of_token(by_bpf, sock.token)
        assert len(rows) > 10
        for row in rows:
            assert not differences(row, first)
        for name in ("last_data_sent", "last_data_recv", "last_ack_recv"):
            if not np.isnan(first[name]):
                assert first[name] <= rows[-1][name] <= last[name], name


def test_an_idle_connection_has_the_rows_of_inet_diag(connection: Connection) -> None:
    """After data both ways, an additional subflow, one that was closed, and reinjections."""
    ends = [connection.sock, connection.peer]
    opened = connection.sock.open_subflow(*connection.second)
    for sender, receiver in (ends, ends[::-1]):
        connection.paths[1].set(loss="100%" if sender is connection.sock else None)
        sending = threading.Thread(target=sender.sendall, args=(bytes(300_000),))
        sending.start()
        left = 300_000
        while left:
            left -= len(receiver.recv(1 << 16))
        sending.join()
    connection.paths[1].set(loss=None)
    connection.sock.close_subflow(opened)
    assert eventually(lambda: all(sock.info().subflows == 0 for sock in ends), 60)
    connection.sock.open_subflow(*connection.second)

    def is_quiet() -> bool:
        acknowledged = all(subflow.tcp_info.unacked == 0 for sock in ends for subflow in sock.subflows())
        return acknowledged and all(sock.info().subflows == 1 for sock in ends)

    assert eventually(is_quiet)
    check_connections(ends)


@pytest.mark.parametrize("of_others", ["kernel", "userspace"])
def test_limits_of_the_in_kernel_path_manager_are_in_the_rows(mptcp_two_paths: Any, of_others: str) -> None:
    """They are the namespace's, and may change while a connection lives. Where new sockets have the userspace path
    manager, the kernel itself tells them."""
    client, server, links = mptcp_two_paths
    client.set_path_manager(of_others)
    address = links[1].address(client)
    # Before the connection, which is not to open a subflow by it.
    client.add_endpoint(address, signal=True)
    client.set_limits(subflows=3)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(server.create_server(("", PORT)))
        remote = links[0].address(server), PORT
        sock = stack.enter_context(client.create_connection(remote, timeout=10, path_manager="kernel"))
        peer = stack.enter_context(listener.accept()[0])
        exchange(sock, peer)
        assert eventually(lambda: sock.info().add_addr_signal == 1)
        check_connections([sock, peer])
        with mptcp.Recorder(sock, 0.01, method="bpf", connection_interval=0.01) as recorder:
            assert eventually(lambda: len(recorder.connections) > 3)
            assert recorder.connections["subflows_max"][-1] == 3
            assert recorder.connections["add_addr_signal_max"][-1] == 1
            client.set_limits(subflows=5, add_addr_accepted=4)
            assert eventually(lambda: recorder.connections["subflows_max"][-1] == 5)
            assert recorder.connections["add_addr_accepted_max"][-1] == 4
        assert recorder.metadata["failure"] is None


def test_a_held_lock_delays_no_row(connection: Connection) -> None:
    """That of a sender which waits for a page of its buffer, in the kernel."""
    if not has_userfaultfd():
        pytest.skip("needs userfaultfd for system calls")
    names: dict[str, Any] = {}
    exec(STUCK_MEMORY, names)
    stuck = names["Stuck"]()
    with mptcp.Recorder(connection.sock, 0.005, method="bpf", connection_interval=0.005) as recorder:
        # Each is read without its lock by now.
        assert eventually(lambda: len(recorder.connections) > 10)
        sending = threading.Thread(target=connection.sock.send, args=(stuck.memory,))
        sending.start()
        try:
            stuck.wait()
            samples, connections = len(recorder.samples), len(recorder.connections)
            assert eventually(lambda: len(recorder.samples) > samples + 10)
            assert eventually(lambda: len(recorder.connections) > connections + 10)
        finally:
            stuck.release()
            sending.join()
    assert recorder.metadata["failure"] is None


def test_the_fallback_of_one_of_two_connections(connection: Connection) -> None:
    """BTF does not name the bit of a fallback, so it has to be told from others."""
    remote = connection.paths[0].address(connection.server), PORT
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(connection.client.create_connection(remote, timeout=10))
        peer = stack.enter_context(connection.listener.accept()[0])
        exchange(other, peer)
        both = [connection.peer, peer]
        # A connection that fell back tells its token no more.
        fallen, whole = (sock.token for sock in both)
        recorders = [
            stack.enter_context(mptcp.Recorder(both, 0.01, method=method, connection_interval=0.01))
            for method in ("bpf", "inet_diag")
        ]
        strip = "tcp option mptcp exists reset tcp option mptcp"
        rule = f"tcp dport {PORT} tcp sport {connection.sock.getsockname()[1]} {strip}"
        chain = ["chain c {", "type filter hook prerouting priority -300", rule, "}"]
        nft(connection.server, "table inet t {", *chain, "}")
        exchange(connection.sock, connection.peer)
        for recorder in recorders:
            assert eventually(lambda of=recorder: bool(of_token(of.connections, fallen)["flags"][-1] & 1))
        exchange(other, peer)
        exchange(connection.sock, connection.peer)
        read = [len(recorder.connections) for recorder in recorders]
        assert eventually(lambda: all(len(r.connections) > rows + 10 for r, rows in zip(recorders, read, strict=True)))
        by_bpf, by_diag = (recorder.connections for recorder in recorders)
    for token, fell_back in ((fallen, True), (whole, False)):
        rows = of_token(by_bpf, token)
        assert bool(rows["flags"][-1] & 1) is fell_back
        assert (np.diff(rows["flags"] & 1) >= 0).all()
        assert not differences(rows[-1], of_token(by_diag, token)[-1])


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
