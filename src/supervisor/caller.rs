//! Who made a call: the thread that waits for the answer, and what it may do.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::abi::address;
use crate::connection::Subflow;
use crate::enhanced_api;
use crate::error::{Error, Result};
use crate::options::table::SocketOption;
use crate::sys::credentials::Owner;
use crate::sys::seccomp::{Listener, Notification};
use crate::sys::{self, credentials, descriptor, Wanted};

const CAP_NET_BIND_SERVICE: u32 = 10; // <linux/capability.h>

/// A file of nsfs: which namespace it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceFile(u64, u64);

impl NamespaceFile {
    /// Of a thread, or of the calling one; `kind` as in /proc/PID/ns. Of another it needs ptrace access to it.
    pub fn of(thread: Option<i32>, kind: &str) -> io::Result<NamespaceFile> {
        let thread = thread.map_or("thread-self".to_owned(), |thread| thread.to_string());
        let metadata = fs::metadata(format!("/proc/{thread}/ns/{kind}"))?;
        Ok(NamespaceFile(metadata.dev(), metadata.ino()))
    }
}

/// The thread behind a notification. What /proc tells by its id is of that thread as long as the call waits, so
/// whatever is done on the ground of it is done only after [`Listener::is_waiting`].
#[derive(Debug)]
pub struct Caller<'a> {
    listener: &'a Listener,
    id: u64,
    thread: i32,
    process: i32,
    /// Whom its files, and so its sockets, belong to.
    pub owner: Owner,
    /// Effective ones, in its own user namespace.
    capabilities: u64,
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

impl<'a> Caller<'a> {
    pub fn of(listener: &'a Listener, call: &Notification) -> io::Result<Caller<'a>> {
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
            listener,
            id: call.id,
            thread: call.thread,
            process: number(field("Tgid:")?.next())? as i32,
            // Real, effective, saved, file system.
            owner: Owner { uid: number(field("Uid:")?.nth(3))?, gid: number(field("Gid:")?.nth(3))? },
            capabilities: capabilities.ok_or_else(gone)?,
        };
        caller.check()?;
        Ok(caller)
    }

    /// Fails if what was read by the thread's id may be of another one.
    pub fn check(&self) -> io::Result<()> {
        if self.listener.is_waiting(self.id) {
            Ok(())
        } else {
            Err(gone())
        }
    }

    /// Whether it is in our own network namespace. Not if that cannot be told.
    pub fn shares_network(&self) -> bool {
        self.shares("net") && self.check().is_ok()
    }

    fn shares(&self, kind: &str) -> bool {
        match (NamespaceFile::of(Some(self.thread), kind), NamespaceFile::of(None, kind)) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            _ => false,
        }
    }

    /// Effective capabilities that count in our user namespace.
    fn capabilities_here(&self) -> u64 {
        if self.shares("user") && self.check().is_ok() {
            self.capabilities
        } else {
            0
        }
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
        // What is held is the caller's for good if the call still waits after it was opened.
        let memory = sys::memory::Memory::of_thread(self.thread)?;
        self.check()?;
        memory.write(address, bytes)
    }

    fn may_bind(&self, local: SocketAddr) -> Result<()> {
        let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
        if local.port() >= first || self.capabilities_here() & 1 << CAP_NET_BIND_SERVICE != 0 {
            return Ok(());
        }
        Err(Error::os(libc::EACCES, format!("port {} needs CAP_NET_BIND_SERVICE", local.port())))
    }

    /// Sets it on a new TCP socket with the caller's capabilities and no others.
    fn may_set(&self, subflow: &Subflow, option: SocketOption, value: &[u8]) -> Result<()> {
        let tried = credentials::limited_to(self.capabilities_here(), || {
            let [socket] = sys::open_here(&[Wanted::Socket {
                family: i32::from(address::family(subflow.local.ip().to_canonical())),
                kind: libc::SOCK_STREAM,
                protocol: libc::IPPROTO_TCP,
            }]);
            let socket = socket?;
            sys::setsockopt(socket.as_raw_fd(), option.level, option.number, value)
        });
        match tried.and_then(|result| result) {
            // Anything else is for the subflow to say: this socket is not even connected.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                Err(Error::call("setting the option on a socket of the caller's", &error))
            }
            _ => Ok(()),
        }
    }
}
