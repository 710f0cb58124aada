"""The surroundings of a recording, which its numbers depend on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import _core

if TYPE_CHECKING:
    from .lab import Host, Lab

_LINK = ("rate", "delay", "jitter", "loss", "queue", "congestion_control", "is_up")


def surroundings() -> dict[str, Any]:
    """All that is known before a recording begins."""
    # Here, since importing these takes as long as half of this package.
    import importlib.metadata
    import platform

    names = {name: importlib.metadata.version(name) for name in ("mptcp", "numpy")}
    return {
        "kernel": f"{platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "versions": {**names, "python": platform.python_version()},
        "labs": labs(),
        "realtime_offset_ns": _core.realtime_offset_ns(),
    }


def namespaces(sampler: _core.Sampler) -> list[dict[str, Any]]:
    """The network namespaces of the recorded connections, with net.mptcp and some of net.ipv4 at the start."""
    return [
        {"cookie": cookie, "tokens": None if tokens is None else sorted(tokens), "sysctls": sysctls}
        for cookie, tokens, sysctls in sampler.surroundings()
    ]


def subflows(sampler: _core.Sampler, start: int = 0) -> list[dict[str, Any]]:
    """The ends of each subflow that was recorded until now, without the first ``start``."""
    return [
        # Lists, as a file gives them back.
        {"cookie": cookie, "token": token, "local": list(local), "remote": list(remote)}
        for cookie, token, local, remote in sampler.ends(start)
    ]


def choice(sampler: _core.Sampler, asked: str) -> dict[str, Any]:
    """How subflows are read now, and why so."""
    method, waited, trials = sampler.choice()
    if asked != "auto":
        reason = "as asked for"
    elif not trials:
        reason = "MPTCP_FULL_INFO would need a descriptor of each connection"
    elif waited:
        reason = "MPTCP_FULL_INFO waited for a connection's lock"
    else:
        reason = "it took less processor time, or showed more subflows, in the last of method_trials"
    return {"method": method, "method_reason": reason, "method_trials": trials}


def labs() -> list[dict[str, Any]]:
    """The labs of this process: their hosts and links."""
    module = sys.modules.get("mptcp.lab._lab")
    return [] if module is None else [_topology(lab) for lab in list(module.LABS) if not lab._closed]


def _topology(lab: Lab) -> dict[str, Any]:
    return {
        "hosts": {
            name: {
                "addresses": host.addresses,
                "net.mptcp.path_manager": host.get_path_manager(),
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
