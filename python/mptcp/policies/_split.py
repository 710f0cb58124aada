from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .._errors import UnsupportedError
from .._policy._amounts import Amounts, acked
from ._arguments import positive
from ._base import is_over_loopback
from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening
    from .._policy._interface import Runtime

_SO_MAX_PACING_RATE = 47  # <asm-generic/socket.h>
_UNLIMITED = 0xFFFFFFFF

# The sum of the shares, which an int can exceed that no float holds.
_MOST = 1e9

# Seconds over which the shares are compared, and over which the rate to follow is measured.
_MEMORY, _REACTION = 4.0, 0.5
# A path that follows may be so much faster than the rate that it follows, so that both can grow; what it gets ahead by
# is taken back within so many seconds.
_ROOM, _CORRECTION = 1.1, 1.0
# No cap is below this part of the path's due, nor below two segments a tick (bytes a second): what is queued there
# holds the whole connection up. A smaller change of a cap is not worth a visit.
_SLOWEST, _LEAST, _CHANGE = 0.25, 30_000.0, 0.03
# Seconds in which what is queued on the other paths has to leave once the path that is behind has nothing to send.
_DRAIN = 0.5


class Split(PathPolicy):
    """Share the bytes of each connection between paths: ``Split({"eth0": 80, "wlan0": 20})``.

    Opens a subflow on each path, and caps the pacing rates (SO_MAX_PACING_RATE) of their subflows so that the bytes
    sent keep to the shares, every 0.1 s: the path that is behind is not capped, and the others follow what it delivers.
    So the connection is as fast as the least of each path's rate divided by its share. A path without a subflow is left
    out until it has one. The shares are of what this side sends, also on accepted connections, whose subflows the peer
    opens; to share what is received, the peer has to run it. At the end, previous caps are restored; a subflow that was
    capped once stays paced.

    Setting them takes a visit of all TCP sockets of the namespace for each connection that is sending: some
    milliseconds. Raises TypeError and ValueError for shares that are not numbers above 0, and for fewer than two paths;
    UnsupportedError when it starts, where options cannot be set on one subflow: that needs CAP_BPF, CAP_PERFMON and
    CAP_NET_ADMIN in the initial user namespace, and BTF.
    """

    tick: float = 0.1

    def __init__(
        self,
        shares: Mapping[PathName, float],
        *,
        exclude: PathName | Iterable[PathName] = (),
        bind: bool | None = None,
    ) -> None:
        super().__init__(exclude=exclude, bind=bind)
        if not isinstance(shares, Mapping):
            raise TypeError(f"shares must be a mapping of paths to numbers, not {type(shares).__name__}")
        if len(shares) < 2:
            raise ValueError("Split() needs at least two paths")
        total = sum(positive("a share", share) for share in shares.values())
        if total > _MOST:
            raise ValueError(f"the sum of the shares must be at most {_MOST:g}")
        self.shares: dict[Path, float] = {Path(name): share / total for name, share in shares.items()}
        self._flows: dict[int, _Flow] = {}

    def _check_place(self, runtime: Runtime) -> None:
        super()._check_place(runtime)
        try:
            runtime.check_subflow_options()
        except (PermissionError, UnsupportedError) as error:
            raise UnsupportedError(errno.ENOSYS, f"Split() cannot pace single subflows: {error.strerror}") from error

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        for path in self.shares:
            self.ensure(conn, subflows, opening, path)

    def on_tick(self, conn: Connection, subflows: list[Subflow]) -> None:
        super().on_tick(conn, subflows)
        if is_over_loopback(self, conn):
            return
        flow = self._flows.setdefault(conn.token, _Flow(conn))
        usable = [one for one in subflows if one.state == "ESTABLISHED" and not (one.backup or one.peer_backup)]
        groups = {path: self.on_path(path, usable) for path in self.shares}
        groups = {path: on_path for path, on_path in groups.items() if on_path}
        flow.update(self.now(), usable, groups)
        flow.cap(flow.caps(self.shares, groups), groups)

    def on_closed(self, conn: Connection) -> None:
        super().on_closed(conn)
        self._flows.pop(conn.token, None)

    def _ended(self) -> None:
        for flow in self._flows.values():
            flow.restore()
        self._flows.clear()


class _Flow:
    """What one connection delivered on each path, and the caps that were set."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._amounts = Amounts(acked)
        self._then: float | None = None
        # Of each path: bytes delivered, of which older ones weigh less, and those that weigh for less time.
        self._bytes: dict[Path, float] = {}
        self._recent: dict[Path, float] = {}
        self._seconds = 0.0
        self._idle = 0.0
        # By cookie: the subflow, the cap before, and the cap that it has.
        self._capped: dict[int | None, tuple[Subflow, int, int]] = {}

    def update(self, now: float, subflows: list[Subflow], groups: Mapping[Path, list[Subflow]]) -> None:
        added = self._amounts.update(subflows)
        passed = 0.0 if self._then is None else now - self._then
        is_first = self._then is None
        self._then = now
        if is_first:
            added = {}
        self._idle = 0.0 if any(added.values()) else self._idle + passed
        slow, fast = math.exp(-passed / _MEMORY), math.exp(-passed / _REACTION)
        self._seconds = self._seconds * fast + passed
        # A path that appears does not owe what was delivered before.
        known = [path for path in groups if path in self._bytes]
        if len(known) < len(groups) or len(known) < len(self._bytes):
            self._bytes = dict.fromkeys(groups, 0.0)
            self._recent = {path: self._recent.get(path, 0.0) for path in groups}
        for path, on_path in groups.items():
            delivered = sum(added.get(subflow.cookie, 0) for subflow in on_path)
            self._bytes[path] = self._bytes[path] * slow + delivered
            self._recent[path] = self._recent[path] * fast + delivered

    def caps(self, shares: Mapping[Path, float], groups: Mapping[Path, list[Subflow]]) -> dict[Path, float]:
        """Return the rate that each path may have, bytes a second; infinite for the one that is behind."""
        caps = dict.fromkeys(groups, math.inf)
        if len(groups) < 2 or self._seconds == 0 or self._idle >= 1:
            return caps
        progress = {path: self._bytes[path] / shares[path] for path in groups}
        behind = min(progress, key=lambda path: progress[path])
        pace = self._recent[behind] / shares[behind] / self._seconds
        due = sum(self._recent.values()) / sum(shares[path] for path in groups) / self._seconds
        queued = {path: sum(one.tcp_info.notsent_bytes for one in on_path) for path, on_path in groups.items()}
        for path in groups:
            if path is not behind:
                ahead = (progress[path] - progress[behind]) / _CORRECTION
                # The queue of a path that was fast before may have all that the connection can buffer.
                drain = 0.0 if queued[behind] else queued[path] / _DRAIN
                caps[path] = max(_LEAST, shares[path] * max(pace * _ROOM - ahead, due * _SLOWEST), drain)
        return caps

    def cap(self, caps: Mapping[Path, float], groups: Mapping[Path, list[Subflow]]) -> None:
        """Set the caps that differ from those that the subflows have."""
        wanted: dict[int | None, tuple[Subflow, int, int]] = {}
        for path, on_path in groups.items():
            for subflow in on_path:
                before = self._before(subflow)
                rate = min(caps[path] / len(on_path), before)
                has = self._capped.get(subflow.cookie, (subflow, before, before))[2]
                if rate != has and abs(rate - has) > _CHANGE * has:
                    wanted[subflow.cookie] = (subflow, before, int(rate))
        self._set(wanted)

    def restore(self) -> None:
        """Give every subflow the cap that it had before."""
        with contextlib.suppress(OSError):
            cookies = {subflow.cookie for subflow in self._conn.subflows()}
            left = {cookie: one for cookie, one in self._capped.items() if cookie in cookies and one[1] != one[2]}
            self._set({cookie: (subflow, before, before) for cookie, (subflow, before, _) in left.items()})

    def _before(self, subflow: Subflow) -> int:
        known = self._capped.get(subflow.cookie)
        return min(subflow.tcp_info.max_pacing_rate, _UNLIMITED) if known is None else known[1]

    def _set(self, wanted: dict[int | None, tuple[Subflow, int, int]]) -> None:
        if not wanted:
            return
        option = (socket.SOL_SOCKET, _SO_MAX_PACING_RATE)
        values = {subflow: {option: struct.pack("=I", rate)} for subflow, _, rate in wanted.values()}
        # A subflow that has just been closed, or the whole connection, refuses: the others follow at the next tick.
        with contextlib.suppress(OSError):
            self._conn.set_subflow_options(values)
            self._capped.update(wanted)
