"""Record transfers in labs, draw them, and write docs/gallery.md with its pictures.

    .venv/bin/python docs/gallery.py [NAME]...

It takes two minutes, without root. With names, only these pictures are made anew. Each is drawn at 6 inches in colour
and at 3.4 inches, the width of a paper's column, in grey.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import selectors
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import mptcp
from mptcp import plot
from mptcp.lab import Host, Lab, Link, Transfer
from mptcp.plot import _style
from PIL import Image

PAGE = Path(__file__).parent / "gallery.md"
PICTURES = Path(__file__).parent / "gallery"
COLUMN = 3.4
_DPI = 110
_COLOURS = 48  # in a picture's palette

WIFI: dict[str, Any] = {"name": "wifi", "rate": "20mbit", "delay": "10ms", "queue": "100ms"}
LTE: dict[str, Any] = {"name": "lte", "rate": "10mbit", "delay": "30ms", "queue": "200ms"}
DSL: dict[str, Any] = {"name": "dsl", "rate": "15mbit", "delay": "20ms", "queue": "100ms"}
SAT: dict[str, Any] = {"name": "sat", "rate": "5mbit", "delay": "150ms", "queue": "300ms"}

Ends: TypeAlias = tuple[Any, Any]
Running: TypeAlias = tuple[Transfer, Host, Host, list[Link], list[Any]]

HEAD = """# Gallery

What the plots look like, and how each can mislead. The recordings are of transfers in [labs](lab.md), and
`docs/gallery.py` records and draws all of them anew. On the left each is as wide as a page; on the right it is as wide
as a paper's column and in grey, as many readers print it.
"""


# Recordings


@contextlib.contextmanager
def transfer(
    links: list[dict[str, Any]], each: int = 1
) -> Iterator[tuple[Transfer, Host, Host, list[Link], list[Any]]]:
    """A transfer with so many subflows over each link, recorded at both ends: the last value is these recordings."""
    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        made = [lab.link(client, server, **link) for link in links]
        recordings: list[Any] = []
        with (
            Transfer(client, server, made * each) as running,
            mptcp.Recorder(running.sock) as near,
            mptcp.Recorder(running.peer) as far,
        ):
            yield running, client, server, made, recordings
        recordings += [kept(near), kept(far)]


def kept(rec: mptcp.Recorder) -> mptcp.Recording:
    return mptcp.Recording(rec.samples, rec.connections, rec.events, rec.metadata)


def plain(links: list[dict[str, Any]], each: int = 1, seconds: float = 5.0) -> Callable[[], Ends]:
    def record() -> Ends:
        with transfer(links, each) as (*_, recordings):
            time.sleep(seconds)
        return tuple(recordings)

    return record


def failover() -> Ends:
    with transfer([WIFI, LTE]) as (running, client, server, (wifi, _), recordings):
        time.sleep(2)
        wifi.down()
        time.sleep(2)
        wifi.up()
        time.sleep(0.3)
        running.sock.open_subflow(wifi.address(client), (wifi.address(server), 5000))
        time.sleep(2.2)
    return tuple(recordings)


def captured() -> Ends:
    """The sender's recording, and a trace from captures at both ends of both links."""
    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        wifi, lte = (lab.link(client, server, **link) for link in (WIFI, LTE))
        files = [Path(folder, f"{link.name}.pcapng") for link in (wifi, lte)]
        with (
            wifi.capture(files[0], host="both"),
            lte.capture(files[1], host="both"),
            Transfer(client, server, [wifi, lte]) as running,
            mptcp.Recorder(running.sock) as rec,
        ):
            time.sleep(1.5)
            wifi.down()
            time.sleep(1.5)
            wifi.up()
            time.sleep(2.5)
        return (kept(rec), mptcp.read_trace(*files)), None


def dead() -> Ends:
    with transfer([WIFI, LTE]) as (_, _, _, (wifi, _), recordings):
        time.sleep(2)
        wifi.set(loss="100%")
        time.sleep(2.5)
        wifi.set(loss=None)
        time.sleep(2)
    return tuple(recordings)


def replacements() -> Ends:
    with transfer([WIFI, {**LTE, "delay": "5ms", "queue": "20ms"}]) as (running, client, server, (_, lte), recordings):
        begin = time.monotonic()
        last: Any = 2
        for number in range(60):
            time.sleep(max(0.0, begin + 0.1 * (number + 1) - time.monotonic()))
            opened = running.sock.open_subflow(lte.address(client), (lte.address(server), 5000))
            running.sock.close_subflow(last)
            last = opened
    return tuple(recordings)


def connections(count: int = 200, seconds: float = 5.0) -> Ends:
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        client, server = lab.host("client"), lab.host("server")
        wifi, lte = (lab.link(client, server, **link, rate=rate) for link, rate in _FASTER)
        listener = stack.enter_context(server.create_server(("", 5000), backlog=count))
        pairs = []
        for _ in range(count):
            sock = stack.enter_context(client.create_connection((wifi.address(server), 5000)))
            peer = stack.enter_context(listener.accept()[0])
            for one, other in ((sock, peer), (peer, sock)):
                one.sendall(b"\0")
                other.recv(1)
            sock.open_subflow(lte.address(client), (lte.address(server), 5000))
            pairs.append((sock, peer))
        with (
            mptcp.Recorder([sock for sock, _ in pairs], 0.05) as near,
            mptcp.Recorder([peer for _, peer in pairs], 0.05) as far,
        ):
            ending = threading.Event()
            threads = [
                threading.Thread(target=_busy, args=([pair[index] for pair in pairs], event, ending))
                for index, event in ((0, selectors.EVENT_WRITE), (1, selectors.EVENT_READ))
            ]
            for thread in threads:
                thread.start()
            time.sleep(seconds)
            ending.set()
            for thread in threads:
                thread.join()
        return kept(near), kept(far)


_FASTER: list[tuple[dict[str, Any], str]] = [
    ({"name": "wifi", "delay": "10ms", "queue": "100ms"}, "100mbit"),
    ({"name": "lte", "delay": "30ms", "queue": "200ms"}, "50mbit"),
]


def _busy(socks: list[mptcp.Socket], event: int, ending: threading.Event) -> None:
    """Send over all sockets, or receive from all, whichever are ready."""
    data = bytes(1 << 14)
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, event)
        while not ending.is_set():
            for key, _ in selector.select(0.1):
                ready: Any = key.fileobj
                with contextlib.suppress(BlockingIOError):
                    _ = ready.send(data) if event == selectors.EVENT_WRITE else ready.recv(1 << 16)


# Pictures


def whole(recording: mptcp.Recording, width: float) -> Any:
    return recording.plot(size=None if width > COLUMN else (width, 5.2))


_GRID: tuple[Callable[..., Any], ...] = (plot.goodput, plot.rtt, plot.rtt_cdf, plot.rtt_ccdf)


def grid(recording: mptcp.Recording, width: float) -> Any:
    """Axes of one's own, with titles: two columns, or one."""
    import matplotlib.pyplot as plt

    columns = 2 if width > COLUMN else 1
    figure, axes = plt.subplots(4 // columns, columns, figsize=(width, 8.4 / columns), layout="constrained")
    for letter, ax, draw in zip("abcd", axes.flat, _GRID, strict=True):
        draw(recording, ax=ax)
        ax.set_title(f"({letter}) {draw.__name__}")
    return figure


def segments(both: tuple[mptcp.Recording, mptcp.Trace], width: float) -> Any:
    """A recording's goodput and a trace's plots on one time axis."""
    import matplotlib.pyplot as plt

    rec, trace = both
    figure, axes = plt.subplots(4, figsize=(width, 6.4), sharex=True, layout="constrained")
    plot.goodput(rec, ax=axes[0])
    for draw, ax in zip((plot.sequence, plot.flight, plot.delay), axes[1:], strict=True):
        draw(trace, ax=ax, recording=rec, events=False)
    for ax in axes[:-1]:
        ax.set_xlabel("")
    return figure


def waiting(both: tuple[mptcp.Recording, mptcp.Trace], width: float) -> Any:
    import matplotlib.pyplot as plt

    rec, trace = both
    figure, ax = plt.subplots(figsize=(width, 2.2), layout="constrained")
    plot.reordering(trace, ax=ax, recording=rec)
    return figure


@dataclass(frozen=True)
class Scene:
    """A picture: how it is recorded and drawn, what it shows and how it misleads."""

    name: str
    title: str
    record: Callable[[], Ends]
    shows: str
    misleads: str
    end: int = 0
    draw: Callable[[Any, float], Any] = whole
    code: str = "rec.plot()"


SCENES = [
    Scene(
        "one",
        "One subflow",
        plain([WIFI], seconds=4),
        "A link of 20 Mbit/s and 10 ms with a queue of 100 ms, under CUBIC. Goodput is below 20 Mbit/s by the headers.",
        "The window in which the recording ended is not drawn, as it would show less than there was. The axis of the "
        "round-trip time begins at 0, so the queue's part of it is the part above 20 ms.",
    ),
    Scene(
        "two",
        "Two subflows",
        plain([WIFI, LTE], seconds=4),
        "The areas are on top of each other, so that the upper edge is the connection's goodput.",
        "The upper area's own changes are hard to see, because its ground moves: use `measures.goodput`, or "
        "`token=` and axes of your own, to compare two subflows.",
    ),
    Scene(
        "four",
        "Four subflows",
        plain([WIFI, LTE, DSL, SAT]),
        "Paths of 20, 10, 15 and 5 Mbit/s. All goodput stops while a path delivers what is missing: the sender's "
        "buffer is full with what came after it, and nothing more can be sent.",
        "`bytes_acked` of one subflow rises in jumps after a loss, which can show more than the link's rate for a "
        "window. It counts bytes that another subflow carried as well: see `measures.reinjection_ratio`.",
    ),
    Scene(
        "twelve",
        "Twelve subflows",
        plain([WIFI, LTE, DSL, SAT], 3),
        "Three subflows over each of four links. More than seven subflows are grouped by their link: an area is the "
        "sum of three, a line their median, its band from their 10th to their 90th percentile.",
        "A median hides the one that is unlike the others. Select rows of `rec.samples` to see each.",
    ),
    Scene(
        "sixty",
        "Sixty subflows",
        plain([WIFI, LTE, DSL], 20, seconds=6),
        "Twenty subflows over each of three links. The transfer pauses again and again: nothing is in flight on any "
        "subflow, and bytes of the connection are missing, which its own retransmission timer sends again. Linux sent "
        "them beyond the "
        "[receiver's window](kernel-bugs.md#a-connection-with-many-subflows-overruns-the-receivers-window).",
        "The window of a subflow that pauses is what it would use. The round-trip time shows which of them pause, but "
        "not how many of the twenty.",
    ),
    Scene(
        "failover",
        "A link that fails and comes back",
        failover,
        "The link goes down at 2 s and up at 4 s; at 4.3 s a new subflow is opened over it, and later the old one, "
        "which had backed off, resumes. The round-trip time is a gap while nothing is acknowledged. In `wifi (1)` the "
        "number is the subflow's id.",
        "The first round-trip time after the gap is not a measurement of the path: the acknowledgement is of a segment "
        "that waited for the link. The kernel's congestion window of the dead path is what it would use, not what "
        "was in flight.",
    ),
    Scene(
        "receiver",
        "The same at the receiver",
        failover,
        "A receiver has its own estimate of the round-trip time, and the window that it announces: all subflows "
        "announce that of the connection, so their lines are on top of each other, and the line of a silent subflow "
        "stays at what it said last.",
        "The receiver's round-trip time includes the time that data waited in the sender's socket, and after a pause "
        "the pause. The share counts what arrived, including what had arrived over another subflow already.",
        end=1,
    ),
    Scene(
        "dead",
        "A path that loses everything",
        dead,
        "From 2 s to 4.5 s each packet of one path is lost, and no event says so. Goodput continues on the other path "
        "once the kernel considers the first as stale.",
        "Only the gap shows when the path came back, and only as late as the sender's next retransmission, whose "
        "timeout has doubled each time.",
    ),
    Scene(
        "replacements",
        "Sixty replacements",
        replacements,
        "A subflow is replaced ten times a second. Each mark is a subflow's beginning or end; equal ones that would "
        "overlap are one.",
        "At the width of a column there are fewer marks than events. A subflow that began and ended between two "
        "samples has a mark, and may have no row.",
    ),
    Scene(
        "connections",
        "Two hundred connections",
        connections,
        "Each has a subflow over both links. The last panel has a thin bar for each connection, in the order of the "
        "first link's share.",
        "A median over connections says little about any one of them: use `token=` for that.",
    ),
    Scene(
        "grid",
        "Axes of your own",
        plain([WIFI, LTE, DSL, SAT]),
        "A legend is above the title of its axes and as wide as they are. The distributions are of the samples, so "
        "each value counts as long as it lasted.",
        "They are of the smoothed round-trip time, which varies less than that of segments: the tail is shorter than "
        "what the application sees.",
        draw=grid,
        code='figure, axes = plt.subplots(2, 2, layout="constrained")\n'
        'for ax, name in zip(axes.flat, ("goodput", "rtt", "rtt_cdf", "rtt_ccdf")):\n'
        "    getattr(plot, name)(rec, ax=ax)\n"
        "    ax.set_title(name)",
    ),
    Scene(
        "segments",
        "Every segment of a failover",
        captured,
        "A link is down from 1.5 s to 3 s, and captures of both ends tell of each segment: its data sequence number "
        "when it was sent, marked if that had been sent before; what was in flight on each subflow; and how long each "
        "took until the application could read it. `recording=` puts all of it on the recording's time axis.",
        "Data in flight includes what has arrived and waits for other data, so a subflow may seem to have more in "
        "flight than its congestion window. The delay begins with the first transmission: a capture does not tell how "
        "long data waited in the sender's buffer.",
        draw=segments,
        code='figure, axes = plt.subplots(4, sharex=True, layout="constrained")\n'
        "plot.goodput(rec, ax=axes[0])\n"
        "for ax, draw in zip(axes[1:], (plot.sequence, plot.flight, plot.delay)):\n"
        "    draw(trace, ax=ax, recording=rec, events=False)",
    ),
    Scene(
        "reordering",
        "Waiting at the receiver",
        captured,
        "The same transfer: the part of each subflow's segments that waited up to so long, from their arrival until "
        "all data before them had arrived.",
        "Each segment counts once, whatever its length. A line says who waits, not who is to blame: what arrived over "
        "`lte` waited up to 1.7 s for what was lost on `wifi`.",
        draw=waiting,
        code="plot.reordering(trace)",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(scene.name for scene in SCENES))
    names = parser.parse_args().names
    matplotlib.use("agg")
    warnings.filterwarnings("ignore", "frames left up to", RuntimeWarning)
    PICTURES.mkdir(exist_ok=True)
    recorded: dict[Callable[[], Ends], Ends] = {}
    for scene in SCENES:
        if names and scene.name not in names:
            continue
        if scene.record not in recorded:
            recorded[scene.record] = scene.record()
        recording = recorded[scene.record][scene.end]
        for suffix, width in (("", _style.WIDTH), ("-column", COLUMN)):
            write(scene, recording, width, PICTURES / f"{scene.name}{suffix}.png")
        print(scene.name, flush=True)
    PAGE.write_text(page())


def write(scene: Scene, recording: mptcp.Recording, width: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    with _style.style():
        scene.draw(recording, width).savefig(buffer, dpi=_DPI)
    plt.close("all")
    image = Image.open(buffer).convert("L" if width == COLUMN else "RGB")
    image.quantize(_COLOURS).save(path, optimize=True)


def page() -> str:
    return HEAD + "".join(map(section, SCENES))


def section(scene: Scene) -> str:
    pictures = " ".join(
        f'<img src="gallery/{scene.name}{suffix}.png" alt="{scene.title}{what}" width="{share}">'
        for suffix, what, share in (("", "", "62%"), ("-column", ", a column in grey", "35%"))
    )
    text = f"{scene.shows}\n\n*How it misleads.* {scene.misleads}"
    return f"\n## {scene.title}\n\n{wrapped(text)}\n\n```python\n{scene.code}\n```\n\n{pictures}\n"


def wrapped(text: str) -> str:
    import textwrap

    return "\n\n".join(
        textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False) for part in text.split("\n\n")
    )


if __name__ == "__main__":
    main()
