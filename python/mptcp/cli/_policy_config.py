"""The configuration file of ``mptcp policy``: which policies run, and with which arguments.

[[policy]]
name = "Prefer"
arguments = ["eth1", "eth0"]
exclude = ["docker0"]

[[policy]]
file = "/etc/mptcp/my_policy.py"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from mptcp import _policy
from mptcp.cli import _policy_file


def load(path: Path, classes: dict[str, type[_policy.Policy]]) -> list[_policy.Policy]:
    """Return the policies that a file names; ``classes`` are the built-in ones by their names in lower case.

    Raises ValueError, which says where, for what is no such file and for what a policy refuses; OSError.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    tables = document.get("policy")
    if set(document) != {"policy"} or not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise ValueError(f"{path} must have a table [[policy]] for each policy, and nothing else")
    found: list[_policy.Policy] = []
    for number, table in enumerate(tables, 1):
        try:
            found += _policies(dict(table), path.parent, classes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, policy {number}: {error}") from None
    return found


def _policies(table: dict[str, Any], folder: Path, classes: dict[str, type[_policy.Policy]]) -> list[_policy.Policy]:
    if "file" in table:
        if set(table) != {"file"} or not isinstance(table["file"], str):
            raise ValueError("file must be the name of a Python file, without other keys")
        return _policy_file.load(folder / table["file"])
    name, arguments = table.pop("name", None), table.pop("arguments", [])
    if not isinstance(name, str) or name.lower() not in classes:
        raise ValueError(f"name must be one of {', '.join(classes)}, not {name!r}")
    if not isinstance(arguments, list):
        raise TypeError(f"arguments must be an array, not {type(arguments).__name__}")
    return [classes[name.lower()](*arguments, **table)]
