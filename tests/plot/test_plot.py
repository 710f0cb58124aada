"""Plots: what is drawn is what the arrays and mptcp.measures say, and `mptcp plot` writes images of it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
import pytest
from mptcp import cli, measures
from mptcp.cli import plot as command
from mptcp.lab import Transfer, record_transfer, two_paths
from mptcp.plot import _panels
from support import eventually

matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.collections import PolyCollection  # noqa: E402
from matplotlib.patches import StepPatch  # noqa: E402

PANELS = ("goodput", "rtt", "cwnd", "share", "rcv_rtt", "rcv_wnd", "rtt_cdf", "rtt_ccdf")


def cookies(recording: mptcp.Recording) -> list[int]:
    """In the order in which they appear, which is that of the plots here."""
    found, first = np.unique(recording.samples["cookie"], return_index=True)
    return [int(cookie) for cookie in found[np.argsort(first)]]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_goodput_is_the_measure_stacked(recording: mptcp.Recording) -> None:
    ax = mptcp.plot.goodput(recording, window=0.25)
    times, rates = measures.goodput(recording.samples, window=0.25, direction="sent")
    layers = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    drawn = [layer.get_data() for layer in layers]
    whole = int(np.ptp(recording.samples["time_ns"]) / 0.25e9)
    for cookie, (top, edges, bottom) in zip(cookies(recording), drawn, strict=True):
        np.testing.assert_allclose((top - bottom) * 1e6, rates[cookie][:whole], atol=1)
        np.testing.assert_allclose(edges[1:], times[:whole] - recording.samples["time_ns"].min() / 1e9, atol=1e-6)
    np.testing.assert_array_equal(drawn[1][2], drawn[0][0])
    assert ax.get_ylabel() == "Goodput (Mbit/s)"
    assert legend(ax)[:2] == ["10.0.1.1", "10.0.2.1"]
    # The area is the bytes.
    rows = recording.samples[recording.samples["cookie"] == cookies(recording)[1]]
    end = recording.samples["time_ns"].min() + whole * 250_000_000
    carried = np.interp(end, rows["time_ns"], rows["bytes_acked"])  # it began during the recording
    assert (drawn[1][0] - drawn[1][2]).sum() * 0.25e6 / 8 == pytest.approx(carried, rel=1e-3)


def test_lines_are_the_fields(recording: mptcp.Recording) -> None:
    for plot, name, unit in ((mptcp.plot.rtt, "rtt", 1000), (mptcp.plot.cwnd, "snd_cwnd", 1)):
        ax = plot(recording, events=False)
        start = recording.samples["time_ns"].min()
        for cookie, line in zip(cookies(recording), ax.lines, strict=True):
            rows = recording.samples[(recording.samples["cookie"] == cookie)]
            expected = rows[name] / unit
            expected[rows["final"] | ((name == "rtt") & (rows["rtt"] == 0))] = np.nan
            np.testing.assert_allclose(line.get_xdata(), (rows["time_ns"] - start) / 1e9, atol=1e-9)
            # A busy machine may acknowledge nothing for longer than a retransmission timeout: a gap in the RTT alone.
            silent = np.isnan(line.get_ydata()) & (np.diff(rows["bytes_acked"], prepend=-1) <= 0) & (name == "rtt")
            expected[silent] = np.nan
            np.testing.assert_allclose(line.get_ydata(), expected)


def test_share_is_the_measure(recording: mptcp.Recording) -> None:
    ax = mptcp.plot.share(recording)
    share = measures.share(recording.samples, direction="sent")
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths, [100 * share[cookie] for cookie in cookies(recording)])
    assert [text.get_text() for text in ax.texts] == [f"{width:.1f} %" for width in widths]


@pytest.mark.parametrize("end", ["recording", "receivers"])
def test_events_are_marked_at_their_time(request: pytest.FixtureRequest, end: str) -> None:
    recorded = request.getfixturevalue(end)
    ax = mptcp.plot.goodput(recorded)
    kinds = ["SUB_ESTABLISHED", "SUB_CLOSED"]
    assert legend(ax)[2:] == kinds
    start = recorded.samples["time_ns"].min()
    times = {event.kind.name: (event.time_ns - start) / 1e9 for event in recorded.events}
    drawn = [float(points.get_offsets()[0][0]) for points in ax.collections]
    assert drawn == pytest.approx([times[kind] for kind in kinds])
    colours = [matplotlib.colors.to_hex(points.get_facecolor()[0]) for points in ax.collections]
    areas = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in ax.patches if isinstance(patch, StepPatch)]
    # The second was established, and the first was closed. At the receiver both have the same local port.
    assert colours == [areas[1], areas[0]]
    assert not mptcp.plot.goodput(recorded, events=False).collections


def changed(recording: mptcp.Recording, **fields: Any) -> mptcp.Recording:
    """The same with other values in some fields."""
    rows = recording.samples.copy()
    for name, value in fields.items():
        rows[name] = value
    return mptcp.Recording(rows, recording.connections, [], recording.metadata)


def test_what_is_missing_or_infinite_is_a_gap(recording: mptcp.Recording) -> None:
    rows = recording.samples
    threshold = np.where(np.arange(len(rows)) % 2 == 0, np.inf, 20.0)
    ax = mptcp.plot.cwnd(changed(recording, snd_ssthresh=threshold), ssthresh=True)
    thin = [line for line in ax.lines if line.get_linewidth() == 0.5]
    assert len(thin) == 2
    for line in thin:
        values = np.asarray(line.get_ydata(), dtype=float)
        assert np.isnan(values).any()
        assert set(values[~np.isnan(values)]) == {20.0}
    ax.figure.canvas.draw()


def test_many_samples_are_a_median_and_a_band(recording: mptcp.Recording) -> None:
    rows = np.repeat(recording.samples[recording.samples["subflow"] == 1][:1], 10_000)
    rows["time_ns"] += np.arange(10_000) * 1_000_000
    rows["rtt"] = 1000 + np.arange(10_000) % 20
    rows["bytes_acked"] += np.arange(10_000)
    ax = mptcp.plot.rtt(mptcp.Recording(rows, recording.connections, [], recording.metadata))
    (line,), (band,) = ax.lines, ax.collections
    assert len(line.get_xdata()) == 500
    np.testing.assert_allclose(line.get_ydata(), 1.0095, atol=1e-3)  # a piece may have one more or less
    assert isinstance(band, PolyCollection)
    assert band.get_datalim(ax.transData).get_points()[:, 1].tolist() == pytest.approx([1.0, 1.019])


def test_of_many_subflows_the_smallest_are_grey(recording: mptcp.Recording) -> None:
    one = recording.samples[recording.samples["subflow"] == 1]
    parts = []
    for number in range(10):
        rows = one.copy()
        rows["cookie"], rows["subflow"] = number + 1, number + 1
        rows["bytes_acked"] = (rows["bytes_acked"] - rows["bytes_acked"][0]) * (number + 1)
        parts.append(rows)
    many = mptcp.Recording(np.concatenate(parts), recording.connections, [], {})
    ax = mptcp.plot.goodput(many, direction="sent")
    assert legend(ax) == [*(f"subflow {number}" for number in range(4, 11)), "3 others"]
    layers = [patch.get_data() for patch in ax.patches]
    unit = ax.get_ylabel()[9:-1]
    total = sum(measures.goodput(many.samples, window=layers[0].edges[1])[1].values())[: len(layers[0].values)]
    np.testing.assert_allclose(layers[-1].values * {"Mbit/s": 1e6, "Gbit/s": 1e9}[unit], total, rtol=1e-6)
    assert len(mptcp.plot.rtt(many).lines) == 8


def test_several_connections() -> None:
    with (
        two_paths() as (client, server, paths),
        Transfer(client, server, paths) as one,
        Transfer(client, server, paths[:1], port=5001) as other,
    ):
        transfers = one, other
        with mptcp.Recorder([one.sock, other.sock]) as rec:
            assert eventually(lambda: min(each.received for each in transfers) > 1 << 20, 30)
        token = other.sock.token
        ports = {subflow.local[1] for each in transfers for subflow in each.sock.subflows()[:1]}
    ax = mptcp.plot.share(rec)
    assert [label.get_text() for label in ax.get_yticklabels()].count(str(token)) == 1
    sums = {}
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        sums[row] = sums.get(row, 0) + bar.get_width()
    assert list(sums.values()) == pytest.approx([100, 100])
    # Both go from the same address, so the ports tell them apart.
    assert sorted(legend(ax)) == sorted([*(f"10.0.1.1:{port}" for port in ports), "10.0.2.1"])
    assert len(mptcp.plot.rtt(rec, token=token, events=False).lines) == 1


def test_panels(recording: mptcp.Recording) -> None:
    figure = recording.plot()
    titles = [ax.get_ylabel() or ax.get_xlabel() for ax in figure.axes]
    assert titles == ["Goodput (Mbit/s)", "RTT (ms)", "Congestion window\n(segments)", "Share of bytes sent (%)"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2] == ["10.0.1.1", "10.0.2.1"]
    assert not any(ax.get_legend() for ax in figure.axes[1:])
    assert len({ax.get_xlim() for ax in figure.axes[:3]}) == 1
    assert len(recording.plot("rtt", size=(3, 2)).axes) == 1
    assert plt.gcf().get_size_inches().tolist() == [3, 2]


def test_a_receiver_has_other_panels(receivers: mptcp.Recording) -> None:
    titles = [ax.get_ylabel() or ax.get_xlabel() for ax in receivers.plot().axes]
    window = "Receive window\n(MB)"
    assert [title for title in titles if title != window] == [
        "Goodput (Mbit/s)",
        "Receiver's\nRTT (ms)",
        "Share of bytes received (%)",
    ]
    # Linux 6.2 and later have it.
    assert (window in titles) == bool(np.isfinite(receivers.samples["rcv_wnd"]).any())


def test_on_given_axes(recording: mptcp.Recording) -> None:
    _, axes = plt.subplots(len(PANELS))
    for name, ax in zip(PANELS, axes, strict=True):
        assert getattr(mptcp.plot, name)(recording, ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_wrong_arguments(recording: mptcp.Recording) -> None:
    for wrong in ({"panels": ()}, {"panels": "rtts"}, {"panels": ("rtt", "rtt")}, {"window": 0}, {"direction": "up"}):
        with pytest.raises(ValueError, match=r"panels|window|direction"):
            recording.plot(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no samples of connection 7"):
        mptcp.plot.rtt(recording, token=7)
    empty = mptcp.Recording(recording.samples[:0], recording.connections[:0], [], {})
    for name in PANELS:
        with pytest.raises(ValueError, match="no samples"):
            getattr(mptcp.plot, name)(empty)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")], ids=["png", "pdf", "svg"]
)
def test_command(recording: mptcp.Recording, tmp_path: Path, suffix: str, magic: bytes) -> None:
    recording.save(tmp_path / "run.npz")
    image = tmp_path / f"run{suffix}"
    assert cli.main(["plot", str(tmp_path / "run.npz"), "-o", str(image)]) == 0
    content = image.read_bytes()
    assert content.startswith(magic)
    if suffix == ".svg":
        # Text that stays text, so that it can be searched and changed.
        assert set(re.findall(rb">(10\.0\.\d\.1|RTT \(ms\))<", content)) == {b"10.0.1.1", b"10.0.2.1", b"RTT (ms)"}


def test_command_knows_every_panel() -> None:
    assert command._PANELS == _panels.PANELS


def test_command_options(recording: mptcp.Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording.save(tmp_path / "run.npz")
    file, image = str(tmp_path / "run.npz"), str(tmp_path / "a.png")
    assert cli.main(["plot", file, "-o", image, "--panels", "rtt", "--size", "4x2", "--dpi", "100", "--no-events"]) == 0
    assert plt.imread(image).shape[:2] == (200, 400)
    for wrong, complaint in (
        (["plot", file, "-o", str(tmp_path / "a.xyz")], "xyz"),
        (["plot", file, "-o", image, "--token", "7"], "no samples of connection 7"),
        (["plot", str(tmp_path / "no.npz"), "-o", image], "No such file"),
        (["plot", str(tmp_path / "no.txt"), "-o", image], "suffix"),
        (["plot", file, "-o", image, "--window", "0"], "window"),
    ):
        assert cli.main(wrong) == 1
        assert re.fullmatch(rf"mptcp plot: .*{complaint}.*\n", capsys.readouterr().err)
    for usage in (["--size", "4"], ["--size", "0x1"], ["--panels", "all"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["plot", file, "-o", image, *usage])
        assert ended.value.code == 2


def test_import_is_late() -> None:
    program = (
        "import sys, mptcp\n"
        "assert not {'matplotlib', 'numpy', 'html'} & set(sys.modules)\n"
        "mptcp.plot.goodput\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


# Tables


def test_tables(recording: mptcp.Recording) -> None:
    with two_paths() as (client, server, paths), Transfer(client, server, paths) as transfer:
        subflows = transfer.sock.subflows()
        assert isinstance(subflows, list)
        table = subflows._repr_html_()  # type: ignore[attr-defined]
        assert table.count("<tr>") == 3
        for subflow in subflows:
            assert f"<td>{subflow.local[0]}:{subflow.local[1]}</td>" in table
        listed = client.connections()
        assert f"<td>{transfer.sock.token}</td>" in listed._repr_html_()  # type: ignore[attr-defined]
        (connection,) = listed
        shown = connection._repr_html_()
        assert f"Connection {transfer.sock.token}," in shown
        assert shown.count("<tr>") == 3
        with mptcp.Recorder(connection) as rec:
            assert f"{transfer.sock.token}" not in rec._repr_html_()
    assert eventually(lambda: "<td>" in connection._repr_html_())
    assert f"{len(recording.samples):,} of 2 subflows of 1 connections" in recording._repr_html_()


# The lab's transfers, which the recordings are of


def test_transfer_ends_with_every_byte() -> None:
    with two_paths() as (client, server, paths):
        with Transfer(client, server, paths) as transfer:
            assert [subflow.local[0] for subflow in transfer.sock.subflows()] == ["10.0.1.1", "10.0.2.1"]
            assert eventually(lambda: transfer.received > 1 << 20, 20)
            sock = transfer.sock
            duplicate = sock.dup()
        with duplicate:
            # None where this kernel has no such counter.
            assert duplicate.info().bytes_sent in (None, transfer.received + 1)
        assert (sock.fileno(), transfer.peer.fileno()) == (-1, -1)


def test_transfer_that_fails() -> None:
    with two_paths() as (client, server, paths):
        with pytest.raises(ValueError, match="must be links between"):
            Transfer(client, server, [])
        with pytest.raises(RuntimeError, match="of the block"), Transfer(client, server, paths) as transfer:
            raise RuntimeError("of the block")
        assert transfer.sock.fileno() == -1
        # Of the transfer itself: it has no way left to send, and has noticed when the block ends.
        broken = Transfer(client, server, paths, port=5001)
        broken.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError), broken:
            assert eventually(lambda: broken._running[0].done(), 30)


def test_record_transfer() -> None:
    recording = record_transfer([{"rate": "20mbit"}, {"rate": "10mbit", "queue": "50ms"}], 1, interval=0.02, seed=5)
    assert not isinstance(recording, mptcp.Recorder)
    assert recording.metadata["interval"] == 0.02
    (lab,) = recording.metadata["labs"]
    assert lab["seed"] == 5
    assert [(link["rate"], link["queue"]) for link in lab["links"]] == [(20_000_000, 250_000), (10_000_000, 62_500)]
    assert sorted(entry["local"][0] for entry in recording.metadata["subflows"]) == ["10.0.1.1", "10.0.2.1"]
    assert recording.samples["bytes_acked"].max() > 0
    with pytest.raises(ValueError, match="must be links"):
        record_transfer([])
