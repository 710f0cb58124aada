//! BPF programs written out as instructions, and the kernel's own types: what every room that loads a program shares.
//! Nothing is pinned: a program ends with the process.

pub mod btf;
pub mod insn;

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

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

fn last_lines(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
