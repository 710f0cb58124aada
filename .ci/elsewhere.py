"""What a wheel of another machine or C library must do, run there by .ci/wheels: import, decode bytes, raise errors.

It needs no kernel with Multipath TCP: an emulated machine has no such system calls. The last line of its output is a
digest of what it read from the captures whose folder is its argument, which must be the same on every machine.
"""

import hashlib
import platform
import struct
import sys
import tempfile
from pathlib import Path

import mptcp
import numpy as np
from mptcp import _core

# A pcap with one Ethernet frame: a SYN from 10.0.1.1:40000 to 10.0.1.2:5000 with MP_CAPABLE of version 1.
ETHERNET = bytes(12) + b"\x08\x00"
IP = bytes.fromhex("4500 0030 0000 4000 4006 0000 0a000101 0a000102")
TCP = bytes.fromhex("9c40 1388 00000001 00000000 7002 ffff 0000 0000 1e04 0101 0101 0101")
FRAME = ETHERNET + IP + TCP
PCAP = (
    struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    + struct.pack("<IIII", 1_700_000_000, 250_000, len(FRAME), len(FRAME))
    + FRAME
)


def raised(kind: type[BaseException], call: object, *arguments: object, **named: object) -> str:
    """Return the message of what a call raises, which must be of this type."""
    assert callable(call)
    try:
        call(*arguments, **named)
    except kind as error:
        return str(error)
    raise AssertionError(f"{call} did not raise {kind.__name__}")


def main() -> None:
    print(f"{mptcp.__version__} on {platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")

    # Fields are in the order of the kernel's structure.
    info = mptcp.TcpInfo(rtt=20_000, snd_cwnd=10)
    assert (info.rtt, info.snd_cwnd) == (20_000, 10)
    assert list(info.asdict())[:3] == ["state", "ca_state", "retransmits"]

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "one.pcap")
        file.write_bytes(PCAP)
        trace = mptcp.read_trace(file)
        counts = trace.metadata["counts"]
        assert (counts["frames"], counts["segments"], counts["options"]["MP_CAPABLE"]) == (1, 1, 1), counts
        assert trace.connections["start_ns"].tolist() == [1_700_000_000_250_000_000], trace.connections
        file.write_bytes(PCAP[:10])
        assert "ends within its header" in raised(ValueError, mptcp.read_trace, file)
        raised(FileNotFoundError, mptcp.read_trace, Path(folder, "none"))

    assert "whole number" in raised(ValueError, _core.LinkTrace, b"no\n")
    assert "family must be an int" in raised(TypeError, mptcp.Socket, "no family")
    with mptcp.Socket() as sock:
        assert sock.getsockname() == ("0.0.0.0", 0)
        raised(OverflowError, sock.connect, ("127.0.0.1", 70_000))
        raised(ConnectionRefusedError, sock.connect, ("127.0.0.1", 1))

    digest = hashlib.sha256()
    for capture in sorted(Path(sys.argv[1]).glob("*.pcap")):
        packets = mptcp.read_trace(capture).packets
        digest.update(repr(packets.dtype.descr).encode())
        for name in packets.dtype.names:  # without what is between the columns
            digest.update(packets[name].tobytes())
    print(digest.hexdigest())


main()
