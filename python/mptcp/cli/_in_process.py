"""``mptcp run --in-process``: a Python program in this very process, whose sockets are Multipath TCP."""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import types
from collections.abc import Sequence

from mptcp import _patch


def run_script(script: str, arguments: Sequence[str]) -> int:
    """Run a script as ``python script`` does, and return its exit status.

    Raises OSError with the script's name if it cannot be read. SystemExit passes through. The process stays patched,
    for threads and exit handlers of the script that outlive it.
    """
    with io.open_code(script) as file:
        source = file.read()
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.argv = [script, *arguments]
    if not sys.flags.safe_path:
        # In place of what `python -m` or the mptcp program put there.
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    _patch.start()
    try:
        exec(compile(source, script, "exec"), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        # Without this function's frame.
        trace = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        if isinstance(error, KeyboardInterrupt):
            _end_by_interrupt()
        return 1
    return 0


def _end_by_interrupt() -> None:
    """End as Python does after a KeyboardInterrupt, by the signal, which a shell sees."""
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
