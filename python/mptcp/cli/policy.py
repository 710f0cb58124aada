"""``mptcp policy``: policies for every connection of the network namespace, until it is told to end."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from pathlib import Path

from mptcp import _policy, policies
from mptcp.cli import _policy_file

SUMMARY = "run policies, yours or those that ship, for every connection of this network namespace"

# fullmesh and the like: the names of the classes, in lower case.
_BUILTIN = {name.lower(): getattr(policies, name) for name in policies.__all__}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE.py",
        help="a Python file: it runs `policies`, a list, if it has one, else every class of it that is a Policy",
    )
    parser.add_argument(
        "--builtin",
        action="append",
        default=[],
        type=_builtin,
        metavar="NAME[:ARGUMENT,...]",
        help="a policy that ships, as fullmesh, ndiffports:4, prefer:eth1,eth0 or whenlong:eth1,after_bytes=1e6;"
        f" may be given again. One of {', '.join(_BUILTIN)}",
    )


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="mptcp policy: %(message)s")
    try:
        chosen = [*arguments.builtin, *(_policy_file.load(arguments.file) if arguments.file else [])]
    except (OSError, ValueError) as error:
        print(f"mptcp policy: {error}", file=sys.stderr)
        return 2
    if not chosen:
        print("mptcp policy: give a file, or --builtin", file=sys.stderr)
        return 2
    # Blocked before there are threads, so that none of them takes what sigwait() waits for.
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        running = _policy.run_policy(*chosen)
    except (TypeError, ValueError) as error:
        print(f"mptcp policy: {error}", file=sys.stderr)
        return 2
    with running:
        names = ", ".join(type(policy).__name__ for policy in chosen)
        print(f"mptcp policy: {names} at work, until SIGINT or SIGTERM", file=sys.stderr, flush=True)
        signal.sigwait(ends)
    return 0


def _builtin(text: str) -> _policy.Policy:
    name, _, arguments = text.partition(":")
    if name.lower() not in _BUILTIN:
        raise argparse.ArgumentTypeError(f"there is no policy {name!r}: one of {', '.join(_BUILTIN)}")
    positional: list[object] = []
    named: dict[str, object] = {}
    for argument in filter(None, arguments.split(",")):
        key, equals, value = argument.partition("=")
        if equals:
            named[key] = (
                [_number(one) for one in value.split("+")] if key in ("programs", "ports", "uids") else _number(value)
            )
        else:
            positional.append(_number(argument))
    try:
        policy: _policy.Policy = _BUILTIN[name.lower()](*positional, **named)
        return policy
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _number(text: str) -> int | float | str:
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+\.?\d*(e\d+)?", text):
        return float(text)
    return text
