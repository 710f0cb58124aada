"""cpython.py: its tables in docs/conformance.md, and that nothing of it stays behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import cpython
import pytest
from support import PATIENCE, eventually

pytestmark = pytest.mark.conformance

DEADLINE = 30.0 * PATIENCE


def test_the_tables_of_cpythons_tests_are_what_their_program_writes() -> None:
    text = cpython.PAGE.read_text()
    tables = text.partition(cpython.BEGIN)[2].partition(cpython.END)[0]
    assert tables == cpython.page(json.loads(cpython.RESULTS.read_text())) + "\n"


def test_nothing_fails_with_ours_that_passes_with_a_bare_socket() -> None:
    """As the results say, which the page shows."""
    results = json.loads(cpython.RESULTS.read_text())
    assert results
    assert [each for summary in results.values() for each in cpython.check(summary)] == []


def test_a_difference_from_a_bare_socket_is_wrong_unless_it_is_luck() -> None:
    lucky = "test.test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_server"
    for test, fails, wrong in (
        ("test.test_socket.Any.test_other", ["Socket"], True),
        ("test.test_socket.GeneralModuleTests.test_repr", ["Socket", "patch"], True),
        ("test.test_socket.GeneralModuleTests.test_repr", ["bare", "Socket", "patch"], False),
        ("test.test_socket.Any.test_other", ["bare"], True),
        (lucky, ["patch"], False),
    ):
        summary = {"suite": {"differences": {test: {"fails": fails, "text": "why"}}}}
        assert bool(cpython.check(summary)) == wrong, (test, fails)


def processes(mark: str) -> list[int]:
    """The processes that have a word in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_program_that_is_killed_leaves_no_process() -> None:
    if importlib.util.find_spec("test.test_socketserver") is None:
        pytest.skip("needs the interpreter's own tests")
    mark = uuid.uuid4().hex
    command = [sys.executable, cpython.__file__, "--jobs", "1", "test_socketserver"]
    environment = {**os.environ, "MARK": mark}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as program:
        try:
            # The child, which was unshare first, and the process that watches.
            assert eventually(lambda: len(processes(mark)) == 3, DEADLINE)
            threads = Path(f"/proc/{program.pid}/task").glob("*/children")
            [child] = (int(pid) for path in threads for pid in path.read_text().split())
            # One that does not notice that nobody reads its report.
            os.kill(child, signal.SIGSTOP)
            program.kill()
            program.wait(DEADLINE)
            assert eventually(lambda: not processes(mark), DEADLINE)
        finally:
            for pid in processes(mark):
                os.kill(pid, signal.SIGKILL)
