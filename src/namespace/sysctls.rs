//! The sysctls of a network namespace that Multipath TCP depends on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{is_shortage, Error, Result};
use crate::namespace::Namespace;
use crate::sys::Wanted;

/// Directories of /proc/sys/net: an open one belongs to its namespace, whichever process reads in it.
const PLACES: [Wanted; 2] = [Wanted::File(&[c"/proc/sys/net/mptcp"]), Wanted::File(&[c"/proc/sys/net/ipv4"])];

const IPV4: [&str; 9] = [
    "tcp_congestion_control",
    "tcp_available_congestion_control",
    "tcp_rmem",
    "tcp_wmem",
    "tcp_ecn",
    "tcp_sack",
    "tcp_timestamps",
    "tcp_no_metrics_save",
    "tcp_slow_start_after_idle",
];

/// net.mptcp and some of net.ipv4 by their names, as far as this kernel has them and lets us read them.
pub fn read(namespace: &Namespace) -> Result<BTreeMap<String, String>> {
    let [mptcp, ipv4] = namespace.open(&PLACES)?;
    let mut found = BTreeMap::new();
    if let Some(place) = present(mptcp)? {
        let names = present(std::fs::read_dir(path(&place)))?.into_iter().flatten().flatten();
        let names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        read_in(&place, "net.mptcp", names.iter().map(String::as_str), &mut found)?;
    }
    if let Some(place) = present(ipv4)? {
        read_in(&place, "net.ipv4", IPV4.into_iter(), &mut found)?;
    }
    Ok(found)
}

/// What this kernel has and lets us read; an error where only a descriptor is missing.
fn present<T>(opened: io::Result<T>) -> Result<Option<T>> {
    match opened {
        Err(error) if is_shortage(&error) => {
            Err(Error::call("reading the sysctls of net.mptcp and net.ipv4", &error))
        }
        opened => Ok(opened.ok()),
    }
}

fn path(place: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", place.as_raw_fd()).into()
}

fn read_in<'a>(
    place: &OwnedFd,
    prefix: &str,
    names: impl Iterator<Item = &'a str>,
    found: &mut BTreeMap<String, String>,
) -> Result<()> {
    for name in names {
        if let Some(value) = present(std::fs::read_to_string(path(place).join(name)))? {
            found.insert(format!("{prefix}.{name}"), value.trim().to_owned());
        }
    }
    Ok(())
}

/// The value of one that is open.
pub fn read_open(file: &File) -> io::Result<String> {
    let mut bytes = [0; 1024];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
}

/// Writes one that is open, if only for reading where this process must not write it.
pub fn write_open(file: &File, name: &str, value: &str) -> Result<()> {
    let mut result = file.write_at(value.as_bytes(), 0).map(drop);
    if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBADF)) {
        // It was opened for reading only: opening it for writing gives the cause.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        result = File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.write_at(value.as_bytes(), 0).map(drop));
    }
    result.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::permission(format!(
            "setting {name} needs CAP_NET_ADMIN in the user namespace that owns the network namespace"
        )),
        Some(libc::EROFS) => Error::os(
            libc::EROFS,
            format!("cannot set {name}: /proc/sys is mounted read-only, as in containers"),
        ),
        _ => Error::call(&format!("setting {name}"), &error),
    })
}
