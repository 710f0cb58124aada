"""``Recorder.live()`` in a notebook's kernel, and what it costs the recording."""

from __future__ import annotations

import importlib.util

import mptcp
import pytest
from mptcp._recording import _live
from support import Connection, eventually

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")
HAS_NOTEBOOKS = all(importlib.util.find_spec(name) for name in ("IPython", "ipykernel", "nbclient", "nbformat"))
notebooks = pytest.mark.skipif(not HAS_NOTEBOOKS, reason="needs ipykernel and nbclient: pip install 'mptcp[notebooks]'")

CELL = """
import base64, time
import mptcp
from mptcp.lab import Transfer, two_paths

with two_paths() as (client, server, paths):
    with Transfer(client, server, paths) as transfer, mptcp.Recorder(transfer.sock) as rec:
        rec.live(interval=0.2)
        time.sleep(3)
"""


@notebooks
@pytest.mark.usefixtures("mptcp_lab")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_notebook_keeps_the_last_figure() -> None:
    import nbclient
    import nbformat

    cells = [nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell("len(rec.samples), rec.missed")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=90, kernel_name="python3").execute()
    shown = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert len(shown) == 1
    assert shown[0].data["image/png"].startswith("iVBOR")


def test_figures_of_a_running_recording_lose_no_row(connection: Connection) -> None:
    with mptcp.Recorder(connection.sock, 0.01) as rec:
        assert eventually(lambda: _live.drawn(rec, 30.0) is not None, 30)
        first = len(rec.samples)
        assert eventually(lambda: len(rec.samples) > first + 20, 30)
    picture = _live.drawn(rec, None)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    ticks = rec.samples["time_ns"]
    assert (ticks[1:] >= ticks[:-1]).all()


def test_outside_of_a_notebook_it_says_what_to_use(connection: Connection) -> None:
    pytest.importorskip("IPython", reason="needs IPython: pip install 'mptcp[live]'")
    with mptcp.Recorder(connection.sock) as rec:
        with pytest.raises(RuntimeError, match="needs a notebook"):
            rec.live()
        with pytest.raises(ValueError, match=r"interval must be from 0\.1"):
            rec.live(interval=0.01)
    with pytest.raises(RuntimeError, match="has ended"):
        rec.live()
