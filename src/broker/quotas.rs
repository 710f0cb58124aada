//! How much each user has asked for.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sys::lock::lock;

/// So many a second, and as many at once.
#[derive(Debug)]
pub struct Bucket {
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u32, now: Instant) -> Bucket {
        Bucket { level: rate.into(), filled: now }
    }

    /// How long until there is one; zero if there is.
    fn wait(&mut self, rate: u32, now: Instant) -> Duration {
        let more = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(rate);
        (self.level, self.filled) = ((self.level + more).min(rate.into()), now);
        if self.level >= 1.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((1.0 - self.level) / f64::from(rate.max(1))).max(Duration::from_micros(1))
    }

    /// Takes one, if there is one.
    fn take(&mut self, rate: u32, now: Instant) -> bool {
        let there_is_one = self.wait(rate, now).is_zero();
        if there_is_one {
            self.level -= 1.0;
        }
        there_is_one
    }
}

#[derive(Debug)]
struct User {
    clients: usize,
    opens: Bucket,
    holds: Bucket,
    /// One of the user's connections waits for a turn to hold. Only one does, so that many of them are no more turns.
    is_waiting: bool,
    lines: Bucket,
    /// Lines that were not logged since the last one that was.
    unsaid: u64,
}

/// The address ids that were announced on each connection.
type Announced = HashMap<u32, HashSet<u8>>;

/// How many holds there are in a second, of all users.
const HOLDS: u32 = 50;

/// How long a connection waits that is not the first of its user's to wait.
const BEHIND: Duration = Duration::from_millis(20);

/// How many lines about a user are logged a second: a flood of them would hide what others do.
const LINES: u32 = 50;

/// How many users are remembered after their last connection.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
pub struct Quotas {
    users: Mutex<HashMap<u32, User>>,
    holds: Mutex<Bucket>,
    announced: Mutex<Announced>,
}

/// One connection to the broker. It counts until it is dropped.
#[derive(Debug)]
pub struct Place {
    quotas: Arc<Quotas>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(user) = lock(&self.quotas.users).get_mut(&self.uid) {
            user.clients = user.clients.saturating_sub(1);
        }
    }
}

impl Quotas {
    pub fn new() -> Quotas {
        Quotas {
            users: Mutex::default(),
            holds: Mutex::new(Bucket::new(HOLDS, Instant::now())),
            announced: Mutex::default(),
        }
    }

    /// A place for one more connection of a user, if he has fewer than `most`.
    pub fn place(self: &Arc<Quotas>, uid: u32, most: usize, opens: u32, holds: u32) -> Option<Place> {
        let now = Instant::now();
        let mut users = lock(&self.users);
        if users.len() > REMEMBERED {
            users.retain(|_, user| user.clients > 0);
        }
        let (opens, holds) = (Bucket::new(opens, now), Bucket::new(holds, now));
        let lines = Bucket::new(LINES, now);
        let user = users.entry(uid).or_insert(User {
            clients: 0,
            opens,
            holds,
            is_waiting: false,
            lines,
            unsaid: 0,
        });
        if user.clients >= most {
            return None;
        }
        user.clients += 1;
        Some(Place { quotas: Arc::clone(self), uid })
    }

    pub fn open(&self, uid: u32, per_second: u32) -> bool {
        lock(&self.users).get_mut(&uid).is_some_and(|user| user.opens.take(per_second, Instant::now()))
    }

    /// Takes one hold; or how long to wait before asking again. `is_first` is this caller's own, false at first: whether it
    /// waits in front of the user's other connections.
    pub fn hold(&self, uid: u32, per_second: u32, is_first: &mut bool) -> Result<(), Duration> {
        let now = Instant::now();
        let mut users = lock(&self.users);
        let Some(user) = users.get_mut(&uid) else { return Err(BEHIND) };
        if user.is_waiting && !*is_first {
            return Err(BEHIND);
        }
        let mut all = lock(&self.holds);
        let wait = user.holds.wait(per_second, now).max(all.wait(HOLDS, now));
        (user.is_waiting, *is_first) = (!wait.is_zero(), !wait.is_zero());
        if !wait.is_zero() {
            return Err(wait);
        }
        user.holds.take(per_second, now);
        all.take(HOLDS, now);
        Ok(())
    }

    /// Whoever waited in front does not wait any more.
    pub fn leave(&self, uid: u32, is_first: bool) {
        if let Some(user) = lock(&self.users).get_mut(&uid).filter(|_| is_first) {
            user.is_waiting = false;
        }
    }

    /// Whether one more line is to be logged: then how many were not, before it.
    pub fn line(&self, uid: u32) -> Option<u64> {
        let mut users = lock(&self.users);
        let user = users.get_mut(&uid)?;
        if user.lines.take(LINES, Instant::now()) {
            return Some(std::mem::take(&mut user.unsaid));
        }
        user.unsaid += 1;
        None
    }

    /// So many lines were not logged after all.
    pub fn not_logged(&self, uid: u32, lines: u64) {
        if let Some(user) = lock(&self.users).get_mut(&uid) {
            user.unsaid += lines;
        }
    }

    /// An address announced on a connection: whether its id is a new one, which [`Quotas::withdraw`] takes away again; `None`
    /// if the connection has `most` others.
    pub fn announce(&self, token: u32, id: u8, most: usize) -> Option<bool> {
        let mut announced = lock(&self.announced);
        let ids = announced.entry(token).or_default();
        if ids.contains(&id) {
            return Some(false);
        }
        (ids.len() < most).then(|| ids.insert(id))
    }

    pub fn withdraw(&self, token: u32, id: u8) {
        if let Some(ids) = lock(&self.announced).get_mut(&token) {
            ids.remove(&id);
        }
    }

    /// The connection has ended.
    pub fn forget(&self, token: u32) {
        lock(&self.announced).remove(&token);
    }

    /// Those that have not ended are these.
    pub fn keep(&self, is_there: impl Fn(u32) -> bool) {
        lock(&self.announced).retain(|token, _| is_there(*token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_so_many_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, start);
        let take = |bucket: &mut Bucket, at| (0..5).filter(|_| bucket.take(3, start + at)).count();
        assert_eq!(take(&mut bucket, Duration::ZERO), 3);
        assert_eq!(take(&mut bucket, Duration::from_millis(300)), 0);
        assert_eq!(take(&mut bucket, Duration::from_millis(700)), 2);
        assert_eq!(take(&mut bucket, Duration::from_secs(60)), 3);
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let quotas = Arc::new(Quotas::new());
        let place = |uid| quotas.place(uid, 2, 1, 1);
        let (one, two) = (place(5), place(5));
        assert!(one.is_some() && two.is_some() && place(5).is_none() && place(6).is_some());
        drop(one);
        assert!(place(5).is_some());
        assert!(quotas.open(5, 1) && !quotas.open(5, 1) && !quotas.open(7, 1));
        let logged = (0..1000).filter(|_| quotas.line(5).is_some()).count();
        assert!((50..500).contains(&logged), "{logged}");
        assert_eq!(quotas.line(6), Some(0));
    }

    #[test]
    fn so_many_addresses_are_announced_on_a_connection() {
        let quotas = Quotas::new();
        let announce = |token, id| quotas.announce(token, id, 2);
        assert_eq!((announce(1, 1), announce(1, 2)), (Some(true), Some(true)));
        assert_eq!(announce(1, 2), Some(false), "an id that it has");
        assert_eq!((announce(1, 3), announce(2, 3)), (None, Some(true)));
        quotas.withdraw(1, 1);
        assert_eq!(announce(1, 3), Some(true));
        quotas.forget(1);
        assert_eq!((announce(1, 4), announce(1, 5)), (Some(true), Some(true)));
        quotas.keep(|token| token == 2);
        assert_eq!((announce(1, 6), announce(1, 7)), (Some(true), Some(true)));
    }

    #[test]
    fn one_connection_of_each_user_waits_for_a_turn() {
        let quotas = Arc::new(Quotas::new());
        let places: Vec<_> = [5, 6, 7].iter().map(|uid| quotas.place(*uid, 2, 1, 20)).collect();
        assert!(places.iter().all(Option::is_some));
        let held = |uid| (0..100).filter(|_| quotas.hold(uid, 20, &mut false).is_ok()).count();
        // Whoever is refused is first in line from then on, and so no other of the user's gets a turn.
        assert_eq!((held(5), held(6)), (20, 20));
        let mut first = true;
        let wait = quotas.hold(5, 20, &mut first).unwrap_err();
        assert!(first && wait <= Duration::from_millis(50), "{wait:?}");
        assert_eq!(quotas.hold(5, 20, &mut false), Err(BEHIND));
        quotas.leave(5, first);
        let mut next = false;
        assert!(quotas.hold(5, 20, &mut next).is_err() && next);
        assert!(held(7) >= 10, "what the others have left of 50");
    }
}
