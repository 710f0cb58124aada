"""read_trace() of captures made in a lab, with the kernel, the application and tshark as witnesses."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from pathlib import Path

import mptcp
import numpy as np
import pytest
from mptcp.lab import Lab
from support import PORT
from trace_checks import check_content, check_options, new_bytes

FROM_TCPDUMP = Path(__file__).parents[1] / "data" / "captures"


def transfer(sender: socket.socket, receiver: socket.socket, content: bytes) -> None:
    thread = threading.Thread(target=sender.sendall, args=(content,))
    size = len(content)
    thread.start()
    while size:
        received = receiver.recv(min(size, 1 << 16))
        assert received
        size -= len(received)
    thread.join()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_both_directions_over_paths(mptcp_lab: Lab, tmp_path: Path, family: int, count: int) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate="40mbit", delay=f"{2 + number}ms") for number in range(count)]
    files = [tmp_path / f"{number}.pcapng" for number in range(count)]
    captures = [link.capture(file, host="both") for link, file in zip(links, files, strict=True)]
    up, down = os.urandom(1_000_001), os.urandom(700_001)
    with server.create_server(("" if family == socket.AF_INET else "::", PORT), family=family) as listener:
        address = links[0].address(server, family=family), PORT
        sock = client.create_connection(address, timeout=10, path_manager="userspace")
        with sock, listener.accept()[0] as peer:
            peer.settimeout(10)
            transfer(sock, peer, up[:1])
            transfer(peer, sock, down[:1])
            for link in links[1:]:
                local, remote = (link.address(host, family=family) for host in (client, server))
                sock.open_subflow(local=(local, 0), remote=(remote, PORT), timeout=10)
            transfer(sock, peer, up[1:])
            transfer(peer, sock, down[1:])
            tokens = sock.token, peer.token
            sock.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""
    for capture in captures:
        capture.close()
        assert capture.dropped == 0
    trace = mptcp.read_trace(*files)
    assert len(trace.connections) == 1
    connection = trace.connections[0]
    assert (connection["token"], connection["peer_token"]) == tokens
    assert connection["complete"]
    assert not connection["fallback"]
    assert connection["version"] == 1
    assert connection["subflows"] == len(trace.subflows) == count
    assert new_bytes(trace, 0) == connection["bytes_0"] == 1_000_001
    assert new_bytes(trace, 1) == connection["bytes_1"] == 700_001
    check_content(trace, files, 0, up)
    check_content(trace, files, 1, down)
    assert set(trace.subflows["address_0"]) == {link.address(client, family=family) for link in links}
    assert trace.subflows["missing_0"].sum() == trace.subflows["unmapped_0"].sum() == 0
    check_options(trace, files)
    # Each segment has its times: sent, arrived after the link's delay, in order, acknowledged after another delay.
    packets = trace.packets
    delay = packets["received_ns"] - packets["time_ns"]
    least = 2_000_000 + 1_000_000 * packets["subflow"].astype(np.int64)
    assert (delay >= least).all()
    # On a busy machine some data is sent again, and then one of the copies arrives when it has been delivered.
    is_copy = packets["retransmitted"] | packets["reinjected"]
    late = ~is_copy & (packets["data_delivered_ns"] < packets["received_ns"])
    assert np.isin(packets["dsn"][late], packets["dsn"][is_copy]).all()
    assert (packets["data_acked_ns"] > packets["data_delivered_ns"]).all()
    # 0 is the client's end of a link, 1 the server's.
    assert (packets["capture"] == 2 * packets["subflow"] + packets["direction"]).all()
    kinds = Counter(event.kind for event in trace.events)
    # A handshake may be sent again.
    assert kinds["MP_JOIN"] >= 3 * (count - 1)
    for side in (0, 1):
        assert (trace.subflows[f"hmacs_{side}"] >= ~trace.subflows["initial"]).all()
    assert trace.subflows["hmac_errors_0"].sum() == trace.subflows["hmac_errors_1"].sum() == 0
    assert kinds["MP_CAPABLE"] >= 3


@pytest.mark.parametrize("name", ["mptcp-v0", "mptcp-v1", "mptcp-aa-v1", "mptcp-fclose"])
def test_captures_of_tcpdump(name: str) -> None:
    file = FROM_TCPDUMP / f"{name}.pcap"
    trace = mptcp.read_trace(file)
    check_options(trace, [file])
    assert len(trace.connections) == 1
    connection = trace.connections[0]
    assert connection["version"] == (1 if "v1" in name else 0)
    assert connection["complete"]
    for direction in (0, 1):
        count = new_bytes(trace, direction)
        assert count == connection[f"bytes_{direction}"] == connection[f"data_acked_{direction}"]
        assert connection[f"missing_{direction}"] == 0
    checksums = sum(int(trace.subflows[f"checksums_{direction}"].sum()) for direction in (0, 1))
    assert (checksums > 0) == connection["checksum"]
    assert trace.subflows["checksum_errors_0"].sum() == trace.subflows["checksum_errors_1"].sum() == 0


def test_a_trace_in_files(tmp_path: Path) -> None:
    trace = mptcp.read_trace(FROM_TCPDUMP / "mptcp-v0.pcap")
    for suffix in ("npz", "parquet", "arrow"):
        if suffix != "npz":
            pytest.importorskip("pyarrow")
        trace.save(tmp_path / f"trace.{suffix}")
        again = mptcp.read_trace(tmp_path / f"trace.{suffix}")
        for table in ("packets", "connections", "subflows"):
            assert getattr(again, table).dtype == getattr(trace, table).dtype
            assert (getattr(again, table) == getattr(trace, table)).all()
        assert again.events == trace.events
        assert again.metadata == trace.metadata
    with pytest.raises(ValueError, match="suffix must be"):
        trace.save(tmp_path / "trace.csv")
