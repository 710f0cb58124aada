"""Which failed tests are tried once more: those in tests/second_tries.txt, and no other. Hooks, for conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest

LIST = Path("tests", "second_tries.txt")


def listed(text: str) -> dict[str, str]:
    """The reasons of the tests and files in a list, by their ids."""
    reasons = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            test, _, reason = line.partition(" ")
            if not reason.strip():
                raise pytest.UsageError(f"{LIST}: {test} needs a reason")
            reasons[test] = reason.strip()
    return reasons


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = listed((config.rootpath / LIST).read_text())
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in tests or test.partition("::")[0] in tests:
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the first failure of each test that passed at its second try."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"tried twice: {report.nodeid}")
        terminalreporter.line(report.longreprtext)
