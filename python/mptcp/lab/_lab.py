"""What the user of a lab holds: the lab, its hosts and its links."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import operator
import os
import re
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from types import EllipsisType, TracebackType
from typing import Any, NamedTuple

from mptcp import _connections, _core, _counters, _socket
from mptcp._connections import Connection
from mptcp._errors import UnsupportedError
from mptcp._events import Events
from mptcp._path_manager import check_path_manager
from mptcp._policy import Policy, RunningPolicies
from mptcp._socket import IPPROTO_MPTCP, Socket
from mptcp.lab import _channel, _programs, _topology, _units
from mptcp.lab._capture import Capture

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_CONGESTION_CONTROL = re.compile(r"[a-z0-9_-]{1,15}")
_SYSCTL = re.compile(r"net(/[A-Za-z0-9_.:@-]+)+")

# Link number n has the networks 10.<n / 256>.<n % 256>.0/24 and fd00:0:0:<n>::/64.
_LAST_LINK = 0xFFFF
# The routing tables of links: above those that have names (253 to 255), in the order of the links.
_FIRST_TABLE = 1000
_DEFAULT_QUEUE = 0.1

# linux/mptcp_pm.h, MPTCP_PM_ADDR_FLAG_*
_ENDPOINT_FLAGS = {"signal": 1, "subflow": 2, "backup": 4, "fullmesh": 8, "implicit": 16, "laminar": 32}

# The helper gives programs that will not end 10 seconds; then there is nothing more that it could do.
_END_SECONDS = 30.0


# The open labs of this process, for whoever writes down what surrounded a measurement.
LABS: weakref.WeakSet[Lab] = weakref.WeakSet()


class Lab:
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
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._hosts: dict[str, Host] = {}
        self._links: list[Link] = []
        self._next_link = 1
        # Held here, so that a program may be started and left to itself until the lab ends it.
        self._programs: list[subprocess.Popen[Any]] = []
        self._captures: weakref.WeakSet[Capture] = weakref.WeakSet()
        # Until there is something to close.
        self._closed = True

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
            self._own_user_namespace: bool = self._client.request("start")[0]
        except BaseException:
            self.close()
            raise
        LABS.add(self)

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
            if host.lab is not self:
                raise ValueError(f"host {host.name!r} is of another lab")
        if a is b:
            raise ValueError("a link needs two different hosts")
        limits = _Limits().changed(rate, delay, loss, jitter, queue)
        _check_congestion_control(congestion_control)
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

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "this lab is closed")
        if self._owner != os.getpid():
            raise OSError(errno.EBADF, "this lab belongs to the process that made it, not to its forked children")

    def _update_routes(self) -> None:
        """Tell every host which addresses lie behind which of its links."""
        edges = [
            _topology.Edge(link._interface, {host.name: link._addresses(host) for host in link.hosts})
            for link in self._links
        ]
        routers = {host.name for host in self._hosts.values() if host.forwarding}
        for host in self._hosts.values():
            host._set_remote(_topology.remote_addresses(host.name, edges, routers))


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


class Limits(NamedTuple):
    """The limits of a host's in-kernel path manager: see :meth:`Host.set_limits`."""

    subflows: int
    add_addr_accepted: int


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of a host's in-kernel path manager: see :meth:`Host.add_endpoint`."""

    address: str
    id: int
    flags: tuple[str, ...]
    port: int | None


class Host:
    """One host of a lab: a network namespace, held by the process ``pid``. Made by :meth:`Lab.host`."""

    def __init__(self, lab: Lab, name: str, forwarding: bool, facts: dict[str, Any], descriptors: list[int]) -> None:
        channel, self._net, self._user = descriptors
        self._client = _channel.Client(socket.socket(fileno=channel), f"host {name!r}")
        self._ipv6: bool = facts["ipv6"]
        self._remote: dict[str, list[str]] = {}
        self.lab = lab
        self.name = name
        self.forwarding = forwarding
        #: The process that holds the host's namespaces: ``/proc/<pid>/ns/net`` is the network namespace.
        self.pid: int = facts["pid"]

    def __repr__(self) -> str:
        return f"<Host {self.name!r}: {', '.join(self.addresses) or 'no addresses'}>"

    @property
    def addresses(self) -> list[str]:
        """The host's addresses in the order of its links, IPv4 first and then IPv6."""
        links = [link for link in self.lab.links if self in link.hosts]
        return [
            link.address(self, family)
            for family in (AF_INET, AF_INET6)
            for link in links
            if family == AF_INET or link._ipv6
        ]

    def socket(
        self,
        family: int = AF_INET,
        type: int = SOCK_STREAM,
        proto: int = IPPROTO_MPTCP,
        *,
        path_manager: str | None = None,
    ) -> Socket:
        """Make a socket in this host, for use in the caller's own process. The arguments are those of mptcp.Socket.

        Any family will do: a netlink socket made here speaks to the host's namespace, with its privileges.
        """
        if path_manager is not None:
            check_path_manager(path_manager)
        _, (descriptor,) = self._request(
            "socket",
            family=_c_int(family, "family"),
            type=_c_int(type, "type"),
            proto=_c_int(proto, "proto"),
            path_manager=path_manager,
        )
        try:
            return Socket(fileno=descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | object | None = _socket._DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        *,
        all_errors: bool = False,
        path_manager: str | None = None,
    ) -> Socket:
        """Connect from this host, as mptcp.create_connection does. The address is a literal: names are not resolved."""

        def make_socket(family: int, type: int, proto: int) -> Socket:
            return self.socket(family, type, proto, path_manager=path_manager)

        return _socket._connect(make_socket, address, timeout, source_address, all_errors)

    def create_server(
        self,
        address: tuple[str, int],
        *,
        family: int = AF_INET,
        backlog: int | None = None,
        reuse_port: bool = False,
        dualstack_ipv6: bool = False,
    ) -> Socket:
        """Listen in this host, as mptcp.create_server does."""
        return _socket._listen(self.socket, address, family, backlog, reuse_port, dualstack_ipv6)

    def run(self, args: _programs.Command, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program in this host and wait for it: subprocess.run with its keyword arguments.

        ``preexec_fn`` runs before the program enters the host. With ``executable`` the program sees that as its name.
        For what the kernel then refuses to execute, a file of an unknown format, nsenter complains and exits with 126.
        """
        self.lab._check_open()
        command = self._command_line(args, options)
        try:
            completed = subprocess.run(command, **options)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            error.cmd = args
            raise
        completed.args = args
        return completed

    def popen(self, args: _programs.Command, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in this host: subprocess.Popen with its keyword arguments.

        Its ``pid`` is the program's, so signals reach it. It is killed when the lab is closed.
        """
        self.lab._check_open()
        program = subprocess.Popen(self._command_line(args, options), **options)
        program.args = args
        self.lab._programs = [*(known for known in self.lab._programs if known.returncode is None), program]
        return program

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Return a sysctl of this host's network namespace; with ``value``, set it and return the one before.

        ``name`` is ``net.ipv4.tcp_congestion_control`` or the same with slashes, which a part with a dot in it needs.
        Raises FileNotFoundError if the namespace has no such sysctl, ValueError for one that is not a namespace's.
        """
        if not isinstance(name, str):
            raise TypeError(f"a sysctl's name must be a str, not {type(name).__name__}")
        if not isinstance(value, str | int | None):
            raise TypeError(f"a sysctl's value must be a str or an int, not {type(value).__name__}")
        path = name if "/" in name else name.replace(".", "/")
        if not _SYSCTL.fullmatch(path) or ".." in path.split("/"):
            raise ValueError(f"a host has the sysctls of its network namespace, net.*, not {name!r}")
        text = None if value is None else str(value)
        if text is not None and not text.isascii():
            raise ValueError(f"a sysctl's value is ASCII, not {text!r}")
        before: str = self._request("sysctl", path=path, value=text)[0]
        return before

    def counters(self) -> dict[str, int]:
        """Return the MPTcpExt counters of this host, as mptcp.counters does for the caller's namespace."""
        return _counters.parse(self._request("netstat")[0])

    def connections(
        self, *, token: int | None = None, pid: int | None = None, port: int | None = None
    ) -> list[Connection]:
        """Return the connections of this host, as mptcp.connections does for the caller's namespace."""
        with self.socket(AF_INET, SOCK_DGRAM, 0) as sock:
            return _connections.list_connections(sock.fileno(), token=token, pid=pid, port=port)

    def run_policy(self, *policies: Policy) -> RunningPolicies:
        """Run policies for every connection of this host, as mptcp.run_policy does for the caller's namespace."""
        return RunningPolicies(policies, lambda family, type: self.socket(family, type, 0), self.set_path_manager)

    def events(self) -> Events:
        """Return the events of this host from now on, as mptcp.Events does for the caller's namespace."""
        with self.socket(AF_INET, SOCK_DGRAM, 0) as sock:
            return Events._of(_core.EventStream(sock.fileno(), None))

    def set_path_manager(self, name: str) -> str:
        """Set what new sockets of this host get, ``"kernel"`` or ``"userspace"``, and return the one before.

        Sets the sysctl net.mptcp.path_manager, or net.mptcp.pm_type before Linux 6.15.
        """
        check_path_manager(name)
        before: str = self._request("set_path_manager", name=name)[0]
        return before

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints of the in-kernel path manager in this host, read from the kernel."""
        return [
            Endpoint(
                found["address"],
                found["id"],
                tuple(name for name, bit in _ENDPOINT_FLAGS.items() if found["flags"] & bit),
                found["port"],
            )
            for found in self._request("endpoints")[0]
        ]

    def add_endpoint(self, address: str, *flags: str, id: int | None = None, port: int | None = None) -> None:
        """Give this host's in-kernel path manager an address to use: ``ip mptcp endpoint add``.

        ``flags`` are of ``"subflow"``, ``"signal"``, ``"backup"``, ``"fullmesh"`` and ``"laminar"``; ``"subflow"`` if
        there are none. It is for connections under that path manager, so call ``set_path_manager("kernel")`` first.
        Raises FileExistsError for an address that is one already.
        """
        address = str(_endpoint_address(address))
        for flag in flags:
            if not isinstance(flag, str):
                raise TypeError(f"an endpoint's flag must be a str, not {type(flag).__name__}")
            if flag not in _ENDPOINT_FLAGS:
                raise ValueError(f"an endpoint's flags are {', '.join(_ENDPOINT_FLAGS)}, not {flag!r}")
        _check_range(id, "an endpoint's id", 1, 255)
        _check_range(port, "an endpoint's port", 1, 65535)
        bits = sum(_ENDPOINT_FLAGS[flag] for flag in set(flags or ("subflow",)))
        self._request("add_endpoint", address=address, flags=bits, id=id, port=port)

    def remove_endpoint(self, address: str) -> None:
        """Take an endpoint out. Raises OSError with EADDRNOTAVAIL if the address is none."""
        wanted = _endpoint_address(address)
        for endpoint in self.endpoints:
            if ipaddress.ip_address(endpoint.address) == wanted:
                self._request("remove_endpoint", address=endpoint.address, id=endpoint.id)
                return
        raise OSError(errno.EADDRNOTAVAIL, f"{address} is not an endpoint of host {self.name!r}")

    def set_limits(self, *, subflows: int | None = None, add_addr_accepted: int | None = None) -> Limits:
        """Set the limits of this host's in-kernel path manager that are given, and return those before.

        ``subflows``: additional subflows a connection, also those that the other end opens. ``add_addr_accepted``:
        announced addresses of the other end to which subflows are opened.
        """
        _check_range(subflows, "subflows", 0, 255)
        _check_range(add_addr_accepted, "add_addr_accepted", 0, 255)
        before = self._request("set_limits", subflows=subflows, add_addr_accepted=add_addr_accepted)[0]
        return Limits(**before)

    def _request(self, call: str, **arguments: Any) -> tuple[Any, list[int]]:
        self.lab._check_open()
        return self._client.request(call, **arguments)

    def _command_line(self, args: _programs.Command, options: dict[str, Any]) -> list[Any]:
        namespaces = {"net": self._net}
        if self.lab._own_user_namespace:
            namespaces = {"user": self._user, **namespaces}
        return _programs.command_line(args, namespaces, options)

    def _set_remote(self, remote: dict[str, list[str]]) -> None:
        if remote != self._remote:
            self._request("set_remote", remote=remote)
            self._remote = remote

    def _close(self) -> None:
        self._client.close()
        os.close(self._net)
        os.close(self._user)


@dataclass(frozen=True)
class _Limits:
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
    ) -> _Limits:
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
        self._interface = f"eth{number}"
        self._limits = _Limits()
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
        lab = self.hosts[0].lab
        with lab._lock:
            if not self._up:
                lab._check_open()
                return
            self._up = False
            for host in self.hosts:
                host._request("down", name=self._interface)

    def up(self) -> None:
        """Take both ends up, put their addresses and routes back, and return when packets pass."""
        lab = self.hosts[0].lab
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
            _check_congestion_control(congestion_control)
        lab = self.hosts[0].lab
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
        host.lab._check_open()
        capture = Capture(host._client.request, self._interface, path)
        host.lab._captures.add(capture)
        return capture

    def _side(self, host: Host) -> int:
        if not isinstance(host, Host):
            raise TypeError(f"a link is between hosts, not {type(host).__name__}")
        if host not in self.hosts:
            raise ValueError(f"{host!r} is not at an end of {self!r}")
        return self.hosts.index(host)

    def _addresses(self, host: Host) -> list[str]:
        families = (AF_INET, AF_INET6) if self._ipv6 else (AF_INET,)
        return [self.address(host, family) for family in families]

    def _configure(self, limits: _Limits, congestion_control: str | None) -> None:
        """Give the new pair of interfaces what the link is to have, and take it up."""
        for side, host in enumerate(self.hosts):
            addresses = [
                {
                    "family": int(family),
                    "local": _address(self._number, side, family),
                    "peer": _address(self._number, 1 - side, family),
                    "network": _network(self._number, family),
                }
                for family in ((AF_INET, AF_INET6) if self._ipv6 else (AF_INET,))
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

    def _set_limits(self, limits: _Limits) -> None:
        try:
            self._shape(limits)
        except BaseException:
            self._shape(self._limits)
            raise
        self._limits = limits

    def _shape(self, limits: _Limits) -> None:
        arguments = {**asdict(limits), "queue": limits.queue_bytes}
        for host in self.hosts:
            host._request("shape", name=self._interface, **arguments)

    def _set_congestion_control(self, name: str | None) -> None:
        if name is not None:
            self.hosts[0]._request("require_congestion_control", name=name)
        for host in self.hosts:
            host._request("set_congestion_control", name=self._interface, congestion_control=name)
        self._congestion_control = name


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


def _address(number: int, side: int, family: int) -> str:
    if family == AF_INET:
        return f"10.{number >> 8}.{number & 255}.{side + 1}"
    return f"fd00:0:0:{number:x}::{side + 1}"


def _network(number: int, family: int) -> str:
    return f"10.{number >> 8}.{number & 255}.0/24" if family == AF_INET else f"fd00:0:0:{number:x}::/64"


def _c_int(value: int, what: str) -> int:
    number = operator.index(value)
    _check_range(number, what, -(2**31), 2**31 - 1)
    return int(number)


def _endpoint_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if not isinstance(address, str):
        raise TypeError(f"an endpoint's address must be a str, not {type(address).__name__}")
    parsed = ipaddress.ip_address(address)
    if "%" in address:
        raise ValueError(f"an endpoint's address names no interface: not {address!r}")
    return parsed


def _check_range(value: int | None, what: str, lowest: int, highest: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise ValueError(f"{what} must be from {lowest} to {highest}, not {value}")


def _check_congestion_control(name: str | None) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f'congestion_control must be a name like "reno", not {type(name).__name__}')
    if not _CONGESTION_CONTROL.fullmatch(name):
        raise ValueError(f'congestion_control must be a name like "reno", not {name!r}')
