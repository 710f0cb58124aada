"""Policies: what they are, and the runtime that calls them."""

from ._policy import LocalAddress, Opening, Policy
from ._run import RunningPolicies, run_policy

__all__ = ["LocalAddress", "Opening", "Policy", "RunningPolicies", "run_policy"]
