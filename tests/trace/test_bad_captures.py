"""Captures that are cut, damaged, incomplete or strange."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path

import mptcp
import numpy as np
import pytest
from frames import (
    ACK,
    ETHERNET,
    RAW,
    RST,
    SLL,
    SLL2,
    SYN,
    Recorded,
    Side,
    capable,
    dss,
    join_syn,
    option,
    pcapng,
    token_and_idsn,
)

FROM_TCPDUMP = Path(__file__).parents[1] / "data" / "captures"


def rows(trace: mptcp.Trace, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in trace.packets[list(columns)].tolist()]


def test_a_capture_that_is_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    file = FROM_TCPDUMP / "mptcp-aa-v1.pcap"
    whole = mptcp.read_trace(file)
    content = file.read_bytes()
    cut = tmp_path / "cut"
    sizes = {*range(0, len(content), 7), *range(30), *(end + by for end in ENDS for by in (-1, 0, 1, 15, 16))}
    for size in sorted(size for size in sizes if size < len(content)):
        cut.write_bytes(content[:size])
        if size < 24:
            with pytest.raises(ValueError, match=r"is empty|too short|within its header"):
                mptcp.read_trace(cut)
            continue
        trace = mptcp.read_trace(cut)
        known = ["time_ns", "dsn", "length", "direction", "sequence"]
        assert (trace.packets[known] == whole.packets[known][: len(trace.packets)]).all()
        (capture,) = trace.metadata["captures"]
        assert (capture["damage"] is None) == (size in ENDS)


CONTENT = (FROM_TCPDUMP / "mptcp-aa-v1.pcap").read_bytes()
ENDS = {24}
while max(ENDS) < len(CONTENT):
    ENDS.add(max(ENDS) + 16 + struct.unpack_from("<I", CONTENT, max(ENDS) + 8)[0])


def test_a_pipe_that_grows_is_read_as_long_as_somebody_writes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            # Within packets, too.
            for start in range(0, len(CONTENT), 100):
                file.write(CONTENT[start : start + 100])

    thread = threading.Thread(target=write)
    thread.start()
    trace = mptcp.read_trace(pipe)
    thread.join()
    assert trace.metadata["counts"] == mptcp.read_trace(FROM_TCPDUMP / "mptcp-aa-v1.pcap").metadata["counts"]


def test_a_file_that_grows_is_read_to_its_end_of_now(tmp_path: Path) -> None:
    file = tmp_path / "growing.pcap"
    counts = []
    for end in sorted(ENDS):
        file.write_bytes(CONTENT[:end])
        counts.append(mptcp.read_trace(file).metadata["counts"]["frames"])
    assert counts == list(range(25))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(CONTENT), "compressed with gzip: decompress it first, or use zcat FILE"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "compressed with zstd"),
        (b"\xfd7zXZ\0" + bytes(40), "compressed with xz"),
        (b"BZh9" + bytes(40), "compressed with bzip2"),
        (b"", "is empty"),
        (b"abc", "too short"),
        (b"time,token\n1,2\n", "not a capture in the pcap or pcapng format"),
    ],
)
def test_what_is_not_a_capture_is_told(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        mptcp.read_trace(file)
    assert str(file) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mptcp.read_trace(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        mptcp.read_trace(tmp_path)
    with pytest.raises(TypeError, match="at least one path"):
        mptcp.read_trace()
    with pytest.raises(TypeError, match="must be a str or a PathLike"):
        mptcp.read_trace(1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="suffix must be"):
        mptcp.read_trace(FROM_TCPDUMP / "mptcp-v1.pcap", path=tmp_path / "x.parquet")


@pytest.mark.parametrize("length", [0, 8, 13, 0x7FFFFFFC, 0xFFFFFFFC])
def test_blocks_that_claim_any_length(tmp_path: Path, length: int) -> None:
    file = tmp_path / "file.pcapng"
    file.write_bytes(pcapng([struct.pack("=II", 6, length) + bytes(100)]))
    trace = mptcp.read_trace(file)
    assert len(trace.packets) == 0
    assert "claims to have" in trace.metadata["captures"][0]["damage"]


def test_a_packet_that_claims_to_be_huge(tmp_path: Path) -> None:
    file = tmp_path / "file.pcap"
    file.write_bytes(CONTENT + struct.pack("<4I", 1, 1, 0xFFFFFFF0, 0xFFFFFFF0) + bytes(100))
    trace = mptcp.read_trace(file)
    assert len(trace.packets) == 8
    assert "claims to have 4294967280 bytes" in trace.metadata["captures"][0]["damage"]


def test_any_bytes(tmp_path: Path) -> None:
    """The fuzzer tries more."""
    chance = random.Random(1)
    file = tmp_path / "file"
    for _ in range(300):
        content = bytearray(CONTENT)
        for _ in range(chance.randrange(1, 20)):
            content[chance.randrange(24, len(content))] = chance.randrange(256)
        file.write_bytes(content)
        trace = mptcp.read_trace(file)
        assert (trace.packets["length"] > 0).all()


@pytest.mark.parametrize(
    ("link", "vlan"), [(ETHERNET, False), (ETHERNET, True), (RAW, False), (SLL, False), (SLL2, False)]
)
def test_link_types(tmp_path: Path, link: int, vlan: bool) -> None:
    recorded = Recorded()
    side = Side(recorded)
    side.send(0, b"x" * 100)
    side.acknowledge(100)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file", link, vlan=vlan))
    assert rows(trace, "dsn", "length", "token") == [(0, 100, side.token)]
    assert trace.packets["data_acked_ns"] == recorded.now_ns


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_of_either_byte_order_and_resolution(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    recorded = Recorded()
    Side(recorded).send(0, b"x" * 100)
    file = tmp_path / "file"
    with file.open("wb") as written:
        written.write(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 1 << 18, RAW))
        for when, packet in recorded.packets:
            seconds, rest = divmod(when, 10**9)
            written.write(struct.pack(order + "4I", seconds, rest // unit, len(packet), len(packet)) + packet)
    trace = mptcp.read_trace(file)
    assert rows(trace, "dsn", "length", "time_ns") == [(0, 100, recorded.now_ns // unit * unit)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("resolution", "per_second"), [(6, 10**6), (9, 10**9), (0x80 | 20, 2**20)])
def test_pcapng_of_either_byte_order_and_any_resolution(
    tmp_path: Path, order: str, resolution: int, per_second: int
) -> None:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = struct.pack(order + "I", 12 + len(body))
        return struct.pack(order + "I", kind) + size + body + size

    def text(code: int, value: bytes) -> bytes:
        return struct.pack(order + "2H", code, len(value)) + value + bytes(-len(value) % 4)

    recorded = Recorded()
    Side(recorded).send(0, b"x" * 100)
    later = 5
    content = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    options = text(2, b"wlan0") + text(9, bytes([resolution])) + text(14, struct.pack(order + "q", later))
    content += block(1, struct.pack(order + "HHI", RAW, 0, 0) + options + text(0, b""))
    content += block(0x0BAD, b"of a kind that nobody knows")
    for when, packet in recorded.packets:
        units = (when - later * 10**9) * per_second // 10**9
        head = struct.pack(order + "5I", 0, units >> 32, units & 0xFFFFFFFF, len(packet), len(packet))
        content += block(6, head + packet)
    content += block(5, struct.pack(order + "3I", 0, 0, 0) + text(5, struct.pack(order + "Q", 7)) + text(0, b""))
    file = tmp_path / "file"
    file.write_bytes(content)
    trace = mptcp.read_trace(file)
    assert rows(trace, "dsn", "length") == [(0, 100)]
    assert abs(int(trace.packets["time_ns"][0]) - recorded.now_ns) <= 10**9 // per_second
    (capture,) = trace.metadata["captures"]
    assert (capture["interface"], capture["frames"], capture["dropped"]) == ("wlan0", 4, 7)


def test_a_retransmission_with_other_boundaries_is_split(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    side.send(0, b"a" * 100)
    side.send(100, b"b" * 100)
    side.send(50, b"c" * 250)
    side.acknowledge(300)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    expected = [(0, 100, False), (100, 100, False), (50, 150, True), (200, 100, False)]
    assert rows(trace, "dsn", "length", "retransmitted") == expected
    assert trace.subflows["retransmitted_0"] == 150
    assert trace.connections["bytes_0"] == 300
    assert (trace.packets["data_acked_ns"] == recorded.now_ns).all()


def test_reinjection_is_what_was_seen_before_not_what_is_late(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    other, there = ("10.0.2.1", 41000), ("10.0.2.2", 5000)
    recorded.segment(other, there, 0, SYN, join_syn(side.peer_token, backup=True))
    recorded.segment(there, other, 0, SYN | ACK, option(1, 0, struct.pack("!BQI", 3, 5, 9)), ack=1)
    recorded.segment(other, there, 1, ACK, option(1, 0, bytes([0]) + bytes(20)), ack=1)
    side.send(0, b"a" * 100)
    side.send(200, b"c" * 100, subflow=101)
    mapping = lambda dsn, subflow, length: dss(dsn=side.idsn + 1 + dsn, subflow=subflow, length=length)  # noqa: E731
    recorded.segment(other, there, 1, ACK, mapping(100, 1, 100), b"b" * 100)  # late, but new
    recorded.segment(other, there, 101, ACK, mapping(250, 101, 100), b"c" * 50 + b"d" * 50)  # half of it is new
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert rows(trace, "subflow", "dsn", "length", "reinjected") == [
        (0, 0, 100, False),
        (0, 200, 100, False),
        (1, 100, 100, False),
        (1, 250, 50, True),
        (1, 300, 50, False),
    ]
    assert trace.connections["reinjected_0"] == trace.subflows["reinjected_0"][1] == 50
    assert trace.connections["bytes_0"] == 350
    assert trace.subflows["backup_0"].tolist() == [False, True]
    assert (trace.subflows["address_id_0"][1], trace.subflows["address_id_1"][1]) == (1, 3)
    assert trace.subflows["initial"].tolist() == [True, False]


def test_a_capture_out_of_order(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    for number in range(10):
        side.send(100 * number, b"x" * 100)
    packets = recorded.packets[3:]
    random.Random(3).shuffle(packets)
    recorded.packets[3:] = packets
    side.acknowledge(1000)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert not trace.packets["retransmitted"].any()
    assert sorted(trace.packets["dsn"]) == list(range(0, 1000, 100))
    assert trace.connections["missing_0"] == trace.subflows["missing_0"] == 0


def test_packets_that_the_capture_lost_are_counted(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    for number in range(10):
        side.send(100 * number, b"x" * 100)
    side.acknowledge(1000)
    del recorded.packets[6], recorded.packets[8]
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert trace.connections["missing_0"] == trace.subflows["missing_0"] == 200
    assert trace.connections["bytes_0"] == 800
    assert (trace.packets["data_acked_ns"] != -1).all()


@pytest.mark.parametrize("long", [False, True])
def test_a_capture_that_begins_in_the_middle(tmp_path: Path, long: bool) -> None:
    recorded = Recorded()
    side = Side(recorded, handshake=False, long=long)
    # The lower half of the number wraps, and all of it if that is what is sent.
    side.idsn = 2**64 - 251
    for number in range(10):
        side.send(100 * number, b"x" * 100)
        side.acknowledge(100 * (number + 1))
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert rows(trace, "dsn", "length") == [(100 * number, 100) for number in range(10)]
    assert (trace.connections["token"], trace.connections["complete"], trace.subflows["complete"]) == (0, False, False)
    assert trace.connections["bytes_0"] == trace.connections["data_acked_0"] == 1000
    assert (trace.packets["data_acked_ns"] == trace.packets["time_ns"] + 1_000_000).all()


def test_short_numbers_wrap(tmp_path: Path) -> None:
    key = next(key for key in range(1 << 20) if token_and_idsn(key)[1] % 2**32 > 2**32 - 50_000)
    recorded = Recorded()
    side = Side(recorded, keys=(key, 2), long=False, isn=2**32 - 20_000)
    for number in range(100):
        side.send(1000 * number, b"x" * 1000)
        side.acknowledge(1000 * (number + 1))
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert rows(trace, "dsn", "length", "retransmitted") == [(1000 * number, 1000, False) for number in range(100)]
    assert trace.connections["data_acked_0"] == 100_000
    assert trace.connections["idsn_0"] == side.idsn


def test_two_connections_of_one_four_tuple(tmp_path: Path) -> None:
    recorded = Recorded()
    for number in (1, 2):
        side = Side(recorded, keys=(number, 10 + number), isn=1000 * number)
        side.send(0, b"x" * (100 * number))
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert trace.connections["token"].tolist() == [token_and_idsn(number)[0] for number in (1, 2)]
    assert trace.connections["bytes_0"].tolist() == [100, 200]


def test_a_join_whose_connection_was_not_captured(tmp_path: Path) -> None:
    recorded = Recorded()
    for port in (1, 2):
        recorded.segment(("10.0.2.1", port), ("10.0.2.2", 5000), 0, SYN, join_syn(77))
    recorded.segment(("10.0.2.1", 3), ("10.0.2.2", 5000), 0, SYN, join_syn(78))
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert trace.connections["peer_token"].tolist() == [77, 78]
    assert trace.subflows["connection"].tolist() == [0, 0, 1]
    assert not trace.connections["complete"].any()


def test_a_peer_without_multipath_tcp(tmp_path: Path) -> None:
    recorded = Recorded()
    here, there = ("10.0.1.1", 1), ("10.0.1.2", 2)
    recorded.segment(here, there, 10, SYN, capable())
    recorded.segment(there, here, 20, SYN | ACK, ack=11)
    recorded.segment(here, there, 11, ACK, ack=21)
    recorded.segment(here, there, 11, ACK, data=b"x" * 100, ack=21)
    recorded.segment(there, here, 21, ACK, data=b"y" * 50, ack=111)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert trace.connections["fallback"]
    assert rows(trace, "direction", "dsn", "length") == [(0, 0, 100), (1, 0, 50)]
    assert [event.details for event in trace.events if event.kind == "FALLBACK"] == [{"by": "the handshake"}]


@pytest.mark.parametrize("infinite", [False, True])
def test_a_fallback_in_the_middle(tmp_path: Path, infinite: bool) -> None:
    recorded = Recorded()
    side = Side(recorded)
    side.send(0, b"x" * 100)
    side.acknowledge(100)
    side.send(100, b"y" * 100, options=dss(dsn=side.idsn + 101, subflow=101, length=0) if infinite else b"")
    side.send(200, b"z" * 100, options=b"")
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert trace.connections["fallback"]
    assert rows(trace, "dsn", "length") == [(0, 100), (100, 100), (200, 100)]
    reasons = [event.details["by"] for event in trace.events if event.kind == "FALLBACK"]
    assert reasons == ["an infinite mapping" if infinite else "data without an option"]


def test_a_snap_length_that_cuts_options(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    side.send(0, b"x" * 100)
    whole = mptcp.read_trace(recorded.write(tmp_path / "whole", snap=90))
    assert rows(whole, "dsn", "length") == [(0, 100)]
    cut = mptcp.read_trace(recorded.write(tmp_path / "cut", snap=60))
    assert len(cut.packets) == 0
    assert cut.metadata["counts"]["cut"] == 3
    assert cut.metadata["counts"]["malformed"] == 0
    assert not cut.connections["fallback"].any()


@pytest.mark.parametrize(
    "options",
    [b"\x1e\x00", b"\x1e\x40\x20", b"\x1e\x02", option(9, 0, b"x"), option(2, 0, b"\x0f12"), option(0, 1, b"12345")],
)
def test_malformed_options_are_counted(tmp_path: Path, options: bytes) -> None:
    recorded = Recorded()
    side = Side(recorded)
    side.send(0, b"x" * 100)
    side.send(100, b"x" * 100, options=options)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert trace.metadata["counts"]["malformed"] == 1
    assert rows(trace, "dsn", "length")[:1] == [(0, 100)]


def test_a_wrong_checksum_is_counted(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    for wrong in (0, 1):
        mapping = dss(dsn=side.idsn + 1 + 4 * wrong, subflow=1 + 4 * wrong, length=4)
        words = mapping[4:] + b"abcd"
        total = sum(struct.unpack(f"!{len(words) // 2}H", words))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        mapping = (
            bytes([mapping[0], mapping[1] + 2]) + mapping[2:] + struct.pack("!H", (0xFFFF - total + wrong) % 65536)
        )
        side.send(4 * wrong, b"abcd", options=mapping)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert (trace.subflows["checksums_0"], trace.subflows["checksum_errors_0"]) == (2, 1)


def test_a_reset_with_its_reason(tmp_path: Path) -> None:
    recorded = Recorded()
    side = Side(recorded)
    recorded.segment(side.there, side.here, 5001, RST | ACK, option(8, 1, bytes([3])), ack=side.isn + 1)
    trace = mptcp.read_trace(recorded.write(tmp_path / "file"))
    assert (trace.subflows["reset_reason"], trace.subflows["reset_ns"]) == (3, recorded.now_ns)
    assert trace.events[-1][:2] == ("MP_TCPRST", recorded.now_ns)
    assert trace.events[-1].details == {"reason": 3, "transient": True}


def test_streaming_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = FROM_TCPDUMP / "mptcp-v0.pcap"
    whole = mptcp.read_trace(file)
    streamed = mptcp.read_trace(file, path=tmp_path / "trace.arrow")
    for trace in (streamed, mptcp.read_trace(tmp_path / "trace.arrow")):
        for table in ("packets", "connections", "subflows"):
            assert (getattr(trace, table) == getattr(whole, table)).all()
        assert trace.events == whole.events
        assert trace.metadata == whole.metadata


def test_standard_input_and_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mptcp", "trace"]
    done = subprocess.run([*command, "--json", "-"], input=CONTENT, capture_output=True, check=True)
    (connection,) = json.loads(done.stdout)["connections"]
    assert (connection["token"], connection["bytes_0"], len(connection["subflows"])) == (773504493, 48, 1)
    assert "ADD_ADDR" in {event["kind"] for event in connection["events"]}
    file = tmp_path / "cut.pcap"
    file.write_bytes(CONTENT[:-1])
    done = subprocess.run([*command, str(file), "-o", str(tmp_path / "x.npz")], capture_output=True, check=True)
    assert b"773504493 / 1597986193  version 1" in done.stdout
    assert b"initial,1 wrong HMAC" in done.stdout
    assert b"was not read to its end: it ends within a packet" in done.stderr
    assert len(mptcp.read_trace(tmp_path / "x.npz").packets) == 8
    if importlib.util.find_spec("matplotlib"):
        subprocess.run([*command, str(file), "-o", str(tmp_path / "x.png")], capture_output=True, check=True)
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    subprocess.run([*command, str(file), "-o", str(tmp_path / "x.qlog")], capture_output=True, check=True)
    assert len(json.loads((tmp_path / "x.qlog").read_text())["traces"]) == 2
    for words, status, message in (
        (["/nonexistent"], 1, b"No such file or directory: /nonexistent"),
        ([str(file), "-o", "x.txt"], 2, b"suffix must be"),
        ([__file__], 1, b"is not a capture"),
        (["-"], 1, b"standard input is compressed with gzip: decompress it first"),
    ):
        done = subprocess.run([*command, *words], input=gzip.compress(CONTENT), capture_output=True)
        assert (done.returncode, done.stdout) == (status, b"")
        assert message in done.stderr


def test_both_ends_by_synthesis(tmp_path: Path) -> None:
    """A capture at each end, with a lost transmission, a late one, and one that the sender's capture lacks."""
    sender, receiver = Recorded(), Recorded()
    for recorded, later in ((sender, 0), (receiver, 5_000_000)):
        side = Side(recorded)
        # The SYN arrives 5 ms later, its answer left as much earlier.
        shifts = [later, -later, later]
        recorded.packets = [
            (when + shift, packet) for shift, (when, packet) in zip(shifts, recorded.packets, strict=True)
        ]
    base = sender.now_ns
    for recorded, arrivals in ((sender, {0: 0, 1: 1, 2: 2, 4: 9}), (receiver, {0: 5, 2: 7, 3: 8, 4: 14})):
        side.recorded = recorded
        for number, at in arrivals.items():
            recorded.now_ns = base + (at - 1) * 1_000_000
            side.send(100 * (1 if number == 4 else number), b"x" * 100)
    trace = mptcp.read_trace(sender.write(tmp_path / "a"), receiver.write(tmp_path / "b"))
    packets = np.sort(trace.packets, order="time_ns")
    times = ("time_ns", "received_ns", "data_delivered_ns")
    at = {name: ((packets[name] - base) // 1_000_000).tolist() for name in times}
    assert packets["dsn"].tolist() == [0, 100, 200, 300, 100]
    assert at["time_ns"] == [0, 1, 2, 8, 9]
    assert packets["retransmitted"].tolist() == [False, False, False, False, True]
    assert packets["capture"].tolist() == [0, 0, 0, 1, 0]
    unknown = (-1 - base) // 1_000_000
    assert at["received_ns"] == [5, unknown, 7, 8, 14]
    assert at["data_delivered_ns"] == [5, 14, 14, 14, 14]
