"""A program that has hardly any memory left, again and again: `short_of_memory.py SEED`, in a host of a lab.

Each call of the package then succeeds, or fails by MemoryError or an OSError that says so; afterwards, with memory, it
succeeds, and nothing is held. It writes what it is about to do, so that whoever reads it knows what a signal ended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import resource
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mptcp
from support import exchange, held, holds_no_more_than

TRIES = 12
# Bytes of the pieces that are taken, and of those that are given back.
LARGE, SMALL = (1 << 14, 1 << 15, 1 << 18), (600, 1200, 2400, 4800)


@contextlib.contextmanager
def short_of_memory(piece: int) -> Iterator[None]:
    """RLIMIT_AS at what is mapped, all that is free of that taken in such pieces, and some small ones given back.

    Without those nothing can go on, neither a thread of the C library nor whatever is written in Rust.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    spare = [bytearray(size) for size in SMALL for _ in range(1000)]
    taken: list[bytearray] = []
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
    try:
        with contextlib.suppress(MemoryError):
            while True:
                taken.append(bytearray(piece))
        # Not two that lie side by side.
        del spare[::2]
        yield
    finally:
        del taken, spare
        resource.setrlimit(resource.RLIMIT_AS, before)


def is_expected(error: BaseException) -> bool:
    if isinstance(error, OSError):
        # EAGAIN is what starting a thread gives.
        return error.errno in (errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "start new thread" in str(error))


def main() -> None:
    numbers = random.Random(sys.argv[1])
    outcomes: Counter[str] = Counter()
    with (
        mptcp.create_server(("127.0.0.1", 0)) as listener,
        mptcp.create_connection(listener.getsockname(), timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        exchange(sock, peer)

        def connect() -> None:
            with mptcp.create_connection(listener.getsockname(), timeout=10), listener.accept()[0]:
                pass

        def watch() -> None:
            with mptcp.Events() as events:
                events.get(0)

        def record() -> None:
            with mptcp.Recorder(sock, interval=0.001) as recorder:
                # Rows that there is no memory for are counted.
                assert len(recorder.samples) or recorder.metadata["dropped"]

        def open_and_close() -> None:
            subflow = sock.open_subflow("127.0.0.1", listener.getsockname(), backup=True)
            sock.close_subflow(subflow)

        # None that starts a threading.Thread: where that lacks the memory to begin, start() of CPython waits for ever.
        calls: list[Callable[[], object]] = [
            connect, watch, record, open_and_close, sock.info, sock.subflows, mptcp.connections,
            mptcp.counters, lambda: mptcp.connections(token=sock.token)[0].subflows(),
        ]  # fmt: skip
        for call in calls:
            call()
        before = held()
        for _ in range(TRIES):
            call = numbers.choice(calls)
            piece = numbers.choice(LARGE)
            print(f"{call.__name__} without {piece} bytes", file=sys.stderr, flush=True)
            threads = threading.active_count()
            try:
                with short_of_memory(piece):
                    call()
            except Exception as error:
                if not is_expected(error):
                    raise
                cause = f" {errno.errorcode[error.errno]}" if isinstance(error, OSError) and error.errno else ""
                outcomes[type(error).__name__ + cause] += 1
            else:
                outcomes["success"] += 1
            assert threading.active_count() == threads
            call()
        assert holds_no_more_than(before), f"{held()} descriptors and threads, not {before}"
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
