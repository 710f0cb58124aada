"""Labs, and what their links and programs need."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from mptcp.lab import _programs

from ._ground import DEADLINE, Ground, Lack, absent, connected, in_child

_PROC = Path("/proc/sys")


def user_namespaces(ground: Ground) -> None:
    try:
        in_child("user_namespaces")
    except PermissionError as error:
        raise Lack(_knobs() or error.strerror) from error


def _knobs() -> str:
    """Return the sysctls that deny namespaces, with the values to set; empty if none does."""
    wrong = [
        f"{sysctl} is {value}: set it to {wanted}"
        for sysctl, denying, wanted in _KNOBS
        if (value := _read(_PROC / sysctl.replace(".", "/"))) == denying
    ]
    return "; ".join(wrong) + " as root" if wrong else ""


_KNOBS = (
    ("user.max_user_namespaces", "0", "10000"),
    ("user.max_net_namespaces", "0", "10000"),
    # Debian's and Ubuntu's own
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def lab(ground: Ground) -> None:
    with absent(
        "/proc/sys is mounted read-only, as in containers: mount it read-write, or give the container --privileged",
        errno.EROFS,
    ):
        try:
            ground.link()
        except PermissionError as error:
            raise Lack(_knobs() or error.strerror) from error


def in_lab(ground: Ground) -> None:
    link = ground.needed_link()
    with connected(link) as (sock, _):
        # Between the same addresses: it is a second subflow nevertheless.
        opened = sock.open_subflow(timeout=DEADLINE)
        assert opened is not None
        opened.close()


def sock_destroy(ground: Ground) -> None:
    link = ground.needed_link()
    before = link.hosts[0].set_path_manager("kernel")
    try:
        with (
            connected(link) as (sock, _),
            absent("subflows under the in-kernel path manager cannot be closed (CONFIG_INET_DIAG_DESTROY)"),
        ):
            sock.close_subflow(sock.subflows()[0], force=True)
    finally:
        link.hosts[0].set_path_manager(before)


def nsenter(ground: Ground) -> None:
    with absent("labs start programs by nsenter: install util-linux", errno.ENOENT):
        _programs.nsenter()
    if not ground.has("lab"):
        return
    nothing = subprocess.DEVNULL
    status = ground.link().hosts[0].run(["true"], stdin=nothing, stdout=nothing, stderr=nothing).returncode
    if status:
        raise Lack(f"{_programs.nsenter()} cannot enter a lab's host: put util-linux's first on the PATH")


def links(ground: Ground) -> None:
    link = ground.needed_link()
    link.set(rate="100mbit", delay="1ms", loss="0.1%")
    link.set(rate=None, delay=None, loss=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
