"""Why a connection has the subflows that it has, and no others."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from . import _core, _endpoints, _proc
from ._address import endpoint
from ._docs import document
from ._errors import SubflowError, UnsupportedError
from ._event_kind import EventKind

if TYPE_CHECKING:
    from ._core import Event, Subflow

SEEN, INFERRED = "seen", "inferred"
HIDDEN = "not visible without CAP_NET_ADMIN"
UNHEARD = "not known: nobody listened"

_TRY = 2.5
"""Seconds for one try: the SYN is repeated after one second."""
_PROBE = 2.0
_AT_ONCE_NS = 500_000_000
_SO_NETNS_COOKIE = 71

# RFC 8684, section 3.6.
_RESET_REASONS = {
    0: "unspecified error",
    1: "Multipath TCP specific error",
    2: "lack of resources",
    3: "administratively prohibited",
    4: "too much outstanding data",
    5: "unacceptable performance",
    6: "middlebox interference",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line of an explanation: something that stands in the way, or that was found to be in order."""

    cause: str
    text: str
    basis: str

    def __str__(self) -> str:
        return f"{self.text} [{self.basis}]"


@dataclasses.dataclass(frozen=True, slots=True)
class AddressPair:
    """A pair of a local and a remote address that could be a path, with what is known of it."""

    local: str
    remote: str
    subflows: int
    outcome: str
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why a connection has the subflows that it has, and no others, from Connection.explain(). str() is in words."""

    token: int | None
    local: tuple[Any, ...] | None
    remote: tuple[Any, ...] | None
    path_manager: str | None
    server_side: bool | None
    findings: tuple[Finding, ...]
    pairs: tuple[AddressPair, ...]
    closed: tuple[str, ...]

    @property
    def causes(self) -> tuple[str, ...]:
        """The causes of all findings, those of the connection first, each once."""
        found = [*self.findings, *(finding for pair in self.pairs for finding in pair.findings)]
        return tuple(dict.fromkeys(finding.cause for finding in found))

    def asdict(self) -> dict[str, Any]:
        """Return the explanation as types of JSON, by the names of the attributes, with ``causes``."""
        return {**dataclasses.asdict(self), "causes": list(self.causes)}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.local is not None and self.remote is not None:
            side = {True: "accepted here", False: "opened here", None: "side unknown"}[self.server_side]
            manager = "unknown path manager" if self.path_manager is None else f"{self.path_manager} path manager"
            yield f"{self.token}  {endpoint(self.local)} -> {endpoint(self.remote)}  {side}  {manager}"
        for finding in self.findings:
            yield f"  {finding}"
        for pair in self.pairs:
            count = "1 subflow" if pair.subflows == 1 else f"{pair.subflows or 'no'} subflows"
            yield f"  {pair.local} -> {pair.remote}: {count}; last try: {pair.outcome}"
            for finding in pair.findings:
                yield f"    {finding}"
        for text in self.closed:
            yield f"  {text}"


document(
    Finding,
    cause="A short name for programs, for example no-route; docs/why.md has them all.",
    text="The same in words, with what to do about it.",
    basis='"seen", "inferred", or "not visible without CAP_NET_ADMIN".',
)
document(
    AddressPair,
    local="An address of this host.",
    remote="An address of the peer.",
    subflows="How many subflows there are between the two.",
    outcome='How the last try ended, or "not known: nobody listened".',
    findings="What stands in the way.",
)
document(
    Explanation,
    token="The connection's token; None for what is not Multipath TCP.",
    local="The connection's own local end; None if it is not connected.",
    remote="The connection's own remote end.",
    path_manager="Its path manager, None if it cannot be told.",
    server_side="Whether the peer opened the connection.",
    findings="What holds for the connection as a whole.",
    pairs="Each pair of addresses that could be a path.",
    closed="For each subflow whose end was heard: why it closed.",
)


class Explained(Protocol):
    """A Socket or a Connection."""

    @property
    def _native(self) -> _core.Native: ...
    def subflows(self) -> list[Subflow]: ...
    def close_subflow(self, subflow: Subflow, /) -> None: ...
    @property
    def open_subflow(self) -> Callable[..., Any]: ...


def explain(connection: Explained, *, attempt: bool = False) -> Explanation:
    """Return the explanation of one connection; with ``attempt``, open each pair without a subflow once."""
    native = connection._native
    with contextlib.closing(socket.socket(fileno=native.new_socket(socket.AF_INET, socket.SOCK_DGRAM, 0))) as sock:
        return _Case(connection, sock.fileno()).explanation(attempt)


def of_namespace(fd: int) -> list[Finding]:
    """Return what keeps every connection of a socket's network namespace from being Multipath TCP."""
    found = []
    sysctls = _core.read_sysctls(fd)
    if sysctls.get("net.mptcp.enabled") == "0":
        text = "Multipath TCP is off in this network namespace: set net.mptcp.enabled to 1"
        found.append(Finding("multipath-off", text, SEEN))
    return found


def of_counters(counters: dict[str, int]) -> list[Finding]:
    """Return what the MPTcpExt counters of a namespace tell of connections that fell back."""
    asked, answered = counters.get("MPCapableSYNTX"), counters.get("MPCapableSYNACKRX", 0)
    fell = counters.get("MPCapableFallbackSYNACK", 0)
    found = []
    if asked and (fell or asked > answered):
        lost = max(fell, asked - answered)
        text = (
            f"of {asked} connections that asked for Multipath TCP since the namespace began, {lost} got no answer with "
            "MP_CAPABLE and fell back to TCP: the peer has Multipath TCP off or its listener is plain TCP, or a "
            "middlebox removes the option"
        )
        found.append(Finding("fell-back", text, INFERRED))
    return found


def as_dict(finding: Finding) -> dict[str, str]:
    """Return a finding as types of JSON."""
    return {"cause": finding.cause, "text": finding.text, "basis": finding.basis}


@dataclasses.dataclass
class _Tried:
    """How the last try of a pair ended."""

    text: str
    error: int | None = None
    """None where it succeeded."""


class _Case:
    def __init__(self, connection: Explained, fd: int) -> None:
        self._connection = connection
        self._native = connection._native
        self._fd = fd
        self._findings: list[Finding] = []
        self._port = 0
        self._interfaces = [
            (name, up, address)
            for name, up, addresses in _core.interfaces(fd)
            if name != "lo"
            for address in addresses
            if _could_be_a_path(address)
        ]

    def explanation(self, attempt: bool) -> Explanation:
        self._findings += of_namespace(self._fd)
        try:
            subflows = self._connection.subflows()
            token, local, remote, server_side = self._native.identity()
        except OSError as error:
            return self._not_multipath(error)
        self._port = remote[1]
        manager = self._path_manager()
        history: list[Event] | None = self._native.history()
        heard = history is not None
        denied = self._native.deny_join_initial()
        endpoints = _endpoints.list_endpoints(self._fd) if manager == "kernel" else []
        self._of_limits(manager, server_side, subflows)
        if server_side:
            self._of_refused_joins(manager)
        locals_, remotes = self._locals(local, endpoints), self._remotes(remote, subflows, history or [])
        tried = _tries(history or [])
        pairs = []
        for here in locals_:
            for there in remotes:
                if (":" in here) != (":" in there):
                    continue
                count = sum(_same(one, here, there) for one in subflows)
                outcome = tried.get((here, there))
                if attempt and not count and manager == "userspace":
                    outcome = self._attempt(here, there)
                findings: list[Finding] = []
                if not count:
                    findings += self._of_addresses(here, there)
                    findings += self._of_endpoints(manager, server_side, here, endpoints)
                    findings += self._of_initial(there == _host(remote[0]), denied, server_side, outcome)
                    if outcome is None and all(finding.cause == "c-bit-unknown" for finding in findings):
                        outcome = self._by_counters(len(subflows))
                    findings += self._of_outcome(outcome, here, there, attempt, bool(findings))
                pairs.append(
                    AddressPair(here, there, count, outcome.text if outcome else _unheard(heard), tuple(findings))
                )
        if attempt and manager == "kernel":
            text = "nothing was tried: only the in-kernel path manager opens subflows of this connection"
            self._findings.append(Finding("not-tried", text, SEEN))
        self._of_pairs(pairs, history)
        return Explanation(
            token,
            local,
            remote,
            manager,
            server_side,
            tuple(self._findings),
            tuple(pairs),
            tuple(_closed(history or [])),
        )

    def _not_multipath(self, error: OSError) -> Explanation:
        if error.errno == errno.EOPNOTSUPP:
            off = any(finding.cause == "multipath-off" for finding in self._findings)
            self._findings.append(Finding("fell-back", error.strerror or str(error), SEEN))
            if not off:
                text = (
                    "the peer has Multipath TCP off (net.mptcp.enabled) or its listener is plain TCP, or a middlebox "
                    "removes the options"
                )
                self._findings.append(Finding("peer-without-multipath", text, INFERRED))
        else:
            self._findings.append(Finding("no-connection", error.strerror or str(error), SEEN))
        return Explanation(None, None, None, None, None, tuple(self._findings), (), ())

    def _path_manager(self) -> str | None:
        try:
            return self._native.path_manager()
        except OSError as error:
            text = f"its path manager cannot be told: {error.strerror}"
            self._findings.append(Finding("path-manager-unknown", text, HIDDEN))
            return None

    def _of_limits(self, manager: str | None, server_side: bool | None, subflows: Sequence[Subflow]) -> None:
        if manager != "kernel":
            return
        limits = _endpoints.Limits(*_core.get_limits(self._fd))
        extra = sum(not one.initial for one in subflows)
        if extra >= limits.subflows:
            text = (
                f"the limit of this namespace is reached: {limits.subflows} subflows beside the initial one, and "
                f"there are {extra}: mptcp limits --subflows {min(limits.subflows + 4, 8)}"
            )
            self._findings.append(Finding("limit-here", text, SEEN))
        if not server_side and not limits.add_addr_accepted:
            text = "addresses that the peer announces are not used: mptcp limits --add-addr-accepted 4"
            self._findings.append(Finding("add-addr-limit-here", text, SEEN))

    def _locals(self, local: tuple[Any, ...], endpoints: Iterable[_endpoints.Endpoint]) -> list[str]:
        """The addresses of this host that could be a path: those of its interfaces, of endpoints, and the own one."""
        own = _host(local[0])
        found = [own, *(address for _, _, address in self._interfaces)]
        found += [each.address for each in endpoints if each.subflow or each.signal]
        return list(dict.fromkeys(found))

    def _remotes(self, remote: tuple[Any, ...], subflows: Iterable[Subflow], history: Iterable[Event]) -> list[str]:
        found = [_host(remote[0]), *(_host(one.remote[0]) for one in subflows)]
        announced: dict[int | None, str] = {}
        for event in history:
            if event.kind == EventKind.ANNOUNCED and event.remote is not None:
                announced[event.remote_id] = _host(event.remote[0])
            elif event.kind == EventKind.REMOVED:
                announced.pop(event.remote_id, None)
            elif event.kind in (EventKind.SUB_ESTABLISHED, EventKind.SUB_CLOSED) and event.remote and event.remote[1]:
                found.append(_host(event.remote[0]))
        return list(dict.fromkeys([*found, *announced.values()]))

    def _of_addresses(self, here: str, there: str) -> Iterator[Finding]:
        at = [(name, up) for name, up, address in self._interfaces if address == here]
        if not at:
            text = f"{here} is not an address of this host now: its interface may be down"
            yield Finding("address-missing", text, SEEN)
            return
        name, up = at[0]
        if not up:
            yield Finding("link-down", f"{name}, which has {here}, is down or has no carrier", SEEN)
            return
        leaves = _core.interface_of_route(self._fd, here, there)
        if leaves is None:
            yield Finding("no-route", f"there is no route from {here} to {there}", SEEN)
        elif leaves not in [name for name, _ in at]:
            text = (
                f"packets from {here} to {there} leave by {leaves}, not by {name}, which has the address: it needs a "
                f"rule (ip rule add from {here} table ...) and a route"
            )
            yield Finding("wrong-link", text, SEEN)

    def _of_endpoints(
        self, manager: str | None, server_side: bool | None, here: str, endpoints: Sequence[_endpoints.Endpoint]
    ) -> Iterator[Finding]:
        if manager != "kernel":
            return
        at = [each for each in endpoints if _host(each.address) == here]
        if server_side:
            if not any(each.signal for each in at):
                text = (
                    f"{here} is not announced to the peer, which opens the subflows: mptcp endpoint add {here} --signal"
                )
                yield Finding("no-endpoint", text, SEEN)
        elif not any(each.subflow or each.laminar for each in at):
            text = f"{here} is not an endpoint from which subflows are opened: mptcp endpoint add {here} --subflow"
            yield Finding("no-endpoint", text, SEEN)

    def _of_initial(
        self, initial: bool, denied: bool | None, server_side: bool | None, outcome: _Tried | None
    ) -> Iterator[Finding]:
        if not initial:
            return
        if denied:
            text = (
                "the peer denies further subflows to its initial address and port (the C bit): it must announce "
                "another address, or set net.mptcp.allow_join_initial_addr_port to 1"
            )
            yield Finding("c-bit", text, SEEN)
        elif denied is None and not server_side and (outcome is None or outcome.error is not None):
            text = (
                "the peer may deny further subflows to its initial address (the C bit): only a process that heard the "
                "connection begin can tell"
            )
            yield Finding("c-bit-unknown", text, INFERRED)

    def _of_refused_joins(self, manager: str | None) -> None:
        """What the counters tell of joins that this host, which accepted the connection, did not let through."""
        if not self._is_own_namespace():
            return
        rejected, filtered = counters().get("MPJoinRejected", 0), counters("TcpExt").get("IPReversePathFilter", 0)
        if rejected and manager == "userspace":
            text = (
                f"{rejected} joins were refused here since the namespace began, of this or other connections: under "
                "the userspace path manager they are while no process listens to path manager events (mptcp policy, "
                "or an mptcp.Socket)"
            )
            self._findings.append(Finding("no-subscriber-here", text, INFERRED))
        if filtered:
            text = (
                f"{filtered} packets were dropped here since the namespace began by reverse path filtering "
                "(net.ipv4.conf.*.rp_filter is 1): a join is dropped if the route back to its address is another link"
            )
            self._findings.append(Finding("rp-filter-here", text, INFERRED))

    def _is_own_namespace(self) -> bool:
        """Whether the connection is in the network namespace of the calling thread, whose counters can be read."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here, socket.socket(fileno=os.dup(self._fd)) as there:
            return len({one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) for one in (here, there)}) == 1

    def _by_counters(self, subflows: int) -> _Tried | None:
        """What the counters of the namespace tell of joins that nobody heard of, where it is the caller's own."""
        if not self._is_own_namespace() or counters().get("MPJoinSynAckRx", 0) < subflows:
            return None
        text = f"{UNHEARD}; by the counters of this namespace joins were answered that are not there any more"
        return _Tried(text, errno.ECONNABORTED)

    def _of_outcome(
        self, outcome: _Tried | None, here: str, there: str, attempt: bool, explained: bool
    ) -> Iterator[Finding]:
        if outcome is None:
            if not explained:
                text = "nothing that is visible from here stands in the way: mptcp why --try opens it once"
                yield Finding("not-tried", text, INFERRED)
            return
        error = outcome.error
        if error == errno.ECONNABORTED:
            yield Finding(
                "peer-limit",
                "the peer refused the subflow at the third ACK: its limit of subflows is reached (mptcp limits there)",
                INFERRED,
            )
            yield Finding(
                "peer-no-subscriber",
                "or it is under the userspace path manager, and no process there listens to path manager events "
                "(mptcp policy, or an mptcp.Socket, there): the two look alike from here",
                INFERRED,
            )
        elif error == errno.EPROTO:
            text = "answered without MP_JOIN: a plain TCP listener there, or a middlebox that removes the option"
            yield Finding("no-mp-join", text, SEEN)
        elif error == errno.ECONNREFUSED:
            text = f"a reset answered the SYN: no Multipath TCP listener at {there} and this port, or a firewall"
            yield Finding("refused", text, SEEN)
        elif error == errno.ETIMEDOUT:
            yield from self._unanswered(here, there, attempt)
        elif error in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            yield Finding("unreachable", f"{there} cannot be reached from {here}: {outcome.text}", SEEN)
        elif error == errno.ENOTCONN:
            text = "the connection is not fully established: exchange a byte in each direction first"
            yield Finding("not-established", text, SEEN)
        elif error == errno.EPERM:
            yield Finding("no-privilege", outcome.text, HIDDEN)

    def _unanswered(self, here: str, there: str, attempt: bool) -> Iterator[Finding]:
        """A SYN with MP_JOIN has no answer: one of plain TCP tells whether it is for the option."""
        answered = self._answers(here, there) if attempt else None
        if answered is True:
            text = (
                f"the SYN with MP_JOIN from {here} to {there} is not answered, one of plain TCP is: a firewall or "
                "middlebox drops MP_JOIN"
            )
            yield Finding("join-dropped", text, INFERRED)
            return
        if answered is None:
            text = "the SYN is not answered: mptcp why --try tells whether a SYN of plain TCP is"
            yield Finding("join-dropped", text, INFERRED)
        text = (
            f"nothing that is sent from {here} to {there} is answered, though the peer can be reached from elsewhere: "
            "strict reverse path filtering there (net.ipv4.conf.*.rp_filter is 1 and its route back to "
            f"{here} is another link; mptcp why there says so), a firewall, or a link that is down beyond this host"
        )
        yield Finding("rp-filter", text, INFERRED)

    def _answers(self, here: str, there: str) -> bool | None:
        """Whether a SYN of plain TCP is answered, by a SYN/ACK or a reset; None if it cannot be sent."""
        family = socket.AF_INET6 if ":" in here else socket.AF_INET
        try:
            fd = self._native.new_socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError:
            return None
        with contextlib.closing(socket.socket(fileno=fd)) as probe:
            probe.settimeout(_PROBE)
            try:
                probe.bind((here, 0))
                probe.connect((there, self._port))
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
            except OSError:
                return None
            return True

    def _attempt(self, here: str, there: str) -> _Tried:
        try:
            subflow = self._connection.open_subflow(here, (there, self._port), timeout=_TRY)
        except UnsupportedError as error:
            return _Tried(str(error.strerror), error.errno)
        except SubflowError as error:
            reason = _RESET_REASONS.get(error.reset_reason) if error.reset_reason is not None else None
            return _Tried(f"{error.strerror}{f' ({reason})' if reason else ''}", error.errno)
        except OSError as error:
            return _Tried(str(error.strerror), error.errno)
        with contextlib.suppress(OSError):
            self._connection.close_subflow(subflow)
        return _Tried("accepted, and closed again")

    def _of_pairs(self, pairs: Sequence[AddressPair], history: list[Event] | None) -> None:
        if len(pairs) > 1:
            return
        announced = any(event.kind == EventKind.ANNOUNCED for event in history or [])
        if not announced:
            heard = "has announced none" if history is not None else "has, as far as is known, announced none"
            text = f"there is no other pair of addresses: this host has one that could be a path, and the peer {heard}"
            basis = SEEN if history is not None and self._native.deny_join_initial() is not None else INFERRED
            self._findings.append(Finding("no-other-address", text, basis))


def _tries(history: Iterable[Event]) -> dict[tuple[str, str], _Tried]:
    """How the last try of each pair of addresses ended, as events told it."""
    found: dict[tuple[str, str], _Tried] = {}
    established: dict[Any, int] = {}
    for event in history:
        if event.local is None or event.remote is None:
            continue
        ends = (event.local[:2], event.remote[:2])
        pair = (_host(event.local[0]), _host(event.remote[0]))
        if event.kind == EventKind.SUB_ESTABLISHED:
            established[ends] = event.time_ns
            found[pair] = _Tried("accepted")
        elif event.kind == EventKind.SUB_CLOSED and ends in established:
            since = event.time_ns - established.pop(ends)
            # A join that is refused at the third ACK ends like this, and so does one that is closed at once.
            if event.reset_reason == 3 or (since < _AT_ONCE_NS and not event.error and event.reset_reason is None):
                text = "closed as soon as it was answered: refused by the peer at the third ACK, or closed by a command"
                found[pair] = _Tried(text, errno.ECONNABORTED)
            else:
                found[pair] = _Tried(f"accepted; closed since: {_why(event)}")
        elif event.kind == EventKind.SUB_CLOSED and not event.error:
            found[pair] = _Tried("answered without MP_JOIN", errno.EPROTO)
        elif event.kind == EventKind.SUB_CLOSED:
            found[pair] = _Tried(_why(event), event.error)
    return found


def _closed(history: Iterable[Event]) -> Iterator[str]:
    """Why each subflow closed that had been accepted."""
    established = set()
    for event in history:
        if event.local is None or event.remote is None:
            continue
        ends = (event.local[:2], event.remote[:2])
        if event.kind in (EventKind.SUB_ESTABLISHED, EventKind.ESTABLISHED, EventKind.CREATED):
            established.add(ends)
        elif event.kind == EventKind.SUB_CLOSED and ends in established:
            established.discard(ends)
            yield f"closed: {endpoint(event.local)} -> {endpoint(event.remote)}: {_why(event)} [{SEEN}]"


def _why(event: Event) -> str:
    words = []
    if event.error:
        words.append(os.strerror(event.error))
    if event.reset_reason is not None:
        words.append(f"MP_TCPRST: {_RESET_REASONS.get(event.reset_reason, f'reason {event.reset_reason}')}")
    return ", ".join(words) or "without an error: by a FIN, by RM_ADDR or by a command of this host"


def _unheard(heard: bool) -> str:
    return "none that was heard of" if heard else UNHEARD


def _host(host: str) -> str:
    """An address without its interface, an IPv4-mapped one as IPv4."""
    import ipaddress  # here, because importing it takes longer than the rest of this module

    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _same(subflow: Subflow, here: str, there: str) -> bool:
    return (_host(subflow.local[0]), _host(subflow.remote[0])) == (here, there)


def _could_be_a_path(address: str) -> bool:
    import ipaddress

    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_multicast)


def counters(group: str = "MPTcpExt") -> dict[str, int]:
    """Return counters of the calling thread's network namespace."""
    with open("/proc/thread-self/net/netstat") as file:
        return _proc.parse_counters(file.read(), group)


for _class in (AddressPair, Explanation, Finding):
    _class.__module__ = "mptcp"
