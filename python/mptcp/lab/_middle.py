"""The middle of a lab's links: a namespace of the lab itself, through which every link passes.

Each link has two veth pairs, host - middle - host. Between the middle's two ends is the emulator of links, or, in a
direction without limits, a redirection in the kernel. Runs in a process of its own, which the helper forks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from typing import Any

from mptcp import _core
from mptcp.lab import _channel, _namespaces, _rtnetlink, _sysctls
from mptcp.lab._netlink import Netlink

# Seconds for what a direction holds to leave before the kernel takes over from the emulator; else it may be overtaken.
_PASSED_SECONDS = 0.25


def main(channel: socket.socket, lifeline: socket.socket, seed: int) -> None:
    """Become the process of the middle. ``channel`` leads to the lab's user, ``lifeline`` to the helper process."""

    def start() -> tuple[dict[str, _channel.Handler], Any, list[int]]:
        _namespaces.enter_new_network_namespace()
        _sysctls.make_writable()
        middle = _Middle(seed)
        names = ("add", "remove", "set_limits", "set_mtu", "cut", "stats", "status")
        file = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return {name: getattr(middle, name) for name in names}, {"pid": os.getpid()}, [file]

    _channel.serve(channel, lifeline, start)


@dataclass
class _Direction:
    """One direction of a wire, by the interface where its frames come in and the one where they leave."""

    index: int
    name: str
    to: int
    # Whether the kernel redirects its frames, and how many packets and bytes had come in when that began.
    redirected: bool = False
    start: tuple[int, int] = (0, 0)
    # What was redirected before.
    packets: int = 0
    bytes: int = 0
    # While it is emulated: how many frames the interface had received and the emulator taken when that began, and how
    # many were missing before.
    received: int = 0
    taken: int = 0
    missing: int = 0


class _Middle:
    """The wires of a lab. A wire joins two interfaces of two hosts; a link has one, or several equal ones."""

    def __init__(self, seed: int) -> None:
        for scope in ("all", "default"):
            # The middle has no addresses and sends nothing of its own.
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as file,
            ):
                file.write("1")
        self._netlink = Netlink(socket.NETLINK_ROUTE)
        self._emulator = _core.LinkEmulator(seed=seed)
        # Until the kernel reports that it cannot.
        self._can_redirect = True
        self._wires: dict[int, tuple[_Direction, _Direction]] = {}

    def add(
        self,
        wire: int,
        interface: str,
        hosts: list[int],
        macs: list[str],
        mtu: int,
        limits: list[dict[str, Any]],
        descriptors: list[int] | None = None,
    ) -> _channel.Reply:
        """Join two hosts, given by the processes that hold them: each gets an interface, which is down."""
        names = [f"wire{wire}{end}" for end in "ab"]
        made: list[int] = []
        try:
            for name, host, mac in zip(names, hosts, macs, strict=True):
                pair = _rtnetlink.add_veth(name, mtu, peer=interface, peer_mac=mac, peer_pid=host)
                self._netlink.do([pair])
                made.append(socket.if_nametoindex(name))
            a, b = made
            for index, name in zip(made, names, strict=True):
                self._netlink.do([_rtnetlink.set_link(index, name, up=True)])
                with contextlib.suppress(OSError):
                    # Needed for redirections only, which tell of what is missing.
                    self._netlink.do([_rtnetlink.add_ingress(index, name)])
            directions = _Direction(a, names[0], b), _Direction(b, names[1], a)
            parsed = _limits(limits, descriptors or [])
            self._emulator.add(wire, a, b, *parsed)
            try:
                self._arrange(wire, directions, parsed)
            except BaseException:
                self._emulator.remove(wire)
                raise
        except BaseException:
            self._delete(made)
            raise
        self._wires[wire] = directions
        return None, []

    def remove(self, wire: int) -> _channel.Reply:
        """Remove a wire, and with it the hosts' interfaces."""
        if directions := self._wires.pop(wire, None):
            self._emulator.remove(wire)
            self._delete([direction.index for direction in directions])
        return None, []

    def set_limits(
        self, wire: int, limits: list[dict[str, Any]], descriptors: list[int] | None = None
    ) -> _channel.Reply:
        """Change the limits of the two directions. Frames in flight are not affected."""
        parsed = _limits(limits, descriptors or [])
        self._emulator.set(wire, *parsed)
        self._arrange(wire, self._wires[wire], parsed)
        return None, []

    def set_mtu(self, wire: int, mtu: int) -> _channel.Reply:
        """Let packets of this length pass, and longer ones that are on their way already."""
        for direction in self._wires[wire]:
            ((_, answer),) = self._netlink.get(_rtnetlink.get_link(direction.index, direction.name))
            if mtu > _rtnetlink.mtu(answer):
                self._netlink.do([_rtnetlink.set_link(direction.index, direction.name, mtu=mtu)])
        return None, []

    def cut(self, wire: int) -> _channel.Reply:
        """Drop the frames in flight. Both hosts' ends must be down."""
        self._emulator.cut(wire)
        return None, []

    def stats(self, wire: int) -> _channel.Reply:
        """Return the emulator's statistics of both directions, with what was redirected."""
        directions = self._wires[wire]
        missing = self._missing(wire, directions)
        found = [dict(direction) for direction in self._emulator.stats(wire)]
        for statistics, direction, overruns in zip(found, directions, missing, strict=True):
            packets, size = self._redirected(direction)
            statistics["frames"] += packets
            statistics["bytes"] += size
            statistics["overruns"] = overruns + statistics.pop("refused")
            del statistics["taken"]
        return found, []

    def status(self) -> _channel.Reply:
        return self._emulator.status(), []

    def _arrange(self, wire: int, directions: tuple[_Direction, _Direction], limits: list[_core.LinkLimits]) -> None:
        """Have each direction's frames forwarded by the emulator, or redirected if there is nothing to emulate."""
        wanted = [each.unlimited and self._can_redirect for each in limits]
        # The emulator sees a frame before the kernel redirects it. So it begins before a redirection ends, and ends
        # after one has begun: a frame of the moment between is doubled, and none is lost.
        emulated = [not (direction.redirected and later) for direction, later in zip(directions, wanted, strict=True)]
        self._emulator.attach(wire, *emulated)
        for place, (direction, later) in enumerate(zip(directions, wanted, strict=True)):
            if later and not direction.redirected:
                self._emulator.wait_passed(wire, place, _PASSED_SECONDS)
                direction.missing = self._missing(wire, directions)[place]
                self._redirect(direction)
            elif direction.redirected and not later:
                direction.packets, direction.bytes = self._redirected(direction)
                self._netlink.do([_rtnetlink.delete_redirect(direction.index, direction.name)])
                direction.redirected = False
                direction.received = self._received(direction)[0]
                direction.taken = self._emulator.stats(wire)[place]["taken"]
        self._emulator.attach(wire, *(not direction.redirected for direction in directions))

    def _redirect(self, direction: _Direction) -> None:
        start = self._received(direction)
        try:
            self._netlink.do([_rtnetlink.add_redirect(direction.index, direction.name, direction.to)])
        except OSError as error:
            # Without these modules the emulator forwards everything.
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise
            self._can_redirect = False
            return
        direction.redirected, direction.start = True, start

    def _missing(self, wire: int, directions: tuple[_Direction, _Direction]) -> list[int]:
        """Return how many frames of each direction the emulator has not taken because its rings were full.

        The kernel counts them for all links together. Of one link they are what its interface has received and the
        emulator not taken; in the moment of a change between the emulator and a redirection nobody can tell.
        """
        received = [self._received(direction)[0] for direction in directions]
        taken = [statistics["taken"] for statistics in self._emulator.stats(wire)]
        overruns = self._emulator.status()["overruns"]
        if not overruns:
            return [0, 0]
        return [
            direction.missing
            if direction.redirected
            else direction.missing + max(0, min(overruns, came - direction.received - (took - direction.taken)))
            for direction, came, took in zip(directions, received, taken, strict=True)
        ]

    def _redirected(self, direction: _Direction) -> tuple[int, int]:
        """Return how many packets and bytes were redirected."""
        if not direction.redirected:
            return direction.packets, direction.bytes
        packets, size = self._received(direction)
        return direction.packets + packets - direction.start[0], direction.bytes + size - direction.start[1]

    def _received(self, direction: _Direction) -> tuple[int, int]:
        ((_, answer),) = self._netlink.get(_rtnetlink.get_link(direction.index, direction.name))
        return _rtnetlink.received(answer)

    def _delete(self, indexes: list[int]) -> None:
        for index in indexes:
            # One end is gone if its host's process is.
            with contextlib.suppress(OSError):
                self._netlink.do([_rtnetlink.delete_link(index, "a link")])


def _limits(limits: list[dict[str, Any]], descriptors: list[int]) -> list[_core.LinkLimits]:
    """Return the limits of both directions. A trace is the number of the descriptor that it is to be read from."""
    traces = []
    for descriptor in descriptors:
        with open(descriptor, "rb") as file:
            file.seek(0)
            traces.append(_core.LinkTrace(file.read()))
    return [
        _core.LinkLimits(
            **{
                **each,
                "trace": None if each["trace"] is None else traces[each["trace"]],
                "loss": tuple(each["loss"]) if isinstance(each["loss"], list) else each["loss"],
                "queue": None if each["queue"] is None else tuple(each["queue"]),
            }
        )
        for each in limits
    ]
