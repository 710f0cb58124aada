"""Policies: what they are, and the runtime that calls them."""

from ._interface import LocalAddress, Opening
from ._policy import Policy
from ._progress import Progress
from ._run import RunningPolicies, run_policy

__all__ = ["LocalAddress", "Opening", "Policy", "Progress", "RunningPolicies", "run_policy"]

for _class in (LocalAddress, Opening, Policy, RunningPolicies):
    _class.__module__ = "mptcp"
