"""``mptcp policy``: run policies for every connection of the network namespace, until a signal ends it."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from pathlib import Path

from mptcp import _policy, policies
from mptcp.cli import _policy_file

SUMMARY = "run policies, your own or built-in ones, for every connection of this network namespace"

# The names of the classes in lower case: fullmesh, prefer and so on.
_BUILTIN = {name.lower(): getattr(policies, name) for name in policies.__all__ if name not in ("Path", "PathPolicy")}

# Arguments of which there may be several, with + between them.
_SEVERAL = ("programs", "ports", "uids", "exclude")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Needs CAP_NET_ADMIN. New sockets get the userspace path manager until the command ends. The exit status is 2 "
        "for a file or policy that cannot be run."
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE.py",
        help="a Python file: its list `policies` is run if there is one, otherwise each Policy class that it defines",
    )
    parser.add_argument(
        "--builtin",
        action="append",
        default=[],
        type=_builtin,
        metavar="NAME[:ARGUMENT,...]",
        help="a built-in policy, for example fullmesh, ndiffports:4, prefer:eth1,eth0, whenlong:eth1,after_bytes=1e6, "
        "split:eth0=80,eth1=20 or fullmesh:exclude=wlan0+wwan0,bind=true; repeatable. One of "
        f"{', '.join(_BUILTIN)}",
    )


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="mptcp policy: %(message)s")
    try:
        chosen = [*arguments.builtin, *(_policy_file.load(arguments.file) if arguments.file else [])]
    except (OSError, ValueError) as error:
        print(f"mptcp policy: {error}", file=sys.stderr)
        return 2
    if not chosen:
        print("mptcp policy: pass a file or --builtin", file=sys.stderr)
        return 2
    # Blocked before there are threads, so that none of them receives what sigwait() waits for.
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        running = _policy.run_policy(*chosen)
    except (TypeError, ValueError) as error:
        print(f"mptcp policy: {error}", file=sys.stderr)
        return 2
    with running:
        names = ", ".join(type(policy).__name__ for policy in chosen)
        print(f"mptcp policy: running {names} until SIGINT, SIGTERM or SIGHUP", file=sys.stderr, flush=True)
        signal.sigwait(ends)
    return 0


def _builtin(text: str) -> _policy.Policy:
    name, _, arguments = text.partition(":")
    if name.lower() not in _BUILTIN:
        raise argparse.ArgumentTypeError(f"the policy must be one of {', '.join(_BUILTIN)}, not {name!r}")
    positional: list[object] = []
    named: dict[str, object] = {}
    for argument in filter(None, arguments.split(",")):
        key, equals, value = argument.partition("=")
        if equals:
            named[key] = [_number(one) for one in value.split("+")] if key in _SEVERAL else _number(value)
        else:
            positional.append(_number(argument))
    if name.lower() == "split":
        # Its one argument is a mapping: what is no option of a policy is a path.
        shares = {key: value for key, value in named.items() if key not in ("exclude", "bind")}
        positional = [shares]
        named = {key: value for key, value in named.items() if key not in shares}
    try:
        policy: _policy.Policy = _BUILTIN[name.lower()](*positional, **named)
        return policy
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def _number(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+\.?\d*(e\d+)?", text):
        return float(text)
    return text
