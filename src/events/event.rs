//! Events: those of the multicast group `mptcp_pm_events`, `<linux/mptcp_pm.h>`, as the kernel sends them, and the form
//! that they share with events from other interfaces.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::abi::bytes;
use crate::abi::uapi::event;
use crate::netlink::codec::attributes;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Created,
    Established,
    Closed,
    Announced,
    Removed,
    SubEstablished,
    SubClosed,
    SubPriority,
    ListenerCreated,
    ListenerClosed,
    // By rtnetlink.
    LinkUp,
    LinkDown,
    AddressAdded,
    AddressRemoved,
    /// Events were lost: discard cached state.
    Overrun,
    /// A connection fell back to TCP. A recording has this event, the kernel does not.
    Fallback,
}

impl Kind {
    const ALL: [Kind; 16] = [
        Kind::Created,
        Kind::Established,
        Kind::Closed,
        Kind::Announced,
        Kind::Removed,
        Kind::SubEstablished,
        Kind::SubClosed,
        Kind::SubPriority,
        Kind::ListenerCreated,
        Kind::ListenerClosed,
        Kind::LinkUp,
        Kind::LinkDown,
        Kind::AddressAdded,
        Kind::AddressRemoved,
        Kind::Overrun,
        Kind::Fallback,
    ];

    /// Of MPTCP_EVENT_*; `None` for one that this crate does not know.
    fn of_kernel(number: u8) -> Option<Kind> {
        Some(match number {
            event::CREATED => Kind::Created,
            event::ESTABLISHED => Kind::Established,
            event::CLOSED => Kind::Closed,
            event::ANNOUNCED => Kind::Announced,
            event::REMOVED => Kind::Removed,
            event::SUB_ESTABLISHED => Kind::SubEstablished,
            event::SUB_CLOSED => Kind::SubClosed,
            event::SUB_PRIORITY => Kind::SubPriority,
            event::LISTENER_CREATED => Kind::ListenerCreated,
            event::LISTENER_CLOSED => Kind::ListenerClosed,
            _ => return None,
        })
    }

    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it is about a link or an address, not a connection.
    pub fn is_of_link(self) -> bool {
        matches!(self, Kind::LinkUp | Kind::LinkDown | Kind::AddressAdded | Kind::AddressRemoved)
    }

    /// The kernel's name without its prefix, and ours in the same form.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Created => "CREATED",
            Kind::Established => "ESTABLISHED",
            Kind::Closed => "CLOSED",
            Kind::Announced => "ANNOUNCED",
            Kind::Removed => "REMOVED",
            Kind::SubEstablished => "SUB_ESTABLISHED",
            Kind::SubClosed => "SUB_CLOSED",
            Kind::SubPriority => "SUB_PRIORITY",
            Kind::ListenerCreated => "LISTENER_CREATED",
            Kind::ListenerClosed => "LISTENER_CLOSED",
            Kind::LinkUp => "LINK_UP",
            Kind::LinkDown => "LINK_DOWN",
            Kind::AddressAdded => "ADDRESS_ADDED",
            Kind::AddressRemoved => "ADDRESS_REMOVED",
            Kind::Overrun => "OVERRUN",
            Kind::Fallback => "FALLBACK",
        }
    }
}

/// One event. What its kind does not carry is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    /// CLOCK_MONOTONIC, nanoseconds, when our reader took it.
    pub time_ns: u64,
    pub token: Option<u32>,
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    pub local_id: Option<u8>,
    pub remote_id: Option<u8>,
    pub backup: Option<bool>,
    /// An errno, if the subflow failed.
    pub error: Option<i32>,
    /// MPTCP_RST_* of RFC 8684, section 3.6.
    pub reset_reason: Option<u32>,
    pub server_side: Option<bool>,
    /// The peer wants no further subflow to its initial address and port: the C bit, RFC 8684, section 3.1.
    pub deny_join_initial: Option<bool>,
    /// By its name.
    pub interface: Option<Arc<str>>,
}

impl Event {
    pub fn new(kind: Kind, time_ns: u64) -> Event {
        Event {
            kind,
            time_ns,
            token: None,
            local: None,
            remote: None,
            local_id: None,
            remote_id: None,
            backup: None,
            error: None,
            reset_reason: None,
            server_side: None,
            deny_join_initial: None,
            interface: None,
        }
    }
}

/// Decodes `struct genlmsghdr` and attributes; `None` for what is not an event, or one of a kind that this crate does
/// not know. `interface_name` returns the name of an interface by its index.
pub fn decode(
    payload: &[u8],
    time_ns: u64,
    interface_name: impl Fn(u32) -> Option<Arc<str>>,
) -> Option<Event> {
    let mut decoded = Event::new(Kind::of_kernel(bytes::u8(payload, 0)?)?, time_ns);
    let (mut local_ip, mut remote_ip, mut local_port, mut remote_port, mut flags) = (None, None, 0, 0, 0);
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            event::ATTR_TOKEN => decoded.token = bytes::u32(value, 0),
            event::ATTR_LOC_ID => decoded.local_id = bytes::u8(value, 0),
            event::ATTR_REM_ID => decoded.remote_id = bytes::u8(value, 0),
            event::ATTR_SADDR4 => local_ip = bytes::ipv4(value, 0).map(IpAddr::V4),
            event::ATTR_SADDR6 => local_ip = bytes::ipv6(value, 0).map(IpAddr::V6),
            event::ATTR_DADDR4 => remote_ip = bytes::ipv4(value, 0).map(IpAddr::V4),
            event::ATTR_DADDR6 => remote_ip = bytes::ipv6(value, 0).map(IpAddr::V6),
            event::ATTR_SPORT => local_port = bytes::be16(value, 0)?,
            event::ATTR_DPORT => remote_port = bytes::be16(value, 0)?,
            event::ATTR_BACKUP => decoded.backup = bytes::u8(value, 0).map(|flag| flag != 0),
            event::ATTR_ERROR => decoded.error = bytes::u8(value, 0).map(i32::from),
            event::ATTR_RESET_REASON => decoded.reset_reason = bytes::u32(value, 0),
            event::ATTR_IF_IDX => decoded.interface = bytes::u32(value, 0).and_then(&interface_name),
            event::ATTR_SERVER_SIDE => decoded.server_side = bytes::u8(value, 0).map(|flag| flag != 0),
            event::ATTR_FLAGS => flags = bytes::u16(value, 0)?,
            _ => {}
        }
    }
    decoded.local = local_ip.map(|ip| SocketAddr::new(ip, local_port));
    decoded.remote = remote_ip.map(|ip| SocketAddr::new(ip, remote_port));
    // Newer kernels set this flag for a server only, in place of the attribute.
    if matches!(decoded.kind, Kind::Created | Kind::Established) {
        decoded.server_side = decoded.server_side.or(Some(flags & event::FLAG_SERVER_SIDE != 0));
        decoded.deny_join_initial = Some(flags & event::FLAG_DENY_JOIN_ID0 != 0);
    }
    // The subflow from an address to itself by which a forgotten address is withdrawn (connection::withdraw), destroyed
    // before it was established. On loopback it could be anybody's.
    let to_itself = remote_port == 0 && local_ip.is_some_and(|ip| remote_ip == Some(ip) && !ip.is_loopback());
    if decoded.kind == Kind::SubClosed && to_itself {
        return None;
    }
    // The end of an initial subflow that was closed long before may be reported again, without its ends: kernel issue 603.
    let is_nowhere = |end: SocketAddr| end.ip().is_unspecified() && end.port() == 0;
    if decoded.kind == Kind::SubClosed && decoded.local.is_some_and(is_nowhere) {
        return None;
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::written::{attribute, emit};

    #[test]
    fn an_event_decodes_with_network_order_ports() {
        let mut bytes = vec![event::SUB_CLOSED, 1, 0, 0];
        bytes.extend(emit(&[
            attribute(event::ATTR_TOKEN, &9u32.to_ne_bytes()),
            attribute(event::ATTR_SADDR4, &[10, 0, 2, 1]),
            attribute(event::ATTR_SPORT, &12345u16.to_be_bytes()),
            attribute(event::ATTR_DADDR4, &[10, 0, 2, 2]),
            attribute(event::ATTR_DPORT, &5000u16.to_be_bytes()),
            attribute(event::ATTR_ERROR, &[111]),
            attribute(99, &[1, 2, 3]),
        ]));
        let decoded = decode(&bytes, 5, |_| None).unwrap();
        assert_eq!((decoded.kind, decoded.token, decoded.error), (Kind::SubClosed, Some(9), Some(111)));
        assert_eq!(decoded.local, Some("10.0.2.1:12345".parse().unwrap()));
        assert_eq!(decoded.remote, Some("10.0.2.2:5000".parse().unwrap()));
        assert_eq!(decoded.reset_reason, None);
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length], 0, |_| None);
        }
    }

    #[test]
    fn the_second_end_of_a_closed_initial_subflow_is_left_out() {
        let closed = |ip: [u8; 4]| {
            let mut bytes = vec![event::SUB_CLOSED, 1, 0, 0];
            bytes.extend(emit(&[
                attribute(event::ATTR_TOKEN, &9u32.to_ne_bytes()),
                attribute(event::ATTR_SADDR4, &ip),
                attribute(event::ATTR_SPORT, &0u16.to_be_bytes()),
            ]));
            bytes
        };
        assert_eq!(decode(&closed([0; 4]), 0, |_| None), None);
        assert!(decode(&closed([10, 0, 0, 1]), 0, |_| None).is_some());
    }

    #[test]
    fn a_kind_that_is_not_known_is_left_out() {
        assert_eq!(decode(&[250, 1, 0, 0], 0, |_| None), None);
    }
}
