"""Probes that need a process of their own, because they cannot be undone: python -m mptcp._abilities._child NAME"""

from __future__ import annotations

import sys

from mptcp import _core
from mptcp.lab import _namespaces


def _enter_namespaces() -> None:
    _namespaces.enter_new_user_namespace()
    _namespaces.enter_new_network_namespace()


_CHILDREN = {"user_namespaces": _enter_namespaces, "user_notification": _core.probe_user_notification}

if __name__ == "__main__":
    try:
        _CHILDREN[sys.argv[1]]()
    except OSError as error:
        print(error.errno, error.strerror)
        sys.exit(1)
