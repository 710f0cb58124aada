"""``mptcp run``: run a program over Multipath TCP, with the enhanced socket API of 2016."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mptcp import _core
from mptcp._path_manager import use_path_manager
from mptcp._policy import run_policy
from mptcp.cli import _in_process, _policy_file

SUMMARY = "run a program over Multipath TCP, and give it the enhanced socket API of 2016"

# The statuses by which shells, env and nohup report a program that cannot be executed or does not exist.
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
# Added to the number of a signal that ended the program.
_SIGNALLED = 128

# What a program of another user keeps of our environment, besides LC_*.
_KEPT = ("TERM", "LANG")
_PATH = "/usr/local/bin:/usr/bin:/bin"
_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mptcp run [options] PROGRAM [ARG...]"
    parser.epilog = "The exit status is the program's, or 126 or 127 if it could not be executed or was not found."
    parser.add_argument(
        "--path-manager",
        choices=_core.PATH_MANAGERS,
        help="who opens subflows: the program by the enhanced API (userspace, the default with CAP_NET_ADMIN) or the "
        "kernel",
    )
    parser.add_argument(
        "--hold-path-manager",
        action="store_true",
        help="set that path manager for the whole network namespace during the run, which a server's accepted "
        "connections need",
    )
    parser.add_argument(
        "--except",
        dest="except_",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="leave this program's sockets plain TCP: a path, its last component or a process's name; repeatable",
    )
    parser.add_argument(
        "--layout",
        choices=("kernel", "draft"),
        default="kernel",
        help="the layout of the structures of options 66 to 72: the original kernel's (the default) or that of "
        "draft-hesmans-mptcp-socket-00",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE.py",
        help="meanwhile run the policies of this file for the network namespace, as `mptcp policy` does",
    )
    parser.add_argument(
        "--user",
        type=_user,
        help="run the program as this user, a name or number, without privileges, with a minimal environment and "
        "only the standard streams open; needs root",
    )
    parser.add_argument(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="with --user: also pass this environment variable, with its current value or this one; repeatable",
    )
    parser.add_argument(
        "--fd",
        type=_descriptor,
        action="append",
        default=[],
        metavar="N",
        help="with --user: also pass this open descriptor, besides 0, 1 and 2; repeatable",
    )
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="run PROGRAM, a Python script, in this process within mptcp.patch(): only sockets that Python code "
        "creates are Multipath TCP, and the socket options of 2016 are not served",
    )
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)


@dataclass(frozen=True)
class _User:
    """The user that a program runs as, with what the environment says about it."""

    uid: int
    gid: int
    groups: list[int]
    home: str
    name: str
    shell: str

    def environment(self, variables: Sequence[tuple[str, str | None]]) -> dict[str, str]:
        """Return the environment of a program of this user: part of ours, and what depends on the user.

        ``variables`` are those of --env; None stands for the value in our environment.
        """
        ours = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
        own = {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "PATH": _PATH if self.uid else _ROOT_PATH,
        }
        named = {
            name: os.environ[name] if value is None else value
            for name, value in variables
            if value is not None or name in os.environ
        }
        return {**ours, **own, **named}


def _user(text: str) -> _User:
    """Convert an argument: a user by name or number."""
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"there is no user {text}") from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return _User(entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_name, entry.pw_shell or "/bin/sh")


def _variable(text: str) -> tuple[str, str | None]:
    """Convert an argument: NAME, or NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME or NAME=VALUE")
    return name, value if equals else None


def _descriptor(text: str) -> int:
    """Convert an argument: a descriptor that we inherited."""
    try:
        fd = int(text)
        inherited = fd >= 0 and os.get_inheritable(fd)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} must be a descriptor's number") from None
    except OSError:
        inherited = False
    # Descriptors that this process opened itself are not inheritable.
    if not inherited:
        raise argparse.ArgumentTypeError(f"descriptor {text} must be open, and not close-on-exec")
    return fd


def run(arguments: argparse.Namespace) -> int:
    command = [arguments.program, *arguments.arguments]
    user = arguments.user
    if (arguments.env or arguments.fd) and user is None:
        print(
            "mptcp run: --env and --fd need --user: without it the program inherits all variables and descriptors",
            file=sys.stderr,
        )
        return 2
    if arguments.in_process and (word := _of_the_supervisor(arguments)):
        print(f"mptcp run: {word} cannot be used with --in-process", file=sys.stderr)
        return 2
    environment = user.environment(arguments.env) if user else os.environ
    try:
        policies = _policy_file.load(arguments.policy) if arguments.policy else []
    except (OSError, ValueError) as error:
        print(f"mptcp run: {error}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        blocked = [] if arguments.in_process else stack.enter_context(_signals_held_back())
        if arguments.hold_path_manager:
            stack.enter_context(use_path_manager(arguments.path_manager or "userspace"))
        if policies:
            try:
                stack.enter_context(run_policy(*policies))
            except (TypeError, ValueError) as error:
                print(f"mptcp run: {error}", file=sys.stderr)
                return 2
        try:
            if arguments.in_process:
                return _in_process.run_script(arguments.program, arguments.arguments)
            status = _core.run_program(
                command,
                [f"{name}={value}" for name, value in environment.items()],
                arguments.path_manager,
                arguments.except_,
                arguments.layout == "draft",
                (user.uid, user.gid, user.groups, arguments.fd) if user else None,
                blocked,
            )
        except OSError as error:
            if error.filename != arguments.program:
                raise
            print(f"mptcp run: {error.filename}: {error.strerror}", file=sys.stderr)
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    return status if status >= 0 else _end_by(-status)


def _of_the_supervisor(arguments: argparse.Namespace) -> str | None:
    """Return an option that was given and that only a supervised program can have."""
    given = {
        "--user": arguments.user,
        "--except": arguments.except_,
        "--layout draft": arguments.layout == "draft",
        "--path-manager": arguments.path_manager and not arguments.hold_path_manager,
    }
    return next((word for word, value in given.items() if value), None)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[list[int]]:
    """Let only the supervisor take the signals that it passes on, within the block; yield those blocked before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _core.supervised_signals())
    try:
        yield [int(number) for number in before]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_by(number: int) -> int:
    """End by the same signal as the program, so that whoever waits for us sees that."""
    sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        # The program has left its core file, if any.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # The signal does not end a process after all.
    return _SIGNALLED + number
