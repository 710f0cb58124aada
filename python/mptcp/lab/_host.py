"""The Host class: sockets, programs, sysctls and the in-kernel path manager of a lab's host."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from typing import Any

from mptcp import _connection, _core, _interrupts, _proc, _socket
from mptcp._connection import Connection
from mptcp._events import Events
from mptcp._policy import Policy, RunningPolicies
from mptcp._ranges import check_range
from mptcp._socket import IPPROTO_MPTCP, Socket
from mptcp.lab import _channel, _programs
from mptcp.lab._endpoints import InKernelPathManager
from mptcp.lab._state import State

_SYSCTL = re.compile(r"net(/[A-Za-z0-9_.:@-]+)+")

_DESCRIBED_SYSCTLS = ("net.mptcp.scheduler", "net.ipv4.tcp_congestion_control")


class Host(InKernelPathManager):
    """A host of a lab, returned by :meth:`Lab.host`: a network namespace, held by the process ``pid``."""

    def __init__(
        self, state: State, name: str, forwarding: bool, facts: dict[str, Any], descriptors: list[int]
    ) -> None:
        channel, self._net, self._user = descriptors
        self._client = _channel.Client(socket.socket(fileno=channel), f"host {name!r}")
        self._ipv6: bool = facts["ipv6"]
        self._arranged: dict[str, Any] = {}
        self._state = state
        # In the order of its links.
        self._addresses: dict[int, list[str]] = {AF_INET: [], AF_INET6: []}
        self.name = name
        self.forwarding = forwarding
        #: The process that holds the host's namespaces: ``/proc/<pid>/ns/net`` is the network namespace.
        self.pid: int = facts["pid"]

    def __repr__(self) -> str:
        return f"<Host {self.name!r}: {', '.join(self.addresses) or 'no addresses'}>"

    @property
    def addresses(self) -> list[str]:
        """The host's addresses in the order of its links, IPv4 first and then IPv6."""
        return [*self._addresses[AF_INET], *self._addresses[AF_INET6]]

    @property
    def lab(self) -> Any:
        """The :class:`Lab` that this host belongs to."""
        return self._state

    def socket(
        self,
        family: int = AF_INET,
        type: int = SOCK_STREAM,
        proto: int = IPPROTO_MPTCP,
        *,
        path_manager: str | None = None,
    ) -> Socket:
        """Create a socket in this host, for use in the caller's process. The arguments are those of mptcp.Socket.

        It can be of any family: a netlink socket belongs to the host's namespace, with the privileges there. Raises
        OSError (EBADF) once the lab is closed, and what mptcp.Socket raises.
        """
        if path_manager is not None:
            _core.check_path_manager(path_manager)
        family, type, proto = _c_int(family, "family"), _c_int(type, "type"), _c_int(proto, "proto")
        _core.check_socket(family, type, proto)
        wanted = {"family": family, "type": type, "proto": proto}

        def make() -> Socket:
            _, (descriptor,) = self._request("socket", **wanted, path_manager=path_manager)
            try:
                return Socket(fileno=descriptor)
            except BaseException:
                os.close(descriptor)
                raise

        return _interrupts.made(make, Socket.close)

    def create_connection(
        self,
        address: tuple[str | None, _socket.Port],
        timeout: float | None = _socket._DEFAULT_TIMEOUT,
        source_address: _socket.SocketAddress | None = None,
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
        address: _socket.SocketAddress,
        *,
        family: int = AF_INET,
        backlog: int | None = None,
        reuse_port: bool = False,
        dualstack_ipv6: bool = False,
    ) -> Socket:
        """Listen in this host, as mptcp.create_server() does."""
        return _socket._listen(self.socket, address, family, backlog, reuse_port, dualstack_ipv6)

    def run(self, args: _programs.Command, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program in this host and wait for it, like subprocess.run() and with its keyword arguments.

        ``preexec_fn`` runs before the program enters the host. With ``executable`` the program sees that as its name.
        If the kernel then refuses to execute the file, because of its format for instance, nsenter exits with 126.
        Needs nsenter of util-linux. Raises what subprocess.run() raises, OSError (EBADF) once the lab is closed.
        """
        self._state._check_open()
        command = self._command_line(args, options)
        try:
            completed = subprocess.run(command, **options)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            error.cmd = args
            raise
        completed.args = args
        return completed

    def popen(self, args: _programs.Command, **options: Any) -> subprocess.Popen[Any]:
        """Start a program in this host, like subprocess.Popen and with its keyword arguments.

        ``pid`` is that of the program itself, so signals reach it. The program is killed when the lab is closed. Needs
        nsenter of util-linux. Raises what subprocess.Popen raises, OSError (EBADF) once the lab is closed.
        """
        self._state._check_open()
        program = subprocess.Popen(self._command_line(args, options), **options)
        program.args = args
        self._state._programs = [*(known for known in self._state._programs if known.returncode is None), program]
        return program

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Return a sysctl of this host's network namespace; with ``value``, set it and return the previous value.

        ``name`` has dots, like ``net.ipv4.tcp_congestion_control``, or slashes, which are needed if a part contains a
        dot. Raises FileNotFoundError if the namespace has no such sysctl, ValueError for one outside ``net``.
        """
        if not isinstance(name, str):
            raise TypeError(f"a sysctl's name must be a str, not {type(name).__name__}")
        if not isinstance(value, str | int | None):
            raise TypeError(f"a sysctl's value must be a str or an int, not {type(value).__name__}")
        path = name if "/" in name else name.replace(".", "/")
        if not _SYSCTL.fullmatch(path) or ".." in path.split("/"):
            raise ValueError(f"a sysctl of a host must begin with net., not {name!r}")
        text = None if value is None else str(value)
        if text is not None and not text.isascii():
            raise ValueError(f"a sysctl's value must be ASCII, not {text!r}")
        before: str = self._request("sysctl", path=path, value=text)[0]
        return before

    def counters(self) -> dict[str, int]:
        """Return the MPTcpExt counters of this host, as mptcp.counters() does for the caller's namespace."""
        return _proc.parse_counters(self._request("netstat")[0])

    def connections(
        self, *, token: int | None = None, pid: int | None = None, port: int | None = None
    ) -> list[Connection]:
        """Return the connections of this host, as mptcp.connections() does for the caller's namespace."""
        with self.socket(AF_INET, SOCK_DGRAM, 0) as sock:
            return _connection.list_connections(sock.fileno(), token=token, pid=pid, port=port)

    def run_policy(self, *policies: Policy, own: bool = False) -> RunningPolicies:
        """Run policies for every connection of this host, as mptcp.run_policy() does for the caller's namespace."""
        return RunningPolicies(policies, self.socket, self.set_path_manager, own=own)

    def events(self) -> Events:
        """Return the events of this host from now on, as mptcp.Events does for the caller's namespace."""
        with self.socket(AF_INET, SOCK_DGRAM, 0) as sock:
            return Events._of(_core.EventStream(sock.fileno(), None))

    def get_path_manager(self) -> str:
        """Return the path manager that new sockets of this host latch, ``"kernel"`` or ``"userspace"``.

        Reads the sysctl net.mptcp.path_manager, or net.mptcp.pm_type before Linux 6.15. No privilege. Raises OSError
        (EBADF) once the lab is closed.
        """
        name: str = self._request("get_path_manager")[0]
        return name

    def set_path_manager(self, name: str) -> str:
        """Set the path manager that new sockets of this host latch, and return the previous one.

        It is ``"kernel"`` or ``"userspace"``. Sets the sysctl net.mptcp.path_manager, or net.mptcp.pm_type before Linux
        6.15. Raises TypeError and ValueError for another name, OSError (EBADF) once the lab is closed.
        """
        _core.check_path_manager(name)
        before: str = self._request("set_path_manager", name=name)[0]
        return before

    @contextlib.contextmanager
    def _in_namespace(self) -> Iterator[int]:
        with self.socket(AF_INET, SOCK_DGRAM, 0) as sock:
            yield sock.fileno()

    def _describe(self) -> dict[str, Any]:
        """Describe the host for the metadata of a recording."""
        described: dict[str, Any] = {"addresses": self.addresses}
        asked = {"net.mptcp.path_manager": self.get_path_manager}
        asked |= {name: functools.partial(self.sysctl, name) for name in _DESCRIBED_SYSCTLS}
        for name, ask in asked.items():
            try:
                described[name] = ask()
            except OSError:
                described[name] = None  # not in this kernel, or the host's process has ended
        return described

    def _check_alive(self) -> None:
        """Raise OSError (EPIPE) if the host's process has ended, which no link of it can do without."""
        self._state._check_open()
        self._client.check()

    def _is_alive(self) -> bool:
        try:
            self._client.check()
        except OSError:
            return False
        return True

    def _request(self, call: str, **arguments: Any) -> tuple[Any, list[int]]:
        self._state._check_open()
        return self._client.request(call, **arguments)

    def _command_line(self, args: _programs.Command, options: dict[str, Any]) -> list[Any]:
        namespaces = {"net": self._net}
        if self._state._own_user_namespace:
            namespaces = {"user": self._user, **namespaces}
        return _programs.command_line(args, namespaces, options)

    def _arrange(self, **wanted: Any) -> None:
        """Set the host's routes to addresses beyond its links, and the memory of its sockets, as the links require."""
        if wanted != self._arranged and self._is_alive():
            self._request("arrange", **wanted)
            self._arranged = wanted

    def _close(self) -> None:
        self._client.close()
        os.close(self._net)
        os.close(self._user)


def _c_int(value: int, what: str) -> int:
    number = operator.index(value)
    check_range(number, what, -(2**31), 2**31 - 1)
    return int(number)
