"""``mptcp why``: why connections have the subflows that they have, and no others."""

from __future__ import annotations

import argparse
import errno
import socket

from mptcp import _explain
from mptcp._connection import connections
from mptcp.cli._show import as_json, show
from mptcp.cli.list import number

SUMMARY = "tell why connections have the subflows that they have, and no others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Needs no privilege, --try CAP_NET_ADMIN. What the peer or the network refuses is visible by a try only. See "
        "docs/why.md."
    )
    parser.add_argument(
        "token",
        nargs="?",
        type=number(0, 2**32 - 1),
        metavar="TOKEN",
        help="the connection with this token, as mptcp list prints it; without it all of this network namespace",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--try",
        dest="attempt",
        action="store_true",
        help="open each pair of addresses once, and close it again; only under the userspace path manager",
    )


def run(arguments: argparse.Namespace) -> int:
    found = connections(token=arguments.token)
    if arguments.token is not None and not found:
        raise OSError(errno.ENOTCONN, f"no Multipath TCP connection has the token {arguments.token}")
    explanations = [each.explain(attempt=arguments.attempt) for each in found]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        findings = _explain.of_namespace(sock.fileno())
    findings += _explain.of_counters(_explain.counters())
    if arguments.json:
        namespace = [_explain.as_dict(finding) for finding in findings]
        report = {"namespace": namespace, "connections": [each.asdict() for each in explanations]}
        print(as_json(report, indent=2))
        return 0
    if not explanations:
        show("no Multipath TCP connections")
    for explanation in explanations:
        show(*str(explanation).splitlines())
    show(*map(str, findings))
    return 0
