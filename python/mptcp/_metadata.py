"""The surroundings of a recording, which its numbers depend on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core

if TYPE_CHECKING:
    from .lab import Host, Lab

_SYSCTLS = Path("/proc/sys/net")
_IPV4 = (
    "tcp_congestion_control",
    "tcp_available_congestion_control",
    "tcp_rmem",
    "tcp_wmem",
    "tcp_ecn",
    "tcp_sack",
    "tcp_timestamps",
    "tcp_no_metrics_save",
    "tcp_slow_start_after_idle",
)
_LINK = ("rate", "delay", "jitter", "loss", "queue", "congestion_control", "is_up")


def surroundings() -> dict[str, Any]:
    """All that is known before a recording begins."""
    import importlib.metadata  # here, since importing it takes as long as half of this package

    names = {name: importlib.metadata.version(name) for name in ("mptcp", "numpy")}
    return {
        "kernel": f"{platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "versions": {**names, "python": platform.python_version()},
        "sysctls": sysctls(),
        "labs": labs(),
        "realtime_offset_ns": _core.realtime_offset_ns(),
    }


def sysctls() -> dict[str, str]:
    """net.mptcp and some of net.ipv4, of the calling thread's network namespace."""
    paths = [*sorted((_SYSCTLS / "mptcp").glob("*")), *(_SYSCTLS / "ipv4" / name for name in _IPV4)]
    found = {}
    for path in paths:
        try:
            found["net." + str(path.relative_to(_SYSCTLS)).replace("/", ".")] = path.read_text().strip()
        except OSError:
            continue  # not in this kernel, or not for us
    return found


def labs() -> list[dict[str, Any]]:
    """The labs of this process: their hosts and links."""
    module = sys.modules.get("mptcp.lab._lab")
    return [] if module is None else [_topology(lab) for lab in list(module.LABS) if not lab._closed]


def _topology(lab: Lab) -> dict[str, Any]:
    return {
        "hosts": {
            name: {
                "addresses": host.addresses,
                "net.mptcp.path_manager": _lab_sysctl(host, "net.mptcp.path_manager"),
                "net.mptcp.scheduler": _lab_sysctl(host, "net.mptcp.scheduler"),
                "net.ipv4.tcp_congestion_control": _lab_sysctl(host, "net.ipv4.tcp_congestion_control"),
            }
            for name, host in lab.hosts.items()
        },
        "links": [
            {
                "addresses": {host.name: link.address(host) for host in link.hosts},
                **{name: getattr(link, name) for name in _LINK},
            }
            for link in lab.links
        ],
    }


def _lab_sysctl(host: Host, name: str) -> str | None:
    try:
        return host.sysctl(name)
    except OSError:
        return None  # not in this kernel
