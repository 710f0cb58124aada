"""HMACs of MP_JOIN and ADD_ADDR: the kernel's are right, a flipped bit makes one wrong, without keys it is unknown."""

from __future__ import annotations

import socket
from pathlib import Path

import mptcp
import pytest
from mptcp.lab import Host, Lab, Link
from support import PORT, exchange

FROM_TCPDUMP = Path(__file__).parents[1] / "data" / "captures"


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def captures(request: pytest.FixtureRequest, mptcp_lab: Lab, tmp_path: Path) -> list[Path]:
    """A connection that the client adds a subflow to, and whose server announces addresses with a port and without."""
    family: int = request.param
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    for host in (client, server):
        # Beside time stamps there is no room for an IPv6 address with a port.
        host.sysctl("net.ipv4.tcp_timestamps", 0)
    links = [mptcp_lab.link(client, server, rate="40mbit", delay="1ms") for _ in range(4)]
    # Announcements are sent on the first link.
    files = [tmp_path / f"{number}.pcapng" for number in range(2)]
    running = [link.capture(file, host="both") for link, file in zip(links, files, strict=False)]
    transfer(client, server, links, family)
    for capture in running:
        capture.close()
    return files


def transfer(client: Host, server: Host, links: list[Link], family: int) -> None:
    def at(link: Link, host: Host) -> str:
        return link.address(host, family=family)

    with server.create_server(("" if family == socket.AF_INET else "::", PORT), family=family) as listener:
        sock = client.create_connection((at(links[0], server), PORT), timeout=10, path_manager="userspace")
        with sock, listener.accept()[0] as peer, sock.events() as events:
            exchange(sock, peer)
            sock.open_subflow(local=(at(links[1], client), 0), remote=(at(links[1], server), PORT), timeout=10)
            for number, link, port in ((7, links[2], None), (8, links[3], 4321)):
                peer.announce_address(at(link, server), port, address_id=number)
                while (event := events.get(timeout=10)) is None or event.kind != mptcp.EventKind.ANNOUNCED:
                    assert event is not None
            exchange(sock, peer)


def validity(trace: mptcp.Trace) -> list[tuple[str, int, object]]:
    """Who sent which HMACs, and whether they were valid; once each, because handshakes may be sent again."""
    found = [
        (event.kind, event.direction, event.details["hmac_valid"])
        for event in trace.events
        if "hmac_valid" in event.details
    ]
    return list(dict.fromkeys(found))


def test_the_kernels_are_right(captures: list[Path]) -> None:
    trace = mptcp.read_trace(*captures)
    joins = [("MP_JOIN", 1, True), ("MP_JOIN", 0, True)]
    found = validity(trace)
    assert [each for each in found if each[0] == "MP_JOIN"] == joins
    # An announcement is repeated until it is echoed.
    assert {each for each in found if each[0] == "ADD_ADDR"} == {("ADD_ADDR", 1, True)}
    announced = {
        (event.details["address_id"], event.details.get("port"))
        for event in trace.events
        if event.kind == "ADD_ADDR" and "hmac" in event.details
    }
    assert announced == {(7, None), (8, 4321)}
    compared = trace.subflows["hmacs_0"].sum() + trace.subflows["hmacs_1"].sum()
    assert compared == sum("hmac_valid" in event.details for event in trace.events) >= len(found)
    assert trace.subflows["hmac_errors_0"].sum() == trace.subflows["hmac_errors_1"].sum() == 0


@pytest.mark.parametrize("what", ["hmac", "address", "nonce"])
def test_a_flipped_bit_is_told(captures: list[Path], what: str) -> None:
    trace = mptcp.read_trace(*captures)
    kind = "ADD_ADDR" if what == "address" else "MP_JOIN"
    event = next(event for event in trace.events if event.kind == kind and "hmac" in event.details)
    if what == "hmac":
        value = event.details["hmac"]
    elif what == "nonce":
        value = event.details["nonce"].to_bytes(4, "big")
    else:
        # The option's bytes: the address precedes the HMAC, or the port that does.
        value = event.details["hmac"]
    for file in captures:
        content = bytearray(file.read_bytes())
        at = content.find(value)
        while at != -1:
            content[at - 3 if what == "address" else at + 1] ^= 1
            at = content.find(value, at + 1)
        file.write_bytes(content)
    found = validity(mptcp.read_trace(*captures))
    wrong = [each for each in found if each[2] is False]
    if what == "hmac":
        assert wrong == [("MP_JOIN", 1, False)]
    elif what == "nonce":
        assert wrong == [("MP_JOIN", 1, False), ("MP_JOIN", 0, False)]
    else:
        assert set(wrong) == {("ADD_ADDR", 1, False)}


def test_without_keys_nobody_knows(captures: list[Path]) -> None:
    # The second link's capture has the MP_JOIN, and the keys are in the first one's.
    trace = mptcp.read_trace(captures[1])
    assert validity(trace)[:2] == [("MP_JOIN", 1, None), ("MP_JOIN", 0, None)]
    assert trace.subflows["hmacs_0"].sum() == trace.subflows["hmac_errors_0"].sum() == 0


def test_version_0_has_sha_1() -> None:
    trace = mptcp.read_trace(FROM_TCPDUMP / "mptcp-v0.pcap")
    assert validity(trace) == [("MP_JOIN", 1, True), ("MP_JOIN", 0, True)]


def test_a_kernel_that_sent_the_wrong_half() -> None:
    """Of before 5.10: the first 64 bits of ADD_ADDR's HMAC, where RFC 8684 wants the last."""
    trace = mptcp.read_trace(FROM_TCPDUMP / "mptcp-aa-v1.pcap")
    assert validity(trace) == [("ADD_ADDR", 1, False)]
    assert trace.subflows["hmac_errors_1"] == 1
