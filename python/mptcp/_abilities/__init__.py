"""Which abilities this kernel and these privileges allow, found by using each.

The probes change nothing outside a lab of their own and child processes that end. ``lack`` returns reasons to skip::

    if reason := lack("links"):
        pytest.skip(reason)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from . import _host, _labs, _path_managers, _sockets
from ._ground import Ability, Finding, Ground

__all__ = ["ABILITIES", "Ability", "Finding", "find", "lack"]

ABILITIES = (
    Ability("multipath", "Multipath TCP connections", _sockets.multipath),
    Ability("mptcp_info", "MPTCP_INFO: state of a connection", _sockets.mptcp_info),
    Ability("full_info", "MPTCP_FULL_INFO: subflows at one moment", _sockets.full_info),
    Ability("is_mptcp", "TCP_IS_MPTCP: whether it fell back", _sockets.is_mptcp),
    Ability("inet_diag", "inet_diag: subflows' ids and flags", _sockets.inet_diag),
    Ability("mptcp_pm", "generic netlink family mptcp_pm", _path_managers.mptcp_pm),
    Ability("userspace", "userspace path manager", _path_managers.userspace),
    Ability("path_manager", "setting the path manager here", _path_managers.path_manager),
    Ability("net_admin", "CAP_NET_ADMIN here", _path_managers.net_admin),
    Ability("broker", "a broker for this network namespace", _path_managers.broker),
    Ability("here", "opening subflows here", _path_managers.here),
    Ability("user_namespaces", "user namespaces with networks of their own", _labs.user_namespaces),
    Ability("lab", "labs", _labs.lab),
    Ability("in_lab", "opening subflows in a lab", _labs.in_lab),
    Ability("nsenter", "nsenter: programs in a lab", _labs.nsenter),
    Ability("links", "links of a lab: rate, delay, loss", _labs.links),
    Ability("sock_destroy", "SOCK_DESTROY: closing in-kernel subflows", _labs.sock_destroy),
    Ability("btf", "BTF of the kernel (the file is there)", _host.btf),
    Ability("bpf", "options on one subflow", _host.bpf),
    Ability("user_notification", "seccomp user notification", _host.user_notification),
    Ability("sched_fifo", "SCHED_FIFO: measuring on time", _host.sched_fifo),
)

_BY_NAME = {ability.name: ability for ability in ABILITIES}


def find(names: Iterable[str] | None = None) -> list[Finding]:
    """Try abilities, all of them by default, and return what was found, in the order of ABILITIES."""
    wanted = {ability.name for ability in ABILITIES} if names is None else set(names)
    with Ground(_BY_NAME) as ground:
        return [ground.find(ability.name) for ability in ABILITIES if ability.name in wanted]


@functools.cache
def lack(name: str) -> str | None:
    """Return what an ability lacks, as a reason to skip a test, or None. Each ability is tried once per process."""
    if name not in _BY_NAME:
        raise ValueError(f"name must be one of {', '.join(_BY_NAME)}, not {name!r}")
    [finding] = find([name])
    return None if finding.available else f"needs {finding.what}: {finding.advice}"
