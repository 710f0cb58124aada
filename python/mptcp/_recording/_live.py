"""A figure of a recording that is running, in a notebook."""

from __future__ import annotations

import io
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._recording import Recording

_SIZE = (7.0, 4.5)
_DPI = 90


class Live:
    """Draws goodput and round-trip time by subflow, again and again, from a thread of its own.

    The recording's own threads are native and wait for nobody; this one reads what they have left, at most
    ``interval`` seconds after the last figure was done.
    """

    def __init__(self, recorder: Recording, interval: float, seconds: float) -> None:
        from IPython import display as notebook

        self._notebook: Any = notebook
        self._recorder = recorder
        self._interval, self._seconds = interval, seconds
        self._ended = threading.Event()
        # Something to be replaced by the first figure.
        self._handle: Any = self._notebook.display({"text/plain": "waiting for data"}, raw=True, display_id=True)
        self._thread = threading.Thread(target=self._run, name="mptcp-live", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Show the whole recording as the last figure."""
        self._ended.set()
        self._thread.join()
        self._show(None)

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._show(self._seconds)

    def _show(self, seconds: float | None) -> None:
        data = drawn(self._recorder, seconds)
        if data is not None:
            self._handle.update(self._notebook.Image(data=data))


def drawn(recorder: Recording, seconds: float | None) -> bytes | None:
    """Return a figure of the last seconds, or of all, as a PNG; None as long as there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .. import plot
    from ._recording import Recording

    samples = recorder.samples
    if seconds is not None:
        samples = samples[samples["time_ns"] >= time.monotonic_ns() - round(seconds * 1e9)]
    if len(samples) < 2 or samples["time_ns"][0] == samples["time_ns"][-1]:
        return None
    events = [event for event in recorder.events if event.time_ns >= samples["time_ns"][0]]
    part = Recording(samples, recorder.connections, events, recorder.metadata)
    # Not one of pyplot's figures, which belong to the thread that runs the cells.
    figure = Figure(figsize=_SIZE, layout="constrained")
    goodput, rtt = figure.subplots(2, sharex=True)
    plot.goodput(part, ax=goodput)
    plot.rtt(part, ax=rtt)
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
