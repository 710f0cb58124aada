"""The list of a connection's subflows."""

from __future__ import annotations

from ._address import endpoint
from ._core import Subflow
from ._tables import table

_MIB = 1 << 20


class Subflows(list[Subflow]):
    """A list of subflows, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        head = ("id", "local", "remote", "state", "flags", "RTT (ms)", "cwnd", "sent (MiB)", "received (MiB)")
        return table(head, map(_row, self))


def _row(shown: Subflow) -> tuple[object, ...]:
    words = ("initial", "backup", "peer_backup")
    info = shown.tcp_info
    return (
        shown.id,
        endpoint(shown.local),
        endpoint(shown.remote),
        shown.state,
        ", ".join(word.replace("_", " ") for word in words if getattr(shown, word)),
        None if info.rtt is None else f"{info.rtt / 1000:.1f}",
        info.snd_cwnd,
        None if info.bytes_sent is None else f"{info.bytes_sent / _MIB:.2f}",
        None if info.bytes_received is None else f"{info.bytes_received / _MIB:.2f}",
    )
