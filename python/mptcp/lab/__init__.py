"""Test hosts in network namespaces and links between them, with or without root."""

from mptcp.lab._capture import Capture
from mptcp.lab._host import Host
from mptcp.lab._lab import Lab
from mptcp.lab._link import Link, LinkStats
from mptcp.lab._transfer import Transfer, record_transfer
from mptcp.lab._two_paths import two_paths
from mptcp.lab._units import GilbertElliott

__all__ = [
    "Capture",
    "GilbertElliott",
    "Host",
    "Lab",
    "Link",
    "LinkStats",
    "Transfer",
    "record_transfer",
    "two_paths",
]

for _name in __all__:
    globals()[_name].__module__ = "mptcp.lab"
