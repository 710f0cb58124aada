"""``mptcp record``: record subflows to a file, until a time has passed or a signal arrives."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mptcp._connection import connections
from mptcp._recording import Recorder, _files

from ._screen import Screen
from .list import number

SUMMARY = "record subflows to a file, until --duration has passed or SIGINT or SIGTERM arrives"

_PROGRESS_SECONDS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Needs no privilege, but CAP_NET_ADMIN before Linux 6.15. Without it events come from polling."
    parser.add_argument("-o", "--output", type=_file, required=True, help="FILE.npz, FILE.parquet or FILE.arrow")
    parser.add_argument("--token", type=number(0, 2**32 - 1), help="only the connection with this token")
    parser.add_argument("--pid", type=number(1, 2**31 - 1), help="only connections that this process holds now")
    parser.add_argument(
        "--port", type=number(0, 65535), help="only connections that have this local or remote port now"
    )
    parser.add_argument(
        "--duration", type=seconds(86400 * 365), help="seconds to record (default: until a signal arrives)"
    )
    parser.add_argument(
        "--interval",
        type=seconds(86400),
        default=0.01,
        help="seconds between two readings of the subflows (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="do not show progress")


def run(arguments: argparse.Namespace) -> int:
    chosen = [arguments.token, arguments.pid, arguments.port]
    sources = None
    if any(choice is not None for choice in chosen):
        sources = connections(token=arguments.token, pid=arguments.pid, port=arguments.port)
        if not sources:
            print("mptcp record: no connection matches", file=sys.stderr)
            return 1
    output: Path = arguments.output
    has_arrow = importlib.util.find_spec("pyarrow") is not None
    if not has_arrow and output.suffix != ".npz":
        print(f"mptcp record: {output.suffix} files need pyarrow: pip install 'mptcp[arrow]'", file=sys.stderr)
        return 1
    with signals() as stopped:
        # Memory does not grow, whatever format the file has in the end. Without pyarrow it does grow.
        with _ToAnyName(sources, arguments.interval, path=output if has_arrow else None) as recorder:
            _wait(recorder, arguments.duration, stopped, show=not arguments.quiet)
        if output.suffix != ".arrow" or not has_arrow:
            recorder.save(output)
            if output.suffix == ".npz":
                _files.beside(output).unlink(missing_ok=True)
        print(f"{output}: {_summary(recorder.metadata, len(recorder.samples))}")
    return 0


class _ToAnyName(Recorder):
    """A Recorder that streams to the file's final name: if it is killed, load() reads what is there by its content."""

    _streams_to = _files.SUFFIXES


class signals:
    """Whether SIGINT or SIGTERM has arrived. Both end a recording, but do not interrupt the writing that follows."""

    def __enter__(self) -> Callable[[], bool]:
        self._come = False
        self._before = {each: signal.signal(each, self._take) for each in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._come

    def _take(self, *unused: object) -> None:
        self._come = True

    def __exit__(self, *unused: object) -> None:
        for signal_number, handler in self._before.items():
            signal.signal(signal_number, handler)


def _wait(recorder: Recorder, duration: float | None, stopped: Callable[[], bool], *, show: bool) -> None:
    begin = time.monotonic()
    screen = Screen(sys.stderr) if show and Screen.fits(sys.stderr) else None
    if show and screen is None:
        print("recording", file=sys.stderr, flush=True)
    while not stopped():
        passed = time.monotonic() - begin
        if duration is not None and passed >= duration:
            break
        if screen is not None:
            of = "" if duration is None else f" of {duration:g}"
            screen.draw([f"recording: {passed:.1f}{of} s, {_summary(recorder.metadata)}"])
        left = _PROGRESS_SECONDS if duration is None else duration - passed
        time.sleep(min(_PROGRESS_SECONDS, left))


def _summary(metadata: dict[str, object], samples: int | None = None) -> str:
    words = [] if samples is None else [f"{samples} samples"]
    words.append(f"{metadata['ticks']} ticks, {metadata['missed']} missed")
    if metadata["dropped"]:
        words.append(f"{metadata['dropped']} rows dropped")
    if metadata["failure"]:
        words.append(str(metadata["failure"]))
    return ", ".join(words)


def _file(text: str) -> Path:
    try:
        path = _files.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not os.path.isdir(path.parent):
        raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    return path


def seconds(most: float) -> Callable[[str], float]:
    """Return the converter of an argument: a number of seconds up to ``most``."""

    def convert(text: str) -> float:
        value = float(text)
        if not 1e-5 <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number of seconds from 0.00001 to {most}, not {text}")
        return value

    return convert
