"""Why there is no second subflow: twelve labs, each broken in one way, asked by explain() and by ``mptcp why``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from support import PORT, Connection, computing, connected, events_are_read_late, eventually, exchange

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

BASES = {"seen", "inferred", "not visible without CAP_NET_ADMIN"}


def why(host: Host, *words: str) -> tuple[dict[str, Any], str]:
    """What ``mptcp why`` says in that host, as JSON and in words. Each is asked for once."""
    command = [sys.executable, "-W", "error", "-m", "mptcp", "why", *words]
    report = host.run([*command, "--json"], check=True, capture_output=True, text=True, timeout=120)
    spoken = host.run(
        [word for word in command if word != "--try"], check=True, capture_output=True, text=True, timeout=120
    )
    return json.loads(report.stdout), spoken.stdout


def causes_of_pair(connection: dict[str, Any], local: str, remote: str) -> dict[str, str]:
    """The causes of a pair of addresses, with their bases."""
    [pair] = [each for each in connection["pairs"] if (each["local"], each["remote"]) == (local, remote)]
    assert all(finding["basis"] in BASES for finding in pair["findings"])
    return {finding["cause"]: finding["basis"] for finding in pair["findings"]}


def named(made: Connection, cause: str, *words: str, local: str | None = None) -> dict[str, str]:
    """The causes of the second pair by ``mptcp why``, among which this one must be, in words too."""
    report, spoken = why(made.client, str(made.sock.token), *words)
    [connection] = report["connections"]
    assert cause in connection["causes"], report
    found = causes_of_pair(connection, local or made.second[0], made.paths[0].address(made.server))
    if cause in found and "--try" not in words:
        texts = [finding["text"] for pair in connection["pairs"] for finding in pair["findings"]]
        assert any(text in spoken for text in texts)
    assert connection["token"] == made.sock.token
    assert str(made.sock.token) in spoken
    return found


def in_kernel(*hosts: Host, subflows: int = 4) -> None:
    for host in hosts:
        host.set_path_manager("kernel")
        host.set_limits(subflows=subflows, add_addr_accepted=4)


def test_1_no_endpoint(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    in_kernel(client, server)
    with connected(client, server, paths) as made:
        assert named(made, "no-endpoint") == {"no-endpoint": "seen", "c-bit-unknown": "inferred"}
        client.add_endpoint(made.second[0], subflow=True)
        assert eventually(lambda: [one._accepted for one in made.sock.subflows()] == [True, True])
        assert made.sock.explain().causes == ()


def test_2_limits_here(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    in_kernel(client, server)
    client.set_limits(subflows=0)
    client.add_endpoint(paths[1].address(client), subflow=True)
    with connected(client, server, paths) as made:
        explanation = made.sock.explain()
        assert "limit-here" in [finding.cause for finding in explanation.findings]
        named(made, "limit-here")


def test_3_limits_at_the_peer(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    in_kernel(server, subflows=0)
    with connected(client, server, paths) as made:
        assert named(made, "peer-limit", "--try")["peer-limit"] == "inferred"
        assert len(made.sock.subflows()) == 1
        # What events told is known afterwards, without another try.
        with pytest.raises(mptcp.SubflowError):
            made.sock.open_subflow(*made.second)
        second = causes_of_pair(made.sock.explain().asdict(), made.second[0], made.second[1])
        assert "peer-limit" in second, made.sock.explain().asdict()


def test_3_limits_at_the_peer_of_which_nobody_heard(mptcp_two_paths: TwoPaths) -> None:
    """The in-kernel path manager's own try, by the counters of the namespace."""
    client, server, paths = mptcp_two_paths
    in_kernel(client)
    in_kernel(server, subflows=0)
    client.add_endpoint(paths[1].address(client), subflow=True)
    with connected(client, server, paths) as made:
        assert eventually(lambda: server.counters().get("MPJoinRejected", 0) > 0)
        found = named(made, "peer-limit")
        assert found["peer-limit"] == found["peer-no-subscriber"] == "inferred"


_PLAIN_SERVER = """
import socket, sys
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
listener.bind(("", int(sys.argv[1])))
listener.listen()
print("listening", flush=True)
peer, _ = listener.accept()
while data := peer.recv(1):
    peer.sendall(data)
"""
_PLAIN_CLIENT = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.sendall(b"x")
sock.recv(1)
print("connected", flush=True)
sys.stdin.read()
"""


def subscribers() -> int:
    """Sockets of this machine that are subscribed to path manager events: one hides the lack of another."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            namespace = (process / "ns/net").stat().st_ino
            rows = (process / "net/netlink").read_text().splitlines()[1:]
            found[namespace] = sum(row.split()[1] == "16" and int(row.split()[3], 16) != 0 for row in rows)
    return sum(found.values())


@contextlib.contextmanager
def running(host: Host, program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, *words]
    with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline()
        yield process
        process.stdin.close()
        process.kill()


def joins(server: Host) -> int:
    """The joins that a host has accepted or refused."""
    counters = server.counters()
    return counters.get("MPJoinRejected", 0) + counters.get("MPJoinAckRx", 0)


def test_4_a_peer_without_a_subscriber(mptcp_two_paths: TwoPaths) -> None:
    """The in-kernel path manager here, so that nobody subscribes; its try was heard by nobody.

    The kernel looks for subscribers on the whole machine, in every namespace: the other tests of the project that run
    beside this one have some, so a moment without is waited for.
    """
    client, server, paths = mptcp_two_paths
    if os.geteuid() != 0:
        pytest.skip("needs root, to see the subscribers of the whole machine")
    if "MPJoinRejected" not in server.counters():
        pytest.skip("needs a kernel that counts the joins that it refuses")
    in_kernel(client)
    client.add_endpoint(paths[1].address(client), subflow=True)
    remote = paths[0].address(server)
    if eventually(lambda: subscribers() == 0, 10):
        with running(server, _PLAIN_SERVER, str(PORT)), running(client, _PLAIN_CLIENT, remote, str(PORT)):
            assert eventually(lambda: joins(server) > 0)
            if not server.counters().get("MPJoinRejected"):
                pytest.skip("needs a machine on which no process subscribes to path manager events meanwhile")
            report, spoken = why(client)
            [connection] = report["connections"]
            found = causes_of_pair(connection, paths[1].address(client), remote)
            assert found["peer-no-subscriber"] == found["peer-limit"] == "inferred", report
            assert "no process there listens to path manager events" in spoken
            # Where it was accepted the other of the two is out of the question.
            report, spoken = why(server)
            assert "no-subscriber-here" in report["connections"][0]["causes"], report
            assert "no process listens to path manager events" in spoken
    else:
        pytest.skip("needs a moment in which no process of this machine is subscribed to path manager events")


def test_5_the_c_bit(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    server.sysctl("net.mptcp.allow_join_initial_addr_port", 0)
    with connected(client, server, paths) as made:
        assert eventually(lambda: made.sock.deny_join_initial is True)
        [handle] = client.connections(token=made.sock.token)
        for explanation in (made.sock.explain(), handle.explain(), made.sock.explain(attempt=True)):
            found = causes_of_pair(explanation.asdict(), made.second[0], paths[0].address(server))
            assert found["c-bit"] == "seen", explanation
            assert "(the C bit)" in str(explanation)
        # Another process did not hear the connection begin, and says so.
        assert named(made, "c-bit-unknown")["c-bit-unknown"] == "inferred"


def needs_ip() -> None:
    if shutil.which("ip") is None:
        pytest.skip("needs ip of iproute2")


def test_6_no_route(mptcp_two_paths: TwoPaths) -> None:
    needs_ip()
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths) as made:
        client.run(["ip", "rule", "add", "pref", "10", "from", made.second[0], "unreachable"], check=True)
        assert named(made, "no-route")["no-route"] == "seen"


def test_7_a_route_by_the_wrong_link(mptcp_two_paths: TwoPaths) -> None:
    needs_ip()
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths) as made:
        first = paths[0].interface(client)
        client.run(
            ["ip", "route", "add", "default", "via", paths[0].address(server), "dev", first, "table", "77"], check=True
        )
        client.run(["ip", "rule", "add", "pref", "10", "from", made.second[0], "lookup", "77"], check=True)
        assert named(made, "wrong-link")["wrong-link"] == "seen"
        assert first in str(made.sock.explain())


def test_8_strict_rp_filter_at_the_peer(mptcp_two_paths: TwoPaths) -> None:
    needs_ip()
    client, server, paths = mptcp_two_paths
    with connected(client, server, paths) as made:
        server.run(
            ["ip", "route", "replace", f"{made.second[0]}/32", "dev", paths[0].interface(server)],
            check=True,
        )
        server.sysctl("net.ipv4.conf.all.rp_filter", 1)
        for path in paths:
            server.sysctl(f"net/ipv4/conf/{path.interface(server)}/rp_filter", 1)
        found = named(made, "rp-filter", "--try")
        assert found["rp-filter"] == "inferred"
        assert "join-dropped" not in found
        # At the peer the counter of the kernel tells it from a firewall.
        report, spoken = why(server)
        assert "rp-filter-here" in report["connections"][0]["causes"], report
        assert "packets were dropped here" in spoken


def test_9_a_link_that_is_down(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    in_kernel(client, server)
    client.add_endpoint(paths[1].address(client), subflow=True)
    paths[1].down()
    with connected(client, server, paths) as made:
        found = (
            named(made, "link-down") if "link-down" in made.sock.explain().causes else named(made, "address-missing")
        )
        assert {"link-down", "address-missing"} & set(found)
        client.add_endpoint("10.9.9.1", subflow=True)
        assert named(made, "address-missing", local="10.9.9.1")["address-missing"] == "seen"


def test_10_a_single_homed_peer(mptcp_lab: Lab) -> None:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    link = mptcp_lab.link(client, server)
    remote = (link.address(server), PORT)
    with (
        server.create_server(remote) as listener,
        client.create_connection(remote, timeout=10, path_manager="userspace") as sock,
        listener.accept()[0] as peer,
    ):
        exchange(sock, peer)
        report, spoken = why(client, str(sock.token))
        [connection] = report["connections"]
        assert connection["causes"] == ["no-other-address"], report
        assert "no other pair of addresses" in spoken
        explanation = sock.explain()
        assert explanation.causes == ("no-other-address",)
        assert len(explanation.pairs) == 1


def test_11_fallback_and_multipath_off(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    remote = (paths[0].address(server), PORT)
    server.sysctl("net.mptcp.enabled", 0)
    with (
        server.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener,
        client.socket() as sock,
    ):
        listener.bind(remote)
        listener.listen()
        sock.settimeout(10)
        sock.connect(remote)
        explanation = sock.explain()
        assert explanation.causes == ("fell-back", "peer-without-multipath")
        assert explanation.token is None
        assert "fell back" in str(explanation)
        report, spoken = why(client)
        assert report["connections"] == []
        assert [each["cause"] for each in report["namespace"]] == ["fell-back"]
        assert "no Multipath TCP connections" in spoken
        assert "fell back to TCP" in spoken
    client.sysctl("net.mptcp.enabled", 0)
    report, spoken = why(client)
    assert "multipath-off" in [each["cause"] for each in report["namespace"]]
    assert "set net.mptcp.enabled to 1" in spoken


def test_12_mp_join_is_dropped(mptcp_two_paths: TwoPaths) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft of nftables")
    client, server, paths = mptcp_two_paths
    rules = "add table inet t; add chain inet t c { type filter hook input priority 0; }; "
    rules += "add rule inet t c tcp option mptcp subtype 1 drop"
    server.run(["nft", rules], check=True)
    with connected(client, server, paths) as made:
        found = named(made, "join-dropped", "--try")
        assert found["join-dropped"] == "inferred"
        assert "rp-filter" not in found
        assert "rp-filter-here" not in why(server)[0]["connections"][0]["causes"]
        assert len(made.sock.subflows()) == 1


def test_a_try_that_succeeds_leaves_nothing(connection: Connection) -> None:
    explanation = connection.sock.explain(attempt=True)
    remote = connection.paths[0].address(connection.server)
    outcomes = {(pair.local, pair.remote): pair.outcome for pair in explanation.pairs}
    assert outcomes[connection.second[0], remote] == "accepted, and closed again"
    assert causes_of_pair(explanation.asdict(), connection.second[0], remote) == {}
    assert len(connection.sock.subflows()) == 1
    assert json.loads(json.dumps(explanation.asdict()))["pairs"]


def test_why_a_subflow_closed(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    assert eventually(lambda: len(connection.peer.subflows()) == 2)
    connection.peer.close_subflow(connection.peer.subflows()[1])
    assert eventually(lambda: len(connection.sock.subflows()) == 1)
    assert eventually(lambda: len(connection.sock.explain().closed) == 1)
    [text] = connection.sock.explain().closed
    assert text.startswith(f"closed: {connection.second[0]}:")
    assert text.endswith("[seen]")


def test_what_events_tell_before_they_have_been_read(connection: Connection) -> None:
    """Another program keeps the thread that reads them from running."""
    opened = connection.sock.open_subflow(*connection.second)
    with events_are_read_late(), computing():
        opened.close()
        [text] = connection.sock.explain().closed
    assert text.startswith(f"closed: {connection.second[0]}:")


def test_nobody_listened(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    in_kernel(client, server)
    with connected(client, server, paths) as made:
        report, spoken = why(client, str(made.sock.token))
        assert {pair["outcome"] for pair in report["connections"][0]["pairs"]} == {"not known: nobody listened"}
        assert "not known: nobody listened" in spoken


def test_an_explanation_is_frozen_and_a_token_that_is_gone_an_error(connection: Connection) -> None:
    explanation = connection.sock.explain()
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.token = 1  # type: ignore[misc]
    assert dataclasses.replace(explanation) == explanation
    [handle] = connection.client.connections(token=connection.sock.token)
    connection.sock.close()
    connection.peer.close()
    assert eventually(lambda: connection.client.connections(token=handle.token) == [])
    assert handle.explain().causes == ("no-connection",)
    command = [sys.executable, "-m", "mptcp", "why", str(handle.token)]
    done = connection.client.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("mptcp why: no Multipath TCP connection has the token")
