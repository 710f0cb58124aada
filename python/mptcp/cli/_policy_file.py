"""Loading policies from a file, for the commands that run them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
import types
from pathlib import Path

from mptcp import _policy


def load(path: Path) -> list[_policy.Policy]:
    """Return the policies of a file: its list ``policies``, or an instance of each of its Policy classes.

    Raises ValueError, which has the file's own lines, for an exception of its code; OSError if it cannot be read.
    """
    spec = importlib.util.spec_from_file_location("__mptcp_policy__", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # What cannot be read is no exception of its code.
    path.open("rb").close()
    try:
        spec.loader.exec_module(module)
        found = getattr(module, "policies", None)
        if isinstance(found, types.ModuleType) or found is None:
            found = [thing() for thing in vars(module).values() if _is_policy_of(module, thing)]
        found = list(found)
    except Exception as error:
        raise ValueError(_in_lines_of(path, error)) from None
    if not found:
        raise ValueError(f"{path} must define a class derived from mptcp.Policy or a list `policies`")
    return found


def _is_policy_of(module: types.ModuleType, thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, _policy.Policy) and thing.__module__ == module.__name__


def _in_lines_of(path: Path, error: Exception) -> str:
    """Describe an exception by the lines of a file that led to it, without those of this package and of Python."""
    told = traceback.TracebackException.from_exception(error)
    ours = [frame for frame in told.stack if frame.filename == str(path)]
    what = "".join(told.format_exception_only()).rstrip()
    if not ours:
        # A SyntaxError names the line itself.
        return f"{path} cannot be run:\n{what}"
    lines = "".join(traceback.StackSummary.from_list(ours).format())
    return f"{path} cannot be run:\n{lines}{what}"
