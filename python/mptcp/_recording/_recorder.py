"""Recording subflows and connections: starting and stopping it, and where its rows go."""

from __future__ import annotations

import errno
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from .. import _core, _interrupts, _topologies
from .._core import Event
from .._socket import Socket
from .._sources import Source, check_sources, native
from . import _files, _metadata
from ._recording import Recording, load

if TYPE_CHECKING:
    from .._rows import Rows
    from . import _live, _writer


_METHODS = ("auto", "full_info", "inet_diag", "bpf")
_SHORTEST, _LONGEST = 1e-5, 86400.0


class Recorder(Recording):
    """Record what every subflow does, tick by tick, until the with-block ends or close() is called.

    ``sources`` is what is recorded: a Socket, a Connection, an iterable of them, or None for every connection of the
    calling thread's network namespace, future ones included. The Recorder holds no descriptor of them: a connection
    ends when its owner ends it. ``interval`` and ``connection_interval`` are the seconds between two readings of the
    subflows and of the connections.

    ``method`` is how subflows are read:

    - "inet_diag": by exact look-ups, several in one message, which do not wait for the connection's lock, only for the
      subflow's own. A new subflow is found by its event, or within 0.1 s without the privilege for events.
    - "full_info": by MPTCP_FULL_INFO, all subflows of a connection at one moment, after waiting for its lock, which a
      sender at full speed may hold for milliseconds. Only for Sockets.
    - "bpf": by a BPF program that copies the kernel's memory of every subflow (struct tcp_sock, at offsets from BTF),
      and waits for no lock at all. tcp_info is made from the copy as the kernel makes it; a copy may lie between the
      handling of two segments. Connections are read from struct mptcp_sock in the same way. Needs CAP_BPF, CAP_PERFMON
      and CAP_NET_ADMIN in the initial user namespace.
    - "auto": by BPF where that is permitted. Otherwise, if all sources are Sockets, by the method of the other two that
      takes less processor time; if not, by inet_diag. Each of the two is measured by up to five readings of everything,
      at the start, and at most once a second when the number of subflows has doubled or halved. A method that fails, or
      shows fewer subflows than the other (older kernels hide some from an ordinary user), is not used. Nor is
      MPTCP_FULL_INFO once a reading by it has waited for a lock. metadata has the measurements and the current method.

    A native thread reads by an absolute clock and never waits for Python; if CAP_SYS_NICE or RLIMIT_RTPRIO permit it,
    it runs under SCHED_FIFO. A second one reads the connections, and waits for their locks except under "bpf".

    ``path`` streams rows and events to a file with the suffix ``.arrow``, so that memory does not grow with them: see
    save() for its format, and load(), which reads it. A batch is written every 0.1 s; after a SIGKILL the file can be
    read up to its last whole batch. ``samples``, ``connections`` and ``events`` are then read from the file.

    Needs no privilege, except CAP_NET_ADMIN and CAP_SYS_ADMIN over the network namespace of a Socket that is not in the
    caller's, CAP_NET_ADMIN for "inet_diag" before Linux 6.15, and what "bpf" needs; without these it raises
    PermissionError. Raises TypeError and ValueError for wrong arguments before any system call, NotMultipathError for
    plain TCP, OSError (ENOTCONN) for a connection that has ended, UnsupportedError if the kernel cannot do it.
    """

    _streams_to: tuple[str, ...] = (".arrow",)

    def __init__(
        self,
        sources: Source | Iterable[Source] | None,
        interval: float = 0.01,
        *,
        method: Literal["auto", "full_info", "inet_diag", "bpf"] = "auto",
        connection_interval: float = 0.1,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._begin(sources, None, interval, method, connection_interval, path)

    @classmethod
    def _of_namespace(cls, fd: int) -> Self:
        """Record every connection of the network namespace that the socket ``fd`` belongs to."""
        recorder = cls.__new__(cls)
        recorder._begin(None, fd, 0.01, "auto", 0.1, None)
        return recorder

    def _begin(
        self,
        sources: Source | Iterable[Source] | None,
        fd: int | None,
        interval: float,
        method: str,
        connection_interval: float,
        path: str | os.PathLike[str] | None,
    ) -> None:
        self._closed = True
        self._owner = os.getpid()
        # Of what has been taken from the sampler: live() reads it as well.
        self._taking = threading.RLock()
        self._live: _live.Live | None = None
        wanted = check_sources(sources, "record")
        _check_interval("interval", interval)
        _check_interval("connection_interval", connection_interval)
        self._path = None if path is None else _files.check(path, self._streams_to)
        if self._path is not None:
            # Now rather than while the recording runs: pyarrow may not be installed.
            from . import _writer
        _check_method(method, wanted)
        self._asked = method
        surroundings = _metadata.surroundings()
        try:
            with _interrupts.put_off():
                self._sampler = _core.Sampler(
                    None if wanted is None else [native(source) for source in wanted],
                    fd,
                    float(interval),
                    float(connection_interval),
                    method,
                    sys.maxsize if self._path is None else _writer.ROOM,
                )
                metadata = {
                    **surroundings,
                    "namespaces": _metadata.namespaces(self._sampler),
                    "interval": float(interval),
                    "connection_interval": float(connection_interval),
                }
                self._writer: _writer.Writer | None = None
                self._read_back: Recording | None = None
                try:
                    if self._path is not None:
                        known = {**metadata, **_metadata.choice(self._sampler, method)}
                        self._writer = _writer.Writer(self._path, self._sampler, known)
                        samples = connections = _nothing()
                    else:
                        samples, connections = self._sampler.take_samples(), self._sampler.take_connections()
                    super().__init__(samples, connections, [], metadata)
                except BaseException:
                    self._sampler.stop()
                    raise
                self._closed = False
        except BaseException:
            # It may have been started already when SIGINT came.
            self.close()
            raise

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

    def close(self) -> None:
        """Read everything once more and end the recording, which keeps its rows. Calling it again has no effect.

        Raises OSError if the file of ``path`` could not be written. In a forked child it does nothing: the recording
        belongs to the parent, and what it has recorded cannot be read there until it is closed (OSError, EBADF).
        """
        if self._closed or self._owner != os.getpid():
            return
        with _interrupts.put_off():
            self._closed = True
            # Before a lab around the recording is closed.
            self._links = _metadata.links()
            self._sampler.stop()
            self._metadata["realtime_offset_end_ns"] = _core.realtime_offset_ns()
            if self._writer is not None:
                # It has written the subflows as they appeared.
                self._writer.end({name: value for name, value in self.metadata.items() if name != "subflows"})
        live, self._live = self._live, None
        if live is not None:
            live.end()

    def live(self, *, interval: float = 0.5, seconds: float = 30.0) -> None:
        """Show goodput and round-trip time by subflow in a notebook while the recording runs, and return at once.

        The figure has the last ``seconds`` and is drawn again ``interval`` seconds after the last time, from 0.1 on;
        when the recording ends it is replaced by one of all of it. It is drawn in a Python thread: the threads that
        record are native and do not wait for it, but it uses the processor time of one figure each time. What that
        costs a recording is in docs/measuring.md.

        Raises RuntimeError outside of a notebook and for a recording that has ended, ValueError for other numbers, and
        ModuleNotFoundError without matplotlib or IPython. Not for a recording with ``path`` (ValueError), which would
        be read back each time. Needs no privilege.
        """
        if not (0.1 <= interval <= _LONGEST and 0 < seconds < math.inf):
            raise ValueError(
                f"interval must be from 0.1 to {_LONGEST:g} seconds and seconds above 0, not {interval} and {seconds}"
            )
        if self._path is not None:
            raise ValueError("live() cannot show a recording with path: record without it, and save() at the end")
        if self._closed:
            raise RuntimeError("live() is for a recording that is running, and this one has ended: use plot()")
        import matplotlib.figure  # noqa: F401  # now rather than in the thread
        from IPython.core.getipython import get_ipython

        if get_ipython() is None:
            raise RuntimeError("live() needs a notebook: elsewhere use plot(), or mptcp watch in a shell")
        if self._live is None:
            from . import _live

            self._live = _live.Live(self, float(interval), float(seconds))

    def _describe_labs(self) -> None:
        """Put the labs that are open into the metadata, as they are now rather than at the start."""
        if not self._closed:
            self._metadata["labs"] = _topologies.topologies()

    @property
    def _readable(self) -> _core.Sampler:
        """The native recording, to read from."""
        # Its threads may have held its locks when this process was forked.
        if not self._closed and self._owner != os.getpid():
            raise OSError(
                errno.EBADF,
                "this recording belongs to the process that started it, not to its forked children: "
                "a forked child can read one that was closed, or its file",
            )
        return self._sampler

    @property
    def samples(self) -> Rows:
        if self._path is not None:
            return self._from_file().samples
        sampler = self._readable
        with self._taking:
            self._samples = _joined(self._samples, sampler.take_samples())
            return self._samples

    @property
    def connections(self) -> Rows:
        if self._path is not None:
            return self._from_file().connections
        sampler = self._readable
        with self._taking:
            self._connections = _joined(self._connections, sampler.take_connections())
            return self._connections

    def _from_file(self) -> Recording:
        """Return what has been streamed to the file; once it is complete, always the same object."""
        assert self._path is not None
        if self._read_back is not None:
            return self._read_back
        recording = load(self._path)
        if self._closed:
            self._read_back = recording
        return recording

    @property
    def events(self) -> list[Event]:
        if self._path is not None:
            return self._from_file().events
        sampler = self._readable
        with self._taking:
            self._events += sampler.take_events()
            return self._events

    @property
    def metadata(self) -> dict[str, Any]:
        status = self._readable.status()
        real_time = status.pop("real_time")
        return {
            **self._metadata,
            **_metadata.choice(self._sampler, self._asked),
            **status,
            "scheduler": "SCHED_FIFO" if real_time else "SCHED_OTHER",
            "links": self._links if self._closed else _metadata.links(),
            "subflows": _metadata.subflows(self._sampler),
        }


def _nothing() -> Rows:
    import numpy as np

    return np.empty(0, np.dtype([]))


def _joined(before: Rows, more: Rows) -> Rows:
    """Return the rows of both, in a new array unless one is empty."""
    import numpy as np

    if not len(more):
        return before
    return np.concatenate((before, more)) if len(before) else more


def _check_interval(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (math.isfinite(value) and _SHORTEST <= value <= _LONGEST):
        raise ValueError(f"{name} must be from {_SHORTEST:g} to {_LONGEST:g} seconds, not {value}")


def _check_method(method: object, sources: list[Source] | None) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, _METHODS))}, not {method!r}")
    if method == "full_info" and not (sources and all(isinstance(source, Socket) for source in sources)):
        raise ValueError("method='full_info' can only record Sockets: it reads through a descriptor")
