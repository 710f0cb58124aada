//! What the messages of rtnetlink, `<linux/rtnetlink.h>`, say of links and addresses.

use std::net::IpAddr;
use std::sync::Arc;

use crate::abi::bytes;
use crate::abi::uapi::rtnetlink;
use crate::netlink::codec::find;

/// A change that the kernel reported, or one item of a dump. A link is up while it is set up and has a carrier (IFF_UP
/// and IFF_RUNNING); an address is present once it may be used, for IPv6 after duplicate address detection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    Link { index: u32, name: Arc<str>, up: bool },
    LinkGone { index: u32 },
    Address { index: u32, ip: IpAddr },
    AddressGone { index: u32, ip: IpAddr },
}

/// Decodes a message of rtnetlink; `None` for one that is not about a link or an address.
pub fn decode(message_type: u16, payload: &[u8]) -> Option<LinkChange> {
    match message_type {
        rtnetlink::RTM_NEWLINK | rtnetlink::RTM_DELLINK => {
            // A bridge reports its ports by the family AF_BRIDGE.
            if i32::from(bytes::u8(payload, 0)?) != libc::AF_UNSPEC {
                return None;
            }
            let index = bytes::u32(payload, 4)?;
            if message_type == rtnetlink::RTM_DELLINK {
                return Some(LinkChange::LinkGone { index });
            }
            let name = find(payload.get(rtnetlink::IFINFOMSG_SIZE..)?, rtnetlink::IFLA_IFNAME)?;
            let name = name.split(|byte| *byte == 0).next()?;
            let wanted = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
            let up = bytes::u32(payload, 8)? & wanted == wanted;
            Some(LinkChange::Link { index, name: String::from_utf8_lossy(name).into(), up })
        }
        rtnetlink::RTM_NEWADDR | rtnetlink::RTM_DELADDR => {
            let attributes = payload.get(rtnetlink::IFADDRMSG_SIZE..)?;
            // IFA_ADDRESS of a point-to-point link is the other end's.
            let value = find(attributes, rtnetlink::IFA_LOCAL)
                .or_else(|| find(attributes, rtnetlink::IFA_ADDRESS))?;
            let ip = match i32::from(bytes::u8(payload, 0)?) {
                libc::AF_INET => IpAddr::V4(bytes::ipv4(value, 0)?),
                libc::AF_INET6 => IpAddr::V6(bytes::ipv6(value, 0)?),
                _ => return None,
            };
            let flags = find(attributes, rtnetlink::IFA_FLAGS)
                .and_then(|flags| bytes::u32(flags, 0))
                .unwrap_or(u32::from(bytes::u8(payload, 2)?));
            let index = bytes::u32(payload, 4)?;
            let usable = flags & (libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED) == 0;
            Some(match message_type {
                rtnetlink::RTM_NEWADDR if usable => LinkChange::Address { index, ip },
                _ => LinkChange::AddressGone { index, ip },
            })
        }
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::netlink::codec::written::{attribute, emit};

    pub fn link(flags: i32, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; rtnetlink::IFINFOMSG_SIZE];
        bytes[4..8].copy_from_slice(&3u32.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(emit(&[attribute(rtnetlink::IFLA_IFNAME, format!("{name}\0").as_bytes())]));
        bytes
    }

    pub fn address(flags: u8) -> Vec<u8> {
        let mut bytes = vec![libc::AF_INET6 as u8, 64, flags, 0, 3, 0, 0, 0];
        bytes[4..8].copy_from_slice(&3u32.to_ne_bytes());
        bytes.extend(emit(&[attribute(
            rtnetlink::IFA_ADDRESS,
            &[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        )]));
        bytes
    }

    #[test]
    fn a_bridge_speaks_of_its_ports_and_not_of_links() {
        let mut bytes = link(0, "eth1");
        bytes[0] = libc::AF_BRIDGE as u8;
        assert_eq!(decode(rtnetlink::RTM_DELLINK, &bytes), None);
    }
}
