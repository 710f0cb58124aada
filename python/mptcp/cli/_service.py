"""What `mptcp policy` does as a service: sd_notify, systemd's unit, and the path manager after SIGKILL."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from mptcp._path_manager import get_path_manager, set_path_manager
from mptcp._policy import _turn
from mptcp.cli._put_back import put_back_after_sigkill

UNIT = "mptcp-policy.service"


def notify(state: str) -> None:
    """Tell the service manager (sd_notify)."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + path[1:] if path.startswith("@") else path)
            manager.sendall(state.encode())


def _journal() -> Path | None:
    """Where the path manager that was there before is written; None outside a service with RuntimeDirectory=."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(folder) / "path_manager" if folder else None


@contextlib.contextmanager
def remembered_path_manager() -> Iterator[None]:
    """Have the path manager put back if this process is killed in the block.

    By ExecStopPost= of the unit, for which it is kept in a file, as systemd ends all processes of a service; elsewhere
    by another process.
    """
    journal = _journal()
    if journal is None:
        with put_back_after_sigkill():
            yield
        return
    journal.write_text(get_path_manager())
    try:
        yield
    finally:
        journal.unlink(missing_ok=True)


def put_back() -> int:
    """Put the path manager back that a killed `mptcp policy` had changed. OSError (EBUSY) while policies run."""
    journal = _journal()
    if journal is None:
        print("mptcp policy: --put-back is for a unit's ExecStopPost=: RUNTIME_DIRECTORY is not set", file=sys.stderr)
        return 2
    with contextlib.suppress(FileNotFoundError):
        before = journal.read_text()
        with _turn.take(socket.socket):
            set_path_manager(before)
        journal.unlink()
    return 0


def install(folder: Path) -> int:
    """Write the unit, with the path of this program."""
    program = shutil.which(sys.argv[0]) or shutil.which("mptcp") or sys.argv[0]
    unit = importlib.resources.files("mptcp") / "systemd" / UNIT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNIT).write_text(unit.read_text().replace("/usr/bin/mptcp", str(Path(program).resolve())))
    print(folder / UNIT)
    print(f"now: systemctl daemon-reload && systemctl enable --now {UNIT}", file=sys.stderr)
    return 0
