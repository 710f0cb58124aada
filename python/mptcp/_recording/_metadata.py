"""The conditions of a recording, on which its numbers depend."""

from __future__ import annotations

import time
from typing import Any

from .. import _core, _topologies


def surroundings() -> dict[str, Any]:
    """Return what is known before a recording begins."""
    # Imported here, because importing these takes half as long as the whole package.
    import importlib.metadata
    import platform

    names = {name: importlib.metadata.version(name) for name in ("mptcp", "numpy")}
    return {
        "kernel": f"{platform.release()} {platform.version()}",
        "machine": platform.machine(),
        "versions": {**names, "python": platform.python_version()},
        "labs": _topologies.topologies(),
        "start_ns": time.monotonic_ns(),
        "realtime_offset_ns": _core.realtime_offset_ns(),
        "realtime_offset_end_ns": None,
    }


def namespaces(sampler: _core.Sampler) -> list[dict[str, Any]]:
    """Return the network namespaces of the recorded connections, with net.mptcp and some of net.ipv4 at the start."""
    return [
        {"cookie": cookie, "tokens": None if tokens is None else sorted(tokens), "sysctls": sysctls}
        for cookie, tokens, sysctls in sampler.surroundings()
    ]


def subflows(sampler: _core.Sampler, start: int = 0) -> list[dict[str, Any]]:
    """Return the ends of each subflow that was recorded so far, without the first ``start``."""
    return [
        # Lists, as they are read back from a file.
        {"cookie": cookie, "token": token, "local": list(local), "remote": list(remote)}
        for cookie, token, local, remote in sampler.ends(start)
    ]


def choice(sampler: _core.Sampler, asked: str) -> dict[str, Any]:
    """Return how subflows are read now, and why."""
    method, waited, trials = sampler.choice()
    if asked != "auto":
        reason = "as requested"
    elif method == "bpf":
        reason = "it waits for no lock"
    elif not trials:
        reason = "MPTCP_FULL_INFO needs a descriptor of each connection"
    elif waited:
        reason = "MPTCP_FULL_INFO waited for a connection's lock"
    else:
        reason = "it took less processor time, or showed more subflows, in the last of method_trials"
    return {"method": method, "method_reason": reason, "method_trials": trials}


def links() -> list[dict[str, Any]]:
    """Return what the links of open labs have done so far."""
    return _topologies.links()
