//! Standing orders: subflows that are opened the moment that an event comes, by the thread that reads it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::abi::address::unmapped;
use crate::connection::by_token::ByToken;
use crate::connection::open::Request;
use crate::crew::Job;
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::events::reader::Observer;
use crate::sys::lock::lock;
use crate::watcher::commands::{prepare, run, Outcome, Outcomes};
use crate::watcher::Ends;

/// Whose loss an order waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A subflow that is closed, by its ends.
    Subflow(Ends),
    /// A local address that is removed, or whose interface goes down.
    Address { ip: IpAddr, interface: Option<Arc<str>> },
    /// An interface that goes down, loses its carrier or disappears.
    Interface(Arc<str>),
}

impl What {
    /// A local address, or the name of an interface.
    pub fn named(name: &str) -> Result<What> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(What::Address { ip: ip.to_canonical(), interface: None });
        }
        // As long as the kernel's names, IFNAMSIZ with its end.
        if name.is_empty()
            || name.len() > 15
            || name.contains(['/', ':'])
            || name.contains(char::is_whitespace)
        {
            return Err(Error::value(format!(
                "{name:?} is neither a local address nor the name of an interface"
            )));
        }
        Ok(What::Interface(name.into()))
    }

    /// The same, whatever else is known of it.
    fn is(&self, other: &What) -> bool {
        match (self, other) {
            (What::Address { ip, .. }, What::Address { ip: other, .. }) => ip == other,
            _ => self == other,
        }
    }

    /// Whether an event says that it is lost.
    fn is_lost_by(&self, event: &Event) -> bool {
        let same = |interface: &Arc<str>| event.interface.as_ref() == Some(interface);
        match (event.kind, self) {
            (Kind::SubClosed, What::Subflow(ends)) => {
                event.local.zip(event.remote).is_some_and(|closed| is_of(closed, *ends))
            }
            (Kind::LinkDown, What::Interface(interface)) => same(interface),
            (Kind::LinkDown, What::Address { interface, .. }) => interface.as_ref().is_some_and(same),
            (Kind::AddressRemoved, What::Address { ip, .. }) => {
                event.local.is_some_and(|local| local.ip().to_canonical() == *ip)
            }
            _ => false,
        }
    }
}

/// Whether the ends of an event are these; after a reset it may lack the remote port.
pub fn is_of((local, remote): Ends, (ours, theirs): Ends) -> bool {
    let same = |one: SocketAddr, other: SocketAddr| {
        let (one, other) = (unmapped(one), unmapped(other));
        one.ip() == other.ip() && one.port() == other.port()
    };
    let (remote, theirs) = (unmapped(remote), unmapped(theirs));
    same(local, ours) && remote.ip() == theirs.ip() && (remote.port() == 0 || remote.port() == theirs.port())
}

/// An order: what it waits for, and the command.
struct Order {
    what: What,
    number: u64,
    send: Box<dyn FnOnce() -> Result<()> + Send>,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("what", &self.what).finish_non_exhaustive()
    }
}

/// The orders of one connection.
#[derive(Debug, Default)]
struct OfConnection {
    connection: Option<Arc<ByToken>>,
    orders: Vec<Order>,
    /// The ids of addresses that the peer has withdrawn: the kernel closes the subflows to them, which are not opened again.
    withdrawn: HashSet<u8>,
}

/// The orders of a namespace's connections, by their tokens. Each is carried out once.
#[derive(Debug)]
pub struct Orders {
    by_token: Mutex<HashMap<u32, OfConnection>>,
    /// How many there are, to look at without the lock.
    count: AtomicUsize,
    outcomes: Arc<Outcomes>,
}

impl Orders {
    pub fn new(outcomes: Arc<Outcomes>) -> Orders {
        Orders { by_token: Mutex::default(), count: AtomicUsize::new(0), outcomes }
    }

    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Leaves an order, and returns the number of an earlier one for the same loss, which it replaces. What is wrong in itself
    /// is an error at once.
    pub fn leave(
        &self,
        connection: &Arc<ByToken>,
        what: What,
        request: &Request,
        number: u64,
    ) -> Result<Option<u64>> {
        let send = Box::new(prepare(connection, request, &self.outcomes)?);
        let mut by_token = lock(&self.by_token);
        let of = by_token.entry(connection.token()).or_default();
        of.connection = Some(Arc::clone(connection));
        let orders = &mut of.orders;
        let position = orders.iter().position(|order| order.what.is(&what));
        let before = position.map(|position| orders.swap_remove(position).number);
        orders.push(Order { what, number, send });
        if before.is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(before)
    }

    /// Takes an order back; its number, unless it has been carried out, or there was none.
    pub fn take_back(&self, token: u32, what: &What) -> Option<u64> {
        let mut by_token = lock(&self.by_token);
        let orders = &mut by_token.get_mut(&token)?.orders;
        let position = orders.iter().position(|order| order.what.is(what))?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(orders.swap_remove(position).number)
    }

    /// Removes and returns the orders for what an event says to be lost.
    fn due(&self, orders: &mut Vec<Order>, event: &Event) -> Vec<Order> {
        let (due, left): (Vec<_>, _) =
            std::mem::take(orders).into_iter().partition(|order| order.what.is_lost_by(event));
        *orders = left;
        self.count.fetch_sub(due.len(), Ordering::Relaxed);
        due
    }

    fn jobs(&self, token: u32, orders: Vec<Order>) -> impl Iterator<Item = (u32, Job)> + '_ {
        orders.into_iter().map(move |Order { number, send, .. }| {
            // Before the event itself is passed on, and before anything can come of the command. But to wake who takes it
            // would delay the command.
            self.outcomes.push_silently(Outcome::Ordered { token, number });
            let outcomes = Arc::clone(&self.outcomes);
            let job: Job = Box::new(move || {
                run(&outcomes, token, number, send);
                outcomes.tell();
            });
            (token, job)
        })
    }
}

impl Observer for Orders {
    fn observe(&self, event: &Event) -> Vec<(u32, Job)> {
        let mut by_token = lock(&self.by_token);
        match (event.kind, event.token) {
            (Kind::Closed, Some(token)) => {
                let of = by_token.remove(&token).unwrap_or_default();
                self.count.fetch_sub(of.orders.len(), Ordering::Relaxed);
            }
            (Kind::SubClosed, Some(token)) => {
                let Some(of) = by_token.get_mut(&token) else { return Vec::new() };
                if let Some(connection) = &of.connection {
                    connection.was_locked(event.time_ns);
                }
                let due = self.due(&mut of.orders, event);
                if event.remote_id.is_some_and(|id| of.withdrawn.contains(&id)) {
                    return Vec::new();
                }
                return self.jobs(token, due).collect();
            }
            (Kind::Removed, Some(token)) => {
                if let (Some(of), Some(id)) = (by_token.get_mut(&token), event.remote_id) {
                    of.withdrawn.insert(id);
                }
            }
            (Kind::Announced, Some(token)) => {
                if let (Some(of), Some(id)) = (by_token.get_mut(&token), event.remote_id) {
                    of.withdrawn.remove(&id);
                }
            }
            (Kind::LinkDown | Kind::AddressRemoved, _) => {
                let jobs = by_token
                    .iter_mut()
                    .flat_map(|(token, of)| self.jobs(*token, self.due(&mut of.orders, event)));
                return jobs.collect();
            }
            _ => {}
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(whats: &[What]) -> Orders {
        let orders = Orders::new(Outcomes::new().unwrap());
        let of = OfConnection {
            orders: whats
                .iter()
                .zip(1..)
                .map(|(what, number)| Order { what: what.clone(), number, send: Box::new(|| Ok(())) })
                .collect(),
            ..OfConnection::default()
        };
        lock(&orders.by_token).insert(7, of);
        orders.count.store(whats.len(), Ordering::Relaxed);
        orders
    }

    fn ends(port: u16) -> Ends {
        ("10.0.1.1:40000".parse().unwrap(), SocketAddr::from(([10, 0, 1, 2], port)))
    }

    fn closed(port: u16, remote_id: u8) -> Event {
        let (local, remote) = ends(port);
        Event {
            token: Some(7),
            local: Some(local),
            remote: Some(remote),
            remote_id: Some(remote_id),
            ..Event::new(Kind::SubClosed, 0)
        }
    }

    fn numbers(orders: &Orders) -> Vec<u64> {
        let ordered = |outcome| match outcome {
            Outcome::Ordered { number, .. } => number,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| orders.outcomes.pop()).map(ordered).collect()
    }

    #[test]
    fn an_order_is_carried_out_once_and_told_before_the_event() {
        let orders = orders(&[What::Subflow(ends(5000))]);
        let other = Event { token: Some(8), ..closed(5000, 0) };
        assert!(orders.observe(&other).is_empty() && orders.observe(&closed(5001, 0)).is_empty());
        // After a reset the event may lack the remote port.
        assert_eq!(orders.observe(&closed(0, 0)).len(), 1);
        assert_eq!(numbers(&orders), [1]);
        assert!(orders.observe(&closed(5000, 0)).is_empty() && orders.is_empty());
    }

    #[test]
    fn an_address_that_the_peer_withdrew_is_not_used_again() {
        let orders = orders(&[What::Subflow(ends(5000))]);
        let removed = Event { token: Some(7), remote_id: Some(3), ..Event::new(Kind::Removed, 0) };
        assert!(orders.observe(&removed).is_empty());
        assert!(orders.observe(&closed(5000, 3)).is_empty());
        assert_eq!(orders.take_back(7, &What::Subflow(ends(5000))), None);
    }

    #[test]
    fn an_address_is_lost_with_its_interface() {
        let ip: IpAddr = "10.0.1.1".parse().unwrap();
        let eth1: Arc<str> = "eth1".into();
        let address = What::Address { ip, interface: Some(Arc::clone(&eth1)) };
        let down = Event { interface: Some(Arc::clone(&eth1)), ..Event::new(Kind::LinkDown, 0) };
        let gone = Event { local: Some(SocketAddr::new(ip, 0)), ..Event::new(Kind::AddressRemoved, 0) };
        assert_eq!(orders(&[address.clone(), What::Interface(eth1)]).observe(&down).len(), 2);
        assert_eq!(orders(&[address]).observe(&gone).len(), 1);
        assert!(orders(&[What::Interface("eth2".into())]).observe(&down).is_empty());
    }

    #[test]
    fn what_was_taken_back_or_has_ended_is_not_carried_out() {
        let what = What::Subflow(ends(5000));
        let taken = orders(std::slice::from_ref(&what));
        assert_eq!(taken.take_back(7, &what), Some(1));
        assert_eq!(taken.take_back(7, &what), None);
        assert!(taken.observe(&closed(5000, 0)).is_empty());
        let ended = orders(&[what]);
        ended.observe(&Event { token: Some(7), ..Event::new(Kind::Closed, 0) });
        assert!(ended.observe(&closed(5000, 0)).is_empty() && numbers(&ended).is_empty());
        assert!(taken.is_empty() && ended.is_empty());
    }
}
