"""What events tell of."""

from __future__ import annotations

import enum


class EventKind(enum.Enum):
    """What an Event tells of.

    Those of connections come from the multicast group mptcp_pm_events as the kernel raises them, for connections
    under either path manager. Those of links and addresses come from rtnetlink, when something changes: a link is up
    while it is set up and has a carrier, an address is there once it may be used (an IPv6 one after the detection of
    duplicates).
    """

    CREATED = "CREATED"
    """A connection's handshake is under way: a SYN/ACK with MP_CAPABLE came in, or the third ACK of a client. It may
    still fall back. Carries the ends and ``server_side``."""

    ESTABLISHED = "ESTABLISHED"
    """The connection is fully established, and may have further subflows."""

    CLOSED = "CLOSED"
    """The connection has ended for its owner, who closed it; its last bytes may still be on the way. Its subflows end
    with it, without events of their own."""

    ANNOUNCED = "ANNOUNCED"
    """The peer announced an address, by ADD_ADDR: ``remote`` and ``remote_id``."""

    REMOVED = "REMOVED"
    """The peer withdrew the address ``remote_id``, by RM_ADDR."""

    SUB_ESTABLISHED = "SUB_ESTABLISHED"
    """A further subflow: on the side that opened it the SYN/ACK has come, on the other the third ACK.

    On the opening side that is not acceptance: a peer that refuses at the third ACK shows SUB_ESTABLISHED, and a round
    trip later SUB_CLOSED. No event tells acceptance, which Socket.open_subflow waits for."""

    SUB_CLOSED = "SUB_CLOSED"
    """A subflow has ended, or was never accepted: ``error`` is the errno if it failed, ``reset_reason`` what the peer
    gave in MP_TCPRST. Of one that was closed while it connected the port of ``remote`` may be 0: it is told by
    ``local``."""

    SUB_PRIORITY = "SUB_PRIORITY"
    """The peer changed a subflow's priority, by MP_PRIO: ``backup``."""

    LISTENER_CREATED = "LISTENER_CREATED"
    """A Multipath TCP socket listens at ``local``. Linux 6.2."""

    LISTENER_CLOSED = "LISTENER_CLOSED"
    """And does so no more. Linux 6.2."""

    LINK_UP = "LINK_UP"
    """The link ``interface`` is up."""

    LINK_DOWN = "LINK_DOWN"
    """It is up no more, or gone."""

    ADDRESS_ADDED = "ADDRESS_ADDED"
    """The address ``local``, with port 0, can be used on ``interface``."""

    ADDRESS_REMOVED = "ADDRESS_REMOVED"
    """It can be used no more, or is gone."""

    OVERRUN = "OVERRUN"
    """Events were lost. What is known is to be forgotten: what there is follows, see Events."""

    FALLBACK = "FALLBACK"
    """A connection fell back to TCP: ``token``. Only a Recorder tells it, by the flag in struct mptcp_info
    when it next reads the connection, for the kernel has no event of it."""


EventKind.__module__ = "mptcp"
