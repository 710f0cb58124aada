"""Many subflows and many connections, and paths that die: what is drawn of them can be read."""

from __future__ import annotations

import contextlib

import mptcp
import numpy as np
import pytest
from mptcp.lab import Transfer, two_paths
from support import KERNEL, eventually

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")

from matplotlib.colors import to_hex
from mptcp.plot import _chart, _marks, _style


def legend(ax: object) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[attr-defined]


def test_the_rtt_of_a_dead_path_is_a_gap() -> None:
    with (
        two_paths(rate="20mbit", delay="5ms", names=("wifi", "lte")) as (client, server, (first, second)),
        Transfer(client, server, [first, second]) as transfer,
        mptcp.Recorder(transfer.sock) as near,
        mptcp.Recorder(transfer.peer) as far,
    ):
        assert eventually(lambda: transfer.received > 1 << 20, 30)
        first.down()
        dead = near.samples["time_ns"][-1]
        assert eventually(lambda: near.samples["time_ns"][-1] - dead > 2_000_000_000, 30)
        first.up()
    for recording, plot in ((near, mptcp.plot.rtt), (far, mptcp.plot.rcv_rtt)):
        chart = _chart.chart_of(recording, None)
        (number,) = [index for index, flow in enumerate(chart.flows) if flow.path == "wifi"]
        lines = plot(recording, events=False).lines
        start = recording.samples["time_ns"].min()
        # After what was in flight arrived, and before the first retransmission once the link is up.
        since, until = (dead - start) / 1e9 + 0.5, (dead - start) / 1e9 + 1.9
        for index in (number, 1 - number):
            time, values = (np.asarray(axis, dtype=float) for axis in lines[index].get_data())
            meanwhile = values[(time > since) & (time < until)]
            assert len(meanwhile) > 10
            assert np.isnan(meanwhile).all() == (index == number)
        rtt = recording.samples["rtt"][recording.samples["cookie"] == chart.flows[number].cookie]
        assert rtt[-1] > 0, "the kernel remembers it"


def test_sixty_replacements() -> None:
    """At either end: two paths are two series, and each mark has the colour of its subflow's path."""
    with (
        two_paths(rate=None, names=("wifi", "lte"), server_addresses=1) as (client, server, (first, second)),
        Transfer(client, server, [first]) as transfer,
        mptcp.Recorder(transfer.sock) as near,
        mptcp.Recorder(transfer.peer) as far,
    ):
        for number in range(60):
            # As a backup: data that follows a join may reset the subflow, see docs/kernel-bugs.md.
            backup = KERNEL > (6, 1)
            opened = transfer.sock.open_subflow(second.address(client), first.address(server), backup=backup)
            # Both recorders have seen it.
            assert eventually(lambda: all(len(set(rec.samples["cookie"])) == number + 2 for rec in (near, far)), 30)  # noqa: B023
            transfer.sock.close_subflow(opened)
            assert eventually(lambda: len(transfer.peer.subflows()) == 1, 30)
        token = transfer.peer.token
        wanted = {"SUB_ESTABLISHED", "SUB_CLOSED"}
        assert eventually(
            lambda: sum(event.kind.name in wanted for event in far.events if event.token == token) == 120, 30
        )
    for recording in (near, far):
        chart = _chart.chart_of(recording, None)
        assert [one.label for one in chart.series] == ["wifi", "lte (60 subflows)"]
        marks = [mark for mark in _marks.marks_of(chart.series, recording) if mark.kind in wanted]
        assert {mark.colour for mark in marks} == {chart.series[1].look.colour}
        assert len(marks) == 120
        ax = mptcp.plot.goodput(recording)
        assert legend(ax)[-2:] == ["SUB_ESTABLISHED", "SUB_CLOSED"]
        assert len(ax.collections) <= 8, "of two kinds in four rows"
        ax.figure.canvas.draw()


def test_two_hundred_connections() -> None:
    with contextlib.ExitStack() as stack:
        client, server, (first, _) = stack.enter_context(two_paths(rate=None, names=("wifi", "lte")))
        listener = stack.enter_context(server.create_server(("", 5000), backlog=256))
        connected = []
        for _ in range(200):
            sock = stack.enter_context(client.create_connection((first.address(server), 5000)))
            peer = stack.enter_context(listener.accept()[0])
            connected.append((sock, peer))
        with mptcp.Recorder([sock for sock, _ in connected], 0.05) as rec:
            for number, (sock, peer) in enumerate(connected):
                sock.sendall(bytes(1000 + number))
                peer.recv(2000)
            ticks = len(np.unique(rec.samples["time_ns"]))
            assert eventually(lambda: len(np.unique(rec.samples["time_ns"])) > ticks + 2, 30)
    figure = rec.plot()
    goodput, rtt, cwnd, share = figure.axes
    assert legend(goodput)[0] == "wifi (200 subflows)"
    assert share.get_ylabel() == "200 connections"
    assert len(share.patches) == 1
    assert [len(ax.lines) for ax in (rtt, cwnd)] == [1, 1]
    assert to_hex(rtt.lines[0].get_color()) == _style.LOOKS[0].colour.lower()
    assert figure.get_figheight() < 7
    figure.canvas.draw()
