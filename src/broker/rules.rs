//! What the broker allows whom. Pure.

use std::net::IpAddr;
use std::time::Duration;

use crate::sys::seqpacket::Peer;

/// Addresses with the same first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub bits: u8,
}

impl Network {
    /// "10.0.0.0/8", or an address alone; `None` for anything else, bits behind the prefix too.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(longest), |bits| bits.parse().ok())?;
        let network = Network { address, bits };
        (bits <= longest && network.masked(address) == network.bits_of(address)).then_some(network)
    }

    fn bits_of(self, address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    fn masked(self, address: IpAddr) -> u128 {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        self.bits_of(address) & mask
    }

    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == self.bits_of(self.address)
    }
}

/// What a caller may have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// On connections of the caller's uid, without a descriptor.
    pub own: bool,
    /// On connections of other uids, if a descriptor of the connection comes with the request.
    pub others: bool,
    /// The path manager of a new socket.
    pub hold: bool,
    /// Socket options on one subflow.
    pub options: bool,
    /// Remote addresses besides the peer's own and those that it announced.
    pub remotes: Vec<Network>,
    /// The local addresses; empty for all.
    pub locals: Vec<Network>,
    /// Interfaces that a subflow may be bound to, besides the connection's own.
    pub interfaces: Vec<String>,
    /// Connections to the broker, each of which has a thread.
    pub clients: usize,
    pub opens_per_second: u32,
    pub holds_per_second: u32,
    /// How long new sockets of all the namespace may latch a path manager of the caller's choice; zero: not at all.
    pub longest_use: Duration,
    /// Addresses announced on one connection.
    pub announced: usize,
}

/// Who it is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    /// `None`: nothing.
    pub allowed: Option<Allowed>,
}

impl Rule {
    /// With neither users nor groups it is everybody's.
    fn is_of(&self, peer: &Peer) -> bool {
        let is_everybodys = self.uids.is_empty() && self.gids.is_empty();
        let has_group = |gid: &u32| *gid == peer.gid || peer.groups.contains(gid);
        is_everybodys || self.uids.contains(&peer.uid) || self.gids.iter().any(has_group)
    }
}

/// The first rule of a caller is his.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    pub fn of(&self, peer: &Peer) -> Option<&Allowed> {
        self.0.iter().find(|rule| rule.is_of(peer)).and_then(|rule| rule.allowed.as_ref())
    }
}

impl Rules {
    /// Whether somebody may set options on one subflow.
    pub fn allow_options(&self) -> bool {
        self.0.iter().any(|rule| rule.allowed.as_ref().is_some_and(|allowed| allowed.options))
    }
}

impl Allowed {
    pub fn is_local_allowed(&self, address: IpAddr) -> bool {
        self.locals.is_empty() || self.locals.iter().any(|network| network.contains(address))
    }

    pub fn is_remote_allowed(&self, address: IpAddr) -> bool {
        self.remotes.iter().any(|network| network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_with_its_first_bits() {
        let network = |text| Network::parse(text);
        let contains = |text, address: &str| network(text).unwrap().contains(address.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3") && !contains("::/0", "10.0.0.1"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && contains("::/0", "fd00::1"));
        assert!(contains("fd00::/16", "fd00:1::") && !contains("fd00::1", "fd00::2"));
        for wrong in ["10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "x", "10.0.0.0/-1"] {
            assert_eq!(network(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_rule_of_a_caller_is_his() {
        let allowed = |clients| Allowed {
            own: true,
            others: false,
            hold: true,
            options: true,
            remotes: vec![],
            locals: vec![],
            interfaces: vec![],
            clients,
            opens_per_second: 1,
            holds_per_second: 1,
            longest_use: Duration::ZERO,
            announced: 1,
        };
        let rules = Rules(vec![
            Rule { uids: vec![1], gids: vec![], allowed: None },
            Rule { uids: vec![], gids: vec![7], allowed: Some(allowed(7)) },
            Rule { uids: vec![], gids: vec![], allowed: Some(allowed(8)) },
        ]);
        let clients = |uid, gid, groups: &[u32]| {
            let peer = Peer { process: 1, uid, gid, groups: groups.to_vec() };
            rules.of(&peer).map(|allowed| allowed.clients)
        };
        assert_eq!(clients(1, 7, &[]), None);
        assert_eq!(clients(2, 7, &[]), Some(7));
        assert_eq!(clients(2, 3, &[4, 7]), Some(7));
        assert_eq!(clients(2, 3, &[4]), Some(8));
        assert_eq!(Rules(vec![]).of(&Peer { process: 1, uid: 0, gid: 0, groups: vec![] }), None);
    }
}
