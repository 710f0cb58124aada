"""Testing policies without a kernel: the test says what happens, and sees what the policies decide.

A PolicyBench runs policies by the same code as run_policy(), which calls their methods in the same order; what stands
for the kernel is the bench, whose time, events and tcp_info are made by the test. No privilege, no thread, no socket.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from ._connection import Connection
from ._core import Event, Info, Subflow, TcpInfo
from ._docs import document
from ._errors import PathManagerError, SubflowError
from ._event_kind import EventKind
from ._policy import Policy
from ._policy._checks import check
from ._policy._runtime import Runtime

__all__ = ["Announced", "Opened", "OptionSet", "PolicyBench"]

Ends = tuple[tuple[Any, ...], tuple[Any, ...]]
# A host, or a host and a port.
End = str | tuple[Any, ...]


class Opened(NamedTuple):
    """A subflow that a policy requested: an element of PolicyBench.opened, for PolicyBench.establish() and lose()."""

    conn: Connection
    local: tuple[Any, ...]
    remote: tuple[Any, ...]
    backup: bool
    interface: str | None
    local_id: int | None


class Announced(NamedTuple):
    """A local address that a policy announced to the peer: an element of PolicyBench.announced."""

    token: int
    address: str
    port: int | None
    address_id: int


class OptionSet(NamedTuple):
    """A socket option that a policy set on one subflow: an element of PolicyBench.options."""

    subflow: Subflow
    option: tuple[int, int]
    value: Any


document(
    Opened,
    conn="The connection.",
    local="The local end, (host, port), with port 0 where the kernel is to choose.",
    remote="The remote end, (host, port).",
    backup="Whether it was requested with the backup flag.",
    interface="The interface that it is bound to, None for any.",
    local_id="The address id that was requested, None for any.",
)
document(
    Announced,
    token="The token of the connection.",
    address="The address, as text.",
    port="The port that was announced with it; None for that of the connection.",
    address_id="The address id that it was given.",
)
document(
    OptionSet,
    subflow="The subflow.",
    option="The level and the name.",
    value="The value as it was given.",
)


class PolicyBench:
    """Runs policies without a kernel: ``PolicyBench(policy, addresses={"eth0": "10.0.1.1", "wlan0": "10.0.2.1"})``.

    ``addresses`` are those of the host, by interface: a str, or several of them. All interfaces are up. ``opened`` and
    ``closed`` list what the policies opened (Opened) and closed (Subflow), in order; ``announced`` (Announced),
    ``withdrawn`` (address ids) and ``options`` (OptionSet) what else they did. Nothing comes of what is opened until
    establish() or lose() says so; after Policy.open_timeout of the bench's time it fails with ETIMEDOUT.

    Every method returns when all callbacks that it leads to have returned. An exception in a callback is raised by the
    method that led to it, after the other callbacks. Time is the test's: see advance(). It is a context manager;
    close() ends the policies.

    Raises what run_policy() raises for what is not a policy, for a policy that could not run, and for a path that does
    not exist here; TypeError and ValueError for what cannot be an address.
    """

    def __init__(self, policy: Policy, *more: Policy, addresses: Mapping[str, str | Iterable[str]]) -> None:
        policies = (policy, *more)
        check(policies)
        self._kernel = _Kernel(addresses)
        self._errors: list[Exception] = []
        self._runtime = Runtime(policies, self._kernel, lambda policy, method, error: self._errors.append(error))
        self._ticks = [one.tick for one in policies if any(_has(one, name) for name in _TICKED)]
        self.opened: list[Opened] = self._kernel.opened
        self.closed: list[Subflow] = self._kernel.closed
        self.announced: list[Announced] = self._kernel.announced
        self.withdrawn: list[int] = self._kernel.withdrawn
        self.options: list[OptionSet] = self._kernel.options
        try:
            self._runtime.begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """End the policies: they put back what they changed. Calling it again has no effect."""
        self._runtime.stop()

    @property
    def now(self) -> float:
        """The bench's time in seconds, 0 at the beginning: what Policy.now() returns."""
        return self._kernel.now()

    # What happens

    def connection(
        self,
        local: End,
        remote: End,
        *,
        server_side: bool = False,
        uid: int = 0,
        pid: int | None = None,
        program: str | None = None,
        cgroup: int | None = None,
        deny_join_initial: bool = False,
        path_manager: str = "userspace",
    ) -> Connection:
        """Have a new connection, fully established, and return it. A host without a port gets one.

        The others are what the Connection's attributes of these names will be. ``path_manager`` "kernel" refuses what
        the in-kernel path manager refuses.
        """
        owner = _Owner(uid, pid, program, cgroup, server_side, deny_join_initial, path_manager)
        native = self._kernel.connect(self._kernel.end(local), _end(remote, 443), owner)
        self._settle()
        return self._conn(native.token)

    def subflows(self, conn: Connection) -> list[Subflow]:
        """Return the connection's accepted subflows, the initial one first."""
        return self._native(conn).snapshots(conn)

    def end(self, conn: Connection) -> None:
        """Have a connection end."""
        native = self._native(conn)
        native.is_open = False
        native.orders.clear()
        self._report(("closed", native.token))

    def establish(self, opened: Opened) -> Subflow:
        """Have the peer accept a subflow that a policy opened, and return it."""
        native = self._native(opened.conn)
        self._take(opened)
        live = native.add(self._kernel.end(opened.local), opened.remote, initial=False, backup=opened.backup)
        subflow = native.snapshot(live, opened.conn)
        self._kernel.tell_subflow(EventKind.SUB_ESTABLISHED, "answered", native.token, live.ends, None)
        self._report(("accepted", native.token, subflow))
        return subflow

    def join(self, conn: Connection, local: End, remote: End) -> Subflow:
        """Have the peer join a connection by a subflow of its own, and return it."""
        native = self._native(conn)
        live = native.add(self._kernel.end(local), _end(remote, 40_000), initial=False, backup=False)
        subflow = native.snapshot(live, conn)
        self._kernel.tell_subflow(EventKind.SUB_ESTABLISHED, "answered", native.token, live.ends, None)
        self._report(("accepted", native.token, subflow))
        return subflow

    def lose(self, subflow: Subflow | Opened, error: int | None = None) -> None:
        """Have a subflow be lost, or one that a policy opened fail; ``error`` is the errno that the event will have."""
        if isinstance(subflow, Opened):
            native, ends, what = self._native(subflow.conn), (subflow.local, subflow.remote), "failed"
            self._take(subflow)
        else:
            native, ends, what = self._kernel.natives[subflow.token], (subflow.local, subflow.remote), "lost"
            if native.subflows.pop(ends, None) is None:
                raise ValueError(f"{subflow!r} is not one of the bench's live subflows")
            self._kernel.carry_out(native, subflow)
        self._kernel.tell_subflow(EventKind.SUB_CLOSED, what, native.token, ends, error)
        self._settle()

    def announce(self, conn: Connection, address: str, *, address_id: int | None = None, port: int = 0) -> int:
        """Have the peer announce an address, and return the address id: a free one unless given."""
        native = self._native(conn)
        number = next(native.remote_ids) if address_id is None else address_id
        event = {"token": native.token, "remote": (_address(address), port), "remote_id": number}
        self._report(("announced", native.token, self._kernel.event(EventKind.ANNOUNCED, **event)))
        return number

    def withdraw(self, conn: Connection, address_id: int) -> None:
        """Have the peer withdraw an address by its id."""
        token = self._native(conn).token
        event = self._kernel.event(EventKind.REMOVED, token=token, remote_id=address_id)
        self._report(("removed", token, event))

    def link_up(self, name: str) -> None:
        """Have an interface come up, with its addresses."""
        self._kernel.interface(name).is_up = True
        self._report(("link up", self._kernel.event(EventKind.LINK_UP, interface=name)))

    def link_down(self, name: str) -> None:
        """Have an interface go down. Its subflows stay until they are closed or lost."""
        self._kernel.interface(name).is_up = False
        for native in self._kernel.natives.values():
            for what in (name, *self._kernel.interface(name).addresses):
                self._kernel.carry_out(native, what)
        self._report(("link down", self._kernel.event(EventKind.LINK_DOWN, interface=name)))

    def add_address(self, name: str, address: str) -> None:
        """Have an interface, which may be new, get an address."""
        self._kernel.interfaces.setdefault(name, _Interface()).addresses.append(_address(address))
        event = self._kernel.event(EventKind.ADDRESS_ADDED, local=(address, 0), interface=name)
        self._report(("address added", event))

    def remove_address(self, name: str, address: str) -> None:
        """Have an interface lose an address."""
        self._kernel.interface(name).addresses.remove(_address(address))
        for native in self._kernel.natives.values():
            self._kernel.carry_out(native, _address(address))
        event = self._kernel.event(EventKind.ADDRESS_REMOVED, local=(address, 0), interface=name)
        self._report(("address removed", event))

    def set(self, conn: Connection, subflow: Subflow | None = None, **tcp_info: int) -> None:
        """Set fields of the tcp_info that the subflow, or every subflow of the connection, has from now on.

        Fields that were never set are 0. Raises TypeError and ValueError as TcpInfo() does.
        """
        TcpInfo(**tcp_info)
        for live in self._native(conn).subflows.values():
            if subflow is None or live.cookie == subflow.cookie:
                live.fields.update(tcp_info)

    def tick(self, conn: Connection, subflow: Subflow | None = None, **tcp_info: int) -> None:
        """Call set(), and let the time of one tick pass: the shortest ``tick`` of the policies that have ticks."""
        self.set(conn, subflow, **tcp_info)
        if self._ticks:
            self.advance(min(self._ticks))

    def advance(self, seconds: float) -> None:
        """Let time pass. Ticks and timeouts that are due meanwhile happen, each at its time."""
        if not seconds >= 0:
            raise ValueError(f"seconds must be a number of 0 or more, not {seconds}")
        end = self.now + seconds
        # Sums of a tenth are a little more or less than they should be.
        while (due := self._runtime.next_due()) <= end + 1e-9:
            self._kernel.time = max(self.now, due)
            self._runtime.pass_time()
        self._kernel.time = max(self.now, end)
        self._settle()

    # Within

    def _conn(self, token: int) -> Connection:
        return next(conn for conn in self._runtime.connections() if conn.token == token)

    def _native(self, conn: Connection) -> _Native:
        native = self._kernel.natives.get(conn.token)
        if native is None or not native.is_open:
            raise ValueError(f"{conn!r} is not one of the bench's connections, or has ended")
        return native

    def _take(self, opened: Opened) -> None:
        pending = self._native(opened.conn).pending
        waited_for = self._runtime.opening(opened.conn)
        is_waited_for = any(one.local[0] in ("", opened.local[0]) and one.remote == opened.remote for one in waited_for)
        if not is_waited_for or not any(one is opened for one in pending):
            raise ValueError(f"{opened!r} was established, lost or given up before")
        pending[:] = [one for one in pending if one is not opened]

    def _report(self, report: tuple[Any, ...]) -> None:
        self._kernel.reports.append(report)
        self._settle()

    def _settle(self) -> None:
        self._runtime.settle()
        errors = self._errors[:]
        self._errors.clear()
        if len(errors) > 1:
            raise ExceptionGroup("several callbacks failed", errors)
        if errors:
            raise errors[0]


# Reports that have the token of a connection, until they are taken.
_OF_CONNECTIONS = frozenset(
    ("closed", "answered", "accepted", "lost", "failed", "ordered", "done", "refused", "announced", "removed")
)

# What comes with the ticks.
_TICKED = ("on_tick", "on_rto", "on_progress")


def _has(policy: Policy, method: str) -> bool:
    return getattr(type(policy), method) is not getattr(Policy, method)


class _Owner(NamedTuple):
    """What is told of a connection, besides its ends."""

    uid: int
    pid: int | None
    program: str | None
    cgroup: int | None
    server_side: bool
    deny_join_initial: bool
    path_manager: str


class _Order(NamedTuple):
    """A standing order."""

    conn: Any
    local: Any
    remote: Any
    backup: bool
    interface: str | None
    number: int


def _lost(what: Any) -> Any:
    """What a standing order waits for, as a key: a name, an address, or the ends of a subflow."""
    return what if isinstance(what, str) else (what.local, what.remote)


@dataclass
class _Interface:
    addresses: list[str] = field(default_factory=list)
    is_up: bool = True


@dataclass
class _Live:
    """A subflow that the peer has accepted."""

    ends: Ends
    cookie: int
    initial: bool
    backup: bool
    fields: dict[str, int] = field(default_factory=dict)


class _Kernel:
    """What the runtime has of a kernel, made by a bench: see mptcp._policy._kernel."""

    def __init__(self, addresses: Mapping[str, str | Iterable[str]]) -> None:
        if not isinstance(addresses, Mapping):
            raise TypeError(f"addresses must be a mapping of interfaces to addresses, not {type(addresses).__name__}")
        self.time = 0.0
        self.watcher = None
        self.interfaces = {
            name: _Interface([_address(one) for one in ([found] if isinstance(found, str) else found)])
            for name, found in addresses.items()
        }
        self.natives: dict[int, _Native] = {}
        self.reports: deque[tuple[Any, ...]] = deque()
        self.opened: list[Opened] = []
        self.closed: list[Subflow] = []
        self.announced: list[Announced] = []
        self.withdrawn: list[int] = []
        self.options: list[OptionSet] = []
        self.tokens = itertools.count(1)
        self.cookies = itertools.count(1)
        self.ports = itertools.count(32_768)

    # What the runtime calls

    def now(self) -> float:
        return self.time

    def report(
        self, timeout: float, owners: Mapping[int, Any], at_once: Mapping[str, Any], later: list[Any]
    ) -> tuple[Any, ...] | None:
        while self.reports:
            report = self.reports.popleft()
            if report[0] not in _OF_CONNECTIONS:
                return report
            if (owner := owners.get(report[1])) is not None:
                return report[0], owner, *report[2:]
        return None

    def links(self) -> list[Event]:
        up = [self.event(EventKind.LINK_UP, interface=name) for name, one in self.interfaces.items() if one.is_up]
        there = [
            self.event(EventKind.ADDRESS_ADDED, local=(address, 0), interface=name)
            for name, one in self.interfaces.items()
            for address in one.addresses
        ]
        return up + there

    def close(self) -> None:
        self.reports.clear()

    def stand_by(self) -> bool:
        return False  # a bench has no threads

    def carries_out(self) -> bool:
        return False

    def has_interface(self, name: str) -> bool:
        return name in self.interfaces

    def interface_of_route(self, local: str, remote: str) -> str | None:
        return next((name for name, one in self.interfaces.items() if local in one.addresses), None)

    def check_subflow_options(self) -> None:
        """Options can be set."""

    def subflows_at(self, asked: list[Any], /) -> Sequence[Subflow | None]:
        found = ((native, native.subflows.get((local, remote)), owner) for native, owner, local, remote in asked)
        return [None if live is None else native.snapshot(live, owner) for native, live, owner in found]

    def subflows_of(self, connections: Sequence[Any]) -> Sequence[Sequence[Subflow] | None]:
        return [conn._native.snapshots(conn) if conn._native.is_open else None for conn in connections]

    def open(
        self,
        conn: Any,
        local: Any,
        remote: Any,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
        number: int,
    ) -> None:
        conn._native.open_subflow(conn, local, remote, backup, interface, local_id, 0, force)

    def close_subflow(self, conn: Any, subflow: Subflow, force: bool, number: int) -> None:
        conn._native.orders.pop(_lost(subflow), None)
        with self._failing(conn, number):
            conn._native.close_subflow(subflow, force)

    def set_backup(self, conn: Any, subflow: Subflow, backup: bool, number: int) -> None:
        with self._failing(conn, number):
            conn._native.set_backup(subflow, backup)
            self.reports.append(("done", conn.token, number))

    @contextlib.contextmanager
    def _failing(self, conn: Any, number: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.reports.append(("refused", conn.token, number, error))

    def when_lost(
        self, conn: Any, what: Any, local: Any, remote: Any, backup: bool, interface: str | None, number: int
    ) -> int | None:
        conn._native._check()
        before = self.take_back(conn, what)
        conn._native.orders[_lost(what)] = _Order(conn, local, remote, backup, interface, number)
        return before

    def take_back(self, conn: Any, what: Any) -> int | None:
        order = conn._native.orders.pop(_lost(what), None)
        return None if order is None else order.number

    def carry_out(self, native: _Native, what: Any) -> None:
        """Open what is ordered for a loss, before the loss is told."""
        order = native.orders.pop(_lost(what), None)
        if order is not None:
            self.reports.append(("ordered", native.token, order.number))
            with self._failing(order.conn, order.number):
                native.open_subflow(
                    order.conn, order.local, order.remote, order.backup, order.interface, None, 0, False
                )

    def holders(self) -> Mapping[int, int]:
        return {one.inode: one.owner.pid for one in self.natives.values() if one.owner.pid is not None}

    def program(self, pid: int | None) -> str | None:
        found = (one.owner.program for one in self.natives.values() if one.owner.pid == pid is not None)
        return next(found, None)

    # What the bench and the connections call

    def event(self, kind: EventKind, **fields: Any) -> Event:
        return Event(kind, int(self.time * 1e9), **fields)

    def tell_subflow(self, kind: EventKind, what: str, token: int, ends: Ends, error: int | None) -> None:
        local, remote = ends
        event = self.event(kind, token=token, local=local, remote=remote, error=error)
        self.reports.append((what, token, event))

    def end(self, given: End) -> tuple[Any, ...]:
        """A local end, with a port."""
        host, port = _end(given, 0)
        return host, port or next(self.ports)

    def interface(self, name: str) -> _Interface:
        if name not in self.interfaces:
            raise ValueError(f"the bench has no interface {name!r}: {', '.join(self.interfaces) or 'it has none'}")
        return self.interfaces[name]

    def connect(self, local: tuple[Any, ...], remote: tuple[Any, ...], owner: _Owner) -> _Native:
        # A program without a process is one of its own.
        token = next(self.tokens)
        if owner.program is not None and owner.pid is None:
            owner = owner._replace(pid=100_000 + token)
        native = _Native(self, token, local, remote, owner)
        self.natives[token] = native
        native.add(local, remote, initial=True, backup=False)
        self.reports.append(("connection", native, [(local, remote)]))
        return native


class _Native:
    """The native companion of a bench's connection: what _core.ByToken is of a kernel's."""

    state = "ESTABLISHED"

    def __init__(
        self, kernel: _Kernel, token: int, local: tuple[Any, ...], remote: tuple[Any, ...], owner: _Owner
    ) -> None:
        self.kernel, self.token, self.local, self.remote, self.owner = kernel, token, local, remote, owner
        self.cookie = next(kernel.cookies)
        self.inode = 1_000_000 + token
        self.is_open = True
        self.subflows: dict[Ends, _Live] = {}
        self.pending: list[Opened] = []
        self.orders: dict[Any, _Order] = {}
        self.local_ids = itertools.count(1)
        self.remote_ids = itertools.count(1)
        self._began = kernel.now()

    @property
    def server_side(self) -> bool:
        return self.owner.server_side

    @property
    def uid(self) -> int:
        return self.owner.uid

    @property
    def cgroup(self) -> int | None:
        return self.owner.cgroup

    @property
    def age(self) -> float:
        return self.kernel.now() - self._began

    def state_now(self) -> str | None:
        return "ESTABLISHED" if self.is_open else None

    def path_manager(self) -> str:
        return self.owner.path_manager

    def deny_join_initial(self) -> bool:
        return self.owner.deny_join_initial

    def add(self, local: tuple[Any, ...], remote: tuple[Any, ...], *, initial: bool, backup: bool) -> _Live:
        live = _Live((local, remote), next(self.kernel.cookies), initial, backup)
        self.subflows[live.ends] = live
        return live

    def snapshot(self, live: _Live, owner: Any) -> Subflow:
        local, remote = live.ends
        return Subflow(
            token=self.token,
            local=local,
            remote=remote,
            tcp_info=TcpInfo(**live.fields),
            cookie=live.cookie,
            initial=live.initial,
            backup=live.backup,
            owner=owner,
        )

    def snapshots(self, owner: Any) -> list[Subflow]:
        return [self.snapshot(live, owner) for live in self.subflows.values()]

    # What policies do by a Connection

    def open_subflow(
        self,
        owner: Any,
        local: Any,
        remote: Any,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        timeout: float | None,
        force: bool,
    ) -> None:
        self._check()
        goal = self.remote[:2] if remote is None else _end(remote, self.remote[1])
        if goal == self.remote[:2] and self.owner.deny_join_initial and not force:
            raise SubflowError(errno.EACCES, "the peer denies subflows to its initial address and port")
        host, port = _end(self.local_address(goal, interface) if local is None else local, 0)
        if not any(host in one.addresses for one in self.kernel.interfaces.values()):
            raise SubflowError(errno.EADDRNOTAVAIL, f"{host} is not a local address")
        opened = Opened(owner, (host, port), goal, backup, interface, local_id)
        self.pending.append(opened)
        self.kernel.opened.append(opened)

    def local_address(self, remote: Any, interface: str | None) -> str:
        family = ":" in _end(remote, 0)[0]
        for name, one in self.kernel.interfaces.items():
            for address in one.addresses if one.is_up and interface in (None, name) else ():
                if (":" in address) == family:
                    return address
        raise SubflowError(errno.ENETUNREACH, "no local address can reach the peer")

    def close_subflow(self, subflow: Any, force: bool) -> None:
        live = self.subflows.pop((subflow.local, subflow.remote), None) if self.is_open else None
        if live is None:
            raise SubflowError(errno.ENOTCONN, "the subflow is closed already")
        self.kernel.closed.append(subflow)
        self.kernel.tell_subflow(EventKind.SUB_CLOSED, "lost", self.token, live.ends, None)

    def set_backup(self, subflow: Subflow, backup: bool) -> None:
        self._check()
        live = self.subflows.get((subflow.local, subflow.remote))
        if live is None:
            raise SubflowError(errno.ENOTCONN, "the subflow is closed already")
        live.backup = backup

    def announce_address(self, address: str, port: int | None, id: int | None, listen: bool) -> int:
        self._check()
        number = next(self.local_ids) if id is None else id
        self.kernel.announced.append(Announced(self.token, _address(address), port, number))
        return number

    def remove_address(self, id: int, force: bool) -> None:
        self._check()
        self.kernel.withdrawn.append(id)

    def set_subflow_options(self, options: Mapping[Subflow, Mapping[tuple[int, int], Any]]) -> None:
        for subflow, values in options.items():
            self.kernel.options += [OptionSet(subflow, option, value) for option, value in values.items()]

    def get_subflow_option(self, subflow: Subflow, level: int, optname: int, buflen: int | None) -> Any:
        found = [one.value for one in self.kernel.options if one[:2] == (subflow, (level, optname))]
        return found[-1] if found else 0

    def info(self) -> Info:
        raise NotImplementedError("a bench has no struct mptcp_info")

    def events(self) -> Any:
        raise NotImplementedError("on a bench events are the policies' callbacks")

    def _check(self) -> None:
        if not self.is_open:
            raise SubflowError(errno.ENOTCONN, "the connection has ended")
        if self.owner.path_manager == "kernel":
            raise PathManagerError(errno.EBUSY, "the connection is under the in-kernel path manager")


def _end(given: End, port: int) -> tuple[str, int]:
    """A host and a port, ``port`` where none is given."""
    if isinstance(given, str):
        return _address(given), port
    host, given_port = given[:2]
    return _address(host), given_port or port


def _address(text: str) -> str:
    """An address in its shortest form. ValueError for anything else."""
    host, percent, scope = text.partition("%")
    return f"{ipaddress.ip_address(host)}{percent}{scope}"
