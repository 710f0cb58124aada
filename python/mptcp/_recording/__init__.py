"""Recordings: what is recorded, the thread that writes it to a file, and the files."""

from ._recorder import Recorder
from ._recording import Recording, load

__all__ = ["Recorder", "Recording", "load"]
