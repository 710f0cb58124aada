//! The ends of connections that the kernel sends no event for.
//!
//! A connection that its peer aborts (MP_FASTCLOSE, RFC 8684, section 3.5) loses its token before its sockets are closed,
//! and the kernel sends no event for a connection without a token. Nor is there a notice of sock_diag while the owner
//! keeps the socket, because that keeps the initial subflow. The only sign is that no connection has the token any more,
//! so the connections that subscribers follow are looked up by it at intervals.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::events::snapshot::Snapshot;
use crate::events::Sockets;
use crate::netlink::{diag, Channel};
use crate::sys::lock::lock;

/// The shortest time from one round of look-ups to the next.
const INTERVAL: Duration = Duration::from_millis(50);

/// The same as a multiple of what the last round took.
const IDLE: u32 = 20;

/// How many connections whose beginning was heard are kept before it is looked up which of them have ended.
const BEGUN: usize = 256;

/// How many look-ups are made at once: events that arrive meanwhile wait for them.
const BATCH: usize = 64;

/// A listener that is closed at the end of the connection that it was opened for.
#[derive(Debug)]
pub struct Listener(Mutex<Option<socket2::Socket>>);

impl Listener {
    pub fn new(socket: socket2::Socket) -> Arc<Listener> {
        Arc::new(Listener(Mutex::new(Some(socket))))
    }

    fn close(&self) {
        drop(lock(&self.0).take());
    }
}

/// The connections whose ends are watched, by their tokens.
#[derive(Debug, Default)]
struct Watched {
    /// When the event of each one's beginning was taken, in nanoseconds of CLOCK_MONOTONIC; 0 for one that existed before.
    /// Absent while nobody follows them.
    tokens: Option<HashMap<u32, u64>>,
    /// All of the namespace are among them.
    complete: bool,
    /// For each connection whose beginning was heard, whether the peer denies joins of its initial address.
    begun: HashMap<u32, bool>,
    /// How many of them are kept before those that ended without an event are looked for.
    limit: usize,
}

/// The connections of one network namespace whose ends are watched.
#[derive(Debug, Default)]
pub struct Ends {
    watched: Mutex<Watched>,
    /// For the look-ups.
    sockets: Option<Weak<dyn Sockets>>,
    /// Where inet_diag does not know connections, every token would seem to be unused.
    has_diag: OnceLock<bool>,
    listeners: Mutex<HashMap<u32, Vec<Weak<Listener>>>>,
}

impl Ends {
    pub fn new(sockets: Weak<dyn Sockets>) -> Ends {
        Ends { sockets: Some(sockets), ..Ends::default() }
    }

    fn sockets(&self) -> Option<Arc<dyn Sockets>> {
        self.sockets.as_ref().and_then(Weak::upgrade)
    }

    /// Watches one connection, or all present and future ones.
    pub fn watch(&self, token: Option<u32>) -> Result<()> {
        let Some(sockets) = self.sockets() else { return Ok(()) };
        let mut requests = lock(sockets.diag());
        if !self.has_diag(&mut requests) {
            return Ok(());
        }
        // Locked meanwhile, so that the end of a connection found here is not recorded before the connection is.
        let mut watched = lock(&self.watched);
        let Watched { tokens, complete, .. } = &mut *watched;
        let tokens = tokens.get_or_insert_default();
        match token {
            Some(token) => {
                tokens.entry(token).or_insert(0);
            }
            None if *complete => {}
            None => {
                diag::dump(&mut requests, |entry, _| {
                    if let Some(subflow) = entry.subflow {
                        tokens.entry(subflow.token).or_insert(0);
                    }
                })
                .map_err(diag::failed)?;
                *complete = true;
            }
        }
        Ok(())
    }

    fn has_diag(&self, requests: &mut Channel) -> bool {
        *self.has_diag.get_or_init(|| diag::dump_connections(requests, |_| {}).is_ok())
    }

    /// Whether there is something to look up.
    pub fn is_watched(&self) -> bool {
        let watched = lock(&self.watched);
        watched.tokens.is_some() || watched.begun.len() >= watched.limit.max(BEGUN)
    }

    /// Whether the peer of a connection denies joins of its initial address; absent if no event told its begin.
    pub fn deny_join_initial(&self, token: u32) -> Option<bool> {
        lock(&self.watched).begun.get(&token).copied()
    }

    /// Has a listener closed at the end of a connection that is watched.
    pub fn close_at_end(&self, token: u32, listener: &Arc<Listener>) {
        let mut listeners = lock(&self.listeners);
        listeners.retain(|_, list| list.iter().any(|listener| listener.strong_count() > 0));
        listeners.entry(token).or_default().push(Arc::downgrade(listener));
    }

    /// Records the beginning of a connection.
    pub fn note_begin(&self, token: u32, time_ns: u64, deny_join_initial: bool) {
        let mut watched = lock(&self.watched);
        watched.begun.insert(token, deny_join_initial);
        if let Some(tokens) = &mut watched.tokens {
            tokens.insert(token, time_ns);
        }
    }

    /// Records the end of a connection; false if it was known before, or not watched.
    pub fn note_end(&self, token: u32) -> bool {
        let mut watched = lock(&self.watched);
        watched.begun.remove(&token);
        let was_watched = watched.tokens.as_mut().is_some_and(|tokens| tokens.remove(&token).is_some());
        drop(watched);
        for listener in lock(&self.listeners).remove(&token).iter().flatten().filter_map(Weak::upgrade) {
            listener.close();
        }
        was_watched
    }

    /// The connections that are watched.
    pub fn tokens(&self) -> HashSet<u32> {
        lock(&self.watched).tokens.iter().flat_map(HashMap::keys).copied().collect()
    }

    /// Takes a reading made after a loss of events: connections that it lacks need not be watched any more.
    pub fn read_back(&self, snapshot: &Snapshot) {
        if let Some(tokens) = &mut lock(&self.watched).tokens {
            let live: HashSet<u32> = snapshot.tokens().collect();
            tokens.retain(|token, time_ns| live.contains(token) || *time_ns > snapshot.time_ns);
            for token in live {
                tokens.entry(token).or_insert(0);
            }
        }
    }

    /// Which connections to look up: of the `wanted` ones, or of all. Absent if nobody follows any, nor will before
    /// `watch` is called again.
    fn to_look_up(&self, wanted: impl FnOnce() -> Option<HashSet<u32>>) -> Option<Vec<u32>> {
        let mut watched = lock(&self.watched);
        let Watched { tokens, complete, begun, limit } = &mut *watched;
        // Asked with the lock held, so that no new watcher is missed.
        if let Some(mut wanted) = wanted() {
            let mut listeners = lock(&self.listeners);
            listeners.retain(|_, list| list.iter().any(|listener| listener.strong_count() > 0));
            wanted.extend(listeners.keys());
            *complete = false;
            if wanted.is_empty() {
                *tokens = None;
            }
            tokens.iter_mut().for_each(|tokens| tokens.retain(|token, _| wanted.contains(token)));
        }
        let all_begun = begun.len() >= BEGUN.max(*limit);
        if all_begun {
            *limit = 2 * begun.len();
        }
        let begun = begun.keys().filter(|_| all_begun);
        let to_look_up: HashSet<u32> = tokens.iter().flat_map(HashMap::keys).chain(begun).copied().collect();
        (tokens.is_some() || all_begun).then(|| to_look_up.into_iter().collect())
    }

    /// Those of these tokens that no connection has; absent if that cannot be told now. Never waits, because events would
    /// wait with it.
    fn look_up(&self, tokens: &[u32]) -> Option<Vec<u32>> {
        let sockets = self.sockets()?;
        let mut requests = sockets.diag().try_lock().ok()?;
        if !self.has_diag(&mut requests) {
            return None;
        }
        let found = diag::look_up_tokens(&mut requests, tokens).ok()?;
        let gone = tokens.iter().zip(found).filter(|(_, entry)| entry.is_none());
        Some(gone.map(|(token, _)| *token).collect())
    }
}

/// The rounds of look-ups, for the thread that reads events.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Those left in this round.
    left: Vec<u32>,
    began: Option<Instant>,
    /// When the next begins; absent while nothing is watched.
    due: Option<Instant>,
}

impl Rounds {
    /// The time until there is something to do.
    pub fn timeout(&self) -> Option<Duration> {
        if !self.left.is_empty() {
            return Some(Duration::ZERO);
        }
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Looks some connections up if it is time, and returns the tokens that no connection has.
    pub fn go_on(&mut self, ends: &Ends, wanted: impl FnOnce() -> Option<HashSet<u32>>) -> Vec<u32> {
        let now = Instant::now();
        if self.left.is_empty() {
            match self.due {
                None if !ends.is_watched() => return Vec::new(),
                None => {
                    self.due = Some(now + INTERVAL);
                    return Vec::new();
                }
                Some(due) if now < due => return Vec::new(),
                Some(_) => {}
            }
            let Some(tokens) = ends.to_look_up(wanted) else {
                self.due = None;
                return Vec::new();
            };
            self.left = tokens;
            self.began = Some(now);
        }
        let batch = self.left.split_off(self.left.len().saturating_sub(BATCH));
        let gone = match batch.as_slice() {
            [] => Some(Vec::new()),
            batch => ends.look_up(batch),
        };
        if gone.is_none() {
            self.left.clear(); // the next round reports them
        }
        if self.left.is_empty() {
            let end = Instant::now();
            let took = self.began.map_or(Duration::ZERO, |began| end - began);
            self.due = Some(end + INTERVAL.max(took * IDLE));
        }
        gone.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watching(tokens: &[u32]) -> Ends {
        let ends = Ends::default();
        lock(&ends.watched).tokens = Some(tokens.iter().map(|token| (*token, 0)).collect());
        ends
    }

    #[test]
    fn an_end_is_told_once() {
        let ends = watching(&[1]);
        ends.note_begin(2, 5, true);
        assert_eq!((ends.deny_join_initial(2), ends.deny_join_initial(1)), (Some(true), None));
        assert!(ends.note_end(1) && !ends.note_end(1));
        assert!(ends.note_end(2));
        assert!(!ends.note_end(3), "it was never there");
    }

    #[test]
    fn nothing_is_kept_while_nobody_wants_to_know() {
        let ends = Ends::default();
        ends.note_begin(1, 5, false);
        assert!(!ends.is_watched() && ends.tokens().is_empty());
        let ends = watching(&[1, 2]);
        assert_eq!(ends.to_look_up(|| Some(HashSet::from([2, 3]))), Some(vec![2]));
        assert_eq!(ends.to_look_up(|| None), Some(vec![2]));
        assert_eq!(ends.to_look_up(|| Some(HashSet::new())), None);
        assert!(!ends.is_watched());
    }

    #[test]
    fn what_began_and_did_not_end_is_looked_up_when_it_is_much() {
        let ends = Ends::default();
        for token in 0..BEGUN as u32 {
            assert!(!ends.is_watched());
            ends.note_begin(token, 5, false);
        }
        assert!(ends.is_watched());
        assert_eq!(ends.to_look_up(|| Some(HashSet::new())).map(|tokens| tokens.len()), Some(BEGUN));
        assert!(!ends.is_watched());
        assert!(!ends.note_end(1), "nobody is told");
        assert_eq!(ends.deny_join_initial(1), None);
    }

    #[test]
    fn a_connection_with_a_listener_is_watched_until_it_ends() {
        let ends = watching(&[1]);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = Listener::new(socket);
        ends.close_at_end(1, &listener);
        assert_eq!(ends.to_look_up(|| Some(HashSet::new())), Some(vec![1]));
        assert!(ends.note_end(1));
        assert!(lock(&listener.0).is_none());
        assert_eq!(ends.to_look_up(|| Some(HashSet::new())), None);
    }

    #[test]
    fn after_a_loss_those_that_are_there_are_watched() {
        let ends = watching(&[1]);
        ends.note_begin(2, 5, false);
        let mut snapshot = Snapshot::default();
        snapshot.time_ns = 4;
        ends.read_back(&snapshot);
        assert_eq!(ends.tokens(), HashSet::from([2]), "it began after what was read");
    }
}
