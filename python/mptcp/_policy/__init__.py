"""Policies: what they are, and the runtime that calls them."""

from ._interface import LocalAddress, Opening
from ._policy import Policy
from ._run import RunningPolicies, run_policy

__all__ = ["LocalAddress", "Opening", "Policy", "RunningPolicies", "run_policy"]
