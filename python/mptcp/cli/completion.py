"""``mptcp completion``: what a shell needs to complete this command, made from the commands themselves."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "print what a shell needs to complete the words of this command"

_SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'In bash: eval "$(mptcp completion bash)". Needs shtab, which the extra docs has.'
    parser.add_argument("shell", choices=_SHELLS, help="for which shell")


def run(arguments: argparse.Namespace) -> int:
    from mptcp import cli

    try:
        import shtab
    except ModuleNotFoundError:
        print("mptcp completion: needs shtab: pip install 'mptcp[docs]'", file=sys.stderr)
        return 1
    print(shtab.complete(cli.whole_parser(), arguments.shell))
    return 0
