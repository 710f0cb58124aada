"""``mptcp plot``: a recording as an image."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "plot a recording that `mptcp record` or Recorder.save() wrote"

_PANELS = ("goodput", "rtt", "cwnd", "share", "rcv_rtt", "rcv_wnd", "rtt_cdf", "rtt_ccdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the recording: .npz, .parquet or .arrow")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="IMAGE",
        help="the file to write; its suffix sets the format: .png, .pdf, .svg",
    )
    parser.add_argument(
        "--panels",
        nargs="+",
        choices=_PANELS,
        help="what to plot, from top to bottom (default: goodput, rtt, cwnd and share of a sender; goodput, rcv_rtt, "
        "rcv_wnd and share of a receiver)",
    )
    parser.add_argument("--size", type=_size, metavar="WxH", help="width and height in inches, for example 6x4")
    parser.add_argument("--dpi", type=float, default=200, help="dots per inch, except in vector formats (default: 200)")
    parser.add_argument("--token", type=lambda text: int(text, 0), help="only the connection with this token")
    parser.add_argument(
        "--direction",
        choices=("sent", "received"),
        help="the direction that goodput and share count (default: the one with more bytes)",
    )
    parser.add_argument(
        "--window", type=float, metavar="SECONDS", help="the seconds over which each step of goodput is averaged"
    )
    parser.add_argument("--no-events", dest="events", action="store_false", help="do not mark events")


def run(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("mptcp plot: plotting needs matplotlib: pip install 'mptcp[plot]'", file=sys.stderr)
        return 1
    # It writes files, whether there is a display or not.
    matplotlib.use("agg")

    from mptcp._recording import load
    from mptcp.plot import _style

    try:
        figure = load(arguments.file).plot(
            arguments.panels,
            size=arguments.size,
            token=arguments.token,
            direction=arguments.direction,
            window=arguments.window,
            events=arguments.events,
        )
        with _style.style():
            figure.savefig(arguments.output, dpi=arguments.dpi)
    except (ModuleNotFoundError, ValueError) as error:
        print(f"mptcp plot: {error}", file=sys.stderr)
        return 1
    return 0


def _size(text: str) -> tuple[float, float]:
    """Convert an argument: width and height, from 0 to 100 inches."""
    try:
        width, height = (float(part) for part in text.lower().split("x"))
    except ValueError:
        width = height = 0.0
    if not (0 < width < 100 and 0 < height < 100):
        raise argparse.ArgumentTypeError(f"must be a width and a height in inches, for example 6x4, not {text}")
    return width, height
