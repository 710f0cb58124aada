"""``mptcp policy --verbose``: each decision of a policy and its outcome, on a line."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator

from mptcp.cli._show import as_json, printable

_LOGGER = logging.getLogger("mptcp.policy")

# Lines that wait for a reader. More are counted, and left out.
_MOST = 10_000


@contextlib.contextmanager
def shown(*, as_json: bool) -> Iterator[None]:
    """Write the decisions of policies that start in the block to standard output."""
    handler, level = _Output(as_json), _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    others = [one for one in logging.getLogger().handlers if one.level < logging.WARNING]
    for one in others:
        # What is logged besides goes where it went before, and decisions do not.
        one.addFilter(_is_no_decision)
    try:
        yield
    finally:
        for one in others:
            one.removeFilter(_is_no_decision)
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)
        handler.close()


def _is_no_decision(record: logging.LogRecord) -> bool:
    return not hasattr(record, "decision")


class _Output(logging.Handler):
    """Writes from a thread of its own: a reader that is slow, or stops, does not hold up the policies."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="mptcp-decisions", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        decision = getattr(record, "decision", None)
        if decision is None:
            return
        if self._lines.qsize() >= _MOST:
            self._left_out += 1
            return
        if self._left_out:
            self._lines.put(self._text({"left_out": self._left_out}, f"{self._left_out} decisions are left out here"))
            self._left_out = 0
        self._lines.put(self._text(decision, record.getMessage()))

    def _text(self, decision: dict[str, object], words: str) -> str:
        return as_json(decision) if self._as_json else printable(words)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            rest = f"{line}\n".encode(errors="backslashreplace")
            try:
                # Whole lines, whatever else writes there.
                while rest:
                    rest = rest[os.write(sys.stdout.fileno(), rest) :]
            except OSError:
                return  # nobody reads any more, and the policies go on

    def close(self) -> None:
        self._lines.put(None)
        self._thread.join(2)
        super().close()
