"""The native core. Private: the package's own names are documented here, the rest serves mptcp's Python code."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NoReturn, Protocol, TypeAlias, final, overload, type_check_only

import numpy as np
from _typeshed import ReadableBuffer
from typing_extensions import disjoint_base

from ._address import Address
from ._event_kind import EventKind

__all__ = [
    "BROKER_PATH",
    "ENDPOINT_FLAGS",
    "PATH_MANAGERS",
    "BrokeredPathManager",
    "ByToken",
    "Event",
    "EventStream",
    "Handle",
    "Info",
    "LinkEmulator",
    "LinkLimits",
    "LinkTrace",
    "Native",
    "Opening",
    "PolicyOpener",
    "Sampler",
    "SegmentTracer",
    "Subflow",
    "TcpInfo",
    "TraceReader",
    "Watcher",
    "add_endpoint",
    "after_fork",
    "available_schedulers",
    "before_fork",
    "change_endpoint",
    "check_path_manager",
    "check_scheduler",
    "check_socket",
    "connections",
    "create_socket",
    "endpoints",
    "enhanced_getsockopt",
    "enhanced_setsockopt",
    "enter_new_network_namespace",
    "enter_new_user_namespace",
    "find_broker",
    "flush_endpoints",
    "get_limits",
    "get_path_manager",
    "get_scheduler",
    "has_interface",
    "interface_of_route",
    "interfaces",
    "option_name",
    "probe_full_info",
    "probe_is_mptcp",
    "probe_path_manager_commands",
    "probe_path_manager_family",
    "probe_subflow_options",
    "probe_user_notification",
    "protocol_of",
    "read_sysctls",
    "realtime_offset_ns",
    "remount_writable",
    "remove_endpoint",
    "run_program",
    "serve_broker",
    "set_limits",
    "set_path_manager",
    "set_scheduler",
    "subflows_at",
    "subflows_of",
    "supervised_signals",
    "take_descriptor",
    "use_path_manager",
]

BROKER_PATH: str
ENDPOINT_FLAGS: dict[str, int]
PATH_MANAGERS: list[str]

_EndpointFields: TypeAlias = tuple[str, int, int | None, str | None, int]

@type_check_only
class Owner(Protocol):
    """Whom the methods of a Subflow go through: what its snapshot was read from."""

    def close_subflow(self, subflow: Subflow, /) -> None: ...
    def set_subflow_options(
        self, options: Mapping[Subflow, Mapping[tuple[int, int], int | ReadableBuffer]], /
    ) -> None: ...
    def _set_backup(self, subflow: Subflow, backup: bool, /) -> None: ...
    def _get_subflow_option(self, subflow: Subflow, level: int, optname: int, buflen: int | None, /) -> int | bytes: ...

@final
class Info:
    """``struct mptcp_info`` of a connection at one moment.

    Read by MPTCP_INFO (getsockopt at SOL_MPTCP), or by inet_diag for a Connection. No privilege. Fields have the
    kernel's names without the prefix ``mptcpi_``; a field that this kernel lacks is None.
    """

    @property
    def subflows(self) -> int:
        """Additional subflows: the initial one is not counted. Wraps at 256."""

    @property
    def add_addr_signal(self) -> int:
        """ADD_ADDR options sent."""

    @property
    def add_addr_accepted(self) -> int:
        """ADD_ADDR options accepted."""

    @property
    def subflows_max(self) -> int:
        """Limit of additional subflows of the in-kernel path manager."""

    @property
    def add_addr_signal_max(self) -> int:
        """Endpoints with the signal flag."""

    @property
    def add_addr_accepted_max(self) -> int:
        """Limit of accepted ADD_ADDR of the in-kernel path manager."""

    @property
    def flags(self) -> int:
        """MPTCP_INFO_FLAG_FALLBACK (1), MPTCP_INFO_FLAG_REMOTE_KEY_RECEIVED (2)."""

    @property
    def token(self) -> int:
        """The connection's token on this host."""

    @property
    def write_seq(self) -> int:
        """Data sequence number of the next byte that the application writes."""

    @property
    def snd_una(self) -> int:
        """First data sequence number not yet acknowledged by the peer."""

    @property
    def rcv_nxt(self) -> int:
        """Next data sequence number expected from the peer."""

    @property
    def local_addr_used(self) -> int:
        """Local addresses in use."""

    @property
    def local_addr_max(self) -> int:
        """Endpoints with the subflow flag."""

    @property
    def csum_enabled(self) -> int:
        """1 if the DSS checksum is in use."""

    @property
    def retransmits(self) -> int | None:
        """Retransmission timeouts of the connection. Linux 6.5."""

    @property
    def bytes_retrans(self) -> int | None:
        """Bytes retransmitted by the connection. Linux 6.5."""

    @property
    def bytes_sent(self) -> int | None:
        """Bytes sent, retransmissions not included. Linux 6.5."""

    @property
    def bytes_received(self) -> int | None:
        """Bytes received, each counted once. Linux 6.5."""

    @property
    def bytes_acked(self) -> int | None:
        """Bytes acknowledged by the peer. Linux 6.5."""

    @property
    def subflows_total(self) -> int | None:
        """Subflows that there are, the initial one included while it lives. Wraps at 256. Linux 6.8."""

    @property
    def last_data_sent(self) -> int | None:
        """Milliseconds since data was last sent. Linux 6.10."""

    @property
    def last_data_recv(self) -> int | None:
        """Milliseconds since data was last received. Linux 6.10."""

    @property
    def last_ack_recv(self) -> int | None:
        """Milliseconds since an acknowledgement was last received. Linux 6.10."""

    def asdict(self) -> dict[str, int | None]:
        """Return the fields by name, in the structure's order; those that this kernel lacks are None."""

    def __eq__(self, other: object, /) -> bool: ...

@final
class TcpInfo:
    """``struct tcp_info`` of one subflow at one moment.

    Read by MPTCP_FULL_INFO (getsockopt at SOL_MPTCP), or by inet_diag for a Connection. No privilege. Fields have the
    kernel's names without the prefix ``tcpi_``; a field that this kernel lacks is None.

    For tests, one can be created with the fields as keyword arguments: ``state`` is ESTABLISHED and the others are 0
    unless given. Raises TypeError for what is not a field or not an int, ValueError for what the field cannot hold.
    """

    def __new__(cls, **fields: int) -> TcpInfo: ...
    @property
    def state(self) -> int:
        """TCP state: 1 is ESTABLISHED, 2 SYN_SENT (<net/tcp_states.h>)."""

    @property
    def ca_state(self) -> int:
        """Congestion state: 0 open, 1 disorder, 2 CWR, 3 recovery, 4 loss."""

    @property
    def retransmits(self) -> int:
        """Consecutive retransmission timeouts."""

    @property
    def probes(self) -> int:
        """Unanswered window or keepalive probes."""

    @property
    def backoff(self) -> int:
        """Exponent of the retransmission timer's back-off."""

    @property
    def options(self) -> int:
        """TCPI_OPT_*: 1 timestamps, 2 SACK, 4 window scale, 8 ECN, 16 ECN seen, 32 SYN data."""

    @property
    def snd_wscale(self) -> int:
        """Window scale of the peer, a power of two."""

    @property
    def rcv_wscale(self) -> int:
        """Window scale of this side, a power of two."""

    @property
    def delivery_rate_app_limited(self) -> int:
        """1 if delivery_rate was limited by the application."""

    @property
    def fastopen_client_fail(self) -> int:
        """Why TCP Fast Open failed; 0 if it did not."""

    @property
    def rto(self) -> int:
        """Retransmission timeout, microseconds."""

    @property
    def ato(self) -> int:
        """Delayed acknowledgement timeout, microseconds."""

    @property
    def snd_mss(self) -> int:
        """Sending maximum segment size, bytes."""

    @property
    def rcv_mss(self) -> int:
        """Maximum segment size seen from the peer, bytes."""

    @property
    def unacked(self) -> int:
        """Segments sent and not yet acknowledged."""

    @property
    def sacked(self) -> int:
        """Segments selectively acknowledged."""

    @property
    def lost(self) -> int:
        """Segments considered lost."""

    @property
    def retrans(self) -> int:
        """Segments retransmitted and not yet acknowledged."""

    @property
    def fackets(self) -> int:
        """Unused by the kernel."""

    @property
    def last_data_sent(self) -> int:
        """Milliseconds since data was last sent."""

    @property
    def last_ack_sent(self) -> int:
        """Unused by the kernel."""

    @property
    def last_data_recv(self) -> int:
        """Milliseconds since data was last received."""

    @property
    def last_ack_recv(self) -> int:
        """Milliseconds since an acknowledgement was last received."""

    @property
    def pmtu(self) -> int:
        """Path MTU, bytes."""

    @property
    def rcv_ssthresh(self) -> int:
        """Current receive window clamp, bytes."""

    @property
    def rtt(self) -> int:
        """Smoothed round-trip time, microseconds."""

    @property
    def rttvar(self) -> int:
        """Mean deviation of the round-trip time, microseconds."""

    @property
    def snd_ssthresh(self) -> int:
        """Slow start threshold, segments; 2147483647 while there is none yet."""

    @property
    def snd_cwnd(self) -> int:
        """Congestion window, segments."""

    @property
    def advmss(self) -> int:
        """Maximum segment size announced to the peer, bytes."""

    @property
    def reordering(self) -> int:
        """Reordering allowed before a loss is assumed, segments."""

    @property
    def rcv_rtt(self) -> int:
        """Round-trip time estimated as a receiver, microseconds; 0 if unknown."""

    @property
    def rcv_space(self) -> int:
        """Bytes that the application read in the last receive round trip."""

    @property
    def total_retrans(self) -> int:
        """Segments retransmitted since the start."""

    @property
    def pacing_rate(self) -> int:
        """Pacing rate, bytes per second; all bits set if unlimited."""

    @property
    def max_pacing_rate(self) -> int:
        """Limit of the pacing rate, bytes per second; all bits set if there is none."""

    @property
    def bytes_acked(self) -> int:
        """Bytes acknowledged, the SYN counted as one."""

    @property
    def bytes_received(self) -> int:
        """Bytes received in order."""

    @property
    def segs_out(self) -> int:
        """Segments sent, retransmissions and pure acknowledgements included."""

    @property
    def segs_in(self) -> int:
        """Segments received, pure acknowledgements included."""

    @property
    def notsent_bytes(self) -> int:
        """Bytes in the send queue not yet sent."""

    @property
    def min_rtt(self) -> int:
        """Smallest recent round-trip time, microseconds; all bits set if there is none."""

    @property
    def data_segs_in(self) -> int:
        """Segments with data received."""

    @property
    def data_segs_out(self) -> int:
        """Segments with data sent."""

    @property
    def delivery_rate(self) -> int:
        """Most recent delivery rate, bytes per second."""

    @property
    def busy_time(self) -> int:
        """Time with data to send, microseconds."""

    @property
    def rwnd_limited(self) -> int:
        """Time limited by the receive window, microseconds."""

    @property
    def sndbuf_limited(self) -> int:
        """Time limited by the send buffer, microseconds."""

    @property
    def delivered(self) -> int:
        """Segments delivered, retransmissions included."""

    @property
    def delivered_ce(self) -> int:
        """Segments delivered with the ECN mark."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of data sent, retransmissions included."""

    @property
    def bytes_retrans(self) -> int:
        """Bytes of data retransmitted."""

    @property
    def dsack_dups(self) -> int:
        """Duplicates reported by D-SACK."""

    @property
    def reord_seen(self) -> int:
        """Reordering events that were detected."""

    @property
    def rcv_ooopack(self) -> int:
        """Segments received out of order."""

    @property
    def snd_wnd(self) -> int:
        """Peer's receive window, bytes."""

    @property
    def rcv_wnd(self) -> int | None:
        """Receive window of this side, bytes. Linux 6.2."""

    @property
    def rehash(self) -> int | None:
        """Changes of the flow hash after PLB or a timeout. Linux 6.2."""

    @property
    def total_rto(self) -> int | None:
        """Number of retransmission timeouts. Linux 6.7."""

    @property
    def total_rto_recoveries(self) -> int | None:
        """Number of recoveries from retransmission timeouts. Linux 6.7."""

    @property
    def total_rto_time(self) -> int | None:
        """Time spent in such recoveries, milliseconds. Linux 6.7."""

    @property
    def received_ce(self) -> int | None:
        """Segments received with the ECN mark CE. Linux 6.18."""

    @property
    def delivered_e1_bytes(self) -> int | None:
        """Bytes delivered with ECT(1), by Accurate ECN. Linux 6.18."""

    @property
    def delivered_e0_bytes(self) -> int | None:
        """Bytes delivered with ECT(0), by Accurate ECN. Linux 6.18."""

    @property
    def delivered_ce_bytes(self) -> int | None:
        """Bytes delivered with CE, by Accurate ECN. Linux 6.18."""

    @property
    def received_e1_bytes(self) -> int | None:
        """Bytes received with ECT(1). Linux 6.18."""

    @property
    def received_e0_bytes(self) -> int | None:
        """Bytes received with ECT(0). Linux 6.18."""

    @property
    def received_ce_bytes(self) -> int | None:
        """Bytes received with CE. Linux 6.18."""

    def asdict(self) -> dict[str, int | None]:
        """Return the fields by name, in the structure's order; those that this kernel lacks are None."""

    def __eq__(self, other: object, /) -> bool: ...

@final
class Subflow:
    """A frozen snapshot of one subflow, whose methods act on the live subflow.

    ``id``, the addresses and ``tcp_info`` are one atomic reading (MPTCP_FULL_INFO). ``cookie``, the address ids,
    ``initial`` and the backup flags are a second one (inet_diag), and None if the subflow was gone by then; before
    Linux 6.15 all of these but the cookie are None without CAP_NET_ADMIN. Two snapshots are equal if they are of the
    same subflow.

    For tests, one can be created, of a connection with the ``token`` and with ``tcp_info``; ``cookie`` is a new one
    unless given. Its methods go to ``owner``, a Connection for instance, and raise SubflowError (ENOTCONN) without one.
    """

    def __new__(
        cls,
        *,
        token: int,
        local: Address,
        remote: Address,
        tcp_info: TcpInfo | None = None,
        id: int | None = None,
        cookie: int | None = None,
        local_id: int | None = None,
        remote_id: int | None = None,
        initial: bool = False,
        backup: bool = False,
        peer_backup: bool = False,
        owner: Any = None,
    ) -> Subflow: ...
    @property
    def id(self) -> int | None:
        """The kernel's subflow id, never reused within the connection. Before Linux 6.5 this package counts subflows
        instead, in order of appearance. None where neither is known, as for a Connection."""

    @property
    def token(self) -> int:
        """The token of the connection that the subflow belongs to, on this host."""

    @property
    def cookie(self) -> int | None:
        """SO_COOKIE of the subflow's TCP socket: unique on this host and never reused."""

    @property
    def local(self) -> tuple[Any, ...]:
        """The local end as socket.getsockname() returns it: (host, port), or (host, port, flowinfo, scope_id) for
        IPv6."""

    @property
    def remote(self) -> tuple[Any, ...]:
        """The remote end, in the form of ``local``."""

    @property
    def local_id(self) -> int | None:
        """The address id of the local address (RFC 8684, section 3.2), from 0 to 255; 0 is the initial subflow's."""

    @property
    def remote_id(self) -> int | None:
        """The address id of the remote address, from 0 to 255, as the peer gave it."""

    @property
    def initial(self) -> bool | None:
        """True for the subflow that opened the connection by MP_CAPABLE, False for one that joined it by MP_JOIN."""

    @property
    def backup(self) -> bool | None:
        """Whether this side asked the peer to use the subflow only when no other is left."""

    @property
    def peer_backup(self) -> bool | None:
        """Whether the peer asked this side to use the subflow only when no other is left."""

    def _unmapped(self) -> Subflow:
        """The same with IPv4-mapped ends as IPv4 ones."""

    @property
    def _accepted(self) -> bool | None:
        """Initial, opened by the peer, or accepted by it; None if it was gone."""

    @property
    def state(self) -> str:
        """The TCP state by its name in <net/tcp_states.h>: "ESTABLISHED", "SYN_SENT" and so on."""

    @property
    def tcp_info(self) -> TcpInfo:
        """The subflow's ``struct tcp_info``, read together with its id and addresses."""

    def close(self) -> None:
        """Close this subflow, as Socket.close_subflow() does; data that it has not delivered goes over the others.

        SUBFLOW_DESTROY of the generic netlink family mptcp_pm, or SOCK_DESTROY of sock_diag under the in-kernel path
        manager. Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.

        Raises SubflowError (ENOTCONN) if the subflow is closed already, PathManagerError for the last one under the
        in-kernel path manager, NotMultipathError, PermissionError.
        """

    def set_backup(self, backup: bool) -> None:
        """Ask the peer, by MP_PRIO, to use the subflow only when no other is left, or like the others again.

        On this side it takes effect at once, as far as the packet scheduler respects it; the peer gets the event
        SUB_PRIORITY. The snapshot itself does not change.

        SET_FLAGS of the generic netlink family mptcp_pm. Needs CAP_NET_ADMIN in the user namespace that owns the
        network namespace.

        Raises SubflowError (ENOTCONN) if the subflow is closed already, PathManagerError under the in-kernel path
        manager, PermissionError, and TypeError if ``backup`` is not a bool.
        """

    @overload
    def getsockopt(self, level: int, optname: int) -> int: ...
    @overload
    def getsockopt(self, level: int, optname: int, buflen: int) -> bytes:
        """Read a socket option of this subflow alone, as socket.getsockopt does: an int, or with ``buflen`` at most
        that many bytes (1 to 1024).

        TCP_INFO, TCP_CC_INFO, TCP_CONGESTION, TCP_MAXSEG, IP_TOS, IPV6_TCLASS, SO_SNDBUF, SO_RCVBUF, SO_MEMINFO,
        SO_MAX_PACING_RATE, SO_BINDTOIFINDEX and SO_COOKIE are read by inet_diag without privilege; so is SO_MARK, with
        CAP_NET_ADMIN in the user namespace that owns the Socket's network namespace. Any other option is read by BPF,
        with the privilege and the errors of Socket.set_subflow_options. docs/subflow-options.md has the table.

        Raises SubflowError with the errno of an option that the kernel refuses, which the message names, and with
        ENOTCONN for a subflow that is closed; NotMultipathError; TypeError and ValueError before any system call.
        """

    def setsockopt(self, level: int, optname: int, value: int | ReadableBuffer) -> None:
        """Set a socket option on this subflow alone: Socket.set_subflow_options with one option.

        ``value`` is an int or a bytes-like object. The privilege and the errors are those of
        Socket.set_subflow_options.
        """

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...

@final
class Event:
    """One event of an Events stream. Frozen. An attribute that events of its kind do not have is None.

    Two events are equal if all their attributes are. An event can be pickled, and created: ``kind`` and ``time_ns`` are
    positional, the others keyword arguments.
    """

    def __new__(
        cls,
        kind: EventKind,
        time_ns: int,
        *,
        token: int | None = None,
        local: Address | None = None,
        remote: Address | None = None,
        local_id: int | None = None,
        remote_id: int | None = None,
        backup: bool | None = None,
        error: int | None = None,
        reset_reason: int | None = None,
        server_side: bool | None = None,
        deny_join_initial: bool | None = None,
        interface: str | None = None,
    ) -> Event: ...
    @property
    def kind(self) -> EventKind:
        """What happened: an EventKind."""

    @property
    def time_ns(self) -> int:
        """When this process read the event, in nanoseconds of time.monotonic_ns()."""

    @property
    def token(self) -> int | None:
        """The token of the connection on this host. None for links, addresses and listeners."""

    @property
    def local(self) -> tuple[Any, ...] | None:
        """The local end of the connection, subflow or listener, as socket.getsockname() returns it. For an address
        that appears or disappears, with port 0."""

    @property
    def remote(self) -> tuple[Any, ...] | None:
        """The remote end, in the form of ``local``. For ANNOUNCED the announced address, with port 0 if it was
        announced without one."""

    @property
    def local_id(self) -> int | None:
        """The address id of the local address (RFC 8684, section 3.2), from 0 to 255."""

    @property
    def remote_id(self) -> int | None:
        """The address id of the remote address, from 0 to 255, as the peer gave it."""

    @property
    def backup(self) -> bool | None:
        """Whether the peer asked this side to use the subflow only when no other is left."""

    @property
    def error(self) -> int | None:
        """The errno with which a subflow failed; of CLOSED, ECONNRESET if the peer aborted the connection."""

    @property
    def reset_reason(self) -> int | None:
        """The reset reason that the peer gave in MP_TCPRST (RFC 8684, section 3.6)."""

    @property
    def server_side(self) -> bool | None:
        """Whether the peer opened the connection. Only CREATED and ESTABLISHED have it."""

    @property
    def deny_join_initial(self) -> bool | None:
        """For CREATED and ESTABLISHED, whether the peer denies further subflows to its initial address and port.

        The C bit of MP_CAPABLE (RFC 8684, section 3.1). False on kernels that do not tell (before 6.17).
        """

    @property
    def interface(self) -> str | None:
        """The name of the interface: of the link, of the address, or that the subflow is bound to."""

    def asdict(self) -> dict[str, Any]:
        """Return the attributes by name, None included."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]: ...

@final
class EventStream:
    """The native companion of one Events."""

    def __new__(cls, fd: int | None, token: int | None) -> EventStream: ...
    @property
    def source(self) -> str: ...
    def fileno(self) -> int: ...
    def get(self, timeout: float | None, iterating: bool) -> Event | None: ...
    def links(self) -> list[Event]:
        """LINK_UP and ADDRESS_ADDED of what there is, of a whole namespace."""

    def is_over(self) -> bool: ...
    def close(self) -> None: ...
    def set_receive_buffer(self, size: int) -> None: ...

@final
class Sampler:
    """A native recording, from its making to stop(). ``sources`` are descriptors and ByTokens; None is the network
    namespace of ``fd``, or of the calling thread. Of each of two arrays at most ``room`` rows wait to be taken."""

    def __new__(
        cls,
        sources: Sequence[int | ByToken] | None,
        fd: int | None,
        interval: float,
        connection_interval: float,
        method: str,
        room: int,
    ) -> Sampler: ...
    def stop(self) -> None: ...
    def take_samples(self) -> np.ndarray[tuple[int], np.dtype[np.void]]: ...
    def take_connections(self) -> np.ndarray[tuple[int], np.dtype[np.void]]: ...
    def take_events(self) -> list[Event]: ...
    def ends(self, start: int) -> list[tuple[int, int, tuple[Any, ...], tuple[Any, ...]]]: ...
    def surroundings(self) -> list[tuple[int, set[int] | None, dict[str, str]]]: ...
    def choice(self) -> tuple[str, bool, list[dict[str, Any]]]: ...
    def status(self) -> dict[str, Any]: ...

@final
class SegmentTracer:
    """Trace segments by tracepoints until stop(), of descriptors and ByTokens, or of the thread's network namespace.

    Without ``keeps`` there are neither acks nor candidates.
    """

    def __new__(cls, sources: Sequence[int | ByToken] | None, keeps: bool) -> SegmentTracer: ...
    def stop(self) -> None: ...
    def packets(self) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Return the rows until now that were not taken."""

    def take_packets(self, all: bool) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Return the rows since the last call that will not change any more, or all."""

    def take_events(self) -> list[tuple[str, int, int, int, int, int, dict[str, Any]]]: ...
    def tables(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]: ...
    def acks(self) -> dict[str, Any]: ...
    def candidates(self) -> dict[str, Any]: ...
    def lost(self) -> tuple[int, int]:
        """Return how many records did not fit into the ring buffer, and how many senders could not be told."""

@final
class TraceReader:
    """Open captures, "-" for standard input. Raises OSError, and read() ValueError for what is not a capture."""

    def __new__(cls, paths: Sequence[str | bytes | PathLike[str]]) -> TraceReader: ...
    def read(self, count: int) -> bool:
        """Read at most ``count`` packets and return whether there may be more."""

    def take_packets(self, all: bool) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Return the rows since the last call that will not change any more, or all."""

    def take_events(self) -> list[tuple[str, int, int, int, int, int, dict[str, Any]]]: ...
    def tables(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]: ...
    def captures(self) -> list[dict[str, Any]]: ...
    def counts(self) -> dict[str, Any]: ...

@final
class LinkTrace:
    """A packet-delivery trace in mahimahi's format: a line for each opportunity to deliver 1500 bytes, in milliseconds.

    An opportunity carries 1500 bytes of IP packets. The time of the last line is the period after which the trace
    begins again. Raises ValueError, which names the line, for what is not such a text. No privilege, no system call.
    """

    def __new__(cls, data: ReadableBuffer) -> LinkTrace: ...
    @property
    def opportunities(self) -> int:
        """Lines."""

    @property
    def duration_ms(self) -> int:
        """The period, milliseconds."""

    @property
    def rate(self) -> float:
        """The average, bits a second of IP packets."""

@final
class LinkLimits:
    """What one direction of a link is to have, checked. No privilege, no system call.

    Frames pass, in this order: a queue, a rate or a trace, loss, delay and jitter. All sizes are of frames with their
    Ethernet headers; only a trace counts IP packets.

    - ``rate``: bits a second, 1,000 to 100,000,000,000; or ``trace``.
    - ``queue``: what may wait for that, ("bytes", n), ("packets", n), or ("ns", n): at the rate or a trace's average.
      100 ms where it is None. What is being sent does not wait.
    - ``aqm``: "codel" (RFC 8289 with its target of 5 ms and interval of 100 ms), or None: what comes to a full queue is
      dropped.
    - ``loss``: the probability that a frame is lost, or (p, r, bad, good) of Gilbert and Elliott: the probabilities of
      becoming bad and good after a frame, and those of losing one in the bad and in the good state.
    - ``delay`` and ``jitter``: nanoseconds. A frame's delay is from ``delay - jitter`` to ``delay + jitter``, evenly.
    - ``reorder``: frames may overtake each other by jitter. They never do otherwise.

    Raises ValueError for what no link can have, TypeError for a value of another type.
    """

    def __new__(
        cls,
        *,
        rate: int | None = None,
        trace: LinkTrace | None = None,
        queue: tuple[str, int] | None = None,
        aqm: str | None = None,
        loss: float | tuple[float, float, float, float] | None = None,
        delay: int | None = None,
        jitter: int | None = None,
        reorder: bool = False,
    ) -> LinkLimits: ...
    @property
    def unlimited(self) -> bool:
        """Whether frames pass as they come: no rate or trace, no loss, no delay."""

    @property
    def queue_bytes(self) -> int | None:
        """What may wait, bytes; None where that is counted in packets, or nothing waits."""

    @property
    def gso_max_segs(self) -> int:
        """What the interface of the sending host is to have as gso_max_segs: how many TCP segments a frame may hold.

        As many as the rate carries in 1 ms, at most a quarter of the queue; 1 with loss, jitter, reorder or aqm.
        """

@final
class LinkEmulator:
    """Links between interfaces of the calling thread's network namespace, emulated by one native thread.

    What comes to one interface of a link is held and sent by the other (packet sockets, AF_PACKET). The thread runs
    under SCHED_FIFO where that is allowed, and whatever Python does. It hears only the interfaces of links; the memory
    for what it has not taken yet is 24 MiB, whatever the number of links, and links together hold up to 512 MiB.

    A direction without limits may be left to the kernel by a filter on the interface where its frames come in (ingress,
    u32, mirred redirect to the link's other interface). The emulator sees frames before such a filter does: one of the
    two at a time is to forward them. This order of a change doubles a few frames and loses none: add the filter, then
    ``attach(link, False, ...)``; and ``attach(link, True, ...)``, then remove the filter.

    Raises PermissionError without CAP_NET_RAW in the user namespace that owns the network namespace. Every method
    raises ValueError for a link that does not exist, and OSError (EBADF) after close() and in a forked child.
    """

    def __new__(cls, *, seed: int) -> LinkEmulator: ...
    def add(self, link: int, a: int, b: int, a_to_b: LinkLimits, b_to_a: LinkLimits) -> None:
        """Link two interfaces by their indexes.

        ``link`` (0 to 65535) names the link; with the seed and the direction it determines losses and jitter. Raises
        OSError (ENODEV) for an interface that does not exist.
        """

    def set(self, link: int, a_to_b: LinkLimits, b_to_a: LinkLimits) -> None:
        """Change the limits of both directions. What waits goes at the new rate; what is on its way goes on."""

    def attach(self, link: int, a_to_b: bool, b_to_a: bool) -> None:
        """Say which directions are emulated; the frames of the others are left to the kernel. At first both are."""

    def wait_passed(self, link: int, direction: int, timeout: float | None) -> bool:
        """Wait until all has left that one direction holds now, and return whether it has.

        ``direction`` is 0 for what comes from the link's first interface, 1 for the other; ``timeout`` is in seconds,
        None for ever. Frames that come meanwhile do not matter.
        """

    def cut(self, link: int) -> None:
        """Drop what the link holds, as a cable does that is cut."""

    def remove(self, link: int) -> None:
        """Forget a link, and what it holds."""

    def stats(self, link: int) -> tuple[dict[str, int], dict[str, int]]:
        """Return what became of the frames from the first interface, and of those from the second.

        A frame of several TCP segments counts as so many, and its bytes with a header each, as on the wire. ``frames``
        and ``bytes`` have left; ``dropped`` by the queue; ``lost`` by ``loss``; ``cut``; ``failed``: the interface was
        down, or the receiver's backlog full; ``refused``: larger than 64 KiB, or all memory was used. ``late`` left
        later than a tenth of the delay and than 1 ms. Frames by which hosts find each other (ARP, IGMP, neighbour and
        multicast listener discovery) pass after the delay and are counted nowhere else than in ``taken``: frames as the
        kernel handed them over. ``waiting_frames`` and ``waiting_bytes`` are in the queue now,
        ``flying_frames`` and ``flying_bytes`` in the delay. ``late_p50_ns``, ``late_p99_ns`` and ``late_max_ns``: how
        late frames left, from the start on.
        """

    def status(self) -> dict[str, Any]:
        """Return how all links together are doing.

        ``overruns``: frames that were lost because they came faster than they were taken. ``refused``: dropped because
        they were larger than 64 KiB, or all memory was used. ``blocked``: how often the system did not take frames for
        a moment. ``real_time``: whether the thread runs under SCHED_FIFO. ``cpu_ns``: its processor time. ``wakeups``.
        """

    def close(self) -> None:
        """End the thread; what links hold is lost. Calling it again has no effect."""

@disjoint_base
class Native:
    """Operations on a connection, however it is reached. ``owner`` is what snapshots of subflows act through."""

    def info(self) -> Info: ...
    def path_manager(self) -> str: ...
    def subflows(self, owner: Owner) -> list[Subflow]: ...
    def events(self) -> EventStream: ...
    def open_subflow(
        self,
        owner: Owner,
        local: Address | None,
        remote: Address | None,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        timeout: float | None,
        force: bool,
    ) -> Subflow | None: ...
    def local_address(self, remote: Address, interface: str | None) -> str:
        """The local address that open_subflow() without one would open from."""

    def close_subflow(self, subflow: Subflow | int | tuple[Address, Address], force: bool) -> None: ...
    def set_backup(self, subflow: Subflow, backup: bool) -> None: ...
    def announce_address(self, address: str, port: int | None, id: int | None, listen: bool) -> int: ...
    def remove_address(self, id: int, force: bool) -> None: ...
    def identity(self) -> tuple[int, tuple[Any, ...], tuple[Any, ...], bool | None]:
        """Its token, local and remote end, and whether the peer opened it."""

    def history(self) -> list[Event] | None:
        """What events told of its subflows and addresses; None while nobody of this process listens."""

    def new_socket(self, family: int, kind: int, protocol: int) -> int:
        """A new socket in its network namespace."""

    def addresses(self) -> list[tuple[str, int, int | None, int]]:
        """Its local addresses as (address, id, port, flags)."""

    def deny_join_initial(self) -> bool | None: ...
    def get_subflow_option(self, subflow: Subflow, level: int, optname: int, buflen: int | None) -> int | bytes: ...
    def set_subflow_options(
        self, options: Mapping[Subflow, Mapping[tuple[int, int], int | ReadableBuffer]]
    ) -> None: ...

@final
class Handle(Native):
    """The native companion of one Socket: its descriptor, its network namespace and the subscription held for it."""

    def __new__(cls, fd: int) -> Handle: ...
    def attach(self, fd: int) -> None: ...
    def is_multipath(self) -> bool: ...
    def hold_events(self, latched: str | None) -> None: ...
    def release(self) -> None: ...

@final
class ByToken(Native):
    """The native companion of one Connection: what inet_diag reported of it, and the way to it."""

    @property
    def token(self) -> int: ...
    @property
    def cookie(self) -> int: ...
    @property
    def local(self) -> tuple[Any, ...]: ...
    @property
    def remote(self) -> tuple[Any, ...]: ...
    def state_now(self) -> str | None:
        """The state that the connection has now, not when it was listed; None once it has ended."""

    @property
    def state(self) -> str: ...
    @property
    def server_side(self) -> bool | None: ...
    @property
    def uid(self) -> int: ...
    @property
    def inode(self) -> int: ...
    @property
    def cgroup(self) -> int | None: ...
    @property
    def age(self) -> float: ...

@final
class Opening:
    """The native part of one mptcp.aio.open_subflow: a subflow on its way, closed if it is closed before acceptance."""

    def __new__(
        cls,
        native: Native,
        owner: Owner,
        local: Address | None,
        remote: Address | None,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
    ) -> Opening: ...
    def fileno(self) -> int: ...
    def look(self) -> Subflow | None: ...
    def pause(self) -> float: ...
    def time_out(self) -> NoReturn: ...
    def close(self) -> None: ...

@final
class Watcher:
    """The connections of the network namespace that ``fd`` belongs to, and their subflows, for the policies' runtime.

    Every report is a tuple that begins with its name; all ends are IPv4 where they are IPv4-mapped:

    - ("connection", native, [(local, remote), ...]): a connection that is fully established or existed at the start,
      with its accepted subflows
    - ("established", conn): one that is known has become fully established
    - ("closed", conn): a connection has ended
    - ("answered", conn, event): the SYN/ACK of a subflow has come
    - ("accepted", conn, subflow): the peer has accepted it, or joined itself
    - ("lost", conn, event), ("failed", conn, event): a subflow was closed that was accepted, or that was not
    - ("closing", conn, event): a subflow was closed that close_subflow() was called for
    - ("ended", conn, event): a subflow was closed with its connection, which is about to end
    - ("ordered", conn, number): a standing order is being carried out
    - ("done", conn, number): the command with this number, of which no event tells, has been carried out
    - ("refused", conn, number, error): the command with this number failed at once
    - ("announced", conn, event), ("removed", conn, event): of an address of the peer
    - ("link up", event), ("link down", event), ("address added", event), ("address removed", event)
    - ("overrun", event): events were lost; the reports that follow are what changed meanwhile
    - ("other", event) and ("other", conn, event): everything else
    - ("relieved",): the calling thread was stuck in a command, and another one takes the reports now
    - ("called", method, arguments, error, is_relieved): a method of ``at_once`` was called and raised this, or None;
      what it opened has been requested, in which the calling thread was stuck or not

    ``conn`` is the Connection, from the ``owners`` that get() is given; of one that has none there nothing is
    reported. One thread at a time takes reports. The commands that it submits meanwhile are carried out
    by its next get().

    Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.
    """

    def __new__(cls, fd: int) -> Watcher: ...
    def get(
        self, timeout: float | None, owners: Mapping[int, Any], at_once: Mapping[str, Any], later: list[Any]
    ) -> tuple[Any, ...] | None:
        """Return the next report; None after ``timeout`` seconds, and when it is closed.

        A report whose name is in ``at_once`` is added to ``later``, and the method there called with the rest of it.
        """

    def open(
        self,
        conn: Any,
        local: Address | None,
        remote: Address | None,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
        number: int,
    ) -> None:
        """Open a subflow, later; what is wrong in itself is raised at once."""

    def close_subflow(self, conn: Any, subflow: Subflow, force: bool, number: int) -> None: ...
    def set_backup(self, conn: Any, subflow: Subflow, backup: bool, number: int) -> None: ...
    def when_lost(
        self,
        conn: Any,
        what: Subflow | str,
        local: Address | None,
        remote: Address | None,
        backup: bool,
        interface: str | None,
        number: int,
    ) -> int | None:
        """Leave a standing order; return the number of the one that it replaces."""

    def take_back(self, conn: Any, what: Subflow | str) -> int | None:
        """Take a standing order back; return its number, None if there is none or it has been carried out."""

    def stand_by(self) -> bool:
        """Wait until it is the calling thread's turn to take reports; False if it is not needed, and at the end."""

    def carries_out(self) -> bool:
        """Return whether the thread that takes reports carries out a command at this moment."""

    def links(self) -> list[Event]: ...
    def close(self) -> None: ...

class PolicyOpener:
    """What a policy's connection opens subflows by, without other Python on the way: a base of its class.

    Its attributes ``_native``, ``_watcher`` and ``_later`` are the connection, the Watcher, and the list to which these
    are added, for ``_runtime.write_down()``:

    - ("opened", conn, local, remote, backup, interface, local_id, force, number, None)
    - ("not opened", conn, local, remote, backup, interface, local_id, force, number, error), where a SubflowError says
      so at once
    """

    def __new__(cls, *arguments: Any) -> PolicyOpener: ...
    def open_subflow(
        self,
        local: Address | None = None,
        remote: Address | None = None,
        *,
        backup: Any = None,
        interface: str | None = None,
        local_id: int | None = None,
        timeout: Any = None,
        force: Any = None,
    ) -> None:
        """Open a subflow, and return at once: the outcome is a callback."""

def check_socket(family: int, type: int, proto: int) -> None: ...
def create_socket(family: int, type: int, proto: int, path_manager: str | None) -> int: ...
def protocol_of(fd: int) -> int: ...
def connections(fd: int | None, token: int | None, pid: int | None, port: int | None) -> list[ByToken]: ...
def subflows_at(
    asked: list[tuple[ByToken, Any, tuple[Any, ...], tuple[Any, ...]]],
) -> list[Subflow | None]:
    """Subflows by the connections that they belong to, their owners, and their ends, by exact look-ups."""

def subflows_of(connections: list[ByToken], owners: Sequence[Owner]) -> list[list[Subflow] | None]: ...
def enhanced_getsockopt(handle: Handle, optname: int, buffer: bytes, draft: bool) -> tuple[bytes, int]: ...
def enhanced_setsockopt(handle: Handle, optname: int, buffer: bytes, draft: bool) -> None: ...
def probe_full_info(fd: int) -> None: ...
def probe_is_mptcp(fd: int) -> None: ...
def probe_path_manager_family() -> None: ...
def probe_subflow_options(fd: int) -> None: ...
def probe_path_manager_commands() -> None: ...
def probe_user_notification() -> int: ...
def has_interface(fd: int, name: str) -> bool: ...
def option_name(level: int, optname: int) -> str: ...
def interfaces(fd: int) -> list[tuple[str, bool, list[str]]]:
    """The interfaces of a socket's namespace: name, whether it is up with a carrier, addresses."""

def read_sysctls(fd: int) -> dict[str, str]: ...
def interface_of_route(fd: int, local: str, remote: str) -> str | None:
    """The interface by which a namespace sends from a local address to a remote one; None without a route."""

def take_descriptor(pid: int, fd: int) -> int: ...
def enter_new_user_namespace() -> None: ...
def enter_new_network_namespace() -> None: ...
def remount_writable(path: str) -> None: ...
def check_path_manager(name: object) -> str: ...
def get_path_manager() -> str: ...
def set_path_manager(name: str) -> str: ...
def endpoints(fd: int | None) -> list[_EndpointFields]:
    """Endpoints as (address, id, port, interface, flags), of a socket's namespace or of the calling thread's."""

def add_endpoint(
    fd: int | None, address: str, id: int | None, port: int | None, interface: str | None, flags: int
) -> _EndpointFields: ...
def change_endpoint(
    fd: int | None, id: int, address: str | None, port: int | None, backup: bool | None, fullmesh: bool | None
) -> _EndpointFields: ...
def remove_endpoint(fd: int | None, id: int, address: str | None, port: int | None) -> None: ...
def flush_endpoints(fd: int | None) -> None: ...
def get_limits(fd: int | None) -> tuple[int, int]: ...
def set_limits(fd: int | None, subflows: int | None, add_addr_accepted: int | None) -> tuple[int, int]: ...
def get_scheduler() -> str: ...
def check_scheduler(name: object) -> str: ...
def set_scheduler(name: str) -> str: ...
def available_schedulers() -> list[str]: ...
def run_program(
    arguments: list[str],
    environment: list[str],
    path_manager: str | None,
    except_: list[str],
    draft_layout: bool,
    user: tuple[int, int, list[int], list[int]] | None,
    blocked: list[int],
) -> int: ...
def supervised_signals() -> list[int]: ...
def serve_broker(
    listener: int, stop: int, journal: int, ready: int, arguments: list[dict[str, Any]], uid: int | None
) -> None: ...
def find_broker() -> tuple[str, list[str]] | None: ...

@final
class BrokeredPathManager:
    def end(self) -> None: ...

def use_path_manager(name: str) -> BrokeredPathManager | None: ...
def before_fork() -> None: ...
def after_fork() -> None: ...
def realtime_offset_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, in nanoseconds."""
