//! What makes a TCP socket a subflow, where the kernel does not tell it: before Linux 6.15 only those with CAP_NET_ADMIN are
//! told. The broker of the namespace tells it then, if there is one.

use std::sync::OnceLock;

use crate::abi::uapi::SO_NETNS_COOKIE;
use crate::error::Error;
use crate::netlink::broker;
use crate::netlink::diag::{is_connection, Entry};
use crate::netlink::{Channel, Failure};
use crate::sys::{self, credentials};

const CAP_NET_ADMIN: u64 = 1 << 12;

/// Whether the kernel may keep it back from the calling thread.
pub fn may_be() -> bool {
    static IS_OLD: OnceLock<bool> = OnceLock::new();
    let is_old = IS_OLD.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        release.map_or(true, |release| is_before_6_15(&release))
    });
    *is_old && !credentials::has(CAP_NET_ADMIN)
}

fn is_before_6_15(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (6, 15)
}

/// Fills in what the kernel may have kept back of sockets that were looked up on this channel. Without a broker they stay
/// as they are.
pub fn fill<'a>(channel: &Channel, entries: impl Iterator<Item = &'a mut Entry>) -> Result<(), Failure> {
    if !may_be() {
        return Ok(());
    }
    let mut untold: Vec<&mut Entry> =
        entries.filter(|entry| entry.subflow.is_none() && is_connection(entry)).collect();
    if untold.is_empty() {
        return Ok(());
    }
    let mut cookie = [0; 8];
    sys::getsockopt(channel.fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    let Some(broker) = broker::of(u64::from_ne_bytes(cookie)) else { return Ok(()) };
    let asked: Vec<_> = untold.iter().map(|entry| (entry.tuple, entry.cookie)).collect();
    let told = match broker.subflows(&asked) {
        // As without a broker; `advice` says why.
        Err(Error::Unsupported { .. }) => return Ok(()),
        told => told,
    };
    let told = told.map_err(|error| Failure { errno: error.errno(), text: Some(error.to_string()) })?;
    for (entry, subflow) in untold.iter_mut().zip(told) {
        entry.subflow = subflow;
    }
    Ok(())
}

/// Why the broker of the channel's namespace told nothing, and what to do about it; empty where there is none.
pub fn advice(channel: &Channel) -> String {
    let mut cookie = [0; 8];
    let cookie = sys::getsockopt(channel.fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)
        .map(|_| u64::from_ne_bytes(cookie));
    match cookie.ok().and_then(broker::of).map(|broker| broker.subflows(&[])) {
        Some(Err(error)) => format!("; {error}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for old in ["6.1.0-56-amd64\n", "6.12.117+deb12", "5.15.0", "6.9-rc1"] {
            assert!(is_before_6_15(old), "{old}");
        }
        for new in ["6.15.0", "6.15-rc1", "6.18.44-fc-v669\n", "7.0.0"] {
            assert!(!is_before_6_15(new), "{new}");
        }
    }
}
