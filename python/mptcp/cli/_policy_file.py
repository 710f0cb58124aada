"""Loading policies from a file, for the commands that run them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path

from mptcp import _policy


def load(path: Path) -> list[_policy.Policy]:
    """Return the policies of a file: its list ``policies``, or an instance of each of its Policy classes."""
    spec = importlib.util.spec_from_file_location("__mptcp_policy__", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = getattr(module, "policies", None)
    if isinstance(found, types.ModuleType) or found is None:
        found = [thing() for thing in vars(module).values() if _is_policy_of(module, thing)]
    found = list(found)
    if not found:
        raise ValueError(f"{path} must define a class derived from mptcp.Policy or a list `policies`")
    return found


def _is_policy_of(module: types.ModuleType, thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, _policy.Policy) and thing.__module__ == module.__name__
