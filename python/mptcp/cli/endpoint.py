"""``mptcp endpoint``: the endpoints of the in-kernel path manager."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import ipaddress
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mptcp import _endpoints
from mptcp._endpoints import Endpoint
from mptcp.cli._show import as_json, show
from mptcp.cli.list import number

SUMMARY = "list and change the endpoints of the in-kernel path manager of this network namespace"

Action: TypeAlias = Callable[[argparse.Namespace], Sequence[Endpoint]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Listing needs no privilege, everything else CAP_NET_ADMIN. See docs/path-managers.md."
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, run: Action) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        made.set_defaults(act=run)
        return made

    action("list", "list the endpoints", lambda _: _endpoints.endpoints())
    add = action("add", "add an endpoint", _add)
    add.add_argument("address", metavar="ADDRESS", help="an IPv4 or IPv6 address")
    add.add_argument("--id", type=number(1, 255), help="its address id; without it the kernel chooses one")
    add.add_argument("--port", type=number(1, 65535), help="announce this port, where the kernel then listens")
    add.add_argument("--interface", "--dev", metavar="NAME", help="bind its subflows to this interface")
    add.add_argument("--subflow", action="store_true", help="open a subflow from it")
    add.add_argument("--signal", action="store_true", help="announce it to the peer")
    add.add_argument("--backup", action="store_true", help="make its subflows backups")
    add.add_argument("--fullmesh", action="store_true", help="open a subflow from it to each address of the peer")
    add.add_argument("--laminar", action="store_true", help="open subflows from it to announced addresses (Linux 6.18)")
    change = action("change", "change flags of an endpoint", _change)
    _add_which(change)
    change.add_argument("--backup", action=argparse.BooleanOptionalAction, help="whether its subflows are backups")
    change.add_argument("--fullmesh", action=argparse.BooleanOptionalAction, help="whether it is for every address")
    _add_which(action("remove", "remove an endpoint", _remove))
    action("flush", "remove all endpoints", _flush)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", metavar="ID|ADDRESS", type=_which, help="the endpoint, by its id or its address")


def _which(text: str) -> int | str:
    if text.isdecimal():
        return number(1, 255)(text)
    return str(ipaddress.ip_address(text))


def run(arguments: argparse.Namespace) -> int:
    try:
        endpoints: Sequence[Endpoint] = arguments.act(arguments)
    except ValueError as error:
        show(f"mptcp endpoint: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(as_json({"endpoints": [dataclasses.asdict(each) for each in endpoints]}, indent=2))
    elif arguments.action == "list" and not endpoints:
        print("no endpoints")
    elif arguments.action not in ("remove", "flush"):
        show(*map(_line, endpoints))
    return 0


def _add(arguments: argparse.Namespace) -> list[Endpoint]:
    flags = ("subflow", "signal", "backup", "fullmesh", "laminar")
    return [
        _endpoints.add_endpoint(
            arguments.address,
            id=arguments.id,
            port=arguments.port,
            interface=arguments.interface,
            **{flag: getattr(arguments, flag) for flag in flags},
        )
    ]


def _change(arguments: argparse.Namespace) -> list[Endpoint]:
    found = _found(arguments.which)
    return [_endpoints.change_endpoint(found, backup=arguments.backup, fullmesh=arguments.fullmesh)]


def _remove(arguments: argparse.Namespace) -> list[Endpoint]:
    found = _found(arguments.which)
    _endpoints.remove_endpoint(found)
    return [found]


def _flush(_: argparse.Namespace) -> list[Endpoint]:
    endpoints = _endpoints.endpoints()
    _endpoints.flush_endpoints()
    return endpoints


def _found(which: int | str) -> Endpoint:
    found = [each for each in _endpoints.endpoints() if which in (each.id, each.address)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{which} has several endpoints, with different ports: name one by its id")
    raise OSError(errno.EADDRNOTAVAIL, f"there is no endpoint {which}")


def _line(endpoint: Endpoint) -> str:
    words = [f"{endpoint.id:3}", endpoint.address]
    if endpoint.port is not None:
        words.append(f"port {endpoint.port}")
    if endpoint.interface is not None:
        words.append(f"dev {endpoint.interface}")
    return " ".join([*words, *endpoint.flags])
