//! The links and addresses of a network namespace, and events when they change. The kernel repeats a link with every
//! change of it; only transitions make events.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use crate::abi::address;
use crate::abi::uapi::rtnetlink;
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::netlink::codec::{messages, Message};
use crate::netlink::links::codec::decode;
use crate::netlink::links::{self, LinkChange};
use crate::netlink::{Channel, Failure};
use crate::sys;
use crate::sys::lock::lock;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    name: Arc<str>,
    up: bool,
    addresses: Vec<IpAddr>,
}

/// The links and addresses.
#[derive(Debug, Default)]
struct Links(HashMap<u32, Link>);

impl Links {
    /// Records a change; what changed goes to `on_event`.
    fn apply(&mut self, change: LinkChange, time_ns: u64, mut on_event: impl FnMut(Event)) {
        match change {
            LinkChange::Link { index, name, up } => {
                let link = self.0.entry(index).or_insert_with(|| Link {
                    name: Arc::clone(&name),
                    up: false,
                    addresses: Vec::new(),
                });
                link.name = name;
                if link.up != up {
                    link.up = up;
                    on_event(link.event(time_ns));
                }
            }
            LinkChange::LinkGone { index } => {
                let Some(mut link) = self.0.remove(&index) else { return };
                for ip in &link.addresses {
                    on_event(link.address_event(Kind::AddressRemoved, index, *ip, time_ns));
                }
                if std::mem::take(&mut link.up) {
                    on_event(link.event(time_ns));
                }
            }
            LinkChange::Address { index, ip } => {
                let Some(link) = self.0.get_mut(&index) else { return };
                if !link.addresses.contains(&ip) {
                    link.addresses.push(ip);
                    on_event(link.address_event(Kind::AddressAdded, index, ip, time_ns));
                }
            }
            LinkChange::AddressGone { index, ip } => {
                let Some(link) = self.0.get_mut(&index) else { return };
                if let Some(at) = link.addresses.iter().position(|address| *address == ip) {
                    link.addresses.remove(at);
                    on_event(link.address_event(Kind::AddressRemoved, index, ip, time_ns));
                }
            }
        }
    }
}

impl Link {
    fn event(&self, time_ns: u64) -> Event {
        let kind = if self.up { Kind::LinkUp } else { Kind::LinkDown };
        Event { interface: Some(Arc::clone(&self.name)), ..Event::new(kind, time_ns) }
    }

    fn address_event(&self, kind: Kind, index: u32, ip: IpAddr, time_ns: u64) -> Event {
        let local = address::with_scope(SocketAddr::new(ip, 0), index);
        Event { local: Some(local), interface: Some(Arc::clone(&self.name)), ..Event::new(kind, time_ns) }
    }
}

/// The subscription of this process to the links and addresses of one namespace, and what it knows of them.
#[derive(Debug)]
pub struct Watch {
    socket: socket2::Socket,
    requests: Mutex<Channel>,
    links: Mutex<Links>,
}

impl Watch {
    /// Takes two new sockets of rtnetlink.
    pub fn start(socket: OwnedFd, requests: OwnedFd) -> Result<Watch> {
        let failed = |error: std::io::Error| Error::call("subscribing to links by rtnetlink", &error);
        let socket = socket2::Socket::from(socket);
        sys::bind_netlink(socket.as_raw_fd()).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let groups =
            [rtnetlink::RTNLGRP_LINK, rtnetlink::RTNLGRP_IPV4_IFADDR, rtnetlink::RTNLGRP_IPV6_IFADDR];
        for group in groups {
            let option = libc::NETLINK_ADD_MEMBERSHIP;
            sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_NETLINK, option, group as i32)
                .map_err(failed)?;
        }
        let requests = Mutex::new(Channel::new(requests).map_err(failed)?);
        let watch = Watch { socket, requests, links: Mutex::default() };
        watch.read_back().map_err(|failure| {
            Error::os(failure.errno, format!("listing links by rtnetlink: {}", failure.describe()))
        })?;
        Ok(watch)
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub fn socket(&self) -> &socket2::Socket {
        &self.socket
    }

    /// Records the changes in a datagram.
    pub fn take(&self, datagram: &[u8], time_ns: u64, mut on_event: impl FnMut(Event)) {
        let mut links = lock(&self.links);
        for message in messages(datagram) {
            if let Message::Data { message_type, payload, .. } = message {
                if let Some(change) = decode(message_type, payload) {
                    links.apply(change, time_ns, &mut on_event);
                }
            }
        }
    }

    /// Reads all links and addresses, in place of what was known.
    pub fn read_back(&self) -> std::result::Result<(), Failure> {
        let mut requests = lock(&self.requests);
        let mut read = Links::default();
        links::dump(&mut requests, |change| read.apply(change, 0, |_| {}))?;
        *lock(&self.links) = read;
        Ok(())
    }

    /// The current state as events: links that are up, and addresses.
    pub fn state(&self, time_ns: u64) -> Vec<Event> {
        let links = lock(&self.links);
        let mut events = Vec::new();
        let mut indices: Vec<_> = links.0.keys().copied().collect();
        indices.sort_unstable();
        for (index, link) in indices.iter().map(|index| (*index, &links.0[index])) {
            if link.up {
                events.push(link.event(time_ns));
            }
            let added = |ip: &IpAddr| link.address_event(Kind::AddressAdded, index, *ip, time_ns);
            events.extend(link.addresses.iter().map(added));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::links::codec::tests::{address, link};

    #[test]
    fn only_transitions_are_told() {
        const UP: i32 = libc::IFF_UP | libc::IFF_RUNNING;
        let mut links = Links::default();
        let mut told = Vec::new();
        let mut tell = |message_type, payload: Vec<u8>| {
            for length in 0..payload.len() {
                let _ = decode(message_type, &payload[..length]);
            }
            links.apply(decode(message_type, &payload).unwrap(), 1, |event| told.push(event));
        };
        tell(rtnetlink::RTM_NEWLINK, link(0, "eth1"));
        tell(rtnetlink::RTM_NEWLINK, link(libc::IFF_UP, "eth1"));
        tell(rtnetlink::RTM_NEWLINK, link(UP, "eth1"));
        tell(rtnetlink::RTM_NEWLINK, link(UP | libc::IFF_PROMISC, "wifi"));
        tell(rtnetlink::RTM_NEWADDR, address(libc::IFA_F_TENTATIVE as u8));
        tell(rtnetlink::RTM_NEWADDR, address(0));
        tell(rtnetlink::RTM_NEWADDR, address(0));
        tell(rtnetlink::RTM_DELLINK, link(0, "wifi"));
        let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [Kind::LinkUp, Kind::AddressAdded, Kind::AddressRemoved, Kind::LinkDown]);
        assert_eq!(told[1].local.unwrap().to_string(), "[fe80::1%3]:0");
        assert_eq!(told[3].interface.as_deref(), Some("wifi"));
    }
}
