//! Taking the descriptor of another process's connection.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::error::{describe, Error, Result};
use crate::sys;

/// A duplicate of descriptor `fd` of process `pid`. Needs ptrace access to that process.
pub fn take_descriptor(pid: i32, fd: RawFd) -> Result<OwnedFd> {
    let process = sys::pidfd_open(pid).map_err(|error| not_opened(pid, &error))?;
    sys::pidfd_getfd(&process, fd).map_err(|error| not_taken(pid, fd, &error))
}

fn not_opened(pid: i32, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ESRCH) => Error::os(libc::ESRCH, format!("there is no process {pid}")),
        Some(libc::ENOSYS) => Error::unsupported("this kernel has no pidfd_open (Linux 5.3)"),
        // The call itself asks for no privilege.
        Some(errno @ libc::EPERM) => Error::os(
            errno,
            "pidfd_open is denied here, by a seccomp profile: the sandbox or container must allow pidfd_open and \
             pidfd_getfd",
        ),
        _ => Error::call("pidfd_open", error),
    }
}

fn not_taken(pid: i32, fd: RawFd, error: &io::Error) -> Error {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    match errno {
        libc::ESRCH => Error::os(errno, format!("there is no process {pid}")),
        libc::EBADF => Error::os(errno, format!("process {pid} has no descriptor {fd}")),
        libc::ENOSYS => Error::unsupported("this kernel has no pidfd_getfd (Linux 5.6)"),
        libc::EPERM => Error::os(
            errno,
            format!(
                "taking a descriptor of process {pid} needs ptrace access to it: run as its user and, where \
                 kernel.yama.ptrace_scope is above 0, as its parent; or with CAP_SYS_PTRACE over it ({})",
                describe(errno)
            ),
        ),
        _ => Error::call("pidfd_getfd", error),
    }
}
