"""``mptcp man`` and ``mptcp completion`` have every command with its options."""

from __future__ import annotations

import argparse
import shutil
import subprocess

import pytest
from mptcp import cli


def options() -> set[str]:
    found: set[str] = set()

    def collect(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            found.update(word for word in action.option_strings if word.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                for name, below in action.choices.items():
                    found.add(name)
                    collect(below)

    collect(cli.whole_parser())
    return found


def test_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("argparse_manpage", reason="needs argparse-manpage: pip install 'mptcp[docs]'")
    assert cli.main(["man"]) == 0
    text = capsys.readouterr().out.replace("\\-", "-")
    assert text.startswith(".TH MPTCP")
    # argparse-manpage leaves --help out.
    assert {word for word in options() if word not in text} == {"--help"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs shtab: pip install 'mptcp[docs]'")
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert {word for word in options() if word not in text} == set()
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True, timeout=60).stderr == ""


def test_without_the_libraries_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "argparse_manpage.manpage", None)
    monkeypatch.setitem(sys.modules, "argparse_manpage", None)
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["man"]) == cli.main(["completion", "bash"]) == 1
    assert capsys.readouterr().err.count("pip install 'mptcp[docs]'") == 2
