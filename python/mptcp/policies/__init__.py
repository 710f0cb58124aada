"""The policies that come with the package: what most people need, each short enough to read as an example.

A path is an interface name, a local address, a network such as "10.0.1.0/24", or a link of a lab.
"""

from ._backup import Backup
from ._full_mesh import FullMesh
from ._handover import Handover
from ._n_diff_ports import NDiffPorts
from ._only_for import OnlyFor
from ._prefer import Prefer
from ._refresh import Refresh
from ._when_long import WhenLong

__all__ = ["Backup", "FullMesh", "Handover", "NDiffPorts", "OnlyFor", "Prefer", "Refresh", "WhenLong"]

for _class in (Backup, FullMesh, Handover, NDiffPorts, OnlyFor, Prefer, Refresh, WhenLong):
    _class.__module__ = "mptcp.policies"
