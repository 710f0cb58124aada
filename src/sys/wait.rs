//! Waiting for descriptors: a counter that wakes who waits, a timer, and poll.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::check;

/// A descriptor that is readable from `set` until `reset` (eventfd).
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no pointers; the descriptor is new and ours.
        let fd =
            unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
        Ok(EventFd(File::from(fd)))
    }

    /// Fails only where the counter is full, which is readable too.
    pub fn set(&self) {
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    pub fn reset(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that becomes readable after a time (timerfd).
#[derive(Debug)]
pub struct Timer(File);

impl Timer {
    pub fn new() -> io::Result<Timer> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no pointers; the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::timerfd_create(libc::CLOCK_MONOTONIC, flags))?) };
        Ok(Timer(File::from(fd)))
    }

    /// Readable `after` so long, which must not be zero; not before, even if it was set to another time.
    pub fn set(&self, after: Duration) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(libc::c_long::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        let value = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the pointer is of a value that outlives the call; no old value is asked for.
        let _ = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &value, std::ptr::null_mut()) };
    }

    pub fn reset(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Waits until one of the descriptors is readable, or broken, and tells which; none of them after `timeout`. Negative
/// ones never are. A signal is the error Interrupted.
pub fn readable<const N: usize>(fds: [RawFd; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    poll(&mut polled, timeout)?;
    Ok(polled.map(|fd| fd.revents != 0))
}

/// The same of one descriptor, without sleeping, as waking up takes longer than what is waited for: whether it is readable
/// before the time is over. Whoever else wants the processor gets it.
pub fn soon_readable(fd: RawFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        match readable([fd], Some(Duration::ZERO)) {
            Ok([false]) if Instant::now() < end => std::thread::yield_now(),
            looked => return matches!(looked, Ok([true])),
        }
    }
}

/// The same, and whether one more descriptor can be written to.
pub fn ready<const N: usize>(
    fds: [RawFd; N],
    writable: RawFd,
    timeout: Option<Duration>,
) -> io::Result<([bool; N], bool)> {
    let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let mut polled: Vec<libc::pollfd> = fds.iter().map(|fd| entry(*fd, libc::POLLIN)).collect();
    polled.push(entry(writable, libc::POLLOUT));
    poll(&mut polled, timeout)?;
    let is_ready = |position: usize| polled.get(position).is_some_and(|fd| fd.revents != 0);
    Ok((std::array::from_fn(is_ready), is_ready(N)))
}

fn poll(polled: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::c_long::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = polled.len() as libc::nfds_t;
    // SAFETY: the first pointer and the count describe `polled`, the second is null or of a value that outlives the
    // call; no signal mask is given.
    check(unsafe { libc::ppoll(polled.as_mut_ptr(), count, timeout, std::ptr::null()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_readable_after_its_time() {
        let timer = Timer::new().unwrap();
        let look = |timeout| readable([timer.as_raw_fd()], Some(timeout)).unwrap();
        timer.set(Duration::from_secs(60));
        assert_eq!(look(Duration::ZERO), [false]);
        timer.set(Duration::from_millis(1));
        assert_eq!(look(Duration::from_secs(20)), [true]);
        timer.reset();
        assert_eq!(look(Duration::ZERO), [false]);
    }

    #[test]
    fn a_descriptor_is_readable_from_set_until_reset() {
        let (one, other) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let look = || readable([one.as_raw_fd(), -1, other.as_raw_fd()], Some(Duration::ZERO)).unwrap();
        assert_eq!(look(), [false, false, false]);
        other.set();
        other.set();
        assert_eq!(look(), [false, false, true]);
        other.reset();
        assert_eq!(look(), [false, false, false]);
        one.set();
        let (read, write) = (one.as_raw_fd(), other.as_raw_fd());
        assert_eq!(ready([read, write], write, None).unwrap(), ([true, false], true));
        assert!(soon_readable(read, Duration::ZERO) && !soon_readable(write, Duration::from_millis(1)));
        assert_eq!(ready([write], -1, Some(Duration::ZERO)).unwrap(), ([false], false));
    }
}
