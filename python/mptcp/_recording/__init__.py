"""Recordings: the Recorder, what it recorded, and files of that."""

from ._recorder import Recorder
from ._recording import Recording, load

__all__ = ["Recorder", "Recording", "load"]

for _class in (Recorder, Recording):
    _class.__module__ = "mptcp"
