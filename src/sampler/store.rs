//! Where rows wait until somebody takes them. Taking is the exchange of a pointer, so the thread that reads never
//! waits for one that takes.

use std::sync::Mutex;

use crate::reader::lock;
use crate::sys;

/// From this size on rows lie in large pages: the kernel takes as long to find a small one as we take for a row.
const LARGE: usize = 4 << 20;

/// Rows in the order in which they were read.
#[derive(Debug)]
pub struct Store<R> {
    rows: Mutex<Rows<R>>,
    /// No more than this are kept: what comes on top is counted and dropped.
    room: usize,
}

#[derive(Debug)]
struct Rows<R> {
    rows: Vec<R>,
    dropped: u64,
}

impl<R> Store<R> {
    pub fn new(room: usize) -> Store<R> {
        Store { rows: Mutex::new(Rows { rows: Vec::new(), dropped: 0 }), room }
    }

    /// Adds rows, and leaves none behind.
    pub fn append(&self, new: &mut Vec<R>) {
        let mut inside = lock(&self.rows);
        let room = self.room.saturating_sub(inside.rows.len());
        if new.len() > room {
            inside.dropped += (new.len() - room) as u64;
            new.truncate(room);
        }
        if inside.rows.capacity() - inside.rows.len() < new.len() {
            inside.rows.reserve(new.len());
            if inside.rows.capacity() * size_of::<R>() >= LARGE {
                sys::pages::prefer_large(inside.rows.spare_capacity_mut());
            }
        }
        inside.rows.append(new);
    }

    /// Everything that has been added since the last time.
    pub fn take(&self) -> Vec<R> {
        std::mem::take(&mut lock(&self.rows).rows)
    }

    pub fn dropped(&self) -> u64 {
        lock(&self.rows).dropped
    }

    /// Changes rows that nobody has taken yet, from the newest back while `change` says so.
    pub fn amend(&self, mut change: impl FnMut(&mut R) -> bool) {
        for row in lock(&self.rows).rows.iter_mut().rev() {
            if !change(row) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let store = Store::new(3);
        store.append(&mut vec![1, 2]);
        let mut more = vec![3, 4, 5];
        store.append(&mut more);
        assert!(more.is_empty());
        assert_eq!((store.take(), store.dropped()), (vec![1, 2, 3], 2));
        store.append(&mut vec![6]);
        assert_eq!(store.take(), [6]);
    }

    #[test]
    fn the_newest_are_amended() {
        let store = Store::new(10);
        store.append(&mut vec![1, 2, 3]);
        store.amend(|row| {
            *row *= 10;
            *row > 20
        });
        assert_eq!(store.take(), [1, 20, 30]);
    }
}
