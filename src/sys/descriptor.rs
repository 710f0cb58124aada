//! Duplicates of descriptors, and those of other threads.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// `<linux/pidfd.h>`, Linux 6.9
const PIDFD_THREAD: libc::c_int = libc::O_EXCL;

/// `<linux/kcmp.h>`
const KCMP_FILES: libc::c_int = 2;

/// A duplicate of a descriptor of a thread, which need not have its process's. Needs ptrace access to it.
pub fn take_from_thread(thread: i32, process: i32, fd: RawFd) -> io::Result<OwnedFd> {
    let opened = match open_pidfd(thread, PIDFD_THREAD) {
        // The kernel knows processes only.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && share_descriptors(thread, process) => {
            open_pidfd(process, 0)?
        }
        result => result?,
    };
    // SAFETY: no pointers; the descriptor is new and ours.
    unsafe {
        let taken = libc::syscall(libc::SYS_pidfd_getfd, opened.as_raw_fd(), fd, 0) as libc::c_int;
        Ok(OwnedFd::from_raw_fd(check(taken)?))
    }
}

/// A duplicate of a descriptor that may be closed at any moment, which is the error EBADF.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is new and ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?)) }
}

/// Puts a duplicate of `new` in the place of `old`, in one step: who uses `old` goes on with the other open file.
pub fn replace(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers. `old` stays open.
    check(unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
}

fn open_pidfd(id: i32, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is new and ours.
    unsafe {
        let opened = check(libc::syscall(libc::SYS_pidfd_open, id, flags) as libc::c_int)?;
        Ok(OwnedFd::from_raw_fd(opened))
    }
}

/// Whether a thread has its process's descriptors. Taken for granted where the kernel has no kcmp().
fn share_descriptors(thread: i32, process: i32) -> bool {
    // SAFETY: no pointers.
    let compared = unsafe { libc::syscall(libc::SYS_kcmp, thread, process, KCMP_FILES, 0, 0) };
    match check(compared as libc::c_int) {
        Ok(order) => order == 0,
        Err(error) => thread == process || error.raw_os_error() == Some(libc::ENOSYS),
    }
}
