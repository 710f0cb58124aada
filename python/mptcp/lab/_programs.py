"""Running programs inside a host with subprocess, which knows nothing of namespaces, by way of nsenter."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
#: What subprocess accepts as a program with its arguments.
Command = _Path | Sequence[_Path]


def command_line(args: Command, namespaces: Mapping[str, int], options: dict[str, Any]) -> list[Any]:
    """Return the arguments that make subprocess run ``args`` inside these namespaces.

    ``namespaces`` maps nsenter's option, ``"net"`` or ``"user"``, to an open descriptor of this process.
    ``options`` are keyword arguments of subprocess; ``shell`` and ``executable`` are removed from them and handled
    here.
    Raises FileNotFoundError and PermissionError for a program that subprocess could not have run.
    """
    shell = options.pop("shell", False)
    executable = options.pop("executable", None)
    words: list[Any] = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
    if not words:
        raise ValueError("args must not be empty")
    if shell:
        words = [executable or "/bin/sh", "-c", *words]
    elif executable is not None:
        words[0] = executable
    _require_program(words[0], options.get("env"), options.get("cwd"))

    # By this process's own descriptors, which nsenter opens anew: they need not be inherited, so the program
    # gets the descriptors that the caller gives it and no others. nsenter execs the program in its own process.
    enter = [f"--{kind}=/proc/{os.getpid()}/fd/{descriptor}" for kind, descriptor in namespaces.items()]
    return [nsenter(), *enter, "--preserve-credentials", "--", *words]


def nsenter() -> str:
    """Return the path of the program that enters a host."""
    path = shutil.which("nsenter", path=os.pathsep.join([*os.get_exec_path(), "/usr/bin", "/bin"]))
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "a lab needs nsenter to run programs: install util-linux", "nsenter")
    return path


def _require_program(program: _Path, environment: Mapping[Any, Any] | None, directory: _Path | None) -> None:
    """Raise what subprocess would raise: nsenter itself could only print an error and exit."""
    name = os.fsdecode(program)
    if "/" in name:
        path = os.path.join(os.fsdecode(directory), name) if directory is not None else name
        found = os.path.exists(path)
    else:
        search = os.get_exec_path(environment if environment is not None else None)
        path = shutil.which(name, path=os.pathsep.join(search)) or ""
        found = bool(path)
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if os.path.isdir(path) or not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
