"""``mptcp run``: a program over Multipath TCP, with the socket options of 2016 served."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mptcp import _core
from mptcp._path_manager import NAMES, use_path_manager
from mptcp._policy import run_policy
from mptcp.cli import _policy_file

SUMMARY = "run a program over Multipath TCP, and serve it the enhanced socket API of 2016"

# As shells, env and nohup report a program that could not be executed, and one that is not there.
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
# And one that a signal ended.
_SIGNALLED = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mptcp run [options] PROGRAM [ARG...]"
    parser.epilog = "The exit status is the program's, or 126 or 127 if it could not be executed or was not found."
    parser.add_argument(
        "--path-manager",
        choices=NAMES,
        help="who opens subflows: the program by its options (userspace, the default with CAP_NET_ADMIN) or the kernel",
    )
    parser.add_argument(
        "--hold-path-manager",
        action="store_true",
        help="give the whole network namespace that path manager for the run, as a server's accepted connections need",
    )
    parser.add_argument(
        "--except",
        dest="except_",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="leave the sockets of this program TCP: a path, the last part of one, or a process's name; repeatable",
    )
    parser.add_argument(
        "--layout",
        choices=("kernel", "draft"),
        default="kernel",
        help="the structures of options 66 to 72: their kernel's (the default) or draft-hesmans-mptcp-socket-00's",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE.py",
        help="run the policies of this file for the network namespace meanwhile, as `mptcp policy` does",
    )
    parser.add_argument("--user", type=_user, help="run the program as this user, without privileges; needs root")
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)


@dataclass(frozen=True)
class _User:
    """Who a program runs as, and what the environment says of that."""

    uid: int
    gid: int
    groups: list[int]
    environment: Mapping[str, str]


def _user(text: str) -> _User:
    """An argument's type: a user by name or number."""
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"there is no user {text}") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    environment = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    return _User(entry.pw_uid, entry.pw_gid, groups, environment)


def run(arguments: argparse.Namespace) -> int:
    command = [arguments.program, *arguments.arguments]
    user = arguments.user
    environment = {**os.environ, **(user.environment if user else {})}
    try:
        policies = _policy_file.load(arguments.policy) if arguments.policy else []
    except (OSError, ValueError) as error:
        print(f"mptcp run: {error}", file=sys.stderr)
        return 2
    with _signals_held_back() as blocked, contextlib.ExitStack() as stack:
        if arguments.hold_path_manager:
            stack.enter_context(use_path_manager(arguments.path_manager or "userspace"))
        if policies:
            try:
                stack.enter_context(run_policy(*policies))
            except (TypeError, ValueError) as error:
                print(f"mptcp run: {error}", file=sys.stderr)
                return 2
        try:
            status = _core.run_program(
                command,
                [f"{name}={value}" for name, value in environment.items()],
                arguments.path_manager,
                arguments.except_,
                arguments.layout == "draft",
                (user.uid, user.gid, user.groups) if user else None,
                blocked,
            )
        except OSError as error:
            if error.filename != arguments.program:
                raise
            print(f"mptcp run: {error.filename}: {error.strerror}", file=sys.stderr)
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    return status if status >= 0 else _end_by(-status)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[list[int]]:
    """Within the block the supervisor alone takes the signals that it passes on. Gives those held back before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _core.supervised_signals())
    try:
        yield [int(number) for number in before]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_by(number: int) -> int:
    """End as the program did, by a signal, so that whoever waits for us sees that."""
    sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        # The program has left its core, if any.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # It was one that does not end a process after all.
    return _SIGNALLED + number
