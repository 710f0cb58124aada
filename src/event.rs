//! Events of the multicast group `mptcp_pm_events`, `<linux/mptcp_pm.h>`.

use std::net::{IpAddr, SocketAddr};

use crate::netlink::attributes;
use crate::uapi::event;
use crate::wire;

/// One event as the kernel sent it. What the kind of event does not carry is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// MPTCP_EVENT_*.
    pub kind: u8,
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
    pub interface: Option<u32>,
}

/// Decodes `struct genlmsghdr` and attributes; `None` for what is not an event.
pub fn decode(payload: &[u8], time_ns: u64) -> Option<Event> {
    let mut decoded = Event {
        kind: wire::u8(payload, 0)?,
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
        interface: None,
    };
    let (mut local_ip, mut remote_ip, mut local_port, mut remote_port) = (None, None, 0, 0);
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            event::ATTR_TOKEN => decoded.token = wire::u32(value, 0),
            event::ATTR_LOC_ID => decoded.local_id = wire::u8(value, 0),
            event::ATTR_REM_ID => decoded.remote_id = wire::u8(value, 0),
            event::ATTR_SADDR4 => local_ip = wire::ipv4(value, 0).map(IpAddr::V4),
            event::ATTR_SADDR6 => local_ip = wire::ipv6(value, 0).map(IpAddr::V6),
            event::ATTR_DADDR4 => remote_ip = wire::ipv4(value, 0).map(IpAddr::V4),
            event::ATTR_DADDR6 => remote_ip = wire::ipv6(value, 0).map(IpAddr::V6),
            event::ATTR_SPORT => local_port = wire::be16(value, 0)?,
            event::ATTR_DPORT => remote_port = wire::be16(value, 0)?,
            event::ATTR_BACKUP => decoded.backup = wire::u8(value, 0).map(|flag| flag != 0),
            event::ATTR_ERROR => decoded.error = wire::u8(value, 0).map(i32::from),
            event::ATTR_RESET_REASON => decoded.reset_reason = wire::u32(value, 0),
            event::ATTR_IF_IDX => decoded.interface = wire::u32(value, 0),
            event::ATTR_SERVER_SIDE => decoded.server_side = wire::u8(value, 0).map(|flag| flag != 0),
            event::ATTR_FLAGS if wire::u16(value, 0)? & event::FLAG_SERVER_SIDE != 0 => {
                decoded.server_side = Some(true);
            }
            _ => {}
        }
    }
    decoded.local = local_ip.map(|ip| SocketAddr::new(ip, local_port));
    decoded.remote = remote_ip.map(|ip| SocketAddr::new(ip, remote_port));
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{attribute, emit};

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
        let decoded = decode(&bytes, 5).unwrap();
        assert_eq!((decoded.kind, decoded.token, decoded.error), (event::SUB_CLOSED, Some(9), Some(111)));
        assert_eq!(decoded.local, Some("10.0.2.1:12345".parse().unwrap()));
        assert_eq!(decoded.remote, Some("10.0.2.2:5000".parse().unwrap()));
        assert_eq!(decoded.reset_reason, None);
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length], 0);
        }
    }
}
