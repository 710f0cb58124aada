"""A lab, as its user holds it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from mptcp import _topologies
from mptcp.lab import _channel, _topology, _units
from mptcp.lab._host import Host
from mptcp.lab._link import Link, LinkLimits, check_congestion_control
from mptcp.lab._state import State

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# A link's addresses have its number in two bytes.
_LAST_LINK = 0xFFFF

# The helper gives programs that will not end 10 seconds; then there is nothing more that it could do.
_END_SECONDS = 30.0


_labs: weakref.WeakSet[Lab] = weakref.WeakSet()


class Lab(State):
    """Test hosts in network namespaces of their own, and links between them.

    ::

        with Lab() as lab:
            a, b = lab.host("a"), lab.host("b")
            wifi = lab.link(a, b, rate="20mbit")
            server = b.create_server((wifi.address(b), 5000))
            client = a.create_connection((wifi.address(b), 5000))

    Needs no privilege where unprivileged user namespaces are allowed: without CAP_SYS_ADMIN and CAP_NET_ADMIN the
    hosts are in a user namespace of their own, in which the caller is root. One helper process holds the
    lab and one small process each host. When the lab is closed or the process that made it is gone, killed even,
    they end, and with them the programs in the hosts, the links and the namespaces. Only sockets that the
    caller has not closed hold their host's namespace longer.

    Several labs may be open at once, and threads may share one. A lab belongs to the process that made it: in a
    forked child it cannot be used.

    Raises PermissionError, naming the sysctls, where namespaces are denied.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[str, Host] = {}
        self._links: list[Link] = []
        self._next_link = 1

        ours, theirs = _channel.pair()
        self._client = _channel.Client(ours, "the lab")
        with theirs:
            try:
                self._helper = _start_helper(theirs)
            except BaseException:
                self._client.close()
                raise
        self._closed = False
        try:
            self._own_user_namespace = self._client.request("start")[0]
        except BaseException:
            self.close()
            raise
        _labs.add(self)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._owner == os.getpid():
            described = repr(self)
            self.close()
            warnings.warn(f"unclosed {described}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        hosts = ", ".join(self._hosts)
        return f"<Lab {'closed' if self._closed else 'open'}: {hosts or 'no hosts'}; {len(self._links)} links>"

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts by name, in the order they were made."""
        return dict(self._hosts)

    @property
    def links(self) -> list[Link]:
        """The links, in the order they were made."""
        return list(self._links)

    def host(self, name: str, *, forwarding: bool = False) -> Host:
        """Make a host. ``forwarding`` makes it a router: it passes on packets that are for others.

        The name is for messages and for ``lab.hosts``. The host starts under the userspace path manager, without
        links. Raises UnsupportedError on a kernel without Multipath TCP.
        """
        if not isinstance(name, str):
            raise TypeError(f"a host's name must be a str, not {type(name).__name__}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"a host's name has 1 to 63 letters, digits, '.', '_' and '-', not one of these first: not {name!r}"
            )
        with self._lock:
            self._check_open()
            if name in self._hosts:
                raise ValueError(f"this lab has a host {name!r} already")
            facts, descriptors = self._client.request("host", forwarding=bool(forwarding))
            host = self._hosts[name] = Host(self, name, bool(forwarding), facts, descriptors)
            return host

    def link(
        self,
        a: Host,
        b: Host,
        *,
        rate: _units.Rate | None = None,
        delay: _units.Time | None = None,
        loss: _units.Loss | None = None,
        jitter: _units.Time | None = None,
        queue: _units.Queue | None = None,
        congestion_control: str | None = None,
    ) -> Link:
        """Link two hosts, and return when packets pass.

        Link number n, counted from 1, has the addresses 10.0.n.1 and fd00:0:0:n::1 on ``a``, and 10.0.n.2 and
        fd00:0:0:n::2 on ``b``. On each host a packet from its address leaves by that link, whatever its destination;
        other packets take the link that the destination's address is of, or the shortest way over routers.

        What limits a link holds for each direction by itself: see :meth:`Link.set`.
        """
        for host in (a, b):
            if not isinstance(host, Host):
                raise TypeError(f"a link is between two hosts of the lab, not {type(host).__name__}")
            if host._state is not self:
                raise ValueError(f"host {host.name!r} is of another lab")
        if a is b:
            raise ValueError("a link needs two different hosts")
        limits = LinkLimits().changed(rate, delay, loss, jitter, queue)
        check_congestion_control(congestion_control)
        with self._lock:
            self._check_open()
            if self._next_link > _LAST_LINK:
                raise ValueError(f"a lab has at most {_LAST_LINK} links in its life")
            if limits.netem:
                a._request("require_netem")
            link = Link(self._next_link, a, b)
            a._request("add_pair", name=link._interface, peer_pid=b.pid)
            self._next_link += 1
            try:
                link._configure(limits, congestion_control)
            except BaseException:
                a._request("remove", name=link._interface)
                raise
            self._links.append(link)
            for host in link.hosts:
                for family in link._families:
                    host._addresses[family].append(link.address(host, family))
            self._update_routes()
            return link

    def close(self) -> None:
        """End every program in the hosts, and the hosts. Does nothing the second time, or in a forked child."""
        if self._owner != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._end()
        finally:
            for host in self._hosts.values():
                host._close()
            self._client.close()

    def _end(self) -> None:
        for program in self._programs:
            # Here too, because one that was started just now may not be in its host yet.
            program.kill()
        try:
            for capture in list(self._captures):
                capture.close()
        finally:
            self._client.hang_up()
            self._helper.wait(_END_SECONDS)
            for program in self._programs:
                program.wait()

    def _describe(self) -> dict[str, Any]:
        """Describe the hosts and links for the metadata of a recording."""
        return {
            "hosts": {name: host._describe() for name, host in self._hosts.items()},
            "links": [link._describe() for link in self._links],
        }

    def _update_routes(self) -> None:
        """Tell every host which addresses lie behind which of its links."""
        edges = [
            _topology.Edge(link._interface, {host.name: link._addresses(host) for host in link.hosts})
            for link in self._links
        ]
        routers = {host.name for host in self._hosts.values() if host.forwarding}
        for host in self._hosts.values():
            host._set_remote(_topology.remote_addresses(host.name, edges, routers))


_topologies.register(lambda: [lab._describe() for lab in list(_labs) if not lab._closed])


def _start_helper(channel: socket.socket) -> subprocess.Popen[bytes]:
    # Started anew rather than forked: the caller may have threads. Its modules are looked for where ours are.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # What a caller wants to be an error in his program should not end the helper, whose libraries are not his.
    environment.pop("PYTHONWARNINGS", None)
    command = [sys.executable, "-P", "-m", "mptcp.lab._helper", str(channel.fileno()), str(os.getpid())]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
        pass_fds=[channel.fileno()],
        # A terminal's Ctrl-C and a kill of the caller's process group are not for it.
        start_new_session=True,
    )


@contextlib.contextmanager
def two_paths(
    rate: _units.Rate | Sequence[_units.Rate | None] | None = ("20mbit", "10mbit"),
    delay: _units.Time | Sequence[_units.Time | None] | None = None,
) -> Iterator[tuple[Host, Host, tuple[Link, Link]]]:
    """Give a lab of a client and a server with two links, 10.0.1.1-10.0.1.2 and 10.0.2.1-10.0.2.2.

    ``with two_paths() as (client, server, paths): ...``. ``rate`` and ``delay`` are one for both links or one for each.
    """
    rates, delays = _for_each_of_two(rate, "rate"), _for_each_of_two(delay, "delay")
    with Lab() as lab:
        client, server = lab.host("client"), lab.host("server")
        first, second = (
            lab.link(client, server, rate=rate, delay=delay) for rate, delay in zip(rates, delays, strict=True)
        )
        yield client, server, (first, second)


def _for_each_of_two(value: Any, what: str) -> Sequence[Any]:
    if value is None or isinstance(value, str | int | float):
        return (value, value)
    if len(value) != 2:
        raise ValueError(f"{what} is one for both paths or one for each of the two, not {len(value)}")
    return list(value)
