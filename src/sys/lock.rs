//! How locks are taken, and what a forked child finds of them.
//!
//! A child has the locks of its parent but none of the threads that hold them. What only a thread of the parent uses
//! stays with it; whatever a child may go on using is a [`PerProcess`].

use std::cell::RefCell;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::sys::process;

/// Takes a lock. No code that can panic runs under any of ours, and if it did, the data would still be whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held while a process is given its value, and over a fork, so that a child never finds that half done.
static BEGINNING: Mutex<()> = Mutex::new(());

thread_local! {
    static FORKING: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// To be called by the thread that forks, before.
pub fn before_fork() {
    FORKING.set(Some(lock(&BEGINNING)));
}

/// To be called by the thread that forked, in both processes.
pub fn after_fork() {
    FORKING.take();
}

/// A value behind a lock, of which each process has its own: a forked child begins with the default, whoever held the
/// lock in its parent.
pub struct PerProcess<T> {
    first: OnceLock<Box<Own<T>>>,
}

struct Own<T> {
    process: u32,
    value: Mutex<T>,
    /// Of a process that was forked from this one.
    next: OnceLock<Box<Own<T>>>,
}

impl<T> PerProcess<T> {
    pub const fn new() -> PerProcess<T> {
        PerProcess { first: OnceLock::new() }
    }
}

impl<T: Default> PerProcess<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.lock_of(process::id())
    }

    fn lock_of(&self, process: u32) -> MutexGuard<'_, T> {
        match self.find(process) {
            Ok(own) => lock(&own.value),
            Err(_) => lock(&self.begin(process).value),
        }
    }

    /// The value of a process, or else where the next is to be put and whose was last.
    #[expect(clippy::type_complexity, reason = "used by the two functions beside it")]
    fn find(&self, process: u32) -> Result<&Own<T>, (&OnceLock<Box<Own<T>>>, Option<&Own<T>>)> {
        let (mut place, mut last) = (&self.first, None);
        while let Some(own) = place.get() {
            if own.process == process {
                return Ok(own);
            }
            (place, last) = (&own.next, Some(&**own));
        }
        Err((place, last))
    }

    fn begin(&self, process: u32) -> &Own<T> {
        let beginning = lock(&BEGINNING);
        let (place, last) = match self.find(process) {
            Ok(own) => return own, // another thread was faster
            Err(found) => found,
        };
        // The child's copy of the parent's descriptors is closed, unless a thread of the parent was about to change it.
        let of_parent =
            last.and_then(|own| own.value.try_lock().ok()).map(|mut value| std::mem::take(&mut *value));
        let own = Own { process, value: Mutex::default(), next: OnceLock::new() };
        let own = place.get_or_init(|| Box::new(own));
        drop(beginning);
        drop(of_parent);
        own
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> PerProcess<T> {
        PerProcess::new()
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_begins_with_the_default_whoever_holds_the_lock() {
        let value: PerProcess<Vec<u8>> = PerProcess::new();
        let mut of_parent = value.lock_of(1);
        of_parent.push(7);
        assert!(value.lock_of(2).is_empty());
        value.lock_of(2).push(8);
        assert_eq!(*of_parent, [7]);
        drop(of_parent);
        assert!(value.lock_of(3).is_empty());
        assert!(value.lock_of(2).is_empty(), "a child closes what it has of its parent's");
        assert_eq!(*value.lock_of(1), [7]);
    }
}
