"""``mptcp policy``: run policies for every connection of the network namespace, until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import signal
import sys
import time
from pathlib import Path

from mptcp import _policy, policies
from mptcp._path_manager import use_path_manager
from mptcp.cli import _decisions, _policy_config, _policy_file, _service

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
        "--config",
        type=Path,
        metavar="FILE.toml",
        help="a file with a table [[policy]] for each policy: its name, arguments (an array), and further arguments by "
        "their names; or file, a Python file. SIGHUP reads it again; what is wrong then changes nothing",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print a line for each decision of a policy: why it was called, what it asked for, and how that ended",
    )
    parser.add_argument("--json", action="store_true", help="print the decisions as one JSON object per line")
    parser.add_argument(
        "--own",
        action="store_true",
        help="only for connections of the user who runs this; without CAP_NET_ADMIN, through a broker, it is always so",
    )
    parser.add_argument(
        "--install",
        nargs="?",
        const=Path("/etc/systemd/system"),
        type=Path,
        metavar="FOLDER",
        help="install the systemd unit, in /etc/systemd/system by default, and exit",
    )
    parser.add_argument(
        "--put-back",
        action="store_true",
        help="put the path manager back that a killed service left changed, and exit: for the unit's ExecStopPost=",
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
    if arguments.install:
        return _service.install(arguments.install)
    if arguments.put_back:
        return _service.put_back()
    # Blocked before there are threads, so that none of them receives what sigwait() waits for.
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with contextlib.ExitStack() as stack:
        # Whoever calls this in a process of his own goes on with the signals that he had.
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        try:
            # Before a policy's file, which may start threads, is run.
            stack.enter_context(_service.remembered_path_manager())
            chosen = _chosen(arguments)
            if arguments.verbose or arguments.json:
                stack.enter_context(_decisions.shown(as_json=arguments.json))
            running = _policy.run_policy(*chosen, own=arguments.own)
        except (TypeError, ValueError) as error:
            print(f"mptcp policy: {error}", file=sys.stderr)
            return 2
        stack.callback(lambda: running.close())
        names = ", ".join(type(policy).__name__ for policy in chosen)
        again = f"SIGINT or SIGTERM; SIGHUP reads {arguments.config} again"
        until = again if arguments.config else "SIGINT, SIGTERM or SIGHUP"
        print(f"mptcp policy: running {names} until {until}", file=sys.stderr, flush=True)
        _service.notify("READY=1")
        while signal.sigwait(signals) == signal.SIGHUP and arguments.config:
            _service.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            chosen, running = _changed(arguments, chosen, running)
            _service.notify("READY=1")
        _service.notify("STOPPING=1")
    return 0


def _chosen(arguments: argparse.Namespace) -> list[_policy.Policy]:
    """The policies that the arguments name. ValueError where one cannot be made, or where there is none."""
    try:
        configured = _policy_config.load(arguments.config, _BUILTIN) if arguments.config else []
        chosen = [*arguments.builtin, *configured, *(_policy_file.load(arguments.file) if arguments.file else [])]
    except OSError as error:
        raise ValueError(str(error)) from None
    if not chosen:
        raise ValueError("pass a file, --builtin or --config")
    return chosen


def _changed(
    arguments: argparse.Namespace, before: list[_policy.Policy], running: _policy.RunningPolicies
) -> tuple[list[_policy.Policy], _policy.RunningPolicies]:
    """Run what the configuration names now, or go on with what was there if that cannot run."""
    try:
        chosen = _chosen(arguments)
    except ValueError as error:
        print(f"mptcp policy: nothing was changed: {error}", file=sys.stderr, flush=True)
        return before, running
    with contextlib.ExitStack() as stack:
        # Connections that begin meanwhile are the policies' too. With a broker it is each socket's own choice.
        with contextlib.suppress(PermissionError):
            stack.enter_context(use_path_manager("userspace"))
        running.close()
        try:
            return chosen, _policy.run_policy(*chosen, own=arguments.own)
        except (TypeError, ValueError, OSError) as error:
            print(f"mptcp policy: nothing was changed: {error}", file=sys.stderr, flush=True)
            return before, _policy.run_policy(*before, own=arguments.own)


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
