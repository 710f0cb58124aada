"""The clock that .ci/kernel --icount gives QEMU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / ".ci/clock.c"
PROGRAM = "import sys, time\nfor line in sys.stdin: print(time.monotonic(), flush=True)"


@pytest.mark.skipif(not SOURCE.exists(), reason="not there: .ci/clock.c")
@pytest.mark.skipif(shutil.which("cc") is None, reason="not installed: cc")
def test_it_stands_still_while_the_process_is_stopped(tmp_path: Path) -> None:
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-pthread"], check=True)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library)},
    ) as process:
        to, back = process.stdin, process.stdout
        assert to is not None
        assert back is not None

        def now() -> float:
            print(file=to, flush=True)
            return float(back.readline())

        start, before = time.monotonic(), now()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        stopped = time.monotonic()
        time.sleep(3)  # what is to be seen is that time passes
        stopped = time.monotonic() - stopped
        process.send_signal(signal.SIGCONT)
        advanced, passed = now() - before, time.monotonic() - start
        to.close()
    assert 0 <= advanced <= passed - stopped + 1
