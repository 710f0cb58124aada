"""The commands with words that they were not made for: a message and an exit status, and no traceback.

Deterministic as it stands. With other and more examples each time: ``--hypothesis-profile=long``.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import mptcp
import pytest
from hostile import TEXTS
from hypothesis import assume, given
from hypothesis import strategies as st
from mptcp import cli
from support import descriptors, eventually

# None of these words does anything that lasts: where one could be right it names what is not there.
COMMANDS: dict[str, list[str]] = {
    "a command": ["{}"],
    "an option": ["--{}"],
    "an option of list": ["list", "--{}"],
    "list --token": ["list", "--json", "--token={}"],
    "list --pid": ["list", "--json", "--pid={}"],
    "list --port": ["list", "--json", "--port={}"],
    "endpoint": ["endpoint", "{}"],
    "endpoint add": ["endpoint", "add", "{}", "--port=7"],
    "endpoint add --interface": ["endpoint", "add", "192.0.2.1", "--signal", "--port=7", "--interface={}"],
    "endpoint remove": ["endpoint", "remove", "{}"],
    "limits --subflows": ["limits", "--json", "--subflows={}x"],
    "events --token": ["events", "--duration=0.01", "--token={}"],
    "events --count": ["events", "--duration=0.01", "--count={}"],
    "events --duration": ["events", "--count=x", "--duration={}"],
    "watch --interval": ["watch", "--count=x", "--interval={}"],
    "watch --token": ["watch", "--count=1", "--interval=0.01", "--token={}"],
    "doctor": ["doctor", "{}"],
    "demo": ["demo", "--{}"],
    "record -o": ["record", "--token=1", "-o", "/nonexistent/{}.npz"],
    "record -o, the suffix": ["record", "--token=1", "-o", "/nonexistent/run{}"],
    "record --interval": ["record", "-o", "/nonexistent/run.npz", "--interval={}"],
    "record --duration": ["record", "-o", "/nonexistent/run.npz", "--duration={}"],
    "plot FILE": ["plot", "{}", "-o", "/nonexistent/image.png"],
    "plot FILE.npz": ["plot", "/nonexistent/{}.npz", "-o", "/nonexistent/image.png"],
    "plot FILE.arrow": ["plot", "/nonexistent/{}.arrow", "-o", "/nonexistent/image.png"],
    "plot --size": ["plot", "/nonexistent/run.npz", "-o", "/nonexistent/image.png", "--size={}"],
    "plot --dpi": ["plot", "/nonexistent/run.npz", "-o", "/nonexistent/image.png", "--dpi={}"],
    "plot --window": ["plot", "/nonexistent/run.npz", "-o", "/nonexistent/image.png", "--window={}"],
    "plot --token": ["plot", "/nonexistent/run.npz", "-o", "/nonexistent/image.png", "--token={}"],
    "plot --panels": ["plot", "/nonexistent/run.npz", "-o", "/nonexistent/image.png", "--panels", "{}"],
    "policy FILE": ["policy", "/nonexistent/{}"],
    "policy --builtin": ["policy", "/nonexistent/file.py", "--builtin={}"],
    "policy --builtin prefer": ["policy", "/nonexistent/file.py", "--builtin=prefer:{}"],
    "policy --builtin onlyfor": ["policy", "/nonexistent/file.py", "--builtin=onlyfor:eth0,ports={}"],
    "policy --builtin whenlong": ["policy", "/nonexistent/file.py", "--builtin=whenlong:eth0,after_bytes={}"],
    "policy --builtin refresh": ["policy", "/nonexistent/file.py", "--builtin=refresh:{}"],
    "policy --builtin, a name": ["policy", "/nonexistent/file.py", "--builtin=handover:eth0,eth1,{}=1"],
    "run PROGRAM": ["run", "/nonexistent/{}"],
    "run --policy": ["run", "--policy", "{}", "/nonexistent/program"],
    "run --user": ["run", "--user={}", "/nonexistent/program"],
    "run, an option": ["run", "--{}", "/nonexistent/program"],
}
every = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def check(command: list[str], word: str) -> None:
    """The command ends with a status, and says why where that is no success."""
    before, holding = mptcp.get_path_manager(), descriptors()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status: object = cli.main([part.replace("{}", word) for part in command])
        except SystemExit as end:
            status = end.code
    # 126 and 127 are of `mptcp run`, as of a shell: a program that is not there.
    assert status in (0, 1, 2) or (command[0] == "run" and status in (126, 127)), status
    assert said.getvalue() or status == 0
    assert "Traceback" not in said.getvalue()
    assert mptcp.get_path_manager() == before
    assert eventually(lambda: descriptors() <= holding)


def can_be_given(word: str) -> bool:
    """Whether a process can be started with it: any bytes but NUL.

    Of ``--option=--`` argparse makes a list before CPython 3.12.5, which is its own affair.
    """
    try:
        return b"\0" not in os.fsencode(word) and word != "--"
    except UnicodeEncodeError:
        return False


@every
def test_a_command_and_each_odd_word(command: list[str]) -> None:
    for number, word in enumerate(filter(can_be_given, [*TEXTS, os.fsdecode(b"\xff"), "%", "-"])):
        try:
            check(command, word)
        except BaseException as error:
            error.add_note(f"with word {number}")
            raise


@every
@given(
    word=st.binary(max_size=20).map(os.fsdecode)
    | st.text(st.characters(), max_size=20)
    | st.integers().map(str)
    | st.floats().map(str)
)
def test_a_command_and_what_comes(command: list[str], word: str) -> None:
    # A path that leads out of the folder that is not there.
    assume("/" not in word and can_be_given(word))
    # The names of commands, which would be run.
    assume(command != ["{}"] or not any(word == path.stem for path in Path(cli.__file__).parent.glob("*.py")))
    check(command, word)
