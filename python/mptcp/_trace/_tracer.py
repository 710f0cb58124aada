"""Tracing segments live, by the kernel's tracepoints."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .. import _core, _interrupts
from .._sources import Source, check_sources, native
from . import _files
from ._read import tables_of
from ._trace import Trace

if TYPE_CHECKING:
    from .._rows import Rows


# Seconds between two batches of a file.
_BATCH = 0.25


class Tracer:
    """Trace every segment of connections by the kernel's tracepoints, until the with-block ends or close() is called.

    ``sources`` is what is traced: a Socket, a Connection, an iterable of them, or None for every connection of the
    calling thread's network namespace, future ones included. Sources may be in any network namespaces; a connection of
    which both ends are traced is one connection in the trace, with the times of arrival.

    ``trace`` has the same arrays as a capture gives: see docs/traces.md for where they differ. A row of ``packets`` is
    a segment as Multipath TCP gives it to a subflow, with its data sequence number, or one that TCP sends again.
    Besides, ``candidates`` has what the packet scheduler saw of each subflow when it chose, and ``acks`` the state of a
    subflow's sender at each segment that arrived.

    BPF programs at the tracepoints mptcp_sendmsg_frag, mptcp_subflow_get_send, get_mapping_status, ack_update_msk,
    tcp_probe and tcp_retransmit_skb compare the connection's token and the cookie of its network namespace, and write
    what is wanted into a ring buffer, which a native thread reads every 20 ms. ``lost`` counts what did not fit.

    Memory grows with the rows: 72 bytes for each of ``packets``, about 70 for each of the others. ``path``, an
    ``.arrow`` file, streams the packets to disk; ``candidates`` and ``acks`` are not kept then, and ``trace`` can be
    read after close(). It needs pyarrow: ``pip install 'mptcp[arrow]'``.

    Needs CAP_BPF and CAP_PERFMON in the initial user namespace; without them it raises PermissionError. Raises
    UnsupportedError if the kernel has no BTF or lacks a tracepoint, TypeError and ValueError for wrong arguments before
    any system call, NotMultipathError for plain TCP, OSError (ENOTCONN) for a socket that is not connected.
    """

    def __init__(
        self, sources: Source | Iterable[Source] | None = None, *, path: str | os.PathLike[str] | None = None
    ) -> None:
        self._closed = True
        self._owner = os.getpid()
        self._writer: _Writer | None = None
        wanted = check_sources(sources, "trace")
        place = None if path is None else _files.check(path)
        with _interrupts.put_off():
            natives = None if wanted is None else [native(source) for source in wanted]
            self._tracer = _core.SegmentTracer(natives, place is None)
            try:
                if place is not None:
                    self._writer = _Writer(place, self._tracer)
            except BaseException:
                self._tracer.stop()
                raise
            self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._owner == os.getpid():
            self.close()
            warnings.warn(f"unclosed {type(self).__name__}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._closed else 'running'}>"

    def close(self) -> None:
        """Take the programs from the tracepoints and read what they have written. Calling it again has no effect.

        The rows stay. Raises OSError if the file of ``path`` could not be written. In a forked child it does nothing.
        """
        if self._closed or self._owner != os.getpid():
            return
        with _interrupts.put_off():
            self._closed = True
            self._tracer.stop()
            if self._writer is not None:
                self._writer.end()

    @property
    def _readable(self) -> _core.SegmentTracer:
        # Its thread may have held its lock when this process was forked.
        if self._owner != os.getpid():
            raise OSError(errno.EBADF, "this Tracer belongs to the process that started it, not to its forked children")
        return self._tracer

    @property
    def trace(self) -> Trace:
        """What was traced until now, as a new Trace.

        Raises ValueError for a Tracer with ``path`` that is not closed yet.
        """
        tracer = self._readable
        if self._writer is None:
            # The packets last: each of them has its subflow in the tables.
            packets = tracer.packets()
            connections, subflows, events, metadata = tables_of(tracer, _metadata(tracer))
            return Trace(packets, connections, subflows, events, metadata)
        if not self._closed:
            raise ValueError("the trace is being written to a file: close the Tracer first")
        return self._writer.trace()

    @property
    def candidates(self) -> Rows:
        """What the packet scheduler saw, a row for each subflow that it looked at, as a structured numpy array.

        It looks at every subflow before it gives new data to one; for reinjections the kernel has no such tracepoint.
        ``time_ns, connection, subflow, direction`` are as in ``Trace.packets``; ``chosen`` is whether the data that
        followed was given to it; ``backup`` and ``stale`` are its flags, ``avg_pacing_rate`` and ``pacing_rate`` bytes
        per second, ``wmem_queued`` the bytes in its send buffer, ``snd_wnd`` the peer's window in bytes, ``snd_cwnd``
        and ``packets_out`` packets, ``srtt_us`` the smoothed round-trip time in microseconds. The kernel's default
        scheduler chooses the subflow with the smallest ``wmem_queued / avg_pacing_rate``. Empty if ``path`` was given.
        """
        from . import _types

        return _types.array(self._readable.candidates(), _types.CANDIDATES)

    @property
    def acks(self) -> Rows:
        """A subflow's sender at each segment that arrived on it (tcp_probe), as a structured numpy array.

        The state is that before the segment was dealt with. ``direction`` is that of what this sender sends;
        ``snd_una, snd_nxt, rcv_nxt`` are TCP sequence numbers as on the wire, ``snd_wnd`` bytes, ``snd_cwnd,
        snd_ssthresh, packets_out, lost_out, retrans_out, total_retrans`` packets, ``srtt_us`` microseconds. Empty if
        ``path`` was given.
        """
        from . import _types

        return _types.array(self._readable.acks(), _types.ACKS)

    @property
    def lost(self) -> int:
        """How many records of the tracepoints did not fit into the ring buffer: rows are missing then."""
        return self._readable.lost()[0]

    @property
    def unknown(self) -> int:
        """How often data was given to a subflow that could not be told, of this connection or of another one."""
        return self._readable.lost()[1]


def _metadata(tracer: _core.SegmentTracer) -> dict[str, Any]:
    lost, unknown = tracer.lost()
    return {"captures": [], "tracepoints": {"lost": lost, "unknown": unknown}}


class _Writer:
    """The thread that writes packets to a file while they are traced."""

    def __init__(self, path: Path, tracer: _core.SegmentTracer) -> None:
        from . import _types

        self._path = path
        self._tracer = tracer
        self._types = _types
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._rest: tuple[Any, ...] = ()
        self._thread = threading.Thread(target=self._run, name="mptcp-tracer-file", daemon=True)
        self._thread.start()
        # Whether the file can be written is known once it is open.
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with _files.streaming(self._path, self._types.PACKETS) as write:
                self._ready.set()
                while not self._ended.wait(_BATCH):
                    write(self._tracer.take_packets(False))
                write(self._tracer.take_packets(True))
                connections, subflows, events, metadata = tables_of(self._tracer, _metadata(self._tracer))
                write.finish(connections, subflows, _files.metadata_of(metadata, events))
                self._rest = connections, subflows, events, metadata
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def end(self) -> None:
        """Write what there is and close the file. Raises what went wrong."""
        self._ended.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def trace(self) -> Trace:
        if self._error is not None:
            raise self._error
        return Trace(self._path, *self._rest)
