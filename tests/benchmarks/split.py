r"""How close policies.Split comes to the shares that were asked for, and at what cost in throughput.

    .venv/bin/maturin develop --release
    .venv/bin/python tests/benchmarks/split.py [--seconds 30] [--rate 40mbit[,10mbit]] [--delay 20ms[,40ms]] \
        [--control reno]

Over two links, of one rate and one delay or of two, in a lab of its own: a transfer for each of 80/20, 50/50 and 20/80.
It needs root, as the policy does, and tshark. The witness is a capture of each link at the receiver's end, which tshark
reads: the bytes of TCP payload that came over the link after the first 3 s; beside it what the links themselves
counted. The throughput is given as a part of min(rate / share), where the rate is what each link carried alone,
measured before.

Ends with exit status 1 if a share is more than 5 points off or the throughput below 85 % of that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import mptcp
from mptcp.lab import Host, Lab, Link
from mptcp.policies import Split

PORT = 5000
SETTLING = 3.0  # seconds that do not count
SHARES = ((80, 20), (50, 50), (20, 80))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", default="40mbit")
    parser.add_argument("--delay", default="20ms")
    parser.add_argument("--control", default="reno", help="congestion control, by default reno")
    arguments = parser.parse_args()
    print(f"two links of {arguments.rate}, {arguments.delay}, {arguments.control}; {arguments.seconds:g} s each")
    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        rates, delays = (of_each(text) for text in (arguments.rate, arguments.delay))
        links = [
            lab.link(client, server, name=name, rate=rate, delay=delay, congestion_control=arguments.control)
            for name, rate, delay in zip(("a", "b"), rates, delays, strict=True)
        ]
        # What accepts needs no policy.
        server.set_path_manager("kernel")
        server.set_limits(subflows=8)
        # Out-of-order data of the slower path must not fill the receiver's memory.
        server.sysctl("net.ipv4.tcp_rmem", "4096 4194304 16777216")
        client.sysctl("net.ipv4.tcp_wmem", "4096 4194304 16777216")
        alone = [transfer(client, server, links, number, None, 8.0)[0][number] for number in (0, 1)]
        print(f"each link alone: {alone[0] * 8 / 1e6:.1f} and {alone[1] * 8 / 1e6:.1f} Mbit/s")
        print(f"{'asked':>8}{'by capture':>14}{'by links':>12}{'Mbit/s':>10}{'of the possible':>18}")
        return max(row(client, server, links, shares, alone, arguments.seconds) for shares in SHARES)


def of_each(text: str) -> list[str]:
    """What an argument gives to each of the two links."""
    values = text.split(",")
    return values if len(values) == 2 else values * 2


def row(
    client: Host, server: Host, links: list[Link], shares: tuple[int, int], alone: list[float], seconds: float
) -> int:
    captured, counted = transfer(client, server, links, 0, shares, seconds)
    part = [rates[0] / sum(rates) * 100 for rates in (captured, counted)]
    possible = min(rate / (share / 100) for rate, share in zip(alone, shares, strict=True))
    reached = sum(captured) / possible
    is_met = abs(part[0] - shares[0]) <= 5 and reached >= 0.85
    parts = "".join(f"{f'{one:.1f}/{100 - one:.1f}':>{width}}" for one, width in zip(part, (14, 12), strict=True))
    print(
        f"{f'{shares[0]}/{shares[1]}':>8}{parts}{sum(captured) * 8 / 1e6:10.1f}{reached * 100:16.0f} %"
        f"{'' if is_met else '  missed'}",
        flush=True,
    )
    return 0 if is_met else 1


def transfer(
    client: Host, server: Host, links: list[Link], first: int, shares: tuple[int, int] | None, seconds: float
) -> tuple[list[float], list[float]]:
    """Bytes a second over each link after the first 3 s: of TCP payload by the captures, and of frames by the links."""
    over = threading.Event()

    def send(sock: mptcp.Socket) -> None:
        block = bytes(1 << 16)
        with contextlib.suppress(OSError):
            while not over.is_set():
                sock.sendall(block)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if shares is not None:
            stack.enter_context(client.run_policy(Split(dict(zip(links, shares, strict=True)))))
        listener = stack.enter_context(server.create_server(("", PORT)))
        remote = links[first].address(server)
        sock = stack.enter_context(client.create_connection((remote, PORT), timeout=10))
        peer = stack.enter_context(listener.accept()[0])
        reader = threading.Thread(target=drain, args=(peer,))
        writer = threading.Thread(target=send, args=(sock,))
        reader.start()
        writer.start()
        time.sleep(SETTLING)
        files = [folder / f"{number}.pcap" for number in (0, 1)]
        with contextlib.ExitStack() as captures:
            for link, file in zip(links, files, strict=True):
                captures.enter_context(link.capture(file, host=server))
            before, begin = [frames(link) for link in links], time.monotonic()
            time.sleep(seconds - SETTLING)
            after, took = [frames(link) for link in links], time.monotonic() - begin
        over.set()
        sock.shutdown(2)
        writer.join()
        reader.join()
        addresses = [link.address(server) for link in links]
        counted = [(now - then) / took for now, then in zip(after, before, strict=True)]
        return [payload(file, addresses) for file in files], counted


def drain(peer: mptcp.Socket) -> None:
    with contextlib.suppress(OSError):
        while peer.recv(1 << 18):
            pass


def frames(link: Link) -> int:
    """The bytes of frames that the link has carried to the server."""
    return link.stats()[0].bytes


def payload(file: Path, addresses: list[str]) -> float:
    """Bytes of TCP payload to the server a second, between the capture's first packet and its last."""
    command = ["tshark", "-r", str(file), "-T", "fields", "-e", "frame.time_relative", "-e", "ip.dst", "-e", "tcp.len"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in output.splitlines()]
    total = sum(int(length) for _, to, length in rows if to in addresses and length)
    return total / float(rows[-1][0]) if rows else 0.0


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("split.py needs root: options on one subflow are set by BPF")
    sys.exit(main())
