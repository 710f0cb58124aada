"""``mptcp man``: the manual page, made from the commands themselves."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "print the manual page, for man -l"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Read it with: mptcp man | man -l -   Needs argparse-manpage, which the extra docs has."


def run(arguments: argparse.Namespace) -> int:
    from mptcp import cli

    try:
        from argparse_manpage.manpage import Manpage
    except ModuleNotFoundError:
        print("mptcp man: needs argparse-manpage: pip install 'mptcp[docs]'", file=sys.stderr)
        return 1
    import importlib.metadata

    data = {"project_name": "mptcp", "version": importlib.metadata.version("mptcp"), "manual_title": "Multipath TCP"}
    print(Manpage(cli.whole_parser(), data))
    return 0
