"""What notebooks show: the tables that _repr_html_ gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._connections import Connection
    from ._core import Subflow
    from ._recording import Recording

_MIB = 1 << 20


class Subflows(list["Subflow"]):
    """A list of subflows, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return subflows(self)


class Connections(list["Connection"]):
    """A list of connections, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        head = ("token", "local", "remote", "state", "side", "pid", "program")
        rows = (
            (each.token, endpoint(each.local), endpoint(each.remote), each.state, _side(each), each.pid, each.program)
            for each in self
        )
        return _table(head, rows)


def connection(shown: Connection) -> str:
    """A connection and its subflows."""
    ends = f"{endpoint(shown.local)} &rarr; {endpoint(shown.remote)}"
    title = f"Connection {shown.token}, {ends}, {_side(shown)}"
    try:
        return f"<p>{title}, {shown.state}</p>{subflows(shown.subflows())}"
    except OSError as error:
        # It has ended, or fell back.
        return f"<p>{title}</p>{_table((), [[error.strerror]])}"


def subflows(shown: Sequence[Subflow]) -> str:
    head = ("id", "local", "remote", "state", "flags", "RTT (ms)", "cwnd", "sent (MiB)", "received (MiB)")
    return _table(head, map(_subflow, shown))


def recording(shown: Recording) -> str:
    """What was recorded, and how."""
    metadata, samples = shown.metadata, shown.samples
    subflows, connections = (len(set(samples[name].tolist())) for name in ("cookie", "token"))
    seconds = (samples["time_ns"].max() - samples["time_ns"].min()) / 1e9 if len(samples) else 0.0
    rows: list[tuple[str, object]] = [
        ("samples", f"{len(samples):,} of {subflows} subflows of {connections} connections, in {seconds:.2f} s"),
        ("connections", f"{len(shown.connections):,} rows"),
        ("events", f"{len(shown.events):,}"),
        ("interval", f"{known(metadata.get('interval'))} s, {known(metadata.get('missed'))} ticks missed"),
        ("method", f"{known(metadata.get('method'))}, {known(metadata.get('scheduler'))}"),
        ("kernel", known(metadata.get("kernel"))),
    ]
    if metadata.get("failure"):
        rows.append(("failure", metadata["failure"]))
    return _table((), rows)


def known(value: object) -> object:
    """What the metadata has. Of a recorder that was killed they lack what is known only in the end."""
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else value


def endpoint(address: tuple[Any, ...]) -> str:
    """An end's address and port, as they are written."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _subflow(shown: Subflow) -> tuple[object, ...]:
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


def _side(shown: Connection) -> str:
    return {True: "server", False: "client", None: "side unknown"}[shown.server_side]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = f"<thead><tr>{_cells('th', head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _cells(tag: str, values: Iterable[object]) -> str:
    import html  # here, since importing it takes longer than most of this package

    return "".join(f"<{tag}>{'' if value is None else html.escape(str(value))}</{tag}>" for value in values)
