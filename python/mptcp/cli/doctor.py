"""``mptcp doctor``: which abilities this kernel and these privileges allow, and how to get the missing ones."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import textwrap
from dataclasses import asdict

from mptcp import _abilities
from mptcp.cli._show import as_json

SUMMARY = "try what this kernel and your privileges allow, and show how to get what is missing"

# Either of them is enough for what the package is made for.
_MAIN_JOB = ("here", "in_lab")
_ANSWERS = {True: "yes", False: "no", None: "?"}
_ADVICE_WIDTH = 40
_NO_TERMINAL = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The exit status is 0 if subflows can be opened here or in a lab, otherwise 1. Needs no privilege."
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    findings = _abilities.find()
    main_job = {finding.name: finding for finding in findings if finding.name in _MAIN_JOB}
    works = any(finding.available for finding in main_job.values())
    if arguments.json:
        report = {
            "kernel": os.uname().release,
            "uid": os.geteuid(),
            "opens_subflows": works,
            "abilities": [asdict(finding) for finding in findings],
        }
        print(as_json(report, indent=2))
    else:
        print(f"kernel {os.uname().release}, Python {platform.python_version()}, uid {os.geteuid()}\n")
        print(*_table(findings), sep="\n")
        print(f"\n{_verdict(main_job)}")
    if not works:
        print("mptcp doctor: subflows cannot be opened", file=sys.stderr)
        return 1
    return 0


def _table(findings: list[_abilities.Finding]) -> list[str]:
    wide = max(len(finding.what) for finding in findings)
    indent = " " * (wide + 7)
    width = max(shutil.get_terminal_size((_NO_TERMINAL, 0)).columns, len(indent) + _ADVICE_WIDTH)
    lines = []
    for finding in findings:
        start = f"{finding.what:{wide}}  {_ANSWERS[finding.available]:3}  "
        # Paths and sysctls are meant to be copied, so no word is broken.
        advice = textwrap.fill(
            finding.advice,
            width,
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(advice if finding.advice else start.rstrip())
    return lines


def _verdict(main_job: dict[str, _abilities.Finding]) -> str:
    here, in_lab = (main_job[name].available for name in _MAIN_JOB)
    if here and in_lab:
        return "Subflows can be opened here and in a lab."
    if here:
        return "Subflows can be opened here, but not in a lab."
    if in_lab:
        return "Subflows can be opened in a lab, but not here."
    return "Subflows can be opened neither here nor in a lab."
