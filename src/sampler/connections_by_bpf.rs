//! Connections of one network namespace without any lock, by [`crate::tcp_sock`]. What that cannot tell is left to whoever
//! waits for the lock.
//!
//! Two things are not in a `mptcp_sock`. Limits and endpoints of the in-kernel path manager are the namespace's: a socket
//! of our own tells them, whose lock nobody else holds. And the bit that says that a connection fell back has no name in
//! BTF: a bit that was set in a connection that, as the kernel said afterwards, had not fallen back is not it. While a
//! connection has no other bit, it has not fallen back; where it has, the kernel is asked.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::Site;
use crate::abi::mptcp_info::{self, Info};
use crate::abi::uapi;
use crate::connection::by_descriptor::read_info;
use crate::error::Result;
use crate::sys::lock::lock;
use crate::tcp_sock::{ConnectionState, MptcpSocks, OF_NAMESPACE};

/// A connection that has a slot.
#[derive(Debug)]
struct Kept {
    slot: usize,
    fell_back: bool,
}

/// The connections of a site that have a slot each.
#[derive(Debug)]
pub struct ConnectionsByBpf {
    site: Arc<Site>,
    socks: MptcpSocks,
    kept: HashMap<u32, Kept>,
    /// Bits of `flags` that do not mean that a connection fell back.
    harmless: u64,
    /// Connections of which the kernel told limits. Linux 6.1 does so under every path manager.
    limited: HashSet<u32>,
    /// A socket of the in-kernel path manager, which tells the limits; absent where a new socket has another.
    in_kernel: Option<OwnedFd>,
    /// What it told last.
    limits: Option<Info>,
}

/// What one run told of a connection.
#[derive(Debug)]
pub enum Reading {
    /// As the kernel would tell it, and when, by CLOCK_MONOTONIC.
    Read(Info, u64),
    /// The kernel is to be asked; its answer is for [`ConnectionsByBpf::learn`].
    Unknown(Option<u64>),
}

impl ConnectionsByBpf {
    /// None where this kernel's `mptcp_sock` lacks what is needed.
    pub fn new(site: &Arc<Site>) -> Result<Option<ConnectionsByBpf>> {
        let Some(socks) = MptcpSocks::new()? else { return Ok(None) };
        let namespace = &site.namespace;
        let is_in_kernel = || namespace.path_manager().is_ok_and(|name| name == "kernel");
        let socket = is_in_kernel()
            .then(|| namespace.socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).ok())
            .flatten()
            // Nobody changed it meanwhile.
            .filter(|_| is_in_kernel());
        Ok(Some(ConnectionsByBpf {
            site: Arc::clone(site),
            socks,
            kept: HashMap::new(),
            harmless: 0,
            limited: HashSet::new(),
            in_kernel: socket,
            limits: None,
        }))
    }

    /// Whether the connection is read this way.
    pub fn has(&self, token: u32) -> bool {
        self.kept.contains_key(&token)
    }

    /// Copies every connection whose address is known.
    pub fn run(&mut self) -> Result<()> {
        for (token, address) in std::mem::take(&mut *lock(&self.site.known.addresses)) {
            if !self.kept.contains_key(&token) {
                let slot = self.socks.keep(address, token)?;
                self.kept.insert(token, Kept { slot, fell_back: false });
            }
        }
        self.limits = self.in_kernel.as_ref().and_then(|socket| read_info(socket.as_raw_fd()).ok());
        self.socks.run()
    }

    /// What the last run told of a connection.
    pub fn read(&mut self, token: u32) -> Reading {
        let Some(kept) = self.kept.get(&token) else { return Reading::Unknown(None) };
        let Some((mut state, time_ns)) = self.socks.copied(kept.slot) else {
            // It has ended.
            self.socks.release(kept.slot);
            self.kept.remove(&token);
            self.limited.remove(&token);
            return Reading::Unknown(None);
        };
        if !kept.fell_back && state.flags & !self.harmless != 0 || !self.put_limits(token, &mut state) {
            return Reading::Unknown(Some(state.flags));
        }
        if kept.fell_back {
            let flags = &mptcp_info::field::flags;
            let before = flags.read(&state.info).unwrap_or(0);
            flags.write(&mut state.info, before | u64::from(uapi::MPTCP_INFO_FLAG_FALLBACK));
        }
        Reading::Read(state.info(), time_ns)
    }

    /// Learns from what the kernel told of a connection, which had these `flags` before, if they are known.
    pub fn learn(&mut self, token: u32, flags: Option<u64>, info: &Info) {
        if OF_NAMESPACE.iter().any(|field| field.read(info.bytes()).is_some_and(|value| value != 0)) {
            self.limited.insert(token);
        }
        let Some(flags) = flags else { return };
        if !fell_back(info) {
            self.harmless |= flags;
        } else if let Some(kept) = self.kept.get_mut(&token) {
            kept.fell_back = true;
        }
    }

    /// Adds the namespace's limits, where the kernel tells them. False if they are not known.
    fn put_limits(&self, token: u32, state: &mut ConnectionState) -> bool {
        if !state.is_in_kernel && !self.limited.contains(&token) {
            return true;
        }
        let Some(info) = &self.limits else { return false };
        for field in OF_NAMESPACE {
            field.write(&mut state.info, field.read(info.bytes()).unwrap_or(0));
        }
        true
    }
}

pub(super) fn fell_back(info: &Info) -> bool {
    let flags = mptcp_info::field::flags.read(info.bytes()).unwrap_or(0);
    flags & u64::from(uapi::MPTCP_INFO_FLAG_FALLBACK) != 0
}
