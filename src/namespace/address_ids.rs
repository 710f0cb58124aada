//! The address ids of a connection: the one place that chooses them, for subflows and for announced addresses.
//!
//! The kernel keeps a list of (address, port) and id for each connection, one to one: a listed pair works with its own
//! id only, and a new pair with an unlisted id. Kernels since 6.10 report the list (GET_ADDR); on older ones the ids that
//! this process used before save most of the search.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::abi::uapi;
use crate::error::{Error, Result};
use crate::events::ends::Listener;
use crate::events::reader::Reader;
use crate::netlink::pm;
use crate::netlink::pm::PmSocket;
use crate::netlink::Failure;

/// A local address and port, 0 for any port.
pub type Pair = (IpAddr, u16);

/// What this process knows of a connection's address ids.
#[derive(Debug, Default)]
pub struct AddressIds {
    by_pair: HashMap<Pair, u8>,
    /// The other way.
    by_id: HashMap<u8, Pair>,
    /// Those of live subflows, by the kernel's subflow id, neither of which ever changes.
    pub by_subflow: HashMap<u32, u8>,
    /// The one that we used last.
    last: u8,
    /// The addresses that this process announced.
    pub announced: HashMap<u8, Announced>,
}

/// An announced address, and what is held for it.
#[derive(Debug)]
pub struct Announced {
    pub address: pm::Address,
    /// Listens there, if no other socket did.
    pub _listener: Option<Arc<Listener>>,
    /// The kernel accepts the peer's subflows only while a process is subscribed.
    pub _reader: Arc<Reader>,
}

/// What an address id is chosen for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub pair: Pair,
    /// This id or none. Absent: one that is free.
    pub id: Option<u8>,
    /// The addresses and ids of the live subflows.
    pub live: &'a [(IpAddr, u8)],
}

impl AddressIds {
    /// The id by which this process announced an address and port.
    fn announced_id(&self, pair: Pair) -> Option<u8> {
        let is_it = |announced: &&Announced| (announced.address.ip, announced.address.port) == pair;
        self.announced.values().find(is_it).map(|announced| announced.address.id)
    }

    /// Forgets an id that was removed, and lets go of what was held for it.
    pub fn forget(&mut self, id: u8) {
        self.free(id);
        self.announced.remove(&id);
    }

    /// Gives `command` address ids for a pair until the kernel takes one, and returns that.
    ///
    /// Usually EINVAL means an id in use, but the kernel answers nearly every mistake with it: `explain` returns the error
    /// if it is another one, and is called once. `refused` makes the error of any other failure.
    pub fn choose(
        &mut self,
        (socket, token): (&PmSocket, u32),
        Request { pair, id: wanted, live }: Request<'_>,
        command: impl Fn(u8) -> Vec<u8>,
        explain: impl Fn() -> Result<()>,
        refused: impl Fn(&Failure) -> Error,
    ) -> Result<u8> {
        let mut last = None;
        for round in 0..3 {
            // The first try is made without the list, whose reading takes a good part of a local handshake's time.
            let listed =
                if round == 0 { Vec::new() } else { socket.local_addresses(token)?.unwrap_or_default() };
            let candidates = match (wanted, round) {
                (Some(id), _) => vec![id],
                (None, 0) => Vec::from_iter(self.guess(pair, live)),
                (None, _) => candidates(pair, &listed, self, live),
            };
            for id in candidates {
                match socket.command(&command(id))? {
                    Ok(()) => {
                        self.keep(pair, id);
                        return Ok(id);
                    }
                    Err(failure) if failure.errno == libc::EINVAL => {
                        if last.is_none() {
                            explain()?;
                        }
                        last = Some(failure);
                    }
                    Err(failure) => return Err(refused(&failure)),
                }
            }
            if let Some(id) = wanted {
                let listed = socket.local_addresses(token)?.unwrap_or_default();
                return Err(Error::subflow(
                    libc::EINVAL,
                    format!(
                        "cannot use address id {id} for {}: {}",
                        written(pair),
                        conflict(pair, id, &listed)
                    ),
                ));
            }
            // All ids are taken: the kernel keeps those of pairs whose subflows failed or were lost.
            if round == 1 {
                self.reclaim((socket, token), &listed, live);
            }
        }
        let none_free = Failure { errno: libc::EINVAL, text: Some("no address id is free".to_owned()) };
        Err(refused(&last.unwrap_or(none_free)))
    }

    /// The id to try before the kernel's list is read: the pair's own, else the next that no live subflow has.
    /// It is nearly always right, and otherwise the kernel refuses it.
    fn guess(&self, pair: Pair, live: &[(IpAddr, u8)]) -> Option<u8> {
        let own = self.by_pair.get(&pair).copied();
        let own = own.filter(|id| live.iter().all(|(ip, live)| live != id || *ip == pair.0));
        let is_free = |id: &u8| !self.announced.contains_key(id) && live.iter().all(|(_, live)| live != id);
        let mut next = (self.last..u8::MAX).map(|last| last + 1).chain(1..=self.last);
        self.announced_id(pair).or(own).or_else(|| next.find(is_free))
    }

    /// Remembers an id that the kernel took for a pair, one to one as the kernel does.
    fn keep(&mut self, pair: Pair, id: u8) {
        self.free(id);
        if let Some(before) = self.by_pair.insert(pair, id) {
            self.by_id.remove(&before);
        }
        self.by_id.insert(id, pair);
        self.last = id;
    }

    fn free(&mut self, id: u8) {
        if let Some(pair) = self.by_id.remove(&id) {
            self.by_pair.remove(&pair);
        }
    }

    /// Frees ids that no subflow uses. REMOVE sends RM_ADDR for them, which is harmless exactly because no subflow
    /// uses them and they were never announced.
    fn reclaim(&mut self, (socket, token): (&PmSocket, u32), listed: &[pm::Address], live: &[(IpAddr, u8)]) {
        let announced = |id: u8| {
            // The kernel keeps the flags of the pair's first use, which may have been a subflow.
            let signal =
                |address: &pm::Address| address.id == id && address.flags & uapi::pm::FLAG_SIGNAL != 0;
            self.announced.contains_key(&id) || listed.iter().any(signal)
        };
        // RM_ADDR of 0 removes the initial address.
        let in_use = |id: u8| id == 0 || announced(id) || live.iter().any(|(_, live)| *live == id);
        let known = self.by_pair.values().copied().chain(listed.iter().map(|address| address.id));
        let unused: HashSet<u8> = known.filter(|id| !in_use(*id)).collect();
        for id in &unused {
            let _ = socket.command(&pm::codec::encode_remove(token, *id));
        }
        for id in unused {
            self.free(id);
        }
    }
}

/// A pair as a reader knows it.
fn written((ip, port): Pair) -> String {
    match port {
        0 => ip.to_string(),
        port => SocketAddr::new(ip, port).to_string(),
    }
}

/// What keeps a pair from having an id, where the kernel reports its list.
fn conflict(pair: Pair, id: u8, listed: &[pm::Address]) -> String {
    let has = |address: &&pm::Address| (address.ip, address.port) == pair;
    if let Some(address) = listed.iter().find(has) {
        return format!("it is listed with another id, {}", address.id);
    }
    match listed.iter().find(|address| address.id == id) {
        Some(other) => format!("another address has it, {}", written((other.ip, other.port))),
        None => "the connection has another address with this id, or this address with another id".to_owned(),
    }
}

/// The ids to try for an address and port, best first.
fn candidates(pair: Pair, listed: &[pm::Address], ids: &AddressIds, live: &[(IpAddr, u8)]) -> Vec<u8> {
    if let Some(address) = listed.iter().find(|address| (address.ip, address.port) == pair) {
        return vec![address.id];
    }
    // SUBFLOW_DESTROY takes an announced address out of the kernel's list too; the peer still knows it by its id. Then
    // another process may have given that to another address, and this one takes a new one.
    let announced = ids.announced_id(pair);
    let given_away = |id: &u8| listed.iter().any(|address| address.id == *id);
    if let Some(id) = announced.filter(|id| !listed.is_empty() && !given_away(id)) {
        return vec![id];
    }
    let is_listed = |id: u8| ids.announced.contains_key(&id) || listed.iter().any(|address| address.id == id);
    let is_live = |id: u8| live.iter().any(|(_, live)| *live == id);
    let free = (1..=u8::MAX).filter(|id| !is_listed(*id) && !is_live(*id));
    if !listed.is_empty() {
        return free.collect();
    }
    // An empty list may mean a kernel that does not report it. The pair may then have any id, first of all that of a
    // subflow from the same address, so all are tried.
    let mut order: Vec<u8> = announced.into_iter().chain(ids.by_pair.get(&pair).copied()).collect();
    if pair.1 == 0 {
        let same_address = |(ip, id): &&(IpAddr, u8)| *ip == pair.0 && *id != 0 && !is_listed(*id);
        order.extend(live.iter().filter(same_address).map(|(_, id)| *id));
    }
    order.extend(free);
    order.extend((1..=u8::MAX).filter(|id| is_live(*id) && !is_listed(*id)));
    let mut seen = HashSet::new();
    order.retain(|id| seen.insert(*id));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 1));

    fn listed(port: u16, id: u8) -> pm::Address {
        pm::Address { id, ..pm::Address::new(SocketAddr::new(A, port)) }
    }

    #[test]
    fn a_listed_pair_takes_its_own_id_only() {
        let ids = AddressIds::default();
        assert_eq!(candidates((A, 0), &[listed(7, 1), listed(0, 9)], &ids, &[]), [9]);
    }

    #[test]
    fn a_conflict_names_the_id_or_the_address() {
        let list = [listed(7, 1), listed(0, 9)];
        assert_eq!(conflict((A, 0), 3, &list), "it is listed with another id, 9");
        assert_eq!(conflict((A, 8), 1, &list), "another address has it, 10.0.2.1:7");
        assert!(conflict((A, 8), 2, &list).contains("another"));
    }

    #[test]
    fn the_guess_is_the_pairs_own_id_or_the_next_that_is_free() {
        let mut ids = AddressIds::default();
        assert_eq!(ids.guess((A, 5), &[(A, 0), (A, 1)]), Some(2));
        ids.keep((A, 5), 2);
        assert_eq!(ids.guess((A, 5), &[(A, 0), (A, 2)]), Some(2));
        assert_eq!(ids.guess((A, 6), &[(A, 0)]), Some(3), "the last one may still be in the kernel's list");
        let b = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 3, 1));
        assert_eq!(ids.guess((A, 5), &[(b, 2)]), Some(3), "another process gave it to another address");
        ids.keep((A, 6), 255);
        assert_eq!(ids.guess((A, 7), &[(A, 1)]), Some(2));
        let all: Vec<_> = (0..=255).map(|id| (A, id)).collect();
        assert_eq!(ids.guess((A, 7), &all), None);
        ids.keep((A, 8), 2);
        assert_eq!((ids.by_pair.len(), ids.by_id.len()), (2, 2), "an id has one pair");
        ids.keep((A, 8), 3);
        assert_eq!((ids.by_pair.len(), ids.by_id.len()), (2, 2), "a pair has one id");
        ids.forget(3);
        assert_eq!((ids.by_pair.len(), ids.by_id.len()), (1, 1));
    }

    #[test]
    fn a_new_pair_takes_a_free_id() {
        let ids = AddressIds::default();
        let order = candidates((A, 5), &[listed(7, 1), listed(0, 3)], &ids, &[(A, 2)]);
        assert_eq!(order[..2], [4, 5]);
        assert_eq!(order.len(), 255 - 3);
        assert!(!order.contains(&0));
    }

    #[test]
    fn without_a_list_every_id_is_tried_once() {
        let mut ids = AddressIds::default();
        ids.keep((A, 5), 77);
        let order = candidates((A, 5), &[], &ids, &[(A, 2), (A, 0)]);
        assert_eq!(order[..2], [77, 1]);
        assert_eq!(order.len(), 255);
        assert_eq!(order.last(), Some(&2), "live ids come last");
    }
}
