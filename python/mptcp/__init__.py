"""Control and measurement of Multipath TCP, subflow by subflow, on stock Linux kernels.

import mptcp
sock = mptcp.create_connection(("10.0.1.2", 5000), path_manager="userspace")
sock.sendall(b"hello"); sock.recv(5)
sf = sock.open_subflow(local=("10.0.2.1", 12345), remote=("10.0.2.2", 5000))
print(sf.id, sf.tcp_info.rtt, [s.local for s in sock.subflows()])
sock.close_subflow(sf)
"""

import os as _os
import typing as _typing

from . import enhanced_api
from ._connection import Connection, connections, counters
from ._core import Event, Info, Subflow, TcpInfo
from ._errors import NotMultipathError, PathManagerError, SubflowError, UnsupportedError
from ._event_kind import EventKind
from ._events import Events
from ._path_manager import get_path_manager, set_path_manager, use_path_manager
from ._socket import Socket, attach, create_connection, create_server, wrap

if _typing.TYPE_CHECKING:
    __version__: str
    from . import aio as aio
    from . import lab as lab
    from . import measures as measures
    from . import plot as plot
    from . import policies as policies
    from . import testing as testing
    from ._endpoints import (
        Address,
        Endpoint,
        Limits,
        add_endpoint,
        available_schedulers,
        change_endpoint,
        endpoints,
        flush_endpoints,
        get_limits,
        get_scheduler,
        remove_endpoint,
        set_limits,
        set_scheduler,
        use_endpoints,
        use_limits,
        use_scheduler,
    )
    from ._explain import AddressPair, Explanation, Finding
    from ._patch import patch
    from ._policy import LocalAddress, Opening, Policy, Progress, RunningPolicies, run_policy
    from ._recording import Recorder, Recording, load
    from ._trace import Trace, TraceEvent, Tracer, read_trace

__all__ = [
    "Address",
    "AddressPair",
    "Connection",
    "Endpoint",
    "Event",
    "EventKind",
    "Events",
    "Explanation",
    "Finding",
    "Info",
    "Limits",
    "LocalAddress",
    "NotMultipathError",
    "Opening",
    "PathManagerError",
    "Policy",
    "Progress",
    "Recorder",
    "Recording",
    "RunningPolicies",
    "Socket",
    "Subflow",
    "SubflowError",
    "TcpInfo",
    "Trace",
    "TraceEvent",
    "Tracer",
    "UnsupportedError",
    "add_endpoint",
    "attach",
    "available_schedulers",
    "change_endpoint",
    "connections",
    "counters",
    "create_connection",
    "create_server",
    "endpoints",
    "enhanced_api",
    "flush_endpoints",
    "get_limits",
    "get_path_manager",
    "get_scheduler",
    "load",
    "patch",
    "read_trace",
    "remove_endpoint",
    "run_policy",
    "set_limits",
    "set_path_manager",
    "set_scheduler",
    "use_endpoints",
    "use_limits",
    "use_path_manager",
    "use_scheduler",
    "wrap",
]


# These are imported when they are first asked for, so that a program waits for what it uses only.
_MODULES = ("aio", "lab", "measures", "plot", "policies", "testing")
_ROOMS = {
    "_endpoints": (
        "Address",
        "Endpoint",
        "Limits",
        "add_endpoint",
        "available_schedulers",
        "change_endpoint",
        "endpoints",
        "flush_endpoints",
        "get_limits",
        "get_scheduler",
        "remove_endpoint",
        "set_limits",
        "set_scheduler",
        "use_endpoints",
        "use_limits",
        "use_scheduler",
    ),
    "_explain": ("AddressPair", "Explanation", "Finding"),
    "_patch": ("patch",),
    "_policy": ("LocalAddress", "Opening", "Policy", "Progress", "RunningPolicies", "run_policy"),
    "_recording": ("Recorder", "Recording", "load"),
    "_trace": ("Trace", "TraceEvent", "Tracer", "read_trace"),
}

if "MPTCP_PATCH" in _os.environ:
    from ._patch import patch  # it reads the variable


def __getattr__(name: str) -> _typing.Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    for room, names in _ROOMS.items():
        if name in names:
            globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{room}"), name)
            return found
    if name == "__version__":
        # Looking it up is slow. Cargo.toml has it, and the installed package's metadata.
        import importlib.metadata

        return importlib.metadata.version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
