"""The Link class: a link's addresses, its limits, and what passes through it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from socket import AF_INET, AF_INET6
from types import EllipsisType
from typing import Any, Literal, TypeAlias

from mptcp._errors import UnsupportedError
from mptcp.lab import _limits, _units
from mptcp.lab._capture import Capture
from mptcp.lab._host import Host
from mptcp.lab._limits import BothLimits
from mptcp.lab._state import State
from mptcp.lab._units import GilbertElliott

_CONGESTION_CONTROL = re.compile(r"[a-z0-9_-]{1,15}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# The smallest and the largest. IPv6 needs 1280 bytes.
MTU = 1280, 65535
PARALLEL = 1, 32

# The routing tables of links: above those that have names (253 to 255), in the order of the links.
_FIRST_TABLE = 1000

# What makes results suspect: more late frames than this in a direction, and more than this share of them; or one later
# than its delay, and than so many nanoseconds: then TCP may well have taken it for lost.
_LATE_FRAMES, _LATE_SHARE = 10, 0.01
_LATEST_NS = 50_000_000

_DESCRIBED = (
    *("rate", "trace", "queue", "aqm", "loss", "delay", "jitter", "reorder"),
    *("mtu", "parallel", "congestion_control", "is_up"),
)

# The types of arguments: one value for both directions, or a pair for what the first and the second host sends.
Rates: TypeAlias = "_units.Rate | Sequence[_units.Rate | None] | None"
Traces: TypeAlias = "_units.TracePath | Sequence[_units.TracePath | None] | None"
Times: TypeAlias = "_units.Time | Sequence[_units.Time | None] | None"
Losses: TypeAlias = "_units.Loss | Sequence[_units.Loss | None] | None"
Queues: TypeAlias = "_units.Queue | Sequence[_units.Queue | None] | None"
Aqms: TypeAlias = "str | Sequence[str | None] | None"


@dataclass(frozen=True)
class LinkStats:
    """What happened to the frames of one direction of a link, from :meth:`Link.stats`.

    Frames and bytes are counted as on the wire, with Ethernet headers: a frame of several segments counts as several.
    In a direction without limits, where the kernel forwards frames itself, such a frame counts as one.
    """

    #: What has left the link for the receiving host.
    frames: int
    bytes: int
    #: Frames dropped by the queue, including by active queue management.
    dropped: int
    #: Frames lost by ``loss``.
    lost: int
    #: Frames lost because the link went down while they were in flight.
    cut: int
    #: Frames that the receiving host's interface did not accept.
    failed: int
    #: Frames lost because the emulator had no room for them: they arrived faster than it could take them, or links held
    #: all the memory that they may. Here a frame is what a host hands over as one, even if it has several segments.
    overruns: int
    #: What is in the queue now.
    waiting_frames: int
    waiting_bytes: int
    #: What has left the queue and is in flight now.
    flying_frames: int
    flying_bytes: int
    #: Frames that left later than a tenth of the delay, and than 1 ms.
    late: int
    #: How late frames left, in nanoseconds: the median, the 99th percentile and the maximum. 0 if the
    #: emulator has forwarded none.
    late_p50_ns: int
    late_p99_ns: int
    late_max_ns: int


class Link:
    """A link between two hosts of a lab, returned by :meth:`Lab.link`."""

    def __init__(
        self,
        state: State,
        number: int,
        wires: Sequence[int],
        a: Host,
        b: Host,
        name: str | None,
        mtu: int,
        shared: Link | None,
    ) -> None:
        self._state = state
        self._number = number
        # On this link the second host has the address of that link.
        self._second_number: int = number if shared is None else shared._second_number
        self._ipv6 = a._ipv6 and b._ipv6
        self._families = (AF_INET, AF_INET6) if self._ipv6 else (AF_INET,)
        self._wires = {
            wire: f"eth{number}" if not place else f"eth{number}p{place}" for place, wire in enumerate(wires)
        }
        self._interface = f"eth{number}"
        self._limits = _limits.UNLIMITED
        self._native = [limits.checked() for limits in self._limits]
        self._up = False
        self._congestion_control: str | None = None
        self._name = name
        self._mtu = mtu
        self.hosts: tuple[Host, Host] = (a, b)

    def __repr__(self) -> str:
        a, b = self.hosts
        ends = f"{a.name} {self.address(a)} - {b.name} {self.address(b)}"
        return f"<Link {self.name}: {ends}{'' if self._up else ', down'}>"

    @property
    def name(self) -> str:
        """The link's name, or that of its interface if it was created without one."""
        return self._name or self._interface

    @property
    def is_up(self) -> bool:
        """Whether the link is up: from its creation or up() until down()."""
        return self._up

    # Each is one value if both directions have it, otherwise two, for what the first and the second host sends.

    @property
    def rate(self) -> Any:
        """The rate in bits per second, an int, or None if it is not limited. A pair if the directions differ."""
        return self._both("rate")

    @property
    def trace(self) -> Any:
        """The path of the trace that sets when the link can send, or None. A pair if the directions differ."""
        return _limits.one_or_two([each.trace and each.trace.path for each in self._limits])

    @property
    def delay(self) -> Any:
        """The one-way delay in seconds, or None. A pair if the directions differ."""
        return self._both("delay")

    @property
    def jitter(self) -> Any:
        """How much the delay varies up and down, in seconds, or None. A pair if the directions differ."""
        return self._both("jitter")

    @property
    def loss(self) -> Any:
        """The fraction of lost frames, from 0 to 1, a GilbertElliott, or None. A pair if the directions differ."""
        return self._both("loss")

    @property
    def queue(self) -> Any:
        """The size of the queue in bytes, in packets like ``"100p"``, or None. A pair if the directions differ."""
        return _limits.one_or_two(
            [
                f"{limits.queue[1]}p" if limits.queue and limits.queue[0] == "packets" else native.queue_bytes
                for limits, native in zip(self._limits, self._native, strict=True)
            ]
        )

    @property
    def aqm(self) -> Any:
        """``"codel"``, or None if the queue drops only what it has no room for. A pair where the directions differ."""
        return self._both("aqm")

    @property
    def reorder(self) -> bool:
        """Whether jitter lets frames overtake each other."""
        return self._limits[0].reorder

    @property
    def mtu(self) -> int:
        """The size of the largest IP packet, in bytes."""
        return self._mtu

    @property
    def parallel(self) -> int:
        """The number of equal links between the two addresses."""
        return len(self._wires)

    @property
    def congestion_control(self) -> str | None:
        """The congestion control of connections and subflows that leave by this link, None for the host's default."""
        return self._congestion_control

    def address(self, host: Host, family: int = AF_INET) -> str:
        """Return the address of ``host`` on this link.

        Raises TypeError and ValueError for what is not a host of the link or another family than AF_INET and AF_INET6,
        UnsupportedError for AF_INET6 if the kernel has no IPv6.
        """
        if not isinstance(family, int):
            raise TypeError(f"family must be an int, not {type(family).__name__}")
        if family not in (AF_INET, AF_INET6):
            raise ValueError(f"family must be AF_INET or AF_INET6, not {family}")
        if family == AF_INET6 and not self._ipv6:
            raise UnsupportedError(errno.ENOSYS, "this kernel has no IPv6")
        return self._address(self._side(host), family)

    def interface(self, host: Host) -> str:
        """Return the name of this link's interface in ``host``, of parallel links the first one's."""
        self._side(host)
        return self._interface

    def down(self) -> None:
        """Take both ends down; frames in flight are lost. Calling it again has no effect.

        Raises OSError (EPIPE) if the process of one of the hosts has ended; then nothing has changed.
        """
        with self._state._locked():
            self._check_alive()
            if not self._up:
                return
            with contextlib.ExitStack() as undo:
                for host in self.hosts:
                    undo.callback(_quietly, functools.partial(host._request, "up", number=self._number))
                    host._request("down", number=self._number)
                for wire in self._wires:
                    self._state._middle.request("cut", wire=wire)
                undo.pop_all()
            self._up = False

    def up(self) -> None:
        """Bring both ends up, restore their addresses and routes, and return once packets pass.

        Raises OSError (EPIPE) if the process of one of the hosts has ended; then nothing has changed.
        """
        with self._state._locked():
            self._check_alive()
            with contextlib.ExitStack() as undo:
                for host in self.hosts:
                    if not self._up:
                        undo.callback(_quietly, functools.partial(host._request, "down", number=self._number))
                    host._request("up", number=self._number)
                for host in self.hosts:
                    host._request("wait_until_usable", number=self._number)
                undo.pop_all()
            self._up = True

    def set(
        self,
        *,
        rate: Rates | EllipsisType = ...,
        trace: Traces | EllipsisType = ...,
        queue: Queues | EllipsisType = ...,
        aqm: Aqms | EllipsisType = ...,
        loss: Losses | EllipsisType = ...,
        delay: Times | EllipsisType = ...,
        jitter: Times | EllipsisType = ...,
        reorder: bool | EllipsisType = ...,
        mtu: int | EllipsisType = ...,
        congestion_control: str | EllipsisType | None = ...,
    ) -> None:
        """Change some of the link's limits and leave the others as they are; None removes a limit.

        Frames in flight are not affected. Each of the following is one value for both directions, or a pair: for what
        the link's first host sends and for what the second host sends. A frame passes them in this order.

        ``queue``: how much can wait for the rate: a time at that rate like ``"100ms"``, which is the default, packets
        like ``"50p"``, or bytes as an int. Frames that arrive when it is full are dropped. ``aqm="codel"`` drops
        earlier (RFC 8289). Both need a rate or a trace: a single value applies to the directions that have one, and a
        direction that loses its rate or trace loses its queue and aqm as well.

        ``rate``: ``"20mbit"`` (kbit, mbit and gbit are powers of 1000) or a number of bits per second, counting frames
        with Ethernet headers. Or ``trace``: the path of a file in mahimahi's packet-delivery format, in which each line
        is the millisecond at which 1500 bytes of IP packets can leave; it is repeated from its end.

        ``loss``: ``"0.1%"`` or a fraction from 0 to 1, for each frame independently, or a GilbertElliott.

        ``delay`` and ``jitter``: ``"10ms"`` or a number of seconds; jitter varies the delay uniformly by up to as much
        up and down. Frames stay in order unless ``reorder`` is True, for both directions.

        ``congestion_control``: its name, for TCP connections and subflows that start on this link from then on
        (``congctl`` on the link's routes). Raises FileNotFoundError if the kernel does not have it.

        ``mtu``: bytes of the longest IP packet, 1280 to 65535, on both hosts' interfaces. Longer packets in flight are
        lost at the receiver.

        All but the last two act in the middle of the link, in the lab's emulator (AF_PACKET). Raises ValueError and
        TypeError before anything has changed, OSError for a trace that cannot be read, and OSError (EPIPE) if the
        process of one of the hosts has ended; a note says which link it was. If it fails, the link stays as it was.
        """
        with self._named():
            limits = _limits.changed(
                self._limits,
                rate=rate,
                trace=trace,
                queue=queue,
                aqm=aqm,
                loss=loss,
                delay=delay,
                jitter=jitter,
                reorder=reorder,
            )
            if not isinstance(congestion_control, EllipsisType):
                check_congestion_control(congestion_control)
            if not isinstance(mtu, EllipsisType):
                check_size(mtu, "mtu", *MTU)
            with self._state._locked(), contextlib.ExitStack() as undo:
                self._check_alive()

                def change(how: Callable[[Any], None], before: Any, after: Any) -> None:
                    undo.callback(_quietly, lambda: how(before))
                    how(after)

                if not isinstance(congestion_control, EllipsisType):
                    change(self._set_congestion_control, self._congestion_control, congestion_control)
                if not isinstance(mtu, EllipsisType) and mtu != self._mtu:
                    change(self._set_mtu, self._mtu, mtu)
                if limits != self._limits:
                    undo.callback(_quietly, self._state._arrange)
                    change(self._set_limits, self._limits, limits)
                    self._state._arrange()
                undo.pop_all()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Add the link's name to errors, as a note: a program may change several links."""
        try:
            yield
        except (ValueError, TypeError, OSError) as error:
            error.add_note(f"link {self.name}")
            raise

    def stats(self) -> tuple[LinkStats, LinkStats]:
        """Return the statistics of the frames that the first host sent, and of those that the second host sent.

        For parallel links they are the sums, and the largest lateness. Raises OSError (EBADF) once the lab is closed.
        """
        with self._state._locked():
            each = [self._state._middle.request("stats", wire=wire)[0] for wire in self._wires]
        directions = []
        for found in zip(*each, strict=True):
            merge = {name: max if name.startswith("late_") else sum for name in LinkStats.__dataclass_fields__}
            directions.append(LinkStats(**{name: how(one[name] for one in found) for name, how in merge.items()}))
        return directions[0], directions[1]

    def _too_late(self, directions: Sequence[LinkStats]) -> int:
        """Return by how many nanoseconds frames left late at most if that makes results suspect, else 0."""
        found = 0
        for each, limits in zip(directions, self._limits, strict=True):
            many = each.late > max(_LATE_FRAMES, _LATE_SHARE * each.frames)
            if many or each.late_max_ns > max(_LATEST_NS, (limits.delay or 0) * 1e9):
                found = max(found, each.late_max_ns)
        return found

    def capture(
        self, path: str | os.PathLike[str], *, host: Host | Literal["both"] | None = None, limit: int | None = None
    ) -> Capture:
        """Write every packet that passes the link's end at ``host``, by default the first host, to a pcap file.

        ``host="both"`` writes the packets of both ends to one pcapng file, in order of time, with an interface for each
        end: of a link between hosts a and b, ``"a:eth1"`` and ``"b:eth1"`` (``frame.interface_name`` in Wireshark).
        It is written from temporary files when the capture is closed.

        ``limit`` bounds the file, in bytes, at least 1,048,576: it then keeps the packets of the beginning, about a
        quarter of it, and the last ones. Such a file is pcapng, too, and can be larger by 3 MB an end.

        Returns a Capture once it has begun; close it to end it, preferably by a with-block. Packets are complete, with
        Ethernet headers and times in nanoseconds; their checksums may be missing because they never leave the machine.
        What the host sends is captured before the link's queue, delay and loss; what it receives, after them. Of
        parallel links the first one is captured. Raises OSError if the file cannot be written, and OSError (EPIPE) if
        the process of a host has ended.
        """
        if host is None:
            ends: tuple[Host, ...] = self.hosts[:1]
        elif isinstance(host, Host):
            self._side(host)
            ends = (host,)
        elif host == "both":
            ends = self.hosts
        elif isinstance(host, str):
            raise ValueError(f'host must be one of the link\'s hosts or "both", not {host!r}')
        else:
            raise TypeError(f'host must be one of the link\'s hosts or "both", not {type(host).__name__}')
        if limit is not None:
            check_size(limit, "limit", 1 << 20, 1 << 40)
        self._state._check_open()
        for end in ends:
            end._check_alive()
        capture = Capture({end.name: end._client.request for end in ends}, self._interface, path, limit)
        self._state._captures.add(capture)
        return capture

    def _both(self, name: str) -> Any:
        return _limits.one_or_two([getattr(each, name) for each in self._limits])

    def _side(self, host: Host) -> int:
        if not isinstance(host, Host):
            raise TypeError(f"host must be a Host, not {type(host).__name__}")
        if host not in self.hosts:
            raise ValueError(f"{host!r} is not at an end of {self!r}")
        return self.hosts.index(host)

    def _address(self, side: int, family: int) -> str:
        return _address(self._second_number if side else self._number, side, family)

    def _addresses(self, host: Host) -> list[str]:
        return [self.address(host, family) for family in self._families]

    def _networks(self) -> list[str]:
        return [_network(self._number, family) for family in self._families]

    def _describe(self) -> dict[str, Any]:
        """Describe the link for the metadata of a recording."""
        described = {name: getattr(self, name) for name in _DESCRIBED}
        described["loss"] = _limits.one_or_two([_plain(each.loss) for each in self._limits])
        return {
            # None if it was created without one.
            "name": self._name,
            "addresses": {host.name: self.address(host) for host in self.hosts},
            # A subflow belongs to the link that has its local or its remote address among these.
            "first_addresses": self._addresses(self.hosts[0]),
            **described,
        }

    def _report(self) -> dict[str, Any]:
        """Return what the link has done, for the metadata of a recording: nothing if the lab is gone."""
        try:
            directions = [asdict(direction) for direction in self.stats()]
        except OSError:
            directions = []
        return {"name": self.name, "directions": directions}

    def _configure(self, limits: BothLimits, congestion_control: str | None) -> None:
        """Create the link's interfaces, limit them, and bring them up. If it fails, none of them is left."""
        if congestion_control is not None:
            self.hosts[0]._request("require_congestion_control", name=congestion_control)
        try:
            for wire, interface in self._wires.items():
                with _limits.sendable(limits) as (native, descriptors):
                    self._state._middle.request(
                        "add",
                        descriptors,
                        wire=wire,
                        interface=interface,
                        hosts=[host.pid for host in self.hosts],
                        macs=[_mac(wire, side) for side in (0, 1)],
                        mtu=self._mtu,
                        limits=native,
                    )
            self._limits, self._native = limits, [each.checked() for each in limits]
            for side, host in enumerate(self.hosts):
                host._request(
                    "attach",
                    number=self._number,
                    members=[
                        {"name": interface, "peer_mac": _mac(wire, 1 - side)} for wire, interface in self._wires.items()
                    ],
                    addresses=[self._end(side, family) for family in self._families],
                    is_first=side == 0,
                    link_local=[f"fe80::{side + 1}", f"fe80::{2 - side}"] if self._ipv6 else None,
                    table=_FIRST_TABLE + self._number,
                    gso_max_segs=self._native[side].gso_max_segs,
                    congestion_control=congestion_control,
                )
            self._congestion_control = congestion_control
            for host in self.hosts:
                host._request("wait_until_usable", number=self._number)
        except BaseException:
            self._discard()
            raise
        self._up = True

    def _check_alive(self) -> None:
        for host in self.hosts:
            host._check_alive()

    def _discard(self) -> None:
        for host in self.hosts:
            # There is nothing to forget if its process has ended.
            with contextlib.suppress(BrokenPipeError):
                host._client.request("detach", number=self._number)
        for wire in self._wires:
            self._state._middle.request("remove", wire=wire)

    def _end(self, side: int, family: int) -> dict[str, Any]:
        own = self._number == self._second_number
        local, peer = self._address(side, family), self._address(1 - side, family)
        return {
            "family": int(family),
            "local": local,
            "length": (24 if family == AF_INET else 64) if own or side == 0 else (32 if family == AF_INET else 128),
            "peer": peer,
            "in_main": own or side == 1,
            "network": _network(self._number, family) if own or side else f"{peer}/{32 if family == AF_INET else 128}",
        }

    def _set_limits(self, limits: BothLimits) -> None:
        for host, each in zip(self.hosts, limits, strict=True):
            host._request("set_gso_max_segs", number=self._number, segments=each.checked().gso_max_segs)
        for wire in self._wires:
            with _limits.sendable(limits) as (native, descriptors):
                self._state._middle.request("set_limits", descriptors, wire=wire, limits=native)
        self._limits, self._native = limits, [each.checked() for each in limits]

    def _set_mtu(self, mtu: int) -> None:
        for wire in self._wires:
            self._state._middle.request("set_mtu", wire=wire, mtu=mtu)
        for host in self.hosts:
            host._request("set_mtu", number=self._number, mtu=mtu)
        self._mtu = mtu

    def _set_congestion_control(self, name: str | None) -> None:
        if name is not None:
            self.hosts[0]._request("require_congestion_control", name=name)
        for host in self.hosts:
            host._request("set_congestion_control", number=self._number, congestion_control=name)
        self._congestion_control = name


def _quietly(undo: Callable[[], object]) -> None:
    """Put back what an operation that failed has changed, as far as that is possible."""
    with contextlib.suppress(OSError):
        undo()


def memory(links: Sequence[Link], host: Host) -> int:
    """Return how many bytes may be in flight to a host: the rate of all its links times the longest round trip."""
    rate, round_trip = 0.0, 0.0
    for link in links:
        rate += link._limits[1 - link._side(host)].bits_per_second / 8
        seconds = 0.0
        for limits, native in zip(link._limits, link._native, strict=True):
            seconds += (limits.delay or 0.0) + (limits.jitter or 0.0)
            if limits.bits_per_second:
                seconds += 8 * (native.queue_bytes or 0) / limits.bits_per_second
        round_trip = max(round_trip, seconds)
    return round(rate * round_trip)


# Link number n has the networks 10.<n / 256>.<n % 256>.0/24 and fd00:0:0:<n>::/64.
def _address(number: int, side: int, family: int) -> str:
    if family == AF_INET:
        return f"10.{number >> 8}.{number & 255}.{side + 1}"
    return f"fd00:0:0:{number:x}::{side + 1}"


def _network(number: int, family: int) -> str:
    return f"10.{number >> 8}.{number & 255}.0/24" if family == AF_INET else f"fd00:0:0:{number:x}::/64"


def _mac(wire: int, side: int) -> str:
    """Return a locally administered address."""
    return f"02:00:00:{wire >> 8:02x}:{wire & 255:02x}:{side + 1:02x}"


def _plain(loss: float | GilbertElliott | None) -> Any:
    return vars(loss) if isinstance(loss, GilbertElliott) else loss


def check_name(name: str | None) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"a link's name must be a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a link's name must be 1 to 63 letters, digits, '.', '_' and '-', and begin with a letter or digit, "
            f"not {name!r}"
        )


def check_size(value: int, what: str, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be from {least} to {most}, not {value}")


def check_congestion_control(name: str | None) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f'congestion_control must be a name like "reno", not {type(name).__name__}')
    if not _CONGESTION_CONTROL.fullmatch(name):
        raise ValueError(f'congestion_control must be a name like "reno", not {name!r}')
