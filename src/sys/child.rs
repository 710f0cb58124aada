//! A short-lived process of our own, for what a thread cannot do or must not keep.

use std::io;

use super::check;

/// Runs `step` in a new process and returns the status that it exits with. The process is a fork, with further `flags`
/// of clone(). It raises no SIGCHLD, and no wait() of the program sees it. Whoever may send it signals can end it, which is
/// the error ECHILD, but not stop it.
///
/// `step` makes system calls only: it allocates nothing, and takes no lock that another thread may have held at this
/// moment.
pub fn in_a_process(flags: libc::c_int, step: impl FnOnce() -> u8) -> io::Result<u8> {
    // SAFETY: plain data for which all zeros are valid; sigfillset and pthread_sigmask fill it.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: both sets are ours. Signals are blocked, so that no handler of the program runs in the new process.
    unsafe {
        libc::sigfillset(&raw mut signals);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const signals, &raw mut before);
    }
    // SAFETY: clone without CLONE_VM is a fork, whose process does what `step` may do, until _exit.
    let process = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if process == 0 {
        let status = step();
        // SAFETY: no pointers; it does not return.
        unsafe { libc::_exit(status.into()) };
    }
    let clone_error = io::Error::last_os_error();
    // SAFETY: `before` was filled by the first pthread_sigmask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    if process < 0 {
        return Err(clone_error);
    }
    let process = process as i32;
    let mut status = 0;
    loop {
        // __WALL finds a child that raises no SIGCHLD.
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(process, &raw mut status, libc::__WALL | libc::WUNTRACED) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            // Nobody might ever go on with it.
            // SAFETY: no pointers.
            Ok(_) if libc::WIFSTOPPED(status) => unsafe {
                libc::kill(process, libc::SIGKILL);
            },
            Ok(_) if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status) as u8),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::ECHILD)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_exits_with_a_status_and_is_not_left_behind() {
        assert_eq!(in_a_process(0, || 7).unwrap(), 7);
        for signal in [libc::SIGKILL, libc::SIGSTOP] {
            let killed = in_a_process(0, || {
                // SAFETY: no pointers.
                unsafe { libc::kill(libc::getpid(), signal) };
                0
            });
            assert_eq!(killed.unwrap_err().raw_os_error(), Some(libc::ECHILD));
        }
        // SAFETY: no pointers; there must be no child left, of the kind that raises no SIGCHLD either.
        let left = check(unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WCLONE | libc::WNOHANG) });
        assert_eq!(left.unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }
}
