"""Transfers over pairs of very different links, drawn at random: each must end, and what arrives must be what was sent.

    python tests/soak/asymmetric.py --rounds 100 --seed 1

A connection holds what came too early by the fast link until the slow link has brought what is missing. With too little
memory for that it stands still. Prints each round's links and goodput; a round that stands still for 30 seconds ends
the run with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from mptcp.lab import two_paths

SECONDS = 30.0


def one_round(draw: random.Random) -> str:
    fast, slow = draw.choice((5, 20, 50, 100)), draw.choice((0.5, 1, 2, 10))
    limits = {
        "rate": (f"{fast}mbit", f"{slow}mbit"),
        "delay": (f"{draw.randint(1, 30)}ms", f"{draw.randint(10, 250)}ms"),
        "queue": f"{draw.choice((20, 100, 500))}ms",
        "loss": draw.choice((None, "0.1%", "1%")),
        "congestion_control": draw.choice(("reno", None)),
    }
    data = draw.randbytes(round((fast + slow) * 1e6 / 8))
    with (
        two_paths(**limits, seed=draw.getrandbits(32)) as (client, server, (first, second)),
        server.create_server(("", 5000)) as listener,
        client.create_connection((first.address(server), 5000), SECONDS) as near,
    ):
        far, _ = listener.accept()
        with far, ThreadPoolExecutor(1) as pool:
            far.settimeout(SECONDS)
            near.sendall(b"x")
            far.sendall(far.recv(1))
            near.recv(1)
            near.open_subflow(second.address(client), second.address(server), timeout=SECONDS)
            sender, receiver = draw.choice(((near, far), (far, near)))
            # A timeout of sendall() is for all of it.
            sender.settimeout(None)
            start = time.monotonic()
            sending = pool.submit(sender.sendall, data)
            digest, left = hashlib.sha256(), len(data)
            while left:
                chunk = receiver.recv(min(left, 1 << 18))
                assert chunk, "the connection ended early"
                digest.update(chunk)
                left -= len(chunk)
            sending.result()
            assert digest.digest() == hashlib.sha256(data).digest(), "other bytes came"
            goodput = len(data) * 8 / (time.monotonic() - start) / 1e6
    return f"{limits}: {goodput:.1f} Mbit/s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "frames left", RuntimeWarning)
    for number in range(arguments.rounds):
        draw = random.Random(f"{arguments.seed} {number}")
        try:
            print(f"{number}: {one_round(draw)}", flush=True)
        except TimeoutError:
            print(f"{number}: it stands still (--seed {arguments.seed}, round {number})", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
