//! The path manager that new sockets of a network namespace latch: the sysctl net.mptcp.path_manager, or
//! net.mptcp.pm_type before Linux 6.15.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::namespace::sysctls::{read_open as read_sysctl, write_open as write};
use crate::namespace::{new_socket, Namespace};
use crate::netlink::broker;
use crate::sys::credentials::{self, Owner};
use crate::sys::lock::lock;
use crate::sys::program::{pending, ENDING};

const CAP_NET_ADMIN: u64 = 1 << 12;

/// How long to wait for another process to change the path manager, which takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// After a wait for the lock has failed, callers do not wait for it for some time.
mod impatience {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use crate::sys::monotonic_ns;

    const NS: u64 = 10_000_000_000;

    /// In which namespace, by cookie. The last one is enough: most processes use only one.
    static WHERE: AtomicU64 = AtomicU64::new(0);
    static END_NS: AtomicU64 = AtomicU64::new(0);

    pub fn begin(cookie: u64) {
        END_NS.store(monotonic_ns().saturating_add(NS), Relaxed);
        WHERE.store(cookie, Relaxed);
    }

    pub fn lasts(cookie: u64) -> bool {
        WHERE.load(Relaxed) == cookie && monotonic_ns() < END_NS.load(Relaxed)
    }
}

/// A path manager that this package knows. A kernel may have others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathManager {
    Kernel,
    Userspace,
}

impl PathManager {
    pub const ALL: [PathManager; 2] = [PathManager::Kernel, PathManager::Userspace];

    pub fn of_name(name: &str) -> Option<PathManager> {
        PathManager::ALL.into_iter().find(|known| known.name() == name)
    }

    /// The one with this name; any other name is an error.
    pub fn parse(name: &str) -> Result<PathManager> {
        let wrong = || Error::value(format!("path_manager must be 'kernel' or 'userspace', not {name:?}"));
        PathManager::of_name(name).ok_or_else(wrong)
    }

    /// As in the sysctl net.mptcp.path_manager.
    pub fn name(self) -> &'static str {
        match self {
            PathManager::Kernel => "kernel",
            PathManager::Userspace => "userspace",
        }
    }
}

impl Namespace {
    /// The path manager that new sockets of this namespace get: "kernel", "userspace" or another's name.
    pub fn path_manager(&self) -> Result<String> {
        let file = self.path_manager.as_ref().map_err(no_path_manager)?;
        let text =
            read_sysctl(file).map_err(|error| Error::call("reading net.mptcp.path_manager", &error))?;
        Ok(match text.as_str() {
            "0" => "kernel".to_owned(),
            "1" => "userspace".to_owned(),
            _ => text,
        })
    }

    /// Sets it, and returns the previous one. Needs CAP_NET_ADMIN in the user namespace that owns this namespace.
    pub fn set_path_manager(&self, name: &str) -> Result<String> {
        let _locked = match self.lock() {
            // A process that holds the lock this long is not changing the path manager, which takes microseconds.
            Err(error) if matches!(error.errno(), libc::EBUSY | libc::EINTR) => None,
            locked => Some(locked?),
        };
        self.change_path_manager(name)
    }

    fn change_path_manager(&self, name: &str) -> Result<String> {
        let before = self.path_manager()?;
        if before != name {
            let file = self.path_manager.as_ref().map_err(no_path_manager)?;
            write_path_manager(file, name)?;
        }
        Ok(before)
    }

    /// Excludes all others that change the path manager through this package, until the guard is dropped.
    ///
    /// Any process may hold this lock, even for ever: EBUSY after [`PATIENCE`], and at once for some time from then on.
    /// EINTR where a signal is pending that the caller has blocked and that would end it.
    fn lock(&self) -> Result<Locked<'_>> {
        self.lock_within(PATIENCE)
    }

    fn lock_within(&self, patience: Duration) -> Result<Locked<'_>> {
        let failed = |error: &io::Error| Error::call("flock of the network namespace", error);
        let file = self.file.as_ref().as_ref().map_err(failed)?;
        let threads = lock(&self.changing);
        let start = Instant::now();
        let patience = if impatience::lasts(self.cookie) { Duration::ZERO } else { patience };
        let mut pause = Duration::from_micros(50);
        loop {
            match file.try_lock() {
                Ok(()) => {
                    return Ok(Locked { file, _threads: threads });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(TryLockError::Error(error)) => return Err(failed(&error)),
            }
            if start.elapsed() >= patience {
                if !patience.is_zero() {
                    impatience::begin(self.cookie);
                }
                return Err(is_held(file));
            }
            if pending(&ENDING).is_some() {
                return Err(Error::os(libc::EINTR, "waiting for the lock of the network namespace"));
            }
            // Nothing reports when it is released.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// Has new sockets of this namespace latch a path manager, until what this returns is dropped. EBUSY where another
    /// process holds the lock for longer than `patience`.
    pub fn hold_path_manager(&self, name: PathManager, patience: Duration) -> Result<Held<'_>> {
        let locked = self.lock_within(patience)?;
        let before = self.change_path_manager(name.name())?;
        Ok(Held { namespace: self, before, leaves: false, _locked: locked })
    }

    /// A new socket in the calling thread's namespace, which must be this one, latched to a path manager.
    fn latched_socket(&self, name: &str, make: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
        let _locked = match self.lock() {
            Ok(locked) => locked,
            // While nobody else can take the lock either, a value that is right already stays.
            Err(error) if error.errno() == libc::EBUSY && self.path_manager()? == name => {
                let socket = make()?;
                return if self.path_manager()? == name { Ok(socket) } else { Err(error) };
            }
            Err(error) => return Err(error),
        };
        let before = self.change_path_manager(name)?;
        let socket = make();
        self.change_path_manager(&before)?;
        socket
    }
}

/// The flock and the mutex behind `Namespace::lock`.
#[derive(Debug)]
struct Locked<'a> {
    file: &'a File,
    _threads: MutexGuard<'a, ()>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// The path manager of a namespace is another for a moment.
#[derive(Debug)]
pub struct Held<'a> {
    namespace: &'a Namespace,
    before: String,
    leaves: bool,
    _locked: Locked<'a>,
}

impl Held<'_> {
    /// Leaves it, and returns the one before.
    pub fn leave(mut self) -> String {
        self.leaves = true;
        std::mem::take(&mut self.before)
    }
}

impl Drop for Held<'_> {
    /// Before the lock is given back, which is a member.
    fn drop(&mut self) {
        if !self.leaves {
            let _ = self.namespace.change_path_manager(&self.before);
        }
    }
}

/// The error of a lock that another process does not release.
fn is_held(file: &File) -> Error {
    let holder = match holder(file) {
        Some(process) => format!("process {process} holds"),
        None => "another process holds".to_owned(),
    };
    Error::os(
        libc::EBUSY,
        format!(
            "{holder} the lock (flock of the network namespace's file) that processes take to change \
             net.mptcp.path_manager for a moment, and does not release it: end that process, or set \
             net.mptcp.path_manager itself"
        ),
    )
}

/// The process that holds the flock of a file, by /proc/locks.
fn holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // "1: FLOCK ADVISORY WRITE 1234 00:04:4026531833 0 EOF"; a waiting process has an arrow after the number.
        let mut words = line.split_ascii_whitespace().skip(1);
        let is_flock = words.next() == Some("FLOCK");
        let (process, file) = (words.nth(2)?, words.next()?);
        let is_it = is_flock && file.rsplit(':').next()?.parse() == Ok(inode);
        is_it.then(|| process.parse().ok())?
    })
}

fn no_path_manager(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Error::unsupported(
            "this kernel has neither net.mptcp.path_manager nor net.mptcp.pm_type (CONFIG_MPTCP, Linux 5.19), or /proc \
             is not mounted",
        ),
        _ => Error::call("opening the sysctl net.mptcp.path_manager", error),
    }
}

fn write_path_manager(file: &File, name: &str) -> Result<()> {
    // pm_type holds a number where path_manager holds a name.
    let is_number = read_sysctl(file).is_ok_and(|text| text.parse::<u32>().is_ok());
    let value = match (is_number, name) {
        (true, "kernel") => "0",
        (true, "userspace") => "1",
        (true, _) => return Err(Error::value(format!("this kernel has no path manager {name:?}"))),
        (false, name) => name,
    };
    write(file, "net.mptcp.path_manager", value)
}

/// The namespace, by its cookie, in which this process was refused to set the path manager last: trying it each time takes a
/// quarter of what the broker takes.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Whether trying to set the path manager would be refused again. Any capability may have changed that.
fn is_refused_in(cookie: u64) -> bool {
    REFUSED.load(Ordering::Relaxed) == cookie && !credentials::has(CAP_NET_ADMIN)
}

/// Refuses a Multipath TCP socket of a family or type that it cannot have. SOCK_NONBLOCK and SOCK_CLOEXEC may be part of
/// `kind`.
pub fn check_socket(family: i32, kind: i32, protocol: i32) -> Result<()> {
    if protocol != libc::IPPROTO_MPTCP {
        return Ok(());
    }
    if !matches!(family, libc::AF_INET | libc::AF_INET6) {
        let name = match family {
            libc::AF_UNIX => "AF_UNIX".to_owned(),
            libc::AF_NETLINK => "AF_NETLINK".to_owned(),
            libc::AF_PACKET => "AF_PACKET".to_owned(),
            libc::AF_VSOCK => "AF_VSOCK".to_owned(),
            other => other.to_string(),
        };
        return Err(Error::value(format!(
            "family must be AF_INET or AF_INET6 for Multipath TCP, not {name}"
        )));
    }
    let kind = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    if kind != libc::SOCK_STREAM {
        let name = match kind {
            libc::SOCK_DGRAM => "SOCK_DGRAM".to_owned(),
            libc::SOCK_RAW => "SOCK_RAW".to_owned(),
            libc::SOCK_SEQPACKET => "SOCK_SEQPACKET".to_owned(),
            other => other.to_string(),
        };
        return Err(Error::value(format!("type must be SOCK_STREAM for Multipath TCP, not {name}")));
    }
    Ok(())
}

/// A new socket in the calling thread's namespace. `path_manager` is latched for it alone; the namespace's own
/// value is changed for some microseconds, under a lock, and put back. `owner` is whom the socket and its subflows belong
/// to; absent, the caller.
pub fn create_socket(
    family: i32,
    kind: i32,
    protocol: i32,
    path_manager: Option<&str>,
    owner: Option<Owner>,
) -> Result<OwnedFd> {
    check_socket(family, kind, protocol)?;
    let make = || match owner {
        None => new_socket(family, kind, protocol),
        Some(owner) => owner
            .make(|| new_socket(family, kind, protocol))
            .map_err(|error| Error::call("setfsuid and setfsgid", &error))?,
    };
    match path_manager {
        None => make(),
        Some(name) => {
            let namespace = Namespace::current()?;
            let find_broker = || broker::of(namespace.cookie);
            if let Some(broker) = is_refused_in(namespace.cookie).then(find_broker).flatten() {
                return broker.hold(name, make);
            }
            match namespace.latched_socket(name, make) {
                Err(error) if matches!(error.errno(), libc::EPERM | libc::EROFS) => {
                    let broker = find_broker().ok_or(error)?;
                    REFUSED.store(namespace.cookie, Ordering::Relaxed);
                    broker.hold(name, make)
                }
                socket => socket,
            }
        }
    }
}
