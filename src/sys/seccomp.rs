//! seccomp user notification: the listener of a filter, and what it is asked.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::check;

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    pub id: u64,
    /// The calling thread, by its id in our PID namespace; 0 if it has none there.
    pub thread: i32,
    pub number: libc::c_long,
    pub arguments: [u64; 6],
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A call has come.
    Call,
    /// The last process that the filter applies to has ended.
    HangUp,
    /// The other descriptor is readable.
    Other,
}

/// The listener of a filter. When its last descriptor is closed, calls that the filter catches fail with ENOSYS.
#[derive(Debug)]
pub struct Listener {
    descriptor: OwnedFd,
    sizes: Sizes,
}

/// How large the kernel's structures are, which newer kernels may have extended.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    notification: usize,
    response: usize,
}

impl Sizes {
    fn of_the_kernel() -> io::Result<Sizes> {
        let mut sizes = MaybeUninit::<libc::seccomp_notif_sizes>::uninit();
        let operation = libc::SECCOMP_GET_NOTIF_SIZES;
        // SAFETY: the kernel fills the structure, which is read only if it did.
        let sizes = unsafe {
            check(libc::syscall(libc::SYS_seccomp, operation, 0, sizes.as_mut_ptr()) as libc::c_int)?;
            sizes.assume_init()
        };
        Ok(Sizes { notification: sizes.seccomp_notif.into(), response: sizes.seccomp_notif_resp.into() })
    }
}

/// Zeros with room for a `T` and for so many bytes, aligned as the kernel's structures.
fn zeros<T>(bytes: usize) -> Vec<u64> {
    const { assert!(align_of::<T>() <= align_of::<u64>()) };
    vec![0; bytes.max(size_of::<T>()).div_ceil(size_of::<u64>())]
}

impl Listener {
    pub fn new(descriptor: OwnedFd) -> io::Result<Listener> {
        let listener = Listener { descriptor, sizes: Sizes::of_the_kernel()? };
        // Linux 6.6: answer and caller change places on one processor. Older kernels say EINVAL, and are slower.
        // SAFETY: the flags are the argument itself.
        unsafe { libc::ioctl(listener.fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS as _, 1u64) };
        Ok(listener)
    }

    fn fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// Waits for a call, or until `other` is readable.
    pub fn wait(&self, other: &impl AsRawFd) -> io::Result<Wait> {
        self.poll(libc::POLLIN, other.as_raw_fd())
    }

    /// The same without regard to calls, which others wait for.
    pub fn wait_for_hang_up(&self, other: &impl AsRawFd) -> io::Result<Wait> {
        self.poll(0, other.as_raw_fd())
    }

    fn poll(&self, events: libc::c_short, other: RawFd) -> io::Result<Wait> {
        let mut fds = [
            libc::pollfd { fd: other, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: self.fd(), events, revents: 0 },
        ];
        loop {
            // SAFETY: the pointer and the count describe `fds`, which outlives the call.
            match check(unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) }) {
                Ok(_) if fds[0].revents != 0 => return Ok(Wait::Other),
                Ok(_) if fds[1].revents & libc::POLLIN != 0 => return Ok(Wait::Call),
                Ok(_) => return Ok(Wait::HangUp),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the next call, waiting for one. `None` if it has gone: its thread was killed.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut room = zeros::<libc::seccomp_notif>(self.sizes.notification);
        // SAFETY: the kernel writes one such structure, of the size that it told, into zeros, as it wants. Any bytes are
        // valid for what is read.
        let (result, received) = unsafe {
            let result = libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, room.as_mut_ptr());
            (check(result), room.as_ptr().cast::<libc::seccomp_notif>().read())
        };
        match result {
            Ok(_) => Ok(Some(Notification {
                id: received.id,
                thread: received.pid as i32,
                number: received.data.nr.into(),
                arguments: received.data.args,
            })),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the call still waits, and so whether what was learnt by its thread's id is of that thread.
    pub fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the kernel reads one u64.
        unsafe { libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id) == 0 }
    }

    /// Lets the kernel do the call, as if there were no filter.
    pub fn pass(&self, id: u64) {
        self.send(id, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }

    /// The call returns 0, or fails with an errno.
    pub fn answer(&self, id: u64, result: Result<(), i32>) {
        self.send(id, result.err().map_or(0, |errno| -errno), 0);
    }

    fn send(&self, id: u64, error: i32, flags: u32) {
        let response = libc::seccomp_notif_resp { id, val: 0, error, flags };
        let mut room = zeros::<libc::seccomp_notif_resp>(self.sizes.response);
        // It fails only if the caller has been killed, and then nobody waits for the answer.
        // SAFETY: there is room for the structure, and the kernel reads one of the size that it told.
        unsafe {
            room.as_mut_ptr().cast::<libc::seccomp_notif_resp>().write(response);
            libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, room.as_ptr());
        }
    }

    /// The call returns a new descriptor of the caller's, a duplicate of `descriptor`. Fails, the call still waiting,
    /// if the caller can have no more.
    pub fn give(&self, id: u64, descriptor: BorrowedFd<'_>, close_on_exec: bool) -> io::Result<()> {
        let request = libc::seccomp_notif_addfd {
            id,
            flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
            srcfd: descriptor.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the kernel reads one such structure.
        check(unsafe { libc::ioctl(self.fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw const request) })
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_structures_are_ours_or_longer() {
        let sizes = Sizes::of_the_kernel().unwrap();
        assert!(sizes.notification >= size_of::<libc::seccomp_notif>(), "{sizes:?}");
        assert!(sizes.response >= size_of::<libc::seccomp_notif_resp>(), "{sizes:?}");
        assert_eq!(zeros::<libc::seccomp_notif_resp>(0), [0; 3]);
        assert_eq!(zeros::<libc::seccomp_notif>(81).len(), 11);
    }
}
