//! Namespaces of the calling process's own.

use std::ffi::CStr;
use std::io;
use std::ptr::null;

use super::check;

/// Moves the calling process to a new user namespace. It must have one thread only.
pub fn enter_new_user_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWUSER)
}

/// Moves the calling thread to a new network namespace. Needs CAP_SYS_ADMIN.
pub fn enter_new_network_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Remounts a file system for writing, in a new mount namespace that the calling thread moves to. Needs CAP_SYS_ADMIN.
pub fn remount_writable(path: &CStr) -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)?;
    // First, or the remount would propagate to the namespace that this one was copied from.
    mount(c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(path, libc::MS_REMOUNT | libc::MS_BIND)
}

fn mount(path: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: `path` ends with NUL and outlives the call; with these flags the kernel reads none of the other pointers,
    // which may be null.
    check(unsafe { libc::mount(null(), path.as_ptr(), null(), flags, null()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_cannot_be_remounted() {
        // In a thread of its own, which takes its namespaces along.
        let tried = std::thread::spawn(|| remount_writable(c"/no/such/path")).join().unwrap();
        let errno = tried.unwrap_err().raw_os_error();
        assert!(errno == Some(libc::ENOENT) || errno == Some(libc::EPERM), "{errno:?}");
    }
}
