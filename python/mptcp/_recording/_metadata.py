"""The surroundings of a recording, which its numbers depend on."""

from __future__ import annotations

from typing import Any

from .. import _core, _topologies


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
        "labs": _topologies.topologies(),
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


def links() -> list[dict[str, Any]]:
    """Return what the links of open labs have done until now."""
    return _topologies.links()
