"""What events report."""

from __future__ import annotations

import enum

from ._docs import document


class EventKind(enum.Enum):
    """What an Event reports.

    Events of connections come from the multicast group mptcp_pm_events as the kernel raises them, for connections
    under either path manager. Events of links and addresses come from rtnetlink, when something changes: a link is up
    while it is set up and has a carrier; an address is present once it can be used (an IPv6 address after duplicate
    address detection).
    """

    CREATED = "CREATED"
    ESTABLISHED = "ESTABLISHED"
    CLOSED = "CLOSED"
    ANNOUNCED = "ANNOUNCED"
    REMOVED = "REMOVED"
    SUB_ESTABLISHED = "SUB_ESTABLISHED"
    SUB_CLOSED = "SUB_CLOSED"
    SUB_PRIORITY = "SUB_PRIORITY"
    LISTENER_CREATED = "LISTENER_CREATED"
    LISTENER_CLOSED = "LISTENER_CLOSED"
    LINK_UP = "LINK_UP"
    LINK_DOWN = "LINK_DOWN"
    ADDRESS_ADDED = "ADDRESS_ADDED"
    ADDRESS_REMOVED = "ADDRESS_REMOVED"
    OVERRUN = "OVERRUN"
    FALLBACK = "FALLBACK"


document(
    EventKind,
    CREATED="""A connection's handshake is under way: a SYN/ACK with MP_CAPABLE arrived, or the third ACK of a client.

    It may still fall back. The event has the ends and ``server_side``.""",
    ESTABLISHED="The connection is fully established, and can have further subflows.",
    CLOSED="""The connection has ended for its owner, who closed it; its last bytes may still be in flight.

    If the peer aborted it (MP_FASTCLOSE), ``error`` is ECONNRESET; polling cannot detect that. The kernel sends no
    event then: the connections that are watched are looked up by their tokens every 50 ms. Its subflows end with
    it, without events of their own.""",
    ANNOUNCED="The peer announced the address ``remote`` with the id ``remote_id``, by ADD_ADDR.",
    REMOVED="The peer withdrew the address with the id ``remote_id``, by RM_ADDR.",
    SUB_ESTABLISHED="""A further subflow: the side that opened it has the SYN/ACK, the other side the third ACK.

    On the opening side that is not acceptance: if the peer refuses the third ACK, SUB_ESTABLISHED is followed by
    SUB_CLOSED a round trip later. No event reports acceptance, which Socket.open_subflow waits for.""",
    SUB_CLOSED="""A subflow has ended, or was never accepted.

    ``error`` is the errno if it failed, ``reset_reason`` what the peer gave in MP_TCPRST. For a subflow that was
    closed while it connected the port of ``remote`` may be 0: identify it by ``local``.""",
    SUB_PRIORITY="The peer changed the priority of a subflow to ``backup``, by MP_PRIO.",
    LISTENER_CREATED="A Multipath TCP socket started to listen at ``local``. Linux 6.2.",
    LISTENER_CLOSED="A Multipath TCP socket stopped listening at ``local``. Linux 6.2.",
    LINK_UP="The link ``interface`` is up and has a carrier.",
    LINK_DOWN="The link ``interface`` is down, has lost its carrier or was deleted.",
    ADDRESS_ADDED="The address ``local``, with port 0, can be used on ``interface``.",
    ADDRESS_REMOVED="The address ``local``, with port 0, can no longer be used on ``interface``.",
    OVERRUN="""Events were lost. Discard cached state; the current state follows as events, see Events.""",
    FALLBACK="""The connection ``token`` fell back to TCP.

    Only a Recorder reports it, from the flag in struct mptcp_info when it next reads the connection: the kernel
    has no such event.""",
)

EventKind.__module__ = "mptcp"
