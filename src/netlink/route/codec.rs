//! The bytes of RTM_GETROUTE, `<linux/rtnetlink.h>`.

use std::net::IpAddr;

use crate::abi::uapi::rtnetlink;
use crate::abi::{address, bytes};
use crate::netlink::codec::{find, push_attribute};

/// What a route look-up says of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The address that the kernel would send from.
    pub source: Option<IpAddr>,
    /// The index of the interface that packets leave by.
    pub interface: Option<u32>,
    /// The destination is an address of this host.
    pub is_local: bool,
}

/// RTM_GETROUTE of one destination, from any address or from `source`; `interface` 0 is any.
pub fn encode(destination: IpAddr, source: Option<IpAddr>, interface: u32) -> Vec<u8> {
    let mut bytes = vec![0; rtnetlink::RTMSG_SIZE];
    bytes[0] = address::family(destination);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let destination = octets(destination);
    bytes[1] = (destination.len() * 8) as u8;
    push_attribute(&mut bytes, rtnetlink::RTA_DST, &destination);
    if let Some(source) = source.map(octets) {
        bytes[2] = (source.len() * 8) as u8;
        push_attribute(&mut bytes, rtnetlink::RTA_SRC, &source);
    }
    if interface != 0 {
        push_attribute(&mut bytes, rtnetlink::RTA_OIF, &interface.to_ne_bytes());
    }
    bytes
}

pub fn decode(payload: &[u8]) -> Option<Route> {
    let attributes = payload.get(rtnetlink::RTMSG_SIZE..)?;
    let source = find(attributes, rtnetlink::RTA_PREFSRC);
    Some(Route {
        interface: find(attributes, rtnetlink::RTA_OIF).and_then(|value| bytes::u32(value, 0)),
        source: source.and_then(|value| match value.len() {
            4 => bytes::ipv4(value, 0).map(IpAddr::V4),
            _ => bytes::ipv6(value, 0).map(IpAddr::V6),
        }),
        is_local: bytes::u8(payload, rtnetlink::RTMSG_TYPE)? == rtnetlink::RTN_LOCAL,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::written::{attribute, emit};

    #[test]
    fn a_route_decodes() {
        let mut bytes = vec![0; rtnetlink::RTMSG_SIZE];
        bytes[rtnetlink::RTMSG_TYPE] = rtnetlink::RTN_LOCAL;
        bytes.extend(emit(&[
            attribute(rtnetlink::RTA_OIF, &3u32.to_ne_bytes()),
            attribute(rtnetlink::RTA_PREFSRC, &[10, 0, 1, 1]),
        ]));
        let route = decode(&bytes).unwrap();
        let source = Some("10.0.1.1".parse().unwrap());
        assert_eq!(route, Route { source, interface: Some(3), is_local: true });
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length]);
        }
    }

    #[test]
    fn a_request_names_destination_and_interface() {
        let bytes = encode("fd00::2".parse().unwrap(), None, 3);
        assert_eq!(bytes[..3], [10, 128, 0]);
        assert_eq!(find(&bytes[12..], rtnetlink::RTA_SRC), None);
        assert_eq!(find(&bytes[12..], rtnetlink::RTA_OIF), Some(&3u32.to_ne_bytes()[..]));
    }

    #[test]
    fn a_request_names_the_source() {
        let bytes = encode("10.0.0.2".parse().unwrap(), Some("10.0.1.1".parse().unwrap()), 0);
        assert_eq!(bytes[..3], [2, 32, 32]);
        assert_eq!(find(&bytes[12..], rtnetlink::RTA_SRC), Some(&[10, 0, 1, 1][..]));
    }
}
