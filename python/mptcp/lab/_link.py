"""A link of a lab, as its user holds it: its addresses, what limits it, and what passes it."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import asdict, dataclass, replace
from socket import AF_INET, AF_INET6
from types import EllipsisType
from typing import Any

from mptcp._errors import UnsupportedError
from mptcp.lab import _units
from mptcp.lab._capture import Capture
from mptcp.lab._host import Host

_CONGESTION_CONTROL = re.compile(r"[a-z0-9_-]{1,15}")

# The routing tables of links: above those that have names (253 to 255), in the order of the links.
_FIRST_TABLE = 1000
_DEFAULT_QUEUE = 0.1

_DESCRIBED = ("rate", "delay", "jitter", "loss", "queue", "congestion_control", "is_up")


@dataclass(frozen=True)
class LinkLimits:
    """What limits a link: bits a second, seconds, a fraction, seconds; a queue is seconds or, an int, bytes."""

    rate: int | None = None
    delay: float | None = None
    loss: float | None = None
    jitter: float | None = None
    queue: float | int | None = None

    def changed(
        self,
        rate: _units.Rate | EllipsisType | None,
        delay: _units.Time | EllipsisType | None,
        loss: _units.Loss | EllipsisType | None,
        jitter: _units.Time | EllipsisType | None,
        queue: _units.Queue | EllipsisType | None,
    ) -> LinkLimits:
        """Return these with the given ones instead; ``...`` leaves one as it is, None takes it off."""
        limits = self
        if not isinstance(rate, EllipsisType):
            limits = replace(limits, rate=None if rate is None else _units.parse_rate(rate))
        if not isinstance(delay, EllipsisType):
            limits = replace(limits, delay=None if delay is None else _units.parse_time(delay, "delay") or None)
        if not isinstance(loss, EllipsisType):
            limits = replace(limits, loss=None if loss is None else _units.parse_loss(loss) or None)
        if not isinstance(jitter, EllipsisType):
            limits = replace(limits, jitter=None if jitter is None else _units.parse_time(jitter, "jitter") or None)
        if not isinstance(queue, EllipsisType):
            limits = replace(limits, queue=None if queue is None else _units.parse_queue(queue))
        if limits.jitter and not limits.delay:
            raise ValueError("jitter needs a delay that it varies")
        if limits.queue is not None and limits.rate is None:
            raise ValueError("a queue needs a rate: without one nothing waits")
        return limits

    @property
    def netem(self) -> bool:
        return self.delay is not None or self.loss is not None

    @property
    def queue_bytes(self) -> int:
        if self.rate is None:
            return 0
        queue = _DEFAULT_QUEUE if self.queue is None else self.queue
        return queue if isinstance(queue, int) else round(self.rate / 8 * queue)


class Link:
    """A link between two hosts of a lab, a veth pair. Made by :meth:`Lab.link`."""

    def __init__(self, number: int, a: Host, b: Host) -> None:
        self._number = number
        self._ipv6 = a._ipv6 and b._ipv6
        self._families = (AF_INET, AF_INET6) if self._ipv6 else (AF_INET,)
        self._interface = f"eth{number}"
        self._limits = LinkLimits()
        self._up = False
        self._congestion_control: str | None = None
        self.hosts = (a, b)

    def __repr__(self) -> str:
        a, b = self.hosts
        ends = f"{a.name} {self.address(a)} - {b.name} {self.address(b)}"
        return f"<Link {self._interface}: {ends}{'' if self._up else ', down'}>"

    @property
    def is_up(self) -> bool:
        """Whether the link is up as far as the lab has put it there."""
        return self._up

    @property
    def rate(self) -> int | None:
        """Bits a second in each direction; None: not limited."""
        return self._limits.rate

    @property
    def delay(self) -> float | None:
        """Seconds that a packet takes in each direction, half of what a round trip takes; None: none are added."""
        return self._limits.delay

    @property
    def jitter(self) -> float | None:
        """Seconds by which the delay varies; None: it does not."""
        return self._limits.jitter

    @property
    def loss(self) -> float | None:
        """The fraction of packets that is lost in each direction, from 0 to 1; None: none."""
        return self._limits.loss

    @property
    def queue(self) -> int | None:
        """Bytes that may wait in each direction; None: the link has no rate."""
        return None if self._limits.rate is None else self._limits.queue_bytes

    @property
    def congestion_control(self) -> str | None:
        """The congestion control of connections and subflows that leave by this link; None: each host's default."""
        return self._congestion_control

    def address(self, host: Host, family: int = AF_INET) -> str:
        """Return the address of ``host`` on this link. Raises UnsupportedError for IPv6 where the kernel has none."""
        if not isinstance(family, int):
            raise TypeError(f"an address family must be an int, not {type(family).__name__}")
        if family not in (AF_INET, AF_INET6):
            raise ValueError(f"a link has addresses of AF_INET and AF_INET6, not of family {family}")
        if family == AF_INET6 and not self._ipv6:
            raise UnsupportedError(errno.ENOSYS, "this kernel has no IPv6")
        return _address(self._number, self._side(host), family)

    def interface(self, host: Host) -> str:
        """Return the name of this link's interface in ``host``."""
        self._side(host)
        return self._interface

    def down(self) -> None:
        """Take both ends down. Does nothing if they are."""
        lab = self.hosts[0]._state
        with lab._lock:
            if not self._up:
                lab._check_open()
                return
            self._up = False
            for host in self.hosts:
                host._request("down", name=self._interface)

    def up(self) -> None:
        """Take both ends up, put their addresses and routes back, and return when packets pass."""
        lab = self.hosts[0]._state
        with lab._lock:
            for host in self.hosts:
                host._request("up", name=self._interface)
            for host in self.hosts:
                host._request("wait_until_usable", name=self._interface)
            self._up = True

    def set(
        self,
        *,
        rate: _units.Rate | EllipsisType | None = ...,
        delay: _units.Time | EllipsisType | None = ...,
        loss: _units.Loss | EllipsisType | None = ...,
        jitter: _units.Time | EllipsisType | None = ...,
        queue: _units.Queue | EllipsisType | None = ...,
        congestion_control: str | EllipsisType | None = ...,
    ) -> None:
        """Change what is given and leave the rest as it is; None takes a limit off.

        ``rate``: ``"20mbit"`` (kbit, mbit, gbit: powers of 1000) or a number, bits a second of frames with their
        Ethernet headers, in each direction. ``queue``: what may wait for that rate, ``"100ms"`` of it or an int, bytes;
        ``"100ms"`` where it is not given. Both are the queueing discipline tbf.

        ``delay`` and ``jitter``: ``"10ms"`` or a number, seconds, in each direction; jitter reorders packets.
        ``loss``: ``"0.1%"`` or a fraction. All three are netem: UnsupportedError where the kernel has none.

        ``congestion_control``: the name of one, for TCP connections and subflows that start by this link from then
        on (``congctl`` on the link's routes). Raises FileNotFoundError if the kernel has none of that name.

        If it fails the link is as it was.
        """
        limits = self._limits.changed(rate, delay, loss, jitter, queue)
        if not isinstance(congestion_control, EllipsisType):
            check_congestion_control(congestion_control)
        lab = self.hosts[0]._state
        with lab._lock:
            lab._check_open()
            if limits.netem:
                self.hosts[0]._request("require_netem")
            if not isinstance(congestion_control, EllipsisType):
                self._set_congestion_control(congestion_control)
            if limits != self._limits:
                self._set_limits(limits)

    def capture(self, path: str | os.PathLike[str], *, host: Host | None = None) -> Capture:
        """Write every packet that passes the link's end at ``host`` (the first by default) to a pcap file.

        Returns when the capture has begun, with an object to close when it is to end, best by ``with``. Packets are
        whole, with their Ethernet headers and times in nanoseconds; their checksums may not have been computed, as they
        never leave the machine. Those that a queue or netem drops on their way out of ``host`` are not seen.
        """
        host = self.hosts[0] if host is None else host
        self._side(host)
        host._state._check_open()
        capture = Capture(host._client.request, self._interface, path)
        host._state._captures.add(capture)
        return capture

    def _side(self, host: Host) -> int:
        if not isinstance(host, Host):
            raise TypeError(f"a link is between hosts, not {type(host).__name__}")
        if host not in self.hosts:
            raise ValueError(f"{host!r} is not at an end of {self!r}")
        return self.hosts.index(host)

    def _addresses(self, host: Host) -> list[str]:
        return [self.address(host, family) for family in self._families]

    def _describe(self) -> dict[str, Any]:
        return {
            "addresses": {host.name: self.address(host) for host in self.hosts},
            **{name: getattr(self, name) for name in _DESCRIBED},
        }

    def _configure(self, limits: LinkLimits, congestion_control: str | None) -> None:
        """Give the new pair of interfaces what the link is to have, and take it up."""
        for side, host in enumerate(self.hosts):
            addresses = [
                {
                    "family": int(family),
                    "local": _address(self._number, side, family),
                    "peer": _address(self._number, 1 - side, family),
                    "network": _network(self._number, family),
                }
                for family in self._families
            ]
            host._request(
                "configure",
                name=self._interface,
                addresses=addresses,
                link_local=f"fe80::{side + 1}" if self._ipv6 else None,
                table=_FIRST_TABLE + self._number,
            )
        if limits != self._limits:
            self._set_limits(limits)
        if congestion_control is not None:
            self._set_congestion_control(congestion_control)
        for host in self.hosts:
            host._request("up", name=self._interface)
        for host in self.hosts:
            host._request("wait_until_usable", name=self._interface)
        self._up = True

    def _set_limits(self, limits: LinkLimits) -> None:
        try:
            self._shape(limits)
        except BaseException:
            self._shape(self._limits)
            raise
        self._limits = limits

    def _shape(self, limits: LinkLimits) -> None:
        arguments = {**asdict(limits), "queue": limits.queue_bytes}
        for host in self.hosts:
            host._request("shape", name=self._interface, **arguments)

    def _set_congestion_control(self, name: str | None) -> None:
        if name is not None:
            self.hosts[0]._request("require_congestion_control", name=name)
        for host in self.hosts:
            host._request("set_congestion_control", name=self._interface, congestion_control=name)
        self._congestion_control = name


# Link number n has the networks 10.<n / 256>.<n % 256>.0/24 and fd00:0:0:<n>::/64.
def _address(number: int, side: int, family: int) -> str:
    if family == AF_INET:
        return f"10.{number >> 8}.{number & 255}.{side + 1}"
    return f"fd00:0:0:{number:x}::{side + 1}"


def _network(number: int, family: int) -> str:
    return f"10.{number >> 8}.{number & 255}.0/24" if family == AF_INET else f"fd00:0:0:{number:x}::/64"


def check_congestion_control(name: str | None) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f'congestion_control must be a name like "reno", not {type(name).__name__}')
    if not _CONGESTION_CONTROL.fullmatch(name):
        raise ValueError(f'congestion_control must be a name like "reno", not {name!r}')
