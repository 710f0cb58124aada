//! What there is of connections in a namespace, read back from the sockets: told as the events by which it came about,
//! and what has changed between two readings. No privilege, and no connection's lock.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use crate::abi::uapi::tcp_state;
use crate::events::event::{Event, Kind};
use crate::netlink::diag::{self, Entry};
use crate::netlink::{Channel, Failure};
use crate::sys;

/// The connections of a namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    connections: HashMap<u32, Known>,
    listeners: Vec<SocketAddr>,
}

/// One connection: itself, and its subflows whose handshake is over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    entry: Entry,
    subflows: Vec<Entry>,
}

fn is_initial(entry: &Entry) -> bool {
    entry.subflow.is_some_and(|subflow| subflow.initial())
}

impl Picture {
    /// Reads the connections that are `wanted` by their tokens. Tokens come from the subflows; a connection without any
    /// is found if it is among `known`.
    pub fn read(
        channel: &mut Channel,
        known: impl IntoIterator<Item = u32>,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Picture, Failure> {
        let mut subflows: HashMap<u32, Vec<Entry>> =
            known.into_iter().filter(|token| wanted(*token)).map(|token| (token, Vec::new())).collect();
        diag::dump(channel, |entry, _| {
            if let Some(subflow) = entry.subflow.filter(|subflow| wanted(subflow.token)) {
                subflows.entry(subflow.token).or_default().push(entry);
            }
        })?;
        let tokens: Vec<u32> = subflows.keys().copied().collect();
        let entries = diag::look_up_tokens(channel, &tokens)?;
        let known = |(token, entry): (&u32, Option<Entry>)| {
            // One that its owner has closed may live on for its last segments.
            let entry = entry.filter(|entry| !entry.is_orphan() && entry.state != tcp_state::CLOSE)?;
            let mut subflows = subflows.remove(token)?;
            let fell_back = |entry: &Entry| entry.subflow.is_some_and(|subflow| subflow.fell_back());
            if subflows.iter().any(fell_back) {
                return None;
            }
            subflows.retain(is_connected);
            subflows.sort_unstable_by_key(|entry| entry.cookie);
            Some((*token, Known { entry, subflows }))
        };
        let connections = tokens.iter().zip(entries).filter_map(known).collect();
        Ok(Picture { time_ns: sys::monotonic_ns(), connections, listeners: Vec::new() })
    }

    /// Reads everything, listeners too.
    pub fn read_all(channel: &mut Channel, known: HashSet<u32>) -> Result<Picture, Failure> {
        let mut listeners = Vec::new();
        diag::dump_listeners(channel, |local| listeners.push(local))?;
        Ok(Picture { listeners, ..Picture::read(channel, known, |_| true)? })
    }

    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.connections.keys().copied()
    }

    pub fn has_subflows(&self) -> bool {
        self.connections.values().any(|known| !known.subflows.is_empty())
    }

    /// Whether a subflow with this cookie is known.
    pub fn knows(&self, cookie: u64) -> bool {
        self.connections.values().any(|known| known.subflows.iter().any(|entry| entry.cookie == cookie))
    }

    /// What there is, as the events by which it came about: of all, or of one connection, which is closed if it is not
    /// there.
    pub fn events(&self, token: Option<u32>) -> Vec<Event> {
        let mut events = Vec::new();
        match token {
            Some(token) => match self.connections.get(&token) {
                Some(known) => known.tell(token, self.time_ns, &mut events),
                None => events.push(closed(token, self.time_ns)),
            },
            None => {
                events.extend(self.listeners.iter().map(|local| Event {
                    local: Some(*local),
                    ..Event::new(Kind::ListenerCreated, self.time_ns)
                }));
                let mut connections: Vec<_> = self.connections.iter().collect();
                connections.sort_unstable_by_key(|(_, known)| known.entry.cookie);
                for (token, known) in connections {
                    known.tell(*token, self.time_ns, &mut events);
                }
            }
        }
        events
    }

    /// Subflows of `self` that `later` lacks though their connection is there: gone, or missed by the dump.
    pub fn missing_in(&self, later: &Picture) -> Vec<(u32, Entry)> {
        let mut missing = Vec::new();
        for (token, known) in &self.connections {
            let Some(now) = later.same(*token, known) else { continue };
            let gone = known.subflows.iter().filter(|entry| now.subflow(entry.cookie).is_none());
            missing.extend(gone.map(|entry| (*token, *entry)));
        }
        missing
    }

    /// Puts a subflow back that the dump had missed.
    pub fn add_subflow(&mut self, token: u32, entry: Entry) {
        if let Some(known) = self.connections.get_mut(&token) {
            known.subflows.push(entry);
        }
    }

    /// What happened between this and a later reading, as far as both show it.
    pub fn changes(&self, later: &Picture) -> Vec<Event> {
        let mut events = Vec::new();
        for (token, known) in &self.connections {
            match later.same(*token, known) {
                Some(now) => known.changes(now, *token, later.time_ns, &mut events),
                None => events.push(closed(*token, later.time_ns)),
            }
        }
        for (token, now) in &later.connections {
            if self.same(*token, now).is_none() {
                now.tell(*token, later.time_ns, &mut events);
            }
        }
        events
    }

    /// The same connection, and not another one with its token.
    fn same(&self, token: u32, other: &Known) -> Option<&Known> {
        self.connections.get(&token).filter(|known| known.entry.cookie == other.entry.cookie)
    }
}

/// The handshake is over, as far as SUB_ESTABLISHED tells it, and the end has not come.
pub fn is_connected(entry: &Entry) -> bool {
    let not_yet_or_no_more = [tcp_state::SYN_SENT, tcp_state::SYN_RECV, tcp_state::CLOSE];
    !not_yet_or_no_more.contains(&entry.state) && !entry.is_orphan()
}

impl Known {
    fn initial(&self) -> Option<&Entry> {
        self.subflows.iter().find(|entry| is_initial(entry))
    }

    fn subflow(&self, cookie: u64) -> Option<&Entry> {
        self.subflows.iter().find(|entry| entry.cookie == cookie)
    }

    /// Absent if the initial subflow, which tells it, is gone.
    fn server_side(&self) -> Option<bool> {
        Some(!self.initial()?.subflow?.opened_here())
    }

    /// A connection is fully established before it can have any other subflow than the initial one.
    fn established(&self) -> bool {
        let fully = |entry: &Entry| entry.subflow.is_some_and(|subflow| subflow.fully_established());
        self.initial().is_none_or(fully) || self.subflows.len() > 1
    }

    fn with_ends(&self, kind: Kind, token: u32, time_ns: u64) -> Event {
        Event {
            local: Some(self.entry.tuple.local),
            remote: Some(self.entry.tuple.remote),
            local_id: Some(0),
            remote_id: Some(0),
            token: Some(token),
            server_side: self.server_side(),
            ..Event::new(kind, time_ns)
        }
    }

    /// What there is of it.
    fn tell(&self, token: u32, time_ns: u64, events: &mut Vec<Event>) {
        events.push(self.with_ends(Kind::Created, token, time_ns));
        if self.established() {
            events.push(self.with_ends(Kind::Established, token, time_ns));
        }
        if self.initial().is_none() {
            let server_side = None;
            events.push(Event { server_side, ..self.with_ends(Kind::SubClosed, token, time_ns) });
        }
        let joined = self.subflows.iter().filter(|entry| !is_initial(entry));
        events.extend(joined.map(|entry| of_subflow(Kind::SubEstablished, token, entry, time_ns)));
    }

    fn changes(&self, now: &Known, token: u32, time_ns: u64, events: &mut Vec<Event>) {
        if now.established() && !self.established() {
            events.push(now.with_ends(Kind::Established, token, time_ns));
        }
        for entry in &now.subflows {
            match self.subflow(entry.cookie) {
                None if is_initial(entry) => {}
                None => events.push(of_subflow(Kind::SubEstablished, token, entry, time_ns)),
                // The kernel's event tells of the peer's choice only.
                Some(before) if peer_backup(before) != peer_backup(entry) => {
                    let backup = peer_backup(entry);
                    events.push(Event { backup, ..of_subflow(Kind::SubPriority, token, entry, time_ns) });
                }
                Some(_) => {}
            }
        }
        let gone = self.subflows.iter().filter(|entry| now.subflow(entry.cookie).is_none());
        events.extend(gone.map(|entry| of_subflow(Kind::SubClosed, token, entry, time_ns)));
    }
}

fn closed(token: u32, time_ns: u64) -> Event {
    Event { token: Some(token), ..Event::new(Kind::Closed, time_ns) }
}

fn peer_backup(entry: &Entry) -> Option<bool> {
    entry.subflow.map(|subflow| subflow.peer_backup())
}

/// An event of one subflow.
fn of_subflow(kind: Kind, token: u32, entry: &Entry, time_ns: u64) -> Event {
    Event {
        token: Some(token),
        local: Some(entry.tuple.local),
        remote: Some(entry.tuple.remote),
        local_id: entry.subflow.map(|subflow| subflow.local_id),
        remote_id: entry.subflow.map(|subflow| subflow.remote_id),
        backup: peer_backup(entry),
        ..Event::new(kind, time_ns)
    }
}
