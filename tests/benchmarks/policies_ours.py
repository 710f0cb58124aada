"""What policies.py replaces a subflow with by the package's own means: the least, like its other contestants.

    policies_ours.py callback|order [--busy] NAME=ADDRESS...

in the network namespace of the client, with CAP_NET_ADMIN. For each connection it opens a subflow from the first of
these addresses, again when that is lost, and from the next when its interface NAME goes down: in callbacks, or by
standing orders (conn.when_lost()). With --busy a thread of the same Python computes all the time.
"""

from __future__ import annotations

import argparse
import signal
import threading

import mptcp


class ByCallback(mptcp.Policy):
    def __init__(self, paths: list[tuple[str, str]]) -> None:
        self.names = [name for name, _ in paths]
        self.addresses = [address for _, address in paths]

    def on_connection(self, conn: mptcp.Connection) -> None:
        conn.open_subflow(self.addresses[0])

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        assert event.local is not None
        conn.open_subflow(event.local[0])

    def on_link_down(self, event: mptcp.Event) -> None:
        if event.interface == self.names[0]:
            for conn in self.connections():
                conn.open_subflow(self.addresses[1])


class ByOrder(ByCallback):
    def on_subflow_established(self, conn: mptcp.Connection, subflow: mptcp.Subflow) -> None:
        conn.when_lost(subflow, subflow.local[0], subflow.remote)
        conn.when_lost(self.names[0], self.addresses[1], subflow.remote)

    def on_subflow_lost(self, conn: mptcp.Connection, event: mptcp.Event) -> None:
        """The order has been carried out."""

    def on_link_down(self, event: mptcp.Event) -> None:
        """The order has been carried out."""


def compute() -> None:
    while True:
        sum(range(1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("callback", "order"))
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("paths", nargs="+", metavar="NAME=ADDRESS")
    arguments = parser.parse_args()
    paths = [(name, address) for name, _, address in (path.partition("=") for path in arguments.paths)]
    policy = {"callback": ByCallback, "order": ByOrder}[arguments.way](paths)
    with mptcp.run_policy(policy):
        if arguments.busy:
            threading.Thread(target=compute, daemon=True).start()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
