//! How a lock is taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. No code that can panic runs under any of ours, and if it did, the data would still be whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
