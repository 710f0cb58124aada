//! Time: a timer on an absolute clock, waiting for several descriptors, and the scheduling of the calling thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// A timer on CLOCK_MONOTONIC (timerfd): it expires at `first_ns` and every `interval_ns` from there, whenever it is
/// looked at, and counts.
pub fn timer(first_ns: u64, interval_ns: u64) -> io::Result<OwnedFd> {
    let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
    // SAFETY: no pointers; the descriptor is new and ours.
    let timer = unsafe { OwnedFd::from_raw_fd(check(libc::timerfd_create(libc::CLOCK_MONOTONIC, flags))?) };
    set_timer(timer.as_raw_fd(), first_ns, interval_ns)?;
    Ok(timer)
}

/// Sets a timer again, as if it had never expired. It never does with a `first_ns` of 0.
pub fn set_timer(timer: RawFd, first_ns: u64, interval_ns: u64) -> io::Result<()> {
    let time = |ns: u64| libc::timespec {
        tv_sec: (ns / 1_000_000_000) as libc::c_long,
        tv_nsec: (ns % 1_000_000_000) as libc::c_long,
    };
    let times = libc::itimerspec { it_interval: time(interval_ns), it_value: time(first_ns) };
    let absolute = libc::TFD_TIMER_ABSTIME;
    // SAFETY: no pointers but to `times`, which outlives the call.
    check(unsafe { libc::timerfd_settime(timer, absolute, &raw const times, std::ptr::null_mut()) }).map(drop)
}

/// Waits until one of some descriptors is readable, with no deadline; tells which.
pub fn wait_any(fds: &[RawFd], ready: &mut Vec<bool>) -> io::Result<()> {
    let mut polled: Vec<_> =
        fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    loop {
        // SAFETY: the pointer and the count describe `polled`, which outlives the call.
        match check(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) }) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    ready.clear();
    ready.extend(polled.iter().map(|polled| polled.revents != 0));
    Ok(())
}

/// How often a timer has expired since it was last asked.
pub fn expirations(timer: RawFd) -> io::Result<u64> {
    let mut count = [0; 8];
    // SAFETY: the pointer and the length describe `count`, which outlives the call.
    match check(unsafe { libc::read(timer, count.as_mut_ptr().cast(), count.len()) } as libc::c_int) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

/// How many jiffies a second has (CONFIG_HZ): the coarse clock advances by one.
pub fn hz() -> u64 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to `resolution`, which outlives the call.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) };
    let ns = resolution.tv_nsec.max(1) as u64;
    (1_000_000_000 + ns / 2) / ns
}

/// Gives the calling thread, and it alone, the lowest real-time priority (SCHED_FIFO). Needs CAP_SYS_NICE or
/// RLIMIT_RTPRIO.
pub fn become_real_time() -> io::Result<()> {
    /// `struct sched_param` of the kernel. That of a C library may have more members, and musl's function does nothing.
    #[repr(C)]
    struct Parameters {
        sched_priority: libc::c_int,
    }
    let parameters = Parameters { sched_priority: 1 };
    // SAFETY: `parameters` outlives the call; 0 is the calling thread.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const parameters) };
    check(result as libc::c_int).map(drop)
}

/// Asks for short turns on the processor for the calling thread, which then come sooner (sched_setattr). Linux before
/// 6.12 does not care.
pub fn prefer_short_turns() -> io::Result<()> {
    // SAFETY: sched_attr is plain data for which all zeros are valid.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = libc::SCHED_OTHER as u32;
    // The shortest that the kernel gives.
    attributes.sched_runtime = 100_000;
    // SAFETY: the kernel reads as many bytes as the structure says that it has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(result as libc::c_int).map(drop)
}

/// Processor time of the calling thread, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// How often the calling thread has slept: given the processor up before its time was over (getrusage, ru_nvcsw).
pub fn thread_sleeps() -> u64 {
    // SAFETY: rusage is plain data for which all zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` outlives the call, which fails only for an unknown subject.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nvcsw as u64
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

/// CLOCK_MONOTONIC and CLOCK_REALTIME at one moment.
pub fn both_ns() -> (u64, u64) {
    /// More than reading two clocks takes.
    const AT_ONCE: u64 = 5_000;
    let mut best = (u64::MAX, 0, 0);
    // Again if something came in between.
    for _ in 0..4 {
        let before = clock_ns(libc::CLOCK_MONOTONIC);
        let realtime = realtime_ns();
        let took = clock_ns(libc::CLOCK_MONOTONIC) - before;
        if took < best.0 {
            best = (took, before + took / 2, realtime);
        }
        if took < AT_ONCE {
            break;
        }
    }
    (best.1, best.2)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call, which fails only for an unknown clock.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_counts_what_was_not_looked_at() {
        let start = super::super::monotonic_ns();
        let timer = timer(start, 1_000_000).unwrap();
        let mut ready = Vec::new();
        let mut total = 0;
        while total < 5 {
            wait_any(&[timer.as_raw_fd()], &mut ready).unwrap();
            assert_eq!(ready, [true]);
            total += expirations(timer.as_raw_fd()).unwrap();
        }
        // Expirations are at the start and every millisecond from there: no more than have passed.
        assert!(super::super::monotonic_ns() >= start + (total - 1) * 1_000_000);
        set_timer(timer.as_raw_fd(), 0, 0).unwrap();
        assert_eq!(expirations(timer.as_raw_fd()).unwrap(), 0);
    }
}
