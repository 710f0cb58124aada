"""The command line and ``mptcp demo``, run as a user runs them."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mptcp import UnsupportedError, cli
from mptcp.cli import demo
from support import PATIENCE, STRICT, Marked, sysctls

DEADLINE = 60.0
DEMO = [*STRICT, "-m", "mptcp", "demo"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer that lasts for four or five readings only."""
    monkeypatch.setattr(demo, "_SIZE", 8 << 20)


# The demonstration


def test_json(prefix: list[str], marked: Marked) -> None:
    before = sysctls()
    done = subprocess.run(
        [*prefix, *DEMO, "--json"], capture_output=True, text=True, env=marked.environment, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert marked.processes() == set()
    assert sysctls() == before

    result = json.loads(done.stdout)
    assert result["kernel"] == os.uname().release
    assert result["bytes"] == 64 << 20
    assert 0 < result["elapsed_s"] < 30
    assert result["sha256"]["client"] == result["sha256"]["server"]
    assert re.fullmatch("[0-9a-f]{64}", result["sha256"]["client"])
    # None before Linux 6.5
    assert result["mptcp_info"]["bytes_sent"] in (None, (64 << 20) + 8)

    first, second = result["subflows"]
    assert (first["id"], second["id"]) == (1, 2)
    assert (first["local"][0], first["remote"][0]) == ("10.0.1.1", "10.0.1.2")
    assert (second["local"], second["remote"]) == (["10.0.2.1", 12345], ["10.0.2.2", first["remote"][1]])
    assert 0 <= first["opened_s"] < second["opened_s"] < first["closed_s"] < result["elapsed_s"]
    assert second["closed_s"] is None
    # Each took its share while there were two, and the second all that came after, but what the first had queued.
    assert first["bytes"] > 8 << 20
    assert second["bytes"] > (32 if PATIENCE == 1 else 24) << 20
    assert first["bytes"] + second["bytes"] >= 64 << 20


def test_plain_lines(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo"]) == 0
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    assert "\x1b" not in printed
    lines = printed.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("mptcp demo: 8 MiB")
    text = [line[10:] for line in lines if line[6:10] == " s  "]
    assert [line.partition(":")[0] for line in text if not line.startswith("received")] == [
        "connected, subflow 1",
        "opened subflow 2",
        "closing subflow 1",
        "closed subflow 1",
    ]
    assert "10.0.2.1:12345 -> 10.0.2.2:5000" in text[1]
    assert lines[-1].endswith("the SHA-256 hashes are equal")


def shown(output: str) -> tuple[list[str], list[list[str]]]:
    """What a terminal shows at the end, and what it showed before each time that something was erased."""
    rows, pictures, row = [""], [], 0
    for piece in re.findall(r"\x1b\[\d*[A-Z]|\r?\n|\r|[^\x1b\r\n]+", output):
        if up := re.fullmatch(r"\x1b\[(\d+)A", piece):
            pictures.append(list(rows))
            row -= int(up[1])
            assert row >= 0
        elif piece == "\x1b[J":
            del rows[row:]
            rows.append("")
        elif piece.endswith("\n"):
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif piece != "\r":
            assert rows[row] == ""
            rows[row] = piece
    return rows, pictures


@pytest.mark.parametrize("columns", [80, 50])
def test_terminal(small: None, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    ours, theirs = pty.openpty()

    def read_all() -> str:
        data = b""
        # EIO is what Linux says of a terminal whose last user is gone.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 1 << 16):
                data += piece
        return data.decode()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all)
        with open(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            status = cli.main(["demo"])
        output = reading.result(DEADLINE)
    os.close(ours)
    assert status == 0

    last, pictures = shown(output)
    assert len(pictures) >= 3
    for picture in pictures:
        assert sum(row.startswith("id  local") for row in picture) == 1
        assert sum(row.startswith("[") for row in picture) == 1
        assert all(len(row) <= columns for row in picture if row.startswith(("id", " 1", " 2", "[")))
    assert any(row.startswith(" 2  10.0.2.1:12345 -> 10.0.2.2:5000") for row in pictures[-1])
    # The live area makes room for the result.
    assert not any(row.startswith("[") for row in last)
    assert last[-2].endswith("the SHA-256 hashes are equal")
    assert last[-1] == ""


def test_interrupt_leaves_nothing(prefix: list[str], marked: Marked) -> None:
    with subprocess.Popen(
        [*prefix, *DEMO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=marked.environment,
        start_new_session=True,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stdout is not None
        assert any("opened subflow 2" in line for line in running.stdout)
        assert len(marked.processes()) == 5, "the command, the lab's helper, two hosts and the middle of the links"
        os.killpg(running.pid, signal.SIGINT)
        _, complaints = running.communicate(timeout=DEADLINE)
    assert complaints == "\nmptcp demo: interrupted\n"
    assert running.returncode == 130
    assert marked.processes() == set()


def test_reader_goes_away(marked: Marked) -> None:
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=marked.environment
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("mptcp demo: 64 MiB")
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 1
    assert marked.processes() == set()


def test_hashes_that_differ(small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    receive: Callable[..., bytes] = demo._receive_exactly
    # The server's answer is the only thing of that length.
    monkeypatch.setattr(demo, "_receive_exactly", lambda *a: bytes(32) if len(got := receive(*a)) == 32 else got)
    assert cli.main(["demo", "--json"]) == 1
    printed, complaints = capsys.readouterr()
    assert json.loads(printed)["sha256"]["server"] == "0" * 64
    assert complaints == "mptcp demo: the received data is not the data that was sent: the SHA-256 hashes differ\n"


def test_error_of_a_thread_ends_it(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(size: int) -> bytes:
        raise OSError(errno.EIO, "no bytes today")

    # The server waits for data then, for longer than this may take.
    monkeypatch.setattr(demo, "_TIMEOUT", 2 * DEADLINE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", fail)
        assert cli.main(["demo", "--json"]) == 1
    assert capsys.readouterr() == ("", "mptcp demo: no bytes today\n")


def test_kernel_that_lacks_something(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(**options: object) -> None:
        raise UnsupportedError(errno.ENOSYS, "this kernel has no Multipath TCP (CONFIG_MPTCP)")

    monkeypatch.setattr(demo, "two_paths", refuse)
    assert cli.main(["demo", "--json"]) == 1
    assert capsys.readouterr() == ("", "mptcp demo: this kernel has no Multipath TCP (CONFIG_MPTCP)\n")


def test_namespaces_denied() -> None:
    """In a user namespace that allows none below it, without capabilities there."""
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} of util-linux")
    deny = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", deny, "-", *DEMO, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch("mptcp demo: .* user.max_user_namespaces .*\n", done.stderr)


# The commands


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["demo", "--no-such-option"], ["demo", "argument"]])
def test_wrong_usage(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mptcp", *arguments], capture_output=True, text=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: mptcp ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr() == (f"mptcp {importlib.metadata.version('mptcp')}\n", "")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert re.search(r"^ +demo +open and close subflows", capsys.readouterr().out, re.MULTILINE)


def test_file_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "greet.py").write_text(
        "SUMMARY = 'greet'\n"
        "def add_arguments(parser): parser.add_argument('name')\n"
        "def run(arguments): open(arguments.name) if '/' in arguments.name else print('hello', arguments.name)\n"
    )
    (tmp_path / "_shared.py").write_text("")
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mptcp.cli.greet", raising=False)
    assert not cli.main(["greet", "you"])
    assert capsys.readouterr() == ("hello you\n", "")
    assert cli.main(["greet", "no/such/file"]) == 1
    assert capsys.readouterr() == ("", "mptcp greet: No such file or directory: no/such/file\n")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert "greet" in listed
    assert "_shared" not in listed
