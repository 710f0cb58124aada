//! What this process knows of one connection, shared by all that reach it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::namespace::address_ids::AddressIds;
use crate::namespace::sub_ids::SubIds;
use crate::netlink::diag::{Entry, Tuple};
use crate::sys;
use crate::sys::lock::lock;

/// For how long the lock of a connection counts as free after the kernel was seen to have it: less than another thread waits
/// for a command.
const FRESH: Duration = Duration::from_millis(1);

/// What this process knows of one connection beyond what the kernel reports.
#[derive(Debug)]
pub struct Known {
    pub token: u32,
    /// Its own remote end, which never changes.
    pub remote: OnceLock<SocketAddr>,
    /// When it was created at the latest, as far as this process knows.
    since: Mutex<Instant>,
    /// Held while a subflow is created, and while its place in the list is found.
    pub opening: Mutex<AddressIds>,
    ordinals: Mutex<Ordinals>,
    /// The ids of the enhanced socket API.
    pub sub_ids: Mutex<SubIds>,
    /// The interfaces of bound subflows, which an exact look-up has to name.
    pub interfaces: Mutex<HashMap<(SocketAddr, SocketAddr), u32>>,
    /// It was seen to be under the userspace path manager, which never changes.
    pub is_userspace: AtomicBool,
    /// When the kernel was seen to have its lock, in nanoseconds of the monotonic clock.
    locked_ns: AtomicU64,
}

/// Subflow ids for kernels that have none: a count in order of appearance, kept by cookie.
#[derive(Debug, Default)]
struct Ordinals {
    last: u32,
    by_cookie: HashMap<u64, u32>,
}

impl Known {
    pub fn new(token: u32) -> Known {
        Known {
            token,
            remote: OnceLock::new(),
            since: Mutex::new(Instant::now()),
            opening: Mutex::default(),
            ordinals: Mutex::default(),
            sub_ids: Mutex::default(),
            interfaces: Mutex::default(),
            is_userspace: AtomicBool::new(false),
            locked_ns: AtomicU64::new(0),
        }
    }

    /// The kernel had the connection's lock at this time: it raises SUB_CLOSED, and carries a command out, under it.
    pub fn was_locked(&self, time_ns: u64) {
        self.locked_ns.store(time_ns, Ordering::Relaxed);
    }

    /// Whether that was just now, so that no sender holds the lock for long.
    pub fn was_just_locked(&self) -> bool {
        let elapsed = sys::monotonic_ns().saturating_sub(self.locked_ns.load(Ordering::Relaxed));
        u128::from(elapsed) < FRESH.as_nanos()
    }

    /// Raises its least age to what the kernel reports now.
    pub fn is_as_old_as(&self, age: Duration) {
        let mut since = lock(&self.since);
        if let Some(earlier) = Instant::now().checked_sub(age) {
            *since = earlier.min(*since);
        }
    }

    /// Its least age: what the kernel reported, or the time since this process has known it.
    pub fn age(&self) -> Duration {
        lock(&self.since).elapsed()
    }

    /// Our ids of the subflows with these cookies. Those that are not among them are forgotten: a cookie is never
    /// used again, and neither is the count.
    pub fn ordinals(&self, entries: &[Option<Entry>]) -> Vec<Option<u32>> {
        let mut ordinals = lock(&self.ordinals);
        let Ordinals { last, by_cookie } = &mut *ordinals;
        let ids = entries.iter().map(|entry| {
            entry.map(|entry| {
                *by_cookie.entry(entry.cookie).or_insert_with(|| {
                    *last += 1;
                    *last
                })
            })
        });
        let ids = ids.collect();
        if by_cookie.len() > 2 * entries.len() {
            by_cookie.retain(|cookie, _| entries.iter().flatten().any(|entry| entry.cookie == *cookie));
        }
        ids
    }

    pub fn tuple(&self, local: SocketAddr, remote: SocketAddr) -> Tuple {
        let interface = lock(&self.interfaces).get(&(local, remote)).copied().unwrap_or(0);
        Tuple { local, remote, interface }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_for_a_short_time_after_the_kernel_had_it() {
        let known = Known::new(1);
        assert!(!known.was_just_locked());
        known.was_locked(sys::monotonic_ns().saturating_sub(2_000_000));
        assert!(!known.was_just_locked());
        // In the future, so that a thread that has to wait for the processor does not make it old.
        known.was_locked(sys::monotonic_ns() + 60_000_000_000);
        assert!(known.was_just_locked());
    }

    #[test]
    fn our_own_ids_count_appearances_and_are_never_used_again() {
        let known = Known::new(1);
        let entry = |cookie| {
            let local = SocketAddr::from(([10, 0, 0, 1], 1));
            let tuple = Tuple { local, remote: local, interface: 0 };
            Some(Entry { tuple, state: 1, cookie, uid: 0, inode: 0, cgroup: None, subflow: None })
        };
        assert_eq!(known.ordinals(&[entry(50), entry(40)]), [Some(1), Some(2)]);
        assert_eq!(known.ordinals(&[entry(40), None, entry(60)]), [Some(2), None, Some(3)]);
        assert_eq!(known.ordinals(&[entry(40)]), [Some(2)]);
        assert_eq!(known.ordinals(&[entry(70), entry(40)]), [Some(4), Some(2)]);
    }
}
