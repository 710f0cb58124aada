//! The id of this process, which every use of what a forked child must not share is checked by.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

const PAGE: usize = 4096;

/// Memory of which a forked child finds zeros, however it was forked (madvise MADV_WIPEONFORK, Linux 4.14).
struct Wiped(NonNull<AtomicU32>);

// SAFETY: the pointer is of memory that is never unmapped, and all access to it is atomic.
unsafe impl Send for Wiped {}
// SAFETY: as above.
unsafe impl Sync for Wiped {}

impl Wiped {
    fn new() -> Option<Wiped> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the range is the mapping above.
        if unsafe { libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) } != 0 {
            // SAFETY: nothing has a pointer into it.
            unsafe { libc::munmap(page, PAGE) };
            return None;
        }
        NonNull::new(page.cast()).map(Wiped)
    }

    fn value(&self) -> &AtomicU32 {
        // SAFETY: it points to mapped memory, aligned to a page, whose zeros are a valid value.
        unsafe { self.0.as_ref() }
    }
}

/// The process id, asked of the kernel once in each process: getpid() is a system call.
pub fn id() -> u32 {
    static KNOWN: OnceLock<Option<Wiped>> = OnceLock::new();
    let Some(wiped) = KNOWN.get_or_init(Wiped::new) else { return std::process::id() };
    match wiped.value().load(Ordering::Relaxed) {
        0 => {
            let id = std::process::id();
            wiped.value().store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_its_own_whoever_forked_it() {
        assert_eq!(id(), std::process::id());
        assert_eq!(id(), std::process::id(), "once more, as it is known now");
        // SAFETY: a fork without libc's handlers; the child calls nothing that takes a lock, and ends.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as libc::pid_t;
        if child == 0 {
            let is_right = id() == std::process::id();
            // SAFETY: ends the child without running what its parent registered.
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let mut status = 0;
        // SAFETY: the pointer is of `status`.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(id(), std::process::id());
    }
}
