"""Traces: each segment of connections, from captures or tracepoints, as arrays."""

from ._event import TraceEvent, written
from ._read import read_trace
from ._trace import Trace
from ._tracer import Tracer

__all__ = ["Trace", "TraceEvent", "Tracer", "read_trace", "written"]

for _class in (Trace, TraceEvent):
    _class.__module__ = "mptcp"
