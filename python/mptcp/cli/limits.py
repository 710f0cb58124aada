"""``mptcp limits``: the limits of the in-kernel path manager."""

from __future__ import annotations

import argparse
import dataclasses

from mptcp import _endpoints
from mptcp.cli._show import as_json
from mptcp.cli.list import number

SUMMARY = "print or set the limits of the in-kernel path manager of this network namespace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Printing needs no privilege, setting CAP_NET_ADMIN. Prints the limits as they are afterwards."
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--subflows",
        type=number(0, 255),
        help="how many subflows a connection may have beside the initial one, those that the peer opens included",
    )
    parser.add_argument(
        "--add-addr-accepted",
        type=number(0, 255),
        help="to how many addresses that the peer announces subflows are opened",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.subflows is not None or arguments.add_addr_accepted is not None:
        _endpoints.set_limits(subflows=arguments.subflows, add_addr_accepted=arguments.add_addr_accepted)
    limits = _endpoints.get_limits()
    if arguments.json:
        print(as_json(dataclasses.asdict(limits)))
    else:
        print(f"subflows {limits.subflows}, add_addr_accepted {limits.add_addr_accepted}")
    return 0
