"""Path managers: the commands of mptcp_pm, and the path manager of this network namespace."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mptcp import _core
from mptcp._errors import UnsupportedError
from mptcp._path_manager import get_path_manager

from ._ground import Ground, Lack

_PROC = Path("/proc/sys")


def mptcp_pm(ground: Ground) -> None:
    try:
        _core.probe_path_manager_family()
    except UnsupportedError as error:
        raise Lack("this kernel has no Multipath TCP, or takes no path manager commands (CONFIG_MPTCP)") from error


def userspace(ground: Ground) -> None:
    if ground.find("lab").available:
        # Hosts start under it.
        host = ground.link().hosts[0]
        host.set_path_manager("kernel")
        host.set_path_manager("userspace")
    else:
        get_path_manager()


def path_manager(ground: Ground) -> None:
    path = next((path for path in _PATH_MANAGERS if path.exists()), None)
    if path is None:
        # This raises the error that the kernel has none.
        get_path_manager()
        return
    try:
        # Opening it asks the kernel; only writing would change something.
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        sysctl = str(path.relative_to(_PROC)).replace("/", ".")
        if error.errno == errno.EROFS:
            raise Lack(
                "/proc/sys is mounted read-only, as in containers: start the container with "
                f"--sysctl {sysctl}={_USERSPACE[path.name]}, or work in a lab"
            ) from error
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        raise Lack(
            f"{sysctl} cannot be set without CAP_NET_ADMIN over this network namespace: run as root, or work in a lab"
        ) from error


_PATH_MANAGERS = (_PROC / "net/mptcp/path_manager", _PROC / "net/mptcp/pm_type")
_USERSPACE = {"path_manager": "userspace", "pm_type": "1"}


def net_admin(ground: Ground) -> None:
    mptcp_pm(ground)
    try:
        _core.probe_path_manager_commands()
    except OSError as error:
        if error.errno == errno.EPERM:
            raise Lack(
                "path manager commands need CAP_NET_ADMIN in the user namespace that owns this network namespace: "
                "run as root, start the container with --cap-add NET_ADMIN, or work in a lab"
            ) from error
        if error.errno == errno.EOPNOTSUPP:
            raise Lack("this kernel is older than 5.19 and has no commands that open subflows") from error
        raise


# What the broker's rules allow, by their keys.
_ALLOWED = {
    "own": "controlling the subflows of this user's connections",
    "path_manager": "Socket(path_manager=)",
    "options": "options on one subflow",
    "hold": "use_path_manager()",
}


def broker(ground: Ground) -> str:
    found = _core.find_broker()
    if found is None:
        path = os.environ.get("MPTCP_BROKER", _core.BROKER_PATH)
        raise Lack(f"none listens for this network namespace at {path}: start one as root (mptcp broker)")
    path, allowed = found
    words = [text for name, text in _ALLOWED.items() if name in allowed]
    if "own" not in allowed:
        words.insert(0, "controlling the subflows of sockets (not of Connections)")
    if "path_manager" not in allowed:
        raise Lack(f"the rules of the broker at {path} allow only: {', '.join(words)}")
    return f"at {path}; its rules allow: {', '.join(words)}"


def here(ground: Ground) -> None:
    """Try the parts of opening a subflow. Opening one would change this namespace's path manager for a moment."""
    if ground.has("multipath") and ground.has("broker"):
        return
    for name in ("multipath", "mptcp_info", "mptcp_pm", "userspace", "net_admin"):
        if not ground.has(name):
            raise Lack(f"missing: {ground.find(name).what}")
    if not ground.has("path_manager") and get_path_manager() != "userspace":
        raise Lack(f"connections here are under the in-kernel path manager; {ground.find('path_manager').advice}")
