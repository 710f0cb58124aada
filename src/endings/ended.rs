//! Subflows that have ended: which of them have their final row, and sockets of which nobody knows yet what they were.

use std::collections::HashSet;

use crate::abi::tcp_info::TcpInfo;
use crate::netlink::diag::Entry;
use crate::sys;

/// How long a socket that was destroyed is kept for the event that says that it was a subflow, and how many are.
const KEPT_NS: u64 = 2_000_000_000;
const KEPT: usize = 4096;

/// A socket that was destroyed.
#[derive(Debug, Clone, Copy)]
pub struct Destroyed {
    pub entry: Entry,
    pub tcp_info: TcpInfo,
    pub time_ns: u64,
}

/// The endings of one network namespace.
#[derive(Debug, Default)]
pub struct Ended {
    /// Cookies of those that have their final row and are not destroyed yet.
    cookies: HashSet<u64>,
    unclaimed: Vec<Destroyed>,
}

impl Ended {
    /// Remembers one that has its final row.
    pub fn insert(&mut self, cookie: u64) {
        self.cookies.insert(cookie);
    }

    /// Forgets one that is destroyed now; true if it had its final row.
    pub fn remove(&mut self, cookie: u64) -> bool {
        self.cookies.remove(&cookie)
    }

    /// Takes the sockets of which nobody knew what they were.
    pub fn unclaimed(&mut self) -> Vec<Destroyed> {
        std::mem::take(&mut self.unclaimed)
    }

    /// Keeps a socket for a while.
    pub fn keep(&mut self, socket: Destroyed) {
        let is_recent = sys::monotonic_ns().saturating_sub(socket.time_ns) < KEPT_NS;
        if is_recent && self.unclaimed.len() < KEPT {
            self.unclaimed.push(socket);
        }
    }
}
