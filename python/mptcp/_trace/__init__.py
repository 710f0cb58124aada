"""Traces: each segment of connections, from captures, as arrays."""

from ._event import TraceEvent, written
from ._read import read_trace
from ._trace import Trace

__all__ = ["Trace", "TraceEvent", "read_trace", "written"]
