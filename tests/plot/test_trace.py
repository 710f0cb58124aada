"""Plots of a trace: each point is a segment, on the time axis of a recording of the same transfer."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import mptcp
import numpy as np
import pytest
from mptcp.lab import Transfer, two_paths
from support import eventually

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch


class Both:
    """A trace of a transfer over two links, of which one fails for a while, and the sender's recording."""

    def __init__(self, folder: Path) -> None:
        files = [folder / "wifi.pcapng", folder / "lte.pcapng"]
        with two_paths(rate="8mbit", delay="5ms", names=("wifi", "lte")) as (client, server, links):
            with contextlib.ExitStack() as stack:
                for link, file in zip(links, files, strict=True):
                    stack.enter_context(link.capture(file, host="both"))
                with Transfer(client, server, links) as transfer, mptcp.Recorder(transfer.sock) as rec:
                    self.token = transfer.sock.token
                    assert eventually(lambda: transfer.received > 1 << 19, 30)
                    links[0].down()
                    # The kernel considers the subflow stale after some retransmissions, and reinjects its data.
                    failed = transfer.received
                    assert eventually(lambda: transfer.received > failed + (1 << 20), 60)
                    links[0].up()
            self.recording = mptcp.Recording(rec.samples, rec.connections, rec.events, rec.metadata)
        self.trace = mptcp.read_trace(*files)

    def rows(self, direction: int = 0) -> Any:
        packets = self.trace.packets
        return packets[packets["direction"] == direction]

    def seconds(self, times: Any) -> Any:
        return (times - self.trace.connections["start_ns"][0]) / 1e9


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("captures"))


def points(ax: Any, marker: str) -> set[tuple[float, float]]:
    """What is drawn with this marker, without the legend's."""
    lines = [line for line in ax.lines if line.get_marker() == marker]
    return {pair for line in lines for pair in zip(*map(np.ravel, line.get_data()), strict=True)}


def test_sequence(both: Both) -> None:
    ax = mptcp.plot.sequence(both.trace)
    rows = both.rows()
    new = ~(rows["retransmitted"] | rows["reinjected"])
    assert rows["reinjected"].any(), "the link's failure"
    assert ax.get_ylabel() == "Data sequence\n(MB)"
    for marker, which in ((".", new), ("+", rows["retransmitted"]), ("x", rows["reinjected"])):
        chosen = rows[which]
        expected = set(zip(both.seconds(chosen["time_ns"]), (chosen["dsn"] + chosen["length"]) / 1e6, strict=True))
        drawn = points(ax, marker)
        # Of points at one place, one is drawn.
        assert drawn <= expected
        assert len(drawn) >= min(len(expected), 1000) / 2
    (acked,) = (line for line in ax.lines if line.get_label() == "DATA_ACK")
    assert np.asarray(acked.get_ydata())[-1] * 1e6 == pytest.approx(rows["dsn"].max() + rows["length"][-1], rel=0.01)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:3] == ["10.0.1.1", "10.0.2.1", "DATA_ACK"]
    assert {"reinjected", "MP_CAPABLE", "MP_JOIN"} <= set(labels)


def test_flight_is_what_no_data_ack_covers(both: Both) -> None:
    ax = mptcp.plot.flight(both.trace, events=False)
    factor = {"kB": 1e3, "MB": 1e6}[ax.get_ylabel().split("(")[1][:-1]]
    rows = both.rows()
    rows = rows[~rows["retransmitted"]]
    for number, line in enumerate(ax.lines):
        own = rows[rows["subflow"] == number]
        sent, acked = both.seconds(own["time_ns"]), both.seconds(own["data_acked_ns"])
        acked[own["data_acked_ns"] < 0] = np.inf
        changes = np.sort(np.concatenate((sent, acked)))
        highest = max(own["length"][(sent <= time) & (acked > time)].sum() for time in changes[::7])
        values = np.asarray(line.get_ydata())
        assert values.min() >= 0
        # A piece's median, or the value itself.
        assert values.max() * factor == pytest.approx(highest, rel=0.2)
        assert values[-1] * factor < 0.2 * highest, "at the end all was acknowledged"


def test_delay_and_reordering(both: Both) -> None:
    ax = mptcp.plot.delay(both.trace, events=False)
    assert ax.get_ylabel() == "Until delivered\n(ms)"
    rows = both.rows()
    new = rows[~(rows["retransmitted"] | rows["reinjected"])]
    expected = {
        (float(time), float(took))
        for time, took in zip(
            both.seconds(new["time_ns"]),
            1e3 * (both.seconds(new["data_delivered_ns"]) - both.seconds(new["time_ns"])),
            strict=True,
        )
    }
    drawn = np.array(sorted(points(ax, ".")))
    wanted = np.array(sorted(expected))
    nearest = np.searchsorted(wanted[:, 0], drawn[:, 0])
    np.testing.assert_allclose(drawn[:, 0], wanted[np.clip(nearest, 0, len(wanted) - 1), 0], atol=1e-6)
    assert drawn[:, 1].min() >= 5, "the link's delay"
    assert drawn[:, 1].max() == pytest.approx(wanted[:, 1].max(), rel=0.01)

    ax = mptcp.plot.reordering(both.trace)
    for number, line in enumerate(ax.lines):
        own = rows[rows["subflow"] == number]
        waited = own["data_delivered_ns"] - own["received_ns"]
        waited = waited[(own["data_delivered_ns"] >= 0) & (own["received_ns"] >= 0) & (waited >= 0)]
        x, y = (np.asarray(axis) for axis in line.get_data())
        at = float(np.interp(1.0, x, y))
        assert at == pytest.approx((waited <= 1_000_000).mean(), abs=0.02)
        assert y[-1] == 1


def test_on_the_time_axis_of_a_recording(both: Both) -> None:
    figure, axes = plt.subplots(4, layout="constrained")
    mptcp.plot.goodput(both.recording, ax=axes[0])
    for draw, ax in zip((mptcp.plot.sequence, mptcp.plot.flight, mptcp.plot.delay), axes[1:], strict=True):
        draw(both.trace, ax=ax, recording=both.recording)
    assert len({ax.get_xlim() for ax in axes}) == 1
    areas = [patch for patch in axes[0].patches if isinstance(patch, StepPatch)]
    wanted = {patch.get_label(): to_hex(patch.get_facecolor()) for patch in areas}
    assert set(wanted) == {"wifi", "lte"}
    for ax in axes[1:]:
        assert {line.get_label(): to_hex(line.get_color()) for line in ax.lines if line.get_label() in wanted} == wanted
    drawn = min(points(axes[1], ".") | points(axes[1], "x") | points(axes[1], "+"))
    start = both.recording.samples["time_ns"].min() + both.recording.metadata["realtime_offset_ns"]
    times = both.rows()["time_ns"]
    assert drawn[0] == pytest.approx((times[times >= start].min() - start) / 1e9, abs=1e-6)
    # When half of the bytes had been sent, the kernel's counters and the capture agree.
    rows = both.recording.samples[~both.recording.samples["final"]]
    ticks = np.unique(rows["time_ns"])
    counted = sum(
        np.interp(ticks, *(rows[rows["cookie"] == cookie][name] for name in ("time_ns", "bytes_sent")))
        for cookie in np.unique(rows["cookie"])
    )
    captured = np.cumsum(both.rows()["length"])
    half = counted[-1] / 2
    by_counters = (ticks[np.searchsorted(counted, half)] - ticks[0]) / 1e9
    by_capture = (both.rows()["time_ns"][np.searchsorted(captured, half)] - start) / 1e9
    assert by_capture == pytest.approx(by_counters, abs=0.3)
    figure.canvas.draw()


def test_a_large_trace_is_small_and_keeps_its_shape(both: Both) -> None:
    rows = both.trace.packets
    times = -(-150_000 // len(rows))
    many = np.tile(rows, times)
    number = np.repeat(np.arange(times), len(rows))
    for name in ("time_ns", "data_acked_ns", "data_delivered_ns", "received_ns"):
        many[name] += np.where(many[name] >= 0, number * 10_000_000_000, 0)
    many["dsn"] += number * (rows["dsn"].max() + 1500)
    connections = both.trace.connections.copy()
    trace = mptcp.Trace(many, connections, both.trace.subflows, both.trace.events, both.trace.metadata)
    ax = mptcp.plot.sequence(trace, events=False)
    drawn = np.array(sorted(points(ax, ".")))
    assert 1000 < len(drawn) < 60_000
    assert drawn[-1, 0] == pytest.approx(10 * times, rel=0.1)
    assert drawn[-1, 1] == pytest.approx(drawn[:, 1].max(), rel=0.01)
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="pdf")
    assert len(buffer.getvalue()) < 400_000
    for plot in (mptcp.plot.flight, mptcp.plot.delay, mptcp.plot.reordering):
        buffer = io.BytesIO()
        plot(trace).figure.savefig(buffer, format="pdf")
        assert len(buffer.getvalue()) < 400_000


def test_a_period(both: Both) -> None:
    rows = both.rows()
    begin, end = (float(both.seconds(rows["time_ns"][len(rows) * part // 4])) for part in (1, 2))
    within = rows[(both.seconds(rows["time_ns"]) >= begin) & (both.seconds(rows["time_ns"]) <= end)]
    ax = mptcp.plot.sequence(both.trace, period=(begin, end))
    assert ax.get_xlim() == (begin, end)
    drawn = points(ax, ".") | points(ax, "+") | points(ax, "x")
    times = [time for time, _ in drawn]
    assert begin <= min(times) < max(times) <= end
    assert len(drawn) > min(1000, len(within)) / 2
    # What was in flight before counts.
    whole, part = (mptcp.plot.flight(both.trace, period=period) for period in (None, (begin, end)))
    for one, other in zip(whole.lines[:2], part.lines[:2], strict=True):
        assert float(np.interp(begin, *one.get_data())) == pytest.approx(float(other.get_ydata()[0]), rel=0.5, abs=30)
    with pytest.raises(ValueError, match="period"):
        mptcp.plot.delay(both.trace, period=(2, 1))


def test_wrong_arguments(both: Both) -> None:
    token = int(both.trace.connections["token"][0])
    peer = int(both.trace.connections["peer_token"][0])
    assert token == both.token
    assert mptcp.plot.flight(both.trace, token=peer).lines
    for plot in (mptcp.plot.sequence, mptcp.plot.flight, mptcp.plot.delay, mptcp.plot.reordering):
        with pytest.raises(ValueError, match="no connection 7"):
            plot(both.trace, token=7)
        with pytest.raises(ValueError, match="direction must be 0 or 1"):
            plot(both.trace, direction="sent")  # type: ignore[arg-type]
    nothing = mptcp.Trace(both.trace.packets[:0], both.trace.connections, both.trace.subflows, [], {})
    with pytest.raises(ValueError, match="no data of connection"):
        mptcp.plot.sequence(nothing)
    rows = both.trace.packets.copy()
    rows["received_ns"] = rows["data_delivered_ns"] = -1
    no_receiver = mptcp.Trace(rows, both.trace.connections, both.trace.subflows, [], {})
    with pytest.raises(ValueError, match="no capture at the receiver"):
        mptcp.plot.reordering(no_receiver)
    assert mptcp.plot.delay(no_receiver).get_ylabel() == "Until DATA_ACK\n(ms)"
