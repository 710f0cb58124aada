//! The packet scheduler that new connections of a network namespace get: the sysctl net.mptcp.scheduler, since Linux 6.6.

use std::fs::File;
use std::io;

use crate::error::{Error, Result};
use crate::namespace::sysctls::{read_open, write_open};
use crate::namespace::Namespace;
use crate::sys::Wanted;

const SCHEDULER: Wanted = Wanted::File(&[c"/proc/sys/net/mptcp/scheduler"]);
const AVAILABLE: Wanted = Wanted::File(&[c"/proc/sys/net/mptcp/available_schedulers"]);

impl Namespace {
    /// Its name.
    pub fn scheduler(&self) -> Result<String> {
        read(&self.open_sysctl(SCHEDULER)?, "net.mptcp.scheduler")
    }

    /// Sets it, and returns the previous one. Needs CAP_NET_ADMIN in the user namespace that owns this namespace.
    pub fn set_scheduler(&self, name: &str) -> Result<String> {
        let file = self.open_sysctl(SCHEDULER)?;
        let before = read(&file, "net.mptcp.scheduler")?;
        if before != name {
            // Kernels that do not list them refuse an unknown one with ENOENT.
            let available = self.available_schedulers().unwrap_or_default();
            if !available.is_empty() && !available.iter().any(|known| known == name) {
                return Err(Error::value(format!(
                    "scheduler must be one of {}, not {name:?}",
                    available.join(", ")
                )));
            }
            write_open(&file, "net.mptcp.scheduler", name).map_err(|error| match error.errno() {
                libc::ENOENT => Error::value(format!("this kernel has no scheduler {name:?}")),
                _ => error,
            })?;
        }
        Ok(before)
    }

    /// Those that this kernel has, since Linux 6.10.
    pub fn available_schedulers(&self) -> Result<Vec<String>> {
        let names = read(&self.open_sysctl(AVAILABLE)?, "net.mptcp.available_schedulers")?;
        Ok(names.split_ascii_whitespace().map(str::to_owned).collect())
    }

    fn open_sysctl(&self, wanted: Wanted) -> Result<File> {
        let [opened] = self.open(&[wanted])?;
        opened.map(File::from).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Error::unsupported(
                "this kernel has no sysctl net.mptcp.scheduler (Linux 6.6) or net.mptcp.available_schedulers (Linux \
                 6.10), or /proc is not mounted",
            ),
            _ => Error::call("opening the sysctl of the scheduler", &error),
        })
    }
}

fn read(file: &File, name: &str) -> Result<String> {
    read_open(file).map_err(|error: io::Error| Error::call(&format!("reading {name}"), &error))
}

/// Refuses what cannot be a scheduler's name: the kernel would read the first word of it.
pub fn check_name(name: &str) -> Result<()> {
    let is_name = !name.is_empty() && name.len() < 16 && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name {
        return Ok(());
    }
    Err(Error::value(format!("scheduler must be the name of a scheduler, not {name:?}")))
}
