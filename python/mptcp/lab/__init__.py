"""Test hosts in network namespaces, with or without root."""

from mptcp.lab._capture import Capture
from mptcp.lab._lab import Endpoint, Host, Lab, Limits, Link, two_paths
from mptcp.lab._transfer import Transfer, record_transfer

__all__ = ["Capture", "Endpoint", "Host", "Lab", "Limits", "Link", "Transfer", "record_transfer", "two_paths"]
