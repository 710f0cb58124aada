//! Who made a call: the thread that waits for the answer, and what it may do.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Supervisor;
use crate::abi::{address, uapi};
use crate::connection::{Connection, Subflow};
use crate::enhanced_api;
use crate::error::{Error, Result};
use crate::options;
use crate::options::table::{SocketOption, SO_BINDTOIFINDEX, TCP_CONGESTION};
use crate::sys::credentials::{Owner, Rights};
use crate::sys::seccomp::Notification;
use crate::sys::{self, descriptor, Wanted};

/// The options that a program may set on one subflow. They are those that setsockopt knows, too: bpf_setsockopt has others
/// that no program may set on a socket of its own, TCP_BPF_IW and SK_BPF_CB_FLAGS for example, and newer kernels may
/// have more.
const SETTABLE: [(i32, i32); 27] = {
    use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
    [
        (SOL_SOCKET, libc::SO_REUSEADDR),
        (SOL_SOCKET, libc::SO_SNDBUF),
        (SOL_SOCKET, libc::SO_RCVBUF),
        (SOL_SOCKET, libc::SO_KEEPALIVE),
        (SOL_SOCKET, libc::SO_PRIORITY),
        (SOL_SOCKET, libc::SO_REUSEPORT),
        (SOL_SOCKET, libc::SO_BINDTODEVICE),
        (SOL_SOCKET, libc::SO_MARK),
        (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
        (SOL_SOCKET, libc::SO_BINDTOIFINDEX),
        (SOL_SOCKET, uapi::SO_TXREHASH),
        (IPPROTO_TCP, libc::TCP_NODELAY),
        (IPPROTO_TCP, libc::TCP_MAXSEG),
        (IPPROTO_TCP, libc::TCP_KEEPIDLE),
        (IPPROTO_TCP, libc::TCP_KEEPINTVL),
        (IPPROTO_TCP, libc::TCP_KEEPCNT),
        (IPPROTO_TCP, libc::TCP_SYNCNT),
        (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
        (IPPROTO_TCP, libc::TCP_CONGESTION),
        (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
        (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
        (IPPROTO_TCP, libc::TCP_SAVE_SYN),
        (IPPROTO_TCP, uapi::TCP_RTO_MAX_MS),
        (IPPROTO_IP, libc::IP_TOS),
        (IPPROTO_IPV6, libc::IPV6_TCLASS),
        (IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL),
    ]
};

/// A file of nsfs: which namespace it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceFile(u64, u64);

impl NamespaceFile {
    /// The namespace of a thread, or of the calling one; `kind` as in /proc/PID/ns. Another thread's needs ptrace access.
    pub fn of(thread: Option<i32>, kind: &str) -> io::Result<NamespaceFile> {
        let thread = thread.map_or("thread-self".to_owned(), |thread| thread.to_string());
        let metadata = fs::metadata(format!("/proc/{thread}/ns/{kind}"))?;
        Ok(NamespaceFile(metadata.dev(), metadata.ino()))
    }
}

/// The thread behind a notification. What /proc has under its id belongs to that thread as long as the call
/// waits, so it is acted on only after [`Caller::check`].
pub struct Caller<'a> {
    supervisor: &'a Supervisor<'a>,
    id: u64,
    thread: i32,
    process: i32,
    /// The owner of its files, and so of its sockets.
    pub owner: Owner,
    /// The effective user.
    uid: u32,
    /// Effective ones, in its own user namespace.
    capabilities: u64,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

impl<'a> Caller<'a> {
    pub fn of(supervisor: &'a Supervisor<'a>, call: &Notification) -> io::Result<Caller<'a>> {
        // Bytes: the process's name, which is among them, need not be UTF-8.
        let status = fs::read(format!("/proc/{}/status", call.thread))?;
        let field = |name: &str| {
            let line =
                status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()));
            let line = line.and_then(|line| std::str::from_utf8(line).ok());
            line.map(str::split_ascii_whitespace).ok_or_else(gone)
        };
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<u32>().ok()).ok_or_else(gone);
        let capabilities = field("CapEff:")?.next().and_then(|word| u64::from_str_radix(word, 16).ok());
        let caller = Caller {
            supervisor,
            id: call.id,
            thread: call.thread,
            process: number(field("Tgid:")?.next())? as i32,
            // Real, effective, saved, file system.
            uid: number(field("Uid:")?.nth(1))?,
            owner: Owner { uid: number(field("Uid:")?.nth(3))?, gid: number(field("Gid:")?.nth(3))? },
            capabilities: capabilities.ok_or_else(gone)?,
        };
        caller.check()?;
        Ok(caller)
    }

    /// Fails if what was read by the thread's id may be of another one.
    pub fn check(&self) -> io::Result<()> {
        if self.supervisor.listener.is_waiting(self.id) {
            Ok(())
        } else {
            Err(gone())
        }
    }

    /// Whether it is known to be in our own network namespace.
    pub fn shares_network(&self) -> bool {
        self.shares("net") && self.check().is_ok()
    }

    fn shares(&self, kind: &str) -> bool {
        match (NamespaceFile::of(Some(self.thread), kind), NamespaceFile::of(None, kind)) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            _ => false,
        }
    }

    /// What it may do.
    fn rights(&self) -> io::Result<Rights> {
        let namespace = if self.shares("user") {
            None
        } else {
            Some(fs::File::open(format!("/proc/{}/ns/user", self.thread))?)
        };
        self.check()?;
        Ok(Rights { uid: self.uid, capabilities: self.capabilities, user_namespace: namespace })
    }

    /// What `step`, which makes system calls only, returns for a TCP socket created with the caller's rights.
    fn tried(
        &self,
        what: &str,
        family: u8,
        prepare: impl FnOnce(RawFd) -> io::Result<()>,
        step: impl FnOnce(RawFd) -> io::Result<()>,
    ) -> Result<()> {
        let socket = Wanted::Socket {
            family: i32::from(family),
            kind: libc::SOCK_STREAM,
            protocol: libc::IPPROTO_TCP,
        };
        let [socket] = sys::open_here(&[socket]);
        let tried = socket.and_then(|socket| {
            let fd = socket.as_raw_fd();
            prepare(fd)?;
            self.rights()?.tried(|| step(fd))
        });
        tried.map_err(|error| Error::call(&format!("{what} on a TCP socket of the caller's"), &error))
    }

    /// The number of descriptors of its process, and the limit.
    fn descriptors(&self) -> io::Result<(usize, usize)> {
        let process = self.process;
        // Since Linux 6.2 their number is the size of the directory.
        let open = match fs::metadata(format!("/proc/{process}/fd"))?.len() {
            0 => fs::read_dir(format!("/proc/{process}/fd"))?.count(),
            size => size as usize,
        };
        let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let limit = limit.and_then(|line| line.split_ascii_whitespace().next()).ok_or_else(gone)?;
        self.check()?;
        Ok((open, limit.parse().unwrap_or(usize::MAX)))
    }

    /// Whether its program has one of these names: a path, or the last part of one, or a process's name.
    pub fn is_program(&self, names: &[Vec<u8>]) -> bool {
        if names.is_empty() {
            return false;
        }
        let path = fs::read_link(format!("/proc/{}/exe", self.process)).unwrap_or_default();
        let comm = fs::read(format!("/proc/{}/comm", self.process)).unwrap_or_default();
        let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
        let file = path.file_name().map(OsStrExt::as_bytes);
        self.check().is_ok()
            && names.iter().any(|name| {
                Path::new(OsStr::from_bytes(name)) == path
                    || Some(name.as_slice()) == file
                    // The kernel keeps 15 bytes.
                    || (!name.contains(&b'/') && !comm.is_empty() && &name[..name.len().min(15)] == comm)
            })
    }

    /// A duplicate of a descriptor of the calling thread.
    pub fn descriptor(&self, fd: i32) -> io::Result<OwnedFd> {
        let descriptor = descriptor::take_from_thread(self.thread, self.process, fd)?;
        self.check()?;
        Ok(descriptor)
    }
}

impl enhanced_api::Caller for Caller<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        sys::memory::read(self.thread, address, buffer)?;
        self.check()
    }

    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        // The descriptor is certainly the caller's if the call still waits after it was opened.
        let memory = sys::memory::Memory::of_thread(self.thread)?;
        self.check()?;
        memory.write(address, bytes)
    }

    fn still_waits(&self) -> bool {
        self.check().is_ok()
    }

    /// Each subflow counts as the descriptor that a program takes for a connection.
    fn may_open(&self, token: u32) -> Result<()> {
        let failed = |error: io::Error| Error::call("counting the caller's descriptors", &error);
        let (open, limit) = self.descriptors().map_err(failed)?;
        let Supervisor { connections, namespace, .. } = self.supervisor;
        if connections.open_one(namespace, token, self.process, limit.saturating_sub(open)) {
            return Ok(());
        }
        Err(Error::os(libc::EMFILE, format!("{limit} descriptors and subflows (RLIMIT_NOFILE)")))
    }

    /// Binds a new TCP socket as the caller would.
    fn may_bind(&self, local: SocketAddr) -> Result<()> {
        let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
        if local.port() >= first {
            return Ok(());
        }
        let bound = self.tried("bind", address::family(local.ip()), |_| Ok(()), |fd| sys::bind(fd, local));
        match bound {
            Err(error) if matches!(error.errno(), libc::EACCES | libc::EPERM) => Err(error),
            // Anything else, such as a port in use, is reported by the subflow.
            _ => Ok(()),
        }
    }

    /// Sets it on a new TCP socket that is bound and congested as the subflow is, as the caller would.
    fn may_set(
        &self,
        connection: &dyn Connection,
        subflow: &Subflow,
        option: SocketOption,
        value: &[u8],
    ) -> Result<()> {
        if !SETTABLE.contains(&(option.level, option.number)) {
            let message = format!("setsockopt({option}): a program cannot set this on one subflow");
            return Err(Error::os(libc::EINVAL, message));
        }
        let family = address::family(subflow.local.ip().to_canonical());
        let interface = subflow.entry.map_or(0, |entry| entry.tuple.interface);
        let congestion = match option {
            TCP_CONGESTION => Some(options::get(connection, subflow, option, uapi::TCP_CA_NAME_MAX)?),
            _ => None,
        };
        let prepare = |fd| {
            if interface != 0 {
                let SocketOption { level, number } = SO_BINDTOIFINDEX;
                sys::setsockopt(fd, level, number, &interface.to_ne_bytes())?;
            }
            // The present value may be set again, restricted or not.
            congestion.as_ref().map_or(Ok(()), |name| sys::setsockopt(fd, option.level, option.number, name))
        };
        let call = format!("setsockopt({option})");
        // The result is the caller's, whatever it is: BPF may accept a value that setsockopt refuses.
        self.tried(&call, family, prepare, |fd| sys::setsockopt(fd, option.level, option.number, value))
    }
}
