"""The far machine of test_two_machines.py: does what it is told by lines of JSON over TCP, and answers by such lines.

    python server.py ADDRESS PORT

What it does is `listen` (plain or by the package), `subflows`, `subscribers`, `open`, `announce`, `remove` and `close`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

import mptcp

DATA_PORT = 5000


class Server:
    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._listener: socket.socket
        self._peer: Any = None

    def listen(self, path_manager: str, plain: bool) -> None:
        """Listens anew; ``plain`` without this package, which subscribes to the events of its connections."""
        self.close()
        mptcp.set_path_manager(path_manager)
        if plain:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("", DATA_PORT))
            self._listener.listen()
        else:
            self._listener = mptcp.create_server(("", DATA_PORT))
        self._stack.enter_context(self._listener)

    def accept(self) -> None:
        self._peer, _ = self._listener.accept()
        self._stack.enter_context(self._peer)

    def echo(self, count: int) -> None:
        self._peer.sendall(self._peer.recv(count, socket.MSG_WAITALL))

    def subflows(self) -> list[dict[str, Any]]:
        """As inet_diag shows them, whoever opened the socket."""
        found = mptcp.connections()[0].subflows()
        return [
            {
                name: getattr(subflow, name)
                for name in ("local", "remote", "local_id", "remote_id", "backup", "peer_backup")
            }
            for subflow in found
        ]

    def subscribers(self) -> int:
        rows = [row.split() for row in Path("/proc/net/netlink").read_text().splitlines()[1:]]
        return sum(row[1] == "16" and int(row[3], 16) != 0 for row in rows)

    def announce(self, address: str) -> int:
        number: int = self._peer.announce_address(address)
        return number

    def remove(self, number: int) -> None:
        self._peer.remove_address(number)

    def close_subflow(self, remote_port: int) -> None:
        [subflow] = [subflow for subflow in self._peer.subflows() if subflow.remote[1] == remote_port]
        self._peer.close_subflow(subflow)

    def close(self) -> None:
        self._stack.close()


def main(address: str, port: str) -> None:
    server = Server()
    with (
        socket.create_server((address, int(port))) as control,
        control.accept()[0] as told,
        told.makefile("rw") as lines,
    ):
        print("told what to do", flush=True)
        for line in lines:
            name, arguments = json.loads(line)
            try:
                answer = [True, getattr(server, name)(**arguments)]
            except Exception as error:  # it is the test's to judge
                answer = [False, f"{type(error).__name__}: {error}"]
            print(json.dumps(answer), file=lines, flush=True)
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
