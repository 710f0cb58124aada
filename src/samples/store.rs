//! Where rows wait until somebody takes them. Taking is the exchange of a pointer, so the thread that reads never
//! waits for one that takes.

use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::sys;
use crate::sys::lock::lock;

/// Bytes of the first chunk and of the largest: a new one is twice the one before, and none is ever moved.
const FIRST: usize = 1 << 16;
const LARGEST: usize = 32 << 20;

/// From this size on a chunk lies in large pages: the kernel takes as long to find a small one as we take for a row.
const LARGE: usize = 4 << 20;

/// Rows in the order in which they were read.
#[derive(Debug)]
pub struct Store<R> {
    rows: Mutex<Rows<R>>,
    /// No more than this are kept, and no more than there is memory for: what comes on top is counted and dropped.
    room: usize,
}

#[derive(Debug)]
struct Rows<R> {
    chunks: Vec<Vec<R>>,
    count: usize,
    /// A small chunk that was taken and is empty again: its pages are there already.
    spare: Option<Vec<R>>,
    dropped: u64,
}

impl<R> Rows<R> {
    /// Room behind what there is: how many rows fit into the last chunk now, 0 where there is no memory.
    fn make_room(&mut self) -> usize {
        let free = |chunk: &Vec<R>| chunk.capacity() - chunk.len();
        let last = self.chunks.last();
        if let Some(room) = last.map(free).filter(|room| *room > 0) {
            return room;
        }
        let wanted =
            last.map_or(FIRST / size_of::<R>(), |chunk| (2 * chunk.capacity()).min(LARGEST / size_of::<R>()));
        let mut chunk = self.spare.take().unwrap_or_default();
        if chunk.capacity() == 0 {
            if chunk.try_reserve_exact(wanted).is_err() {
                return 0;
            }
            if chunk.capacity() * size_of::<R>() >= LARGE {
                sys::pages::prefer_large(chunk.spare_capacity_mut());
            }
        }
        let room = free(&chunk);
        self.chunks.push(chunk);
        room
    }
}

impl<R> Store<R> {
    pub fn new(room: usize) -> Store<R> {
        Store { rows: Mutex::new(Rows { chunks: Vec::new(), count: 0, spare: None, dropped: 0 }), room }
    }

    /// Adds rows, and leaves none behind.
    pub fn append(&self, new: &mut Vec<R>) {
        let mut inside = lock(&self.rows);
        let kept = new.len().min(self.room.saturating_sub(inside.count));
        inside.dropped += (new.len() - kept) as u64;
        new.truncate(kept);
        let mut new = new.drain(..);
        while new.len() > 0 {
            let fitting = inside.make_room().min(new.len());
            let Some(chunk) = inside.chunks.last_mut().filter(|_| fitting > 0) else {
                inside.dropped += new.len() as u64;
                return;
            };
            chunk.extend(new.by_ref().take(fitting));
            inside.count += fitting;
        }
    }

    /// Everything that has been added since the last time, each row as `decode` makes it. All of it stays where there
    /// is no memory for that.
    pub fn take<T>(&self, decode: impl Fn(&R) -> T) -> Result<Vec<T>> {
        let (mut chunks, count) = {
            let mut inside = lock(&self.rows);
            (std::mem::take(&mut inside.chunks), std::mem::take(&mut inside.count))
        };
        let mut taken = Vec::new();
        if taken.try_reserve_exact(count).is_err() {
            let mut inside = lock(&self.rows);
            chunks.append(&mut inside.chunks);
            inside.chunks = chunks;
            inside.count += count;
            return Err(Error::os(libc::ENOMEM, "not enough memory for the rows of the recording"));
        }
        if count * size_of::<T>() >= LARGE {
            sys::pages::prefer_large(taken.spare_capacity_mut());
        }
        for mut chunk in chunks {
            taken.extend(chunk.iter().map(&decode));
            chunk.clear();
            let mut inside = lock(&self.rows);
            let held = inside.spare.as_ref().map_or(0, Vec::capacity);
            if (held + 1..=LARGE / size_of::<R>()).contains(&chunk.capacity()) {
                inside.spare = Some(chunk);
            }
        }
        Ok(taken)
    }

    pub fn dropped(&self) -> u64 {
        lock(&self.rows).dropped
    }

    /// Changes rows that nobody has taken yet, from the newest back while `change` says so.
    pub fn amend(&self, mut change: impl FnMut(&mut R) -> bool) {
        for row in lock(&self.rows).chunks.iter_mut().rev().flat_map(|chunk| chunk.iter_mut().rev()) {
            if !change(row) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(store: &Store<u64>) -> Vec<u64> {
        store.take(|row| *row).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let store = Store::new(3);
        store.append(&mut vec![1, 2]);
        let mut more = vec![3, 4, 5];
        store.append(&mut more);
        assert!(more.is_empty());
        assert_eq!((all(&store), store.dropped()), (vec![1, 2, 3], 2));
        store.append(&mut vec![6]);
        assert_eq!(all(&store), [6]);
    }

    #[test]
    fn the_order_is_kept_over_many_chunks() {
        let store = Store::new(usize::MAX);
        let numbers: Vec<u64> = (0..1_000_000).collect();
        for _ in 0..2 {
            for some in numbers.chunks(7777) {
                store.append(&mut some.to_vec());
            }
            assert!(all(&store) == numbers);
        }
        assert_eq!(store.dropped(), 0);
    }

    #[test]
    fn without_memory_nothing_is_lost() {
        // A row that becomes larger than any memory.
        const HUGE: usize = 1 << 46;
        let store = Store::new(usize::MAX);
        store.append(&mut vec![1, 2, 3]);
        assert_eq!(store.take(|_| -> [u8; HUGE] { unreachable!() }).unwrap_err().errno(), libc::ENOMEM);
        store.append(&mut vec![4]);
        assert_eq!(all(&store), [1, 2, 3, 4]);
    }

    #[test]
    fn the_newest_are_amended() {
        let store = Store::new(usize::MAX);
        let count = (FIRST / 8 + 2) as u64;
        store.append(&mut (0..count).collect());
        store.amend(|row| {
            *row += 1;
            *row > count - 2
        });
        let last = all(&store).split_off(FIRST / 8 - 2);
        assert_eq!(last, [count - 4, count - 2, count - 1, count]);
    }
}
