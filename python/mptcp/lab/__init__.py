"""Test hosts in network namespaces, with or without root."""

from mptcp.lab._capture import Capture
from mptcp.lab._host import Endpoint, Host, Limits
from mptcp.lab._lab import Lab, two_paths
from mptcp.lab._link import Link
from mptcp.lab._transfer import Transfer, record_transfer

__all__ = ["Capture", "Endpoint", "Host", "Lab", "Limits", "Link", "Transfer", "record_transfer", "two_paths"]

for _name in __all__:
    globals()[_name].__module__ = "mptcp.lab"
