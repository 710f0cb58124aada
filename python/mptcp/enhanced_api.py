"""The enhanced socket API of 2016: six socket options by which a program controls the subflows of its connection.

buffer = bytearray(42)
length = mptcp.enhanced_api.getsockopt(sock, mptcp.enhanced_api.MPTCP_GET_SUB_IDS, buffer)
count = buffer[0]; ids = buffer[2:length:2]

The numbers and structures are available in three layouts: that of the original authors' kernel, that of the draft, and
that of the C header in include_dir(). docs/enhanced-api.md describes them byte by byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol
from weakref import WeakKeyDictionary

from . import _core
from ._socket import Socket

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = [
    "HEADER",
    "MPTCP_CLOSE_SUB_ID",
    "MPTCP_GET_SUB_IDS",
    "MPTCP_GET_SUB_TUPLE",
    "MPTCP_OPEN_SUB_TUPLE",
    "MPTCP_RST",
    "MPTCP_SUB_GETSOCKOPT",
    "MPTCP_SUB_SETSOCKOPT",
    "getsockopt",
    "include_dir",
    "setsockopt",
]

MPTCP_GET_SUB_IDS = 66
"""getsockopt: the ids of the subflows, ``struct mptcp_sub_ids``."""
MPTCP_CLOSE_SUB_ID = 67
"""getsockopt: close the subflow of ``struct mptcp_close_sub_id``."""
MPTCP_GET_SUB_TUPLE = 68
"""getsockopt: the two ends of a subflow, ``struct mptcp_sub_tuple``."""
MPTCP_OPEN_SUB_TUPLE = 69
"""getsockopt: open a subflow between the two ends of ``struct mptcp_sub_tuple``."""
MPTCP_SUB_GETSOCKOPT = 71
"""getsockopt: read a socket option of one subflow, ``struct mptcp_sub_getsockopt``."""
MPTCP_SUB_SETSOCKOPT = 72
"""setsockopt: set a socket option on one subflow, ``struct mptcp_sub_setsockopt``."""

HEADER = 0x4000
"""What the C header of include_dir() adds to the six numbers: ``HEADER + MPTCP_GET_SUB_IDS`` selects its layout."""

MPTCP_RST = 3
"""A value of ``how`` in MPTCP_CLOSE_SUB_ID, besides SHUT_*, in the draft's and the header's layout: by a reset."""

Layout = Literal["kernel", "draft"]


class _Descriptor(Protocol):
    def fileno(self) -> int: ...


# What is known about connections of sockets of other classes, mainly ids of subflows, as long as the sockets exist.
_handles: WeakKeyDictionary[object, _core.Handle] = WeakKeyDictionary()


def getsockopt(sock: _Descriptor, optname: int, buffer: WriteableBuffer, *, layout: Layout = "kernel") -> int:
    """Read an option as getsockopt(2) does at level IPPROTO_TCP: fill ``buffer`` and return the length in bytes.

    ``sock`` is a Socket, or anything with fileno(): if it is not TCP, the kernel itself answers. ``buffer``, for
    instance a bytearray, has the length that C passes as optlen; it is read for the option's input, filled from its
    start and never resized. ``layout`` is the layout of ``optname``, "kernel" or "draft"; with HEADER added to
    ``optname`` it is the C header's.

    Ids are from 1 to 255. A subflow keeps its id as long as some Socket or Connection of this process refers to the
    connection. MPTCP_OPEN_SUB_TUPLE returns once the SYN is sent: poll MPTCP_GET_SUB_IDS, or read Socket.events().
    The pointers in MPTCP_SUB_GETSOCKOPT and MPTCP_SUB_SETSOCKOPT are addresses in this process, for example of ctypes
    objects, which the caller must keep alive; an invalid address raises OSError (EFAULT).

    Reading uses MPTCP_FULL_INFO and sock_diag, without privilege. Opening and closing use SUBFLOW_CREATE and
    SUBFLOW_DESTROY of the generic netlink family mptcp_pm and need CAP_NET_ADMIN in the user namespace that owns the
    network namespace. A subflow's socket options need the privilege of Subflow.getsockopt().

    Raises NotMultipathError (EOPNOTSUPP) for a connection that is not Multipath TCP or fell back, OSError (EINVAL) for
    a buffer that is too short and for an unknown or closed subflow, (ENOTCONN) before the connection is established,
    PermissionError without the privilege, PathManagerError (EBUSY) for opening under the in-kernel path manager, and
    EADDRNOTAVAIL, EADDRINUSE and the other errors of bind() and connect(). Raises TypeError and ValueError for a
    read-only buffer and for an unknown ``optname`` or ``layout``.
    """
    draft = _is_draft(layout)
    with memoryview(buffer) as whole:
        if whole.readonly:
            raise TypeError("buffer must be writable, like a bytearray")
        with whole.cast("B") as view:
            reply, length = _core.enhanced_getsockopt(_handle(sock), optname, view.tobytes(), draft)
            view[: len(reply)] = reply
    return length


def setsockopt(sock: _Descriptor, optname: int, buffer: ReadableBuffer, *, layout: Layout = "kernel") -> None:
    """Set an option as setsockopt(2) does at level IPPROTO_TCP: MPTCP_SUB_SETSOCKOPT sets an option on one subflow.

    Arguments and errors are those of getsockopt(). The option is set as by Subflow.setsockopt(), which needs CAP_BPF,
    CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace.
    """
    draft = _is_draft(layout)
    with memoryview(buffer) as view:
        value = view.tobytes()
    _core.enhanced_setsockopt(_handle(sock), optname, value, draft)


def include_dir() -> Path:
    """Return the directory of the C header ``mptcp_enhanced_api.h``, for ``cc -I``. It is part of the package."""
    from pathlib import Path

    return Path(__file__).parent / "include"


def _is_draft(layout: str) -> bool:
    if not isinstance(layout, str):
        raise TypeError(f"layout must be a str, not {type(layout).__name__}")
    if layout not in ("kernel", "draft"):
        raise ValueError(f'layout must be "kernel" or "draft", not {layout!r}')
    return layout == "draft"


def _handle(sock: _Descriptor) -> _core.Handle:
    if isinstance(sock, Socket):
        return sock._native
    if not hasattr(sock, "fileno"):
        raise TypeError(f"sock must be a socket, not {type(sock).__name__}")
    handle = _handles.setdefault(sock, _core.Handle(-1))
    handle.attach(sock.fileno())
    return handle
