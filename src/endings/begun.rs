//! Subflows of which an event told, until their sockets are destroyed: the notification of that has no token, and a subflow
//! may have ended before anything was read of it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::abi::uapi::ulp;
use crate::events::event::{Event, Kind};
use crate::netlink::diag::{Entry, Tuple, Ulp};

/// The local address, and the remote end. A socket that is destroyed may have lost its local port.
type Ends = (IpAddr, (IpAddr, u16));

fn ends(tuple: &Tuple) -> Ends {
    let [local, remote] = tuple.endpoints();
    (local.0, remote)
}

/// A subflow as its event described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    pub subflow: Ulp,
    pub local: SocketAddr,
    pub time_ns: u64,
    /// Known once it was looked up.
    cookie: Option<u64>,
    /// An event told of its end.
    has_ended: bool,
}

/// By their ends, in the order in which they began: ends may be used again.
#[derive(Debug, Default)]
pub struct Begun(HashMap<Ends, VecDeque<Beginning>>);

impl Begun {
    /// Follows an event that tells of the beginning or the end of a subflow.
    pub fn follow(&mut self, event: &Event) {
        let (Some(token), Some(local), Some(remote)) = (event.token, event.local, event.remote) else {
            return;
        };
        let joined = match event.kind {
            Kind::Created | Kind::Established => false,
            Kind::SubEstablished => true,
            Kind::SubClosed => {
                if let Some(beginning) = self.last(local, remote) {
                    beginning.has_ended = true;
                }
                return;
            }
            _ => return,
        };
        // A connection is created and then established.
        if !joined && self.last(local, remote).is_some_and(|last| last.subflow.token == token) {
            return;
        }
        let subflow = Ulp {
            token,
            local_id: event.local_id.unwrap_or(0),
            remote_id: event.remote_id.unwrap_or(0),
            flags: if joined { ulp::FLAG_JOIN_LOC } else { 0 },
        };
        let beginning = Beginning { subflow, local, time_ns: event.time_ns, cookie: None, has_ended: false };
        self.0.entry(ends(&Tuple { local, remote, interface: 0 })).or_default().push_back(beginning);
    }

    /// The subflow was looked up: its cookie is known.
    pub fn find(&mut self, entry: &Entry) {
        let Tuple { local, remote, .. } = entry.tuple;
        if let Some(beginning) = self.last(local, remote) {
            beginning.cookie.get_or_insert(entry.cookie);
        }
    }

    /// Takes the subflow whose socket was destroyed. Where only its local address is left, and neither the cookie nor an
    /// event of its end says which of several it is, the oldest.
    pub fn take(&mut self, entry: &Entry) -> Option<Beginning> {
        let ends = ends(&entry.tuple);
        let known = self.0.get_mut(&ends)?;
        let port = entry.tuple.local.port();
        let may_be = |each: &Beginning| each.cookie.is_none() && [0, each.local.port()].contains(&port);
        let position = known
            .iter()
            .position(|each| each.cookie == Some(entry.cookie))
            .or_else(|| known.iter().position(|each| may_be(each) && each.has_ended))
            .or_else(|| known.iter().position(may_be));
        let found = known.remove(position?);
        if known.is_empty() {
            self.0.remove(&ends);
        }
        found
    }

    /// Those that have not been destroyed, and the cookie of each that was looked up.
    pub fn iter(&self) -> impl Iterator<Item = (Tuple, u32, Option<u64>)> + '_ {
        self.0.iter().flat_map(|((_, (address, port)), known)| {
            let remote = SocketAddr::new(*address, *port);
            known.iter().map(move |each| {
                (Tuple { local: each.local, remote, interface: 0 }, each.subflow.token, each.cookie)
            })
        })
    }

    fn last(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<&mut Beginning> {
        let known = self.0.get_mut(&ends(&Tuple { local, remote, interface: 0 }))?;
        known.iter_mut().rev().find(|each| each.local.port() == local.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: &str = "10.0.0.2:5000";

    fn event(kind: Kind, token: u32, local: &str) -> Event {
        Event {
            token: Some(token),
            local: Some(local.parse().unwrap()),
            remote: Some(REMOTE.parse().unwrap()),
            ..Event::new(kind, 5)
        }
    }

    fn entry(local: &str, cookie: u64) -> Entry {
        let remote = format!("[::ffff:10.0.0.2]:{}", 5000).parse().unwrap();
        Entry::of_ends(Tuple { local: local.parse().unwrap(), remote, interface: 3 }, cookie)
    }

    fn token(begun: &mut Begun, local: &str, cookie: u64) -> Option<u32> {
        begun.take(&entry(local, cookie)).map(|beginning| beginning.subflow.token)
    }

    #[test]
    fn ends_that_are_used_again_are_taken_in_order() {
        let (mut begun, local) = (Begun::default(), "10.0.0.1:1000");
        begun.follow(&event(Kind::Created, 1, local));
        begun.follow(&event(Kind::Established, 1, local));
        begun.follow(&event(Kind::SubEstablished, 2, local));
        assert_eq!(token(&mut begun, "10.0.0.1:1001", 7), None);
        assert_eq!(token(&mut begun, local, 7), Some(1));
        assert_eq!(token(&mut begun, local, 8), Some(2));
        assert_eq!(token(&mut begun, local, 9), None);
    }

    #[test]
    fn a_socket_without_a_port_is_told_by_its_cookie_or_by_its_end() {
        let mut begun = Begun::default();
        for (token, port) in [(1, 1001), (2, 1002), (3, 1003), (4, 1004)] {
            begun.follow(&event(Kind::SubEstablished, token, &format!("10.0.0.1:{port}")));
        }
        begun.find(&entry("10.0.0.1:1001", 71));
        begun.follow(&event(Kind::SubClosed, 3, "10.0.0.1:1003"));
        let mut without_port = |cookie| token(&mut begun, "10.0.0.1:0", cookie);
        assert_eq!(without_port(73), Some(3));
        assert_eq!(without_port(72), Some(2));
        assert_eq!(without_port(71), Some(1));
        assert_eq!(without_port(74), Some(4));
        assert_eq!(without_port(75), None);
    }
}
