//! BPF programs written out as instructions, and the kernel's own types: what every room that loads a program shares.
//! Nothing is pinned: a program ends with the process.

pub mod btf;
pub mod insn;

use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{describe, Error, Result};
use crate::sys;
use crate::sys::bpf::ProgramKind;

/// An errno of the kernel's own that user space has no name for: it means EOPNOTSUPP.
pub const ENOTSUPP: i32 = 524;

/// Kernels before 6.4 keep the beginning of a log that is too long, later ones the end.
const LOG_SIZE: usize = 1 << 20;
const LOG_LINES: usize = 8;

/// What a program is for, in the words of its errors.
#[derive(Debug)]
pub struct Purpose {
    /// What a kernel that lacks something cannot do.
    pub cannot: &'static str,
    /// The privilege that it takes, and what can be done without.
    pub needs: &'static str,
}

impl Purpose {
    pub fn unsupported(&self, why: &str) -> Error {
        Error::unsupported(format!("this kernel cannot {}: {why}", self.cannot))
    }

    pub fn without_btf(&self, error: &btf::BtfError) -> Error {
        self.unsupported(&format!("{}: {error}", btf::KERNEL))
    }

    /// A command of bpf(2) failed.
    pub fn refused(&self, command: &str, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::EPERM) => Error::permission(format!("{command}: {}", self.needs)),
            Some(libc::ENOSYS) => self.unsupported("it has no bpf(2) (CONFIG_BPF_SYSCALL)"),
            Some(ENOTSUPP) => self.unsupported(command),
            errno => {
                let errno = errno.unwrap_or(libc::EIO);
                Error::os(errno, format!("{command}: {}", describe(errno)))
            }
        }
    }

    /// The running kernel's BTF.
    pub fn kernel_btf(&self) -> Result<Vec<u8>> {
        std::fs::read(btf::KERNEL).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => {
                self.unsupported("it has no BTF (CONFIG_DEBUG_INFO_BTF), or /sys is not mounted")
            }
            _ => Error::call(btf::KERNEL, &error),
        })
    }

    /// Loads a program; what the verifier says of one that it refuses is in the error.
    pub fn load(
        &self,
        kind: ProgramKind,
        instructions: &[u8],
        license: &CStr,
        name: &str,
    ) -> Result<OwnedFd> {
        let load = |log: &mut [u8]| sys::bpf::load_program(kind, instructions, license, name, log);
        let error = match load(&mut []) {
            Ok(program) => return Ok(program),
            Err(error) => error,
        };
        match error.raw_os_error() {
            // What the verifier does not know: a helper, a type, the iterator itself. EACCES is not a privilege here.
            Some(libc::EACCES | libc::EINVAL | libc::E2BIG | ENOTSUPP) => {}
            _ => return Err(self.refused("BPF_PROG_LOAD", &error)),
        }
        // Once more, for the verifier's words.
        let mut log = vec![0; LOG_SIZE];
        match load(&mut log) {
            Ok(program) => Ok(program),
            Err(_) => Err(self.unsupported(&format!("BPF_PROG_LOAD: {error}: {}", last_lines(&log)))),
        }
    }
}

/// A program that the kernel runs once for every TCP socket of a network namespace, with the socket locked, and once more
/// without a socket at the end. It ends the iteration by returning 1.
#[derive(Debug)]
pub struct TcpIterator {
    link: OwnedFd,
}

impl TcpIterator {
    /// The kernel function that names what is iterated over.
    pub const TARGET: &'static str = "bpf_iter_tcp";
    /// `sk_common` in `struct bpf_iter__tcp`, the program's argument.
    pub const CONTEXT_SOCKET: i16 = 8;

    /// `target` is the id of [`TcpIterator::TARGET`] in the kernel's BTF.
    pub fn load(
        purpose: &Purpose,
        target: u32,
        instructions: &[u8],
        license: &CStr,
        name: &str,
    ) -> Result<TcpIterator> {
        let program = purpose.load(ProgramKind::Iterator { target }, instructions, license, name)?;
        let link = sys::bpf::create_link(program.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => purpose.unsupported("it has no links of BPF iterators"),
            _ => purpose.refused("BPF_LINK_CREATE", &error),
        })?;
        Ok(TcpIterator { link })
    }

    /// Lets the program see every socket of a namespace, the calling thread's by default, until `is_done`.
    pub fn visit(&self, namespace: Option<BorrowedFd<'_>>, is_done: impl Fn() -> Result<bool>) -> Result<()> {
        // The iterator keeps the namespace of the thread that makes it: reading it may happen anywhere.
        let create = || sys::bpf::create_iterator(self.link.as_fd());
        let iterator = match namespace {
            None => create(),
            Some(namespace) => sys::in_network_namespace(namespace, create),
        };
        let iterator = iterator.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => Error::permission(
                "the socket belongs to another network namespace, and BPF can enter it only with CAP_SYS_ADMIN: \
                 call this from a thread or a process inside it",
            ),
            _ => Error::call("BPF_ITER_CREATE", &error),
        })?;
        let mut iterator = std::fs::File::from(iterator);
        loop {
            match iterator.read(&mut [0]) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The program has ended it, or the kernel takes a breath after a million sockets.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if is_done()? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(Error::call("reading the BPF iterator", &error)),
            }
        }
    }
}

fn last_lines(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
