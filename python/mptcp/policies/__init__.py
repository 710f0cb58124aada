"""The policies that come with the package: what most people need, each short enough to read as an example.

A path is an interface name, a local address, a network such as "10.0.1.0/24", or a link of a lab. Every policy takes
``exclude``, a path or several that are never used, and ``bind``: True binds each subflow to the interface that has its
local address, False none, and None, the default, those on a path that was named by an interface. A warning is logged
where the packets of a subflow that is not bound leave by another interface.

PathPolicy and Path are what the policies over paths are made of, to derive one's own from.
"""

from ._announce import Announce
from ._backup import Backup
from ._budget import Budget
from ._deadline import Deadline
from ._full_mesh import FullMesh
from ._handover import Handover
from ._n_diff_ports import NDiffPorts
from ._only_for import OnlyFor
from ._path import Path
from ._path_policy import PathPolicy
from ._prefer import Prefer
from ._refresh import Refresh
from ._split import Split
from ._when_long import WhenLong

__all__ = [
    "Announce",
    "Backup",
    "Budget",
    "Deadline",
    "FullMesh",
    "Handover",
    "NDiffPorts",
    "OnlyFor",
    "Path",
    "PathPolicy",
    "Prefer",
    "Refresh",
    "Split",
    "WhenLong",
]

for _name in __all__:
    globals()[_name].__module__ = "mptcp.policies"
