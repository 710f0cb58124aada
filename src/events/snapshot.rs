//! A snapshot of a namespace's connections, read from the sockets: replayable as events, and comparable with a later one.
//! No privilege, and no connection's lock.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use crate::abi::uapi::tcp_state;
use crate::events::event::{Event, Kind};
use crate::netlink::diag::{self, Entry};
use crate::netlink::{Channel, Failure};
use crate::sys;

/// The connections of a namespace at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    connections: HashMap<u32, ConnectionState>,
    listeners: Vec<SocketAddr>,
}

/// One connection of a snapshot: itself, and its subflows whose handshake is over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConnectionState {
    entry: Entry,
    subflows: Vec<Entry>,
}

fn is_initial(entry: &Entry) -> bool {
    entry.subflow.is_some_and(|subflow| subflow.initial())
}

impl Snapshot {
    /// Reads the connections that are `wanted` by their tokens. Tokens come from the subflows; a connection without any
    /// is found if it is among `known`.
    pub fn read(
        channel: &mut Channel,
        known: impl IntoIterator<Item = u32>,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Snapshot, Failure> {
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
            Some((*token, ConnectionState::of(entry?, subflows.remove(token)?)?))
        };
        let connections = tokens.iter().zip(entries).filter_map(known).collect();
        Ok(Snapshot { time_ns: sys::monotonic_ns(), connections, listeners: Vec::new() })
    }

    /// Reads everything, listeners too.
    pub fn read_all(channel: &mut Channel, known: HashSet<u32>) -> Result<Snapshot, Failure> {
        let mut listeners = Vec::new();
        diag::dump_listeners(channel, |local| listeners.push(local))?;
        Ok(Snapshot { listeners, ..Snapshot::read(channel, known, |_| true)? })
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

    /// The events that led to this state: of all connections, or of one, which is closed if it is absent.
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
    pub fn missing_in(&self, later: &Snapshot) -> Vec<(u32, Entry)> {
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
    pub fn changes(&self, later: &Snapshot) -> Vec<Event> {
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
    fn same(&self, token: u32, other: &ConnectionState) -> Option<&ConnectionState> {
        self.connections.get(&token).filter(|known| known.entry.cookie == other.entry.cookie)
    }
}

/// The handshake is over, as far as SUB_ESTABLISHED reports it, and the subflow is not closed.
pub fn is_connected(entry: &Entry) -> bool {
    let not_yet_or_no_more = [tcp_state::SYN_SENT, tcp_state::SYN_RECV, tcp_state::CLOSE];
    !not_yet_or_no_more.contains(&entry.state) && !entry.is_orphan()
}

impl ConnectionState {
    /// `None` for a connection that is not reported: its owner has closed it and it lives on for its last segments, or it
    /// fell back to TCP.
    fn of(entry: Entry, mut subflows: Vec<Entry>) -> Option<ConnectionState> {
        let fell_back = |entry: &Entry| entry.subflow.is_some_and(|subflow| subflow.fell_back());
        if entry.is_orphan() || entry.state == tcp_state::CLOSE || subflows.iter().any(fell_back) {
            return None;
        }
        subflows.retain(is_connected);
        subflows.sort_unstable_by_key(|entry| entry.cookie);
        Some(ConnectionState { entry, subflows })
    }

    fn initial(&self) -> Option<&Entry> {
        self.subflows.iter().find(|entry| is_initial(entry))
    }

    fn subflow(&self, cookie: u64) -> Option<&Entry> {
        self.subflows.iter().find(|entry| entry.cookie == cookie)
    }

    /// Absent if the initial subflow, which shows it, is gone.
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

    /// The events that led to its state.
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

    fn changes(&self, now: &ConnectionState, token: u32, time_ns: u64, events: &mut Vec<Event>) {
        if now.established() && !self.established() {
            events.push(now.with_ends(Kind::Established, token, time_ns));
        }
        // The closed ones first: a new one may have the ends of an old one.
        let gone = self.subflows.iter().filter(|entry| now.subflow(entry.cookie).is_none());
        events.extend(gone.map(|entry| of_subflow(Kind::SubClosed, token, entry, time_ns)));
        for entry in &now.subflows {
            match self.subflow(entry.cookie) {
                None if is_initial(entry) => {}
                None => events.push(of_subflow(Kind::SubEstablished, token, entry, time_ns)),
                // The kernel's event has the peer's choice only.
                Some(before) if peer_backup(before) != peer_backup(entry) => {
                    let backup = peer_backup(entry);
                    events.push(Event { backup, ..of_subflow(Kind::SubPriority, token, entry, time_ns) });
                }
                Some(_) => {}
            }
        }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::abi::uapi::ulp::{
        FLAG_BKUP_LOC, FLAG_BKUP_REM, FLAG_CONNECTED, FLAG_FULLY_ESTABLISHED, FLAG_JOIN_LOC, FLAG_JOIN_REM,
        FLAG_MCAP_LOC, FLAG_MCAP_REM,
    };
    use crate::netlink::diag::{Tuple, Ulp};

    const TOKEN: u32 = 0x1234_5678;
    const FIN_WAIT2: u8 = tcp_state::FIN_SENT[1];

    // Flags as the kernel reports them of each kind of subflow.
    const CONNECTING: u32 = FLAG_MCAP_LOC;
    const INITIAL: u32 = FLAG_MCAP_LOC | FLAG_MCAP_REM | FLAG_CONNECTED;
    const INITIAL_FULL: u32 = INITIAL | FLAG_FULLY_ESTABLISHED;
    const INITIAL_ACCEPTED: u32 = FLAG_MCAP_REM | FLAG_CONNECTED | FLAG_FULLY_ESTABLISHED;
    const JOINED: u32 = FLAG_JOIN_LOC | FLAG_CONNECTED | FLAG_FULLY_ESTABLISHED;
    const JOINED_BY_PEER: u32 = FLAG_JOIN_REM | FLAG_CONNECTED | FLAG_FULLY_ESTABLISHED;
    const FALLEN_BACK: u32 = FLAG_MCAP_LOC | FLAG_CONNECTED;

    fn tuple(path: u8, port: u16) -> Tuple {
        let address = |host: u8, port: u16| SocketAddr::from(([10, 0, path, host], port));
        Tuple { local: address(1, port), remote: address(2, 443), interface: 0 }
    }

    /// An entry over a path by its number, with a cookie that also chooses the local port.
    fn entry(path: u8, cookie: u64, flags: Option<u32>) -> Entry {
        let ids = |flags: u32| {
            if flags & (FLAG_JOIN_LOC | FLAG_JOIN_REM) == 0 {
                (0, 0)
            } else {
                (path, path + 10)
            }
        };
        Entry {
            tuple: tuple(path, 40_000 + cookie as u16),
            state: tcp_state::ESTABLISHED,
            cookie,
            uid: 1000,
            inode: 77,
            cgroup: None,
            subflow: flags.map(|flags| Ulp {
                token: TOKEN,
                local_id: ids(flags).0,
                remote_id: ids(flags).1,
                flags,
            }),
        }
    }

    /// The socket of a connection itself, whose ends are those of its initial subflow.
    fn socket(cookie: u64) -> Entry {
        Entry { tuple: entry(1, 1, None).tuple, ..entry(1, cookie, None) }
    }

    fn connection(cookie: u64, subflows: impl Into<Vec<Entry>>) -> ConnectionState {
        ConnectionState::of(socket(cookie), subflows.into()).unwrap()
    }

    fn snapshot(time_ns: u64, connections: impl IntoIterator<Item = (u32, ConnectionState)>) -> Snapshot {
        Snapshot { time_ns, connections: connections.into_iter().collect(), listeners: Vec::new() }
    }

    fn kinds(events: &[Event]) -> Vec<Kind> {
        events.iter().map(|event| event.kind).collect()
    }

    #[test]
    fn a_connection_is_left_out_when_its_owner_is_gone_or_it_fell_back() {
        let initial = vec![entry(1, 1, Some(INITIAL_FULL))];
        assert!(ConnectionState::of(socket(9), initial.clone()).is_some());
        // An accepted connection that nobody has taken yet has no inode either.
        assert!(ConnectionState::of(Entry { inode: 0, ..socket(9) }, initial.clone()).is_some());
        for state in tcp_state::FIN_SENT {
            assert!(
                ConnectionState::of(Entry { inode: 0, state, ..socket(9) }, initial.clone()).is_none(),
                "{state}"
            );
            assert!(ConnectionState::of(Entry { state, ..socket(9) }, initial.clone()).is_some(), "{state}");
        }
        assert!(ConnectionState::of(Entry { state: tcp_state::CLOSE, ..socket(9) }, initial).is_none());
        assert!(ConnectionState::of(socket(9), vec![entry(1, 1, Some(FALLEN_BACK))]).is_none());
        // Before the SYN/ACK it is not known.
        let connecting = Entry { state: tcp_state::SYN_SENT, ..entry(1, 1, Some(CONNECTING)) };
        assert!(ConnectionState::of(socket(9), vec![connecting]).is_some());
    }

    #[test]
    fn subflows_are_those_whose_handshake_is_over_by_their_age() {
        let in_state = |cookie, state| Entry { state, ..entry(2, cookie, Some(JOINED)) };
        let orphan = Entry { inode: 0, ..in_state(7, FIN_WAIT2) };
        let subflows = [
            in_state(6, tcp_state::ESTABLISHED),
            in_state(5, tcp_state::SYN_SENT),
            in_state(4, tcp_state::SYN_RECV),
            in_state(3, tcp_state::CLOSE),
            orphan,
            in_state(2, FIN_WAIT2),
            entry(1, 1, Some(INITIAL_FULL)),
        ];
        let cookies: Vec<u64> = connection(9, subflows).subflows.iter().map(|entry| entry.cookie).collect();
        assert_eq!(cookies, [1, 2, 6]);
    }

    #[test]
    fn a_connection_is_told_with_its_ends_its_side_and_its_joins() {
        let join = Entry { cookie: 2, ..entry(2, 2, Some(JOINED | FLAG_BKUP_REM)) };
        let read = snapshot(5, [(TOKEN, connection(9, [entry(1, 1, Some(INITIAL_FULL)), join]))]);
        let ends = tuple(1, 40_001);
        let of_connection = |kind| Event {
            token: Some(TOKEN),
            local: Some(ends.local),
            remote: Some(ends.remote),
            local_id: Some(0),
            remote_id: Some(0),
            server_side: Some(false),
            ..Event::new(kind, 5)
        };
        let joined = Event {
            token: Some(TOKEN),
            local: Some(join.tuple.local),
            remote: Some(join.tuple.remote),
            local_id: Some(2),
            remote_id: Some(12),
            backup: Some(true),
            ..Event::new(Kind::SubEstablished, 5)
        };
        let expected = [of_connection(Kind::Created), of_connection(Kind::Established), joined];
        assert_eq!(read.events(None), expected);
        assert_eq!(read.events(Some(TOKEN)), expected);
    }

    #[test]
    fn the_accepting_side_is_known_by_the_initial_subflow() {
        let side = |subflows: Vec<Entry>| connection(9, subflows).server_side();
        assert_eq!(side(vec![entry(1, 1, Some(INITIAL_ACCEPTED))]), Some(true));
        assert_eq!(side(vec![entry(2, 2, Some(JOINED_BY_PEER)), entry(1, 1, Some(INITIAL))]), Some(false));
        assert_eq!(side(vec![entry(2, 2, Some(JOINED_BY_PEER))]), None);
    }

    #[test]
    fn full_establishment_shows_by_the_initial_subflow_or_by_any_other() {
        let told = |subflows: &[Entry]| {
            kinds(&snapshot(0, [(TOKEN, connection(9, subflows))]).events(None)).contains(&Kind::Established)
        };
        let initial = entry(1, 1, Some(INITIAL));
        assert!(!told(&[initial]));
        assert!(told(&[initial, entry(2, 2, Some(JOINED))]));
        assert!(told(&[entry(1, 1, Some(INITIAL_FULL))]));
        assert!(told(&[entry(2, 2, Some(JOINED))]));
    }

    #[test]
    fn a_closed_initial_subflow_is_told_as_closed() {
        let read = snapshot(0, [(TOKEN, connection(9, [entry(2, 2, Some(JOINED))]))]);
        let events = read.events(None);
        let expected = [Kind::Created, Kind::Established, Kind::SubClosed, Kind::SubEstablished];
        assert_eq!(kinds(&events), expected);
        assert_eq!((events[2].local, events[2].local_id), (Some(tuple(1, 40_001).local), Some(0)));
    }

    #[test]
    fn all_are_told_by_their_age_after_the_listeners() {
        let one = |cookie| connection(cookie, [entry(1, 1, Some(INITIAL))]);
        let listeners = vec![SocketAddr::from(([0, 0, 0, 0], 443))];
        let read = Snapshot { listeners, ..snapshot(3, [(30, one(103)), (10, one(101)), (20, one(102))]) };
        let events = read.events(None);
        assert_eq!(kinds(&events), [Kind::ListenerCreated, Kind::Created, Kind::Created, Kind::Created]);
        assert_eq!(events[0].local, Some(SocketAddr::from(([0, 0, 0, 0], 443))));
        let tokens: Vec<_> = events.iter().map(|event| event.token).collect();
        assert_eq!(tokens, [None, Some(10), Some(20), Some(30)]);
        assert_eq!(kinds(&read.events(Some(20))), [Kind::Created], "listeners are nobody's connection");
    }

    #[test]
    fn a_connection_that_is_not_there_is_told_as_closed() {
        let events = snapshot(4, []).events(Some(TOKEN));
        assert_eq!(events, [Event { token: Some(TOKEN), ..Event::new(Kind::Closed, 4) }]);
        assert!(snapshot(4, []).events(None).is_empty());
    }

    #[test]
    fn what_it_knows() {
        let read =
            snapshot(0, [(TOKEN, connection(9, [entry(1, 1, Some(INITIAL))])), (8, connection(10, []))]);
        assert!(read.knows(1) && !read.knows(9), "a connection's own cookie is no subflow's");
        assert_eq!(read.tokens().collect::<HashSet<_>>(), HashSet::from([8, TOKEN]));
        assert!(read.has_subflows());
        assert!(!snapshot(0, [(8, connection(10, []))]).has_subflows());
    }

    #[test]
    fn only_the_peers_choice_of_a_backup_is_a_change() {
        let with = |flags| snapshot(6, [(TOKEN, connection(9, [entry(2, 2, Some(JOINED | flags))]))]);
        let [neither, ours, theirs] = [0, FLAG_BKUP_LOC, FLAG_BKUP_REM].map(with);
        assert_eq!(neither.changes(&ours), []);
        for (before, after, backup) in [(&neither, &theirs, true), (&theirs, &neither, false)] {
            let [event] = <[Event; 1]>::try_from(before.changes(after)).unwrap();
            assert_eq!(
                (event.kind, event.backup, event.local_id),
                (Kind::SubPriority, Some(backup), Some(2))
            );
        }
    }

    #[test]
    fn what_is_told_of_a_change_has_the_later_time() {
        let before =
            snapshot(1, [(TOKEN, connection(9, [entry(1, 1, Some(INITIAL)), entry(2, 2, Some(JOINED))]))]);
        let after =
            snapshot(2, [(TOKEN, connection(9, [entry(1, 1, Some(INITIAL)), entry(3, 3, Some(JOINED))]))]);
        for events in
            [before.changes(&after), before.changes(&snapshot(2, [])), snapshot(1, []).changes(&after)]
        {
            assert!(!events.is_empty());
            assert!(
                events.iter().all(|event| event.time_ns == 2 && event.token == Some(TOKEN)),
                "{events:?}"
            );
        }
    }

    #[test]
    fn another_connection_with_the_same_token_ends_the_first() {
        let with = |cookie| snapshot(0, [(TOKEN, connection(cookie, [entry(1, 1, Some(INITIAL))]))]);
        assert_eq!(kinds(&with(9).changes(&with(10))), [Kind::Closed, Kind::Created]);
        assert_eq!(with(9).changes(&with(9)), []);
        assert!(with(9).missing_in(&with(10)).is_empty(), "nothing is missing of a connection that is gone");
    }

    #[test]
    fn a_subflow_that_the_dump_missed_is_put_back() {
        let [initial, join] = [entry(1, 1, Some(INITIAL)), entry(2, 2, Some(JOINED))];
        let before = snapshot(0, [(TOKEN, connection(9, [initial, join]))]);
        let mut after = snapshot(0, [(TOKEN, connection(9, [initial]))]);
        assert_eq!(before.missing_in(&after), [(TOKEN, join)]);
        assert_eq!(after.missing_in(&before), []);
        after.add_subflow(TOKEN, join);
        assert_eq!(before.changes(&after), []);
        after.add_subflow(TOKEN + 1, join);
        assert_eq!(
            after.tokens().collect::<Vec<_>>(),
            [TOKEN],
            "of no connection there is nothing to put back to"
        );
    }

    /// A connection as a subscriber that follows the events knows it: whether it is fully established, and its subflows
    /// by their ends.
    type Account = (bool, BTreeSet<(SocketAddr, SocketAddr)>);

    fn account(events: impl IntoIterator<Item = Event>) -> BTreeMap<u32, Account> {
        let mut all: BTreeMap<u32, Account> = BTreeMap::new();
        for event in events {
            let token = event.token.unwrap();
            let ends = event.local.zip(event.remote);
            match event.kind {
                Kind::Created => {
                    let known = all.insert(token, (false, BTreeSet::from([ends.unwrap()])));
                    assert!(known.is_none(), "created twice");
                }
                Kind::Closed => assert!(all.remove(&token).is_some(), "closed twice"),
                kind => {
                    let (established, subflows) = all.get_mut(&token).expect("created before anything else");
                    match kind {
                        Kind::Established => {
                            assert!(!std::mem::replace(established, true), "established twice")
                        }
                        Kind::SubEstablished => assert!(subflows.insert(ends.unwrap()), "opened twice"),
                        Kind::SubClosed => assert!(subflows.remove(&ends.unwrap()), "closed twice"),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        all
    }

    /// A late subscriber and one that received every change know the same.
    #[test]
    fn changes_lead_from_each_snapshot_to_each_later_one() {
        let initial = entry(1, 1, Some(INITIAL));
        let full = entry(1, 1, Some(INITIAL_FULL));
        let [second, third] = [entry(2, 2, Some(JOINED)), entry(3, 3, Some(JOINED_BY_PEER))];
        // Closed, and opened again between the same ends.
        let again = Entry { cookie: 4, ..second };
        let connections = [
            None,
            Some(connection(9, [initial])),
            Some(connection(9, [full])),
            Some(connection(9, [full, second])),
            Some(connection(9, [full, again])),
            Some(connection(9, [full, second, third])),
            Some(connection(9, [second])),
            Some(connection(9, [again, third])),
            Some(connection(9, [])),
            Some(connection(10, [full, second])),
        ];
        let read = |known: &Option<ConnectionState>| snapshot(0, known.clone().map(|known| (TOKEN, known)));
        // In a connection that continues no subflow comes back, and it stays established.
        let possible =
            |before: &Option<ConnectionState>, after: &Option<ConnectionState>| match (before, after) {
                (Some(before), Some(after)) if before.entry.cookie == after.entry.cookie => {
                    (after.initial().is_none() || before.initial().is_some())
                        && (after.established() || !before.established())
                        && !(before.subflow(4).is_some() && after.subflow(2).is_some())
                }
                _ => true,
            };
        let mut tried = 0;
        for before in &connections {
            for after in connections.iter().filter(|after| possible(before, after)) {
                let [first, last] = [read(before), read(after)];
                let told = first.events(None).into_iter().chain(first.changes(&last));
                assert_eq!(account(told), account(last.events(None)), "{before:?} to {after:?}");
                tried += 1;
            }
        }
        assert!(tried > 60, "{tried}");
    }
}
