"""The thread that takes rows from the native sampler and writes them to a file."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from .. import _core
from . import _arrow, _files, _metadata

SECONDS = 0.1
"""Seconds between two batches: a kill loses no more than that."""

ROOM = 1 << 16
"""How many rows of each array may wait to be written: some 40 MB."""


class Writer:
    """Writes until end(). Reading never waits for it: rows that it cannot take in time are dropped and counted."""

    def __init__(self, path: Path, sampler: _core.Sampler, metadata: dict[str, Any]) -> None:
        self._sampler = sampler
        self._end = threading.Event()
        self._failure: BaseException | None = None
        self._subflows = 0
        samples, connections = sampler.take_samples(), sampler.take_connections()
        with contextlib.ExitStack() as stack:
            self._samples = stack.enter_context(_arrow.Stream(path, samples.dtype, metadata))
            beside = _arrow.Stream(_files.beside(path), connections.dtype, metadata)
            self._connections = stack.enter_context(beside)
            self._samples.write(samples, self._news())
            self._connections.write(connections)
            stack.pop_all()
        self._thread = threading.Thread(target=self._run, name="mptcp-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._end.wait(SECONDS):
                self._write()
        except BaseException as failure:
            self._failure = failure

    def _write(self, metadata: dict[str, Any] | None = None) -> None:
        self._samples.write(self._sampler.take_samples(), {**(metadata or {}), **self._news()})
        self._connections.write(self._sampler.take_connections(), metadata)

    def _news(self) -> dict[str, Any]:
        """Return the events and subflows since the last call."""
        subflows = _metadata.subflows(self._sampler, self._subflows)
        self._subflows += len(subflows)
        news = {"events": [_files.written(event) for event in self._sampler.take_events()], "subflows": subflows}
        return {name: found for name, found in news.items() if found}

    def end(self, metadata: dict[str, Any]) -> None:
        """Write the rest, and what is known only now. Raises what went wrong meanwhile, an OSError for instance."""
        self._end.set()
        self._thread.join()
        if self._failure is None:
            self._write(metadata)
            self._samples.close()
            self._connections.close()
            return
        for stream in (self._samples, self._connections):
            with contextlib.suppress(OSError):
                stream.close()
        raise self._failure
