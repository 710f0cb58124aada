"""Test hosts in network namespaces, with or without root."""

from mptcp.lab._capture import Capture
from mptcp.lab._lab import Endpoint, Host, Lab, Limits, Link, two_paths

__all__ = ["Capture", "Endpoint", "Host", "Lab", "Limits", "Link", "two_paths"]
