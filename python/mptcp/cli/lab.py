"""``mptcp lab``: a program, or a shell, in a host of a lab, with emulated links to a second host."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mptcp.cli._show import show
from mptcp.cli.events import seconds

SUMMARY = "run a program or a shell in a lab, with emulated links to a second host"

_DEFAULT = ("wifi,rate=20mbit,delay=10ms", "cellular,rate=10mbit,delay=30ms")
# The arguments of Lab.link() that are text, and those that are numbers.
_TEXTS = ("rate", "delay", "jitter", "loss", "queue", "aqm", "trace", "congestion_control")
_NUMBERS = ("mtu", "parallel")
# Those that may differ by direction: from the client, from the server.
_PAIRS = ("rate", "delay", "jitter", "loss", "queue", "aqm", "trace")
_NOT_FOUND, _SIGNALLED = 127, 128
# How long the program waits for the server's to listen, in seconds.
_PATIENCE = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mptcp lab [options] [--] [PROGRAM [ARG...]]"
    parser.epilog = (
        "The program runs in the host `client`; without one it is a shell. The server's addresses are in "
        "MPTCP_LAB_SERVER, MPTCP_LAB_SERVER_2 and so on. Both hosts are under the in-kernel path manager, with an "
        "endpoint for each link. The exit status is the program's. Needs no privilege where unprivileged user "
        "namespaces are allowed; otherwise run it as root."
    )
    parser.add_argument(
        "--link",
        action="append",
        type=_link,
        metavar="[NAME][,rate=20mbit][,delay=10ms]...",
        help=f"a link between the two hosts, with arguments of Lab.link: {', '.join((*_TEXTS, *_NUMBERS))}. A value "
        "A/B is A from the client and B from the server. Repeatable; by default "
        f"{' and '.join(f'--link {each}' for each in _DEFAULT)}",
    )
    parser.add_argument("--server", metavar="COMMAND", help="meanwhile run this in the host `server`, without a shell")
    parser.add_argument(
        "--multipath", action="store_true", help="make the TCP sockets of both programs Multipath TCP, by mptcp run"
    )
    parser.add_argument(
        "--meter",
        type=seconds,
        nargs="?",
        const=1.0,
        metavar="SECONDS",
        help="show what the links and subflows carry on standard error, every second by default",
    )
    parser.add_argument("program", nargs="?", metavar="PROGRAM")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")


def run(arguments: argparse.Namespace) -> int:
    from mptcp.lab import Lab

    program = [arguments.program, *arguments.arguments] if arguments.program else [os.environ.get("SHELL") or "/bin/sh"]
    try:
        server_program = shlex.split(arguments.server or "")
        with Lab() as lab, contextlib.ExitStack() as stack:
            client, server = lab.host("client"), lab.host("server")
            links = [lab.link(client, server, **options) for options in arguments.link or map(_link, _DEFAULT)]
            for host in (client, server):
                host.set_path_manager("kernel")
                host.set_limits(subflows=min(8, max(1, len(links))), add_addr_accepted=0)
            for link in links:
                client.add_endpoint(link.address(client), subflow=True)
            environment = {**os.environ, "MPTCP_LAB_SERVER": links[0].address(server)}
            environment |= {f"MPTCP_LAB_SERVER_{n}": link.address(server) for n, link in enumerate(links[1:], 2)}
            if server_program:
                stack.enter_context(_served(server, _command(server_program, arguments.multipath), environment))
            if arguments.meter:
                stack.enter_context(_metered(client, links, arguments.meter))
            return _status(client, _command(program, arguments.multipath), environment)
    except (TypeError, ValueError) as error:
        show(f"mptcp lab: {error}", file=sys.stderr)
        return 2


def _link(text: str) -> dict[str, Any]:
    """Return the arguments of Lab.link() for one --link."""
    options: dict[str, Any] = {}
    for number, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        if not equals and number == 0 and part:
            options["name"] = part
        elif key in _NUMBERS and value.isdecimal():
            options[key] = int(value)
        elif key in _TEXTS and value:
            both = value.split("/") if key in _PAIRS and key != "trace" else [value]
            options[key] = value if len(both) == 1 else tuple(both)
        else:
            raise argparse.ArgumentTypeError(
                f"{part!r} must be a name, as the first, or one of {', '.join((*_TEXTS, *_NUMBERS))} with =VALUE"
            )
    return options


def _command(program: Sequence[str], multipath: bool) -> list[str]:
    ours = [sys.executable, "-m", "mptcp", "run", "--path-manager", "kernel"]
    return [*ours, *program] if multipath else list(program)


@contextlib.contextmanager
def _served(server: Any, command: list[str], environment: dict[str, str]) -> Iterator[None]:
    # Its output would be among that of the program, whose standard input it must not read.
    process = server.popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _listens(server) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def _listens(server: Any) -> bool:
    """Return whether a TCP socket listens in the host: state 0A of the kernel's table."""
    rows: list[str] = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows += Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]
    return any(row.split()[3] == "0A" for row in rows)


def _status(client: Any, command: list[str], environment: dict[str, str]) -> int:
    """Run the program to its end and return its exit status, as a shell does."""
    # Ctrl-C is for the program, which has the terminal. A handler, because a program would inherit SIG_IGN.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with client.popen(command, env=environment) as process:
            status: int = process.wait()
    except FileNotFoundError:
        show(f"mptcp lab: {command[0]}: there is no such program", file=sys.stderr)
        return _NOT_FOUND
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else _SIGNALLED - status


@contextlib.contextmanager
def _metered(client: Any, links: Sequence[Any], interval: float) -> Iterator[None]:
    """Show the meter until the block ends, from a thread of its own."""
    meter = _Meter(client, links)
    ended = threading.Event()

    def run() -> None:
        with _display() as draw:
            while not ended.wait(interval):
                draw(meter.rows())

    thread = threading.Thread(target=run, name="mptcp-meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Meter:
    """What links and subflows carried since the last reading."""

    def __init__(self, client: Any, links: Sequence[Any]) -> None:
        self._client, self._links = client, links
        self._before: dict[object, int] = {}
        self._time = time.monotonic()

    def rows(self) -> list[tuple[str, ...]]:
        from mptcp._address import endpoint
        from mptcp._connection import subflows_of

        now = time.monotonic()
        elapsed, self._time = now - self._time, now
        counts: dict[object, int] = {}

        def rate(key: object, count: int) -> str:
            counts[key] = count
            return f"{max(0, count - self._before.get(key, count)) * 8e-6 / elapsed:.2f} Mbit/s"

        rows: list[tuple[str, ...]] = []
        for link in self._links:
            up, down = link.stats()
            rows.append(
                (
                    f"link {link.name}{'' if link.is_up else ', down'}",
                    f"sent {rate((link.name, 0), up.bytes)}",
                    f"received {rate((link.name, 1), down.bytes)}",
                    f"dropped {up.dropped + down.dropped}, lost {up.lost + down.lost}",
                )
            )
        found = self._client.connections()
        for connection, subflows in zip(found, subflows_of(found), strict=True):
            for subflow in subflows or ():
                info = subflow.tcp_info
                rows.append(
                    (
                        f"{connection.token} {endpoint(subflow.local)} -> {endpoint(subflow.remote)}",
                        f"sent {rate((subflow.cookie, 0), info.bytes_acked or 0)}",
                        f"received {rate((subflow.cookie, 1), info.bytes_received or 0)}",
                        f"rtt {(info.rtt or 0) / 1000:.1f} ms, cwnd {info.snd_cwnd}",
                    )
                )
        self._before = counts
        return rows


@contextlib.contextmanager
def _display() -> Iterator[Any]:
    """Yield what shows rows: in place on a terminal, with rich if it is installed, and as lines elsewhere."""
    from mptcp.cli import _live
    from mptcp.cli._screen import Screen

    if _live.fits(sys.stderr):
        with _live.table(sys.stderr) as draw:
            yield lambda rows: draw(_live.Row(row, row[0].startswith("link ")) for row in rows)
        return
    if Screen.fits(sys.stderr):
        screen = Screen(sys.stderr)
        yield lambda rows: screen.draw(_aligned(rows))
        return
    yield lambda rows: show(*_aligned(rows), "", file=sys.stderr)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
