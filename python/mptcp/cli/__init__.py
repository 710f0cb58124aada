"""The command line: ``mptcp COMMAND``. Each command is a module of this package, with the name of its file."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import select
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

from mptcp.cli._show import show

# The status with which a shell reports that SIGINT ended a program.
_INTERRUPTED = 130


class Command(Protocol):
    """The interface of a command's module."""

    SUMMARY: str
    """What the command does, for the list of commands: a phrase without a full stop."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its own parser."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return the exit status. After an OSError it is 1, and the user sees only the message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 1 on failure. Wrong usage raises SystemExit(2)."""
    argv = sys.argv[1:] if argv is None else argv
    _fill_closed_streams()
    try:
        arguments = _parser(argv).parse_args(argv)
    except SystemExit:
        # After --help, for instance, whose reader may be gone.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _reader_is_gone()
        raise
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        # On a line of its own, because the terminal has just shown ^C.
        print(f"\nmptcp {arguments.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        if not (isinstance(error, BrokenPipeError) and _reader_is_gone()):
            show(*f"mptcp {arguments.command}: {_message(error)}".splitlines(), file=sys.stderr)
        return 1


def _fill_closed_streams() -> None:
    """Open the null device for each standard stream that is closed, as by ``>&-``.

    Otherwise the next descriptor to be opened, a socket's for instance, would be standard output. Programs that are
    started still find the stream closed, as they would without this command: the descriptor is not inherited.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def whole_parser() -> argparse.ArgumentParser:
    """Return the parser with every command, for the manual and for shells."""
    return _parser([])


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mptcp",
        description="Control and measurement of Multipath TCP, subflow by subflow, on stock Linux kernels.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version and exit")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in _commands(argv):
        sub = parsers.add_parser(name, help=command.SUMMARY, description=_sentence(command.SUMMARY))
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def _commands(argv: Sequence[str]) -> Iterator[tuple[str, Command]]:
    """Yield every command with its name. Modules with a leading underscore are shared by the commands."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    # The command that is asked for does not wait for the import of the others.
    for name in argv[:1] if argv and argv[0] in names else names:
        yield name, cast(Command, importlib.import_module(f"{__name__}.{name}"))


class _ShowVersion(argparse.Action):
    # argparse's own "version" needs the text when the parser is created, and looking it up is slow.
    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        import importlib.metadata

        print(f"mptcp {importlib.metadata.version('mptcp')}")
        parser.exit()


def _message(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text}: {error.filename}" if error.filename else text


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more, as with ``| head``."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not poll.poll(0):
        return False
    # Discard what is still to be written, or Python would complain about it at exit.
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return True
