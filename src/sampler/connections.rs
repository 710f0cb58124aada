//! The thread that reads connections. Without BPF it waits for their locks, so nothing else is done in it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::connections_by_bpf::{fell_back, ConnectionsByBpf, Reading};
use super::{Common, Site};
use crate::abi::mptcp_info::Info;
use crate::connection::by_descriptor::read_full_info;
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::netlink::diag;
use crate::netlink::Channel;
use crate::samples::row::{put_mptcp_info, ConnectionRow, MPTCP_INFO_COUNT};
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait::EventFd;

/// The connections of one network namespace.
struct ConnectionSite {
    site: Arc<Site>,
    channel: Channel,
    /// By descriptor, by their tokens, as long as they answer there.
    descriptors: BTreeMap<u32, RawFd>,
    /// Those that have fallen back and were told of.
    fallen: BTreeSet<u32>,
    by_bpf: Option<ConnectionsByBpf>,
}

/// The readings of all connections.
pub struct Connections {
    places: Vec<ConnectionSite>,
    common: Arc<Common>,
    rows: Vec<ConnectionRow>,
}

impl Connections {
    pub fn new(sites: &[Arc<Site>], common: &Arc<Common>, by_bpf: bool) -> Result<Connections> {
        let place = |site: &Arc<Site>| {
            let channel = Channel::new(site.diag_socket()?);
            let by_bpf = if by_bpf { ConnectionsByBpf::new(site)? } else { None };
            Ok(ConnectionSite {
                site: Arc::clone(site),
                channel: channel.map_err(|error| Error::call("socket(NETLINK_SOCK_DIAG)", &error))?,
                descriptors: site.descriptors.iter().map(|(fd, token)| (*token, *fd)).collect(),
                fallen: BTreeSet::new(),
                by_bpf,
            })
        };
        let places = sites.iter().map(place).collect::<Result<_>>()?;
        Ok(Connections { places, common: Arc::clone(common), rows: Vec::new() })
    }

    /// Reads every connection once.
    pub fn tick(&mut self) -> Result<()> {
        let time_ns = sys::monotonic_ns();
        for place in &mut self.places {
            let known = || lock(&place.site.known.tokens).iter().copied().collect();
            let tokens: Vec<u32> =
                place.site.tokens.as_ref().map_or_else(known, |tokens| tokens.iter().copied().collect());
            if let Some(by_bpf) = &mut place.by_bpf {
                by_bpf.run()?;
            }
            for token in tokens {
                let Some((info, read_ns)) = place.read(token)? else { continue };
                if fell_back(&info) && place.fallen.insert(token) {
                    let now = sys::monotonic_ns();
                    let event = Event { token: Some(token), ..Event::new(Kind::Fallback, now) };
                    lock(&self.common.events).push(event);
                }
                let mut row = ConnectionRow {
                    time_ns: time_ns as i64,
                    wait_ns: read_ns.saturating_sub(time_ns) as i64,
                    token,
                    padding: 0,
                    mptcp_info: [0; MPTCP_INFO_COUNT],
                };
                put_mptcp_info(&mut row.mptcp_info, info.bytes());
                self.rows.push(row);
            }
        }
        self.common.connections.append(&mut self.rows);
        Ok(())
    }

    /// Learns the ids of new subflows.
    fn identify(&mut self) {
        for place in &mut self.places {
            for token in place.descriptors.keys().copied().collect::<Vec<_>>() {
                // By BPF its subflows tell their ids themselves.
                if place.by_bpf.as_ref().is_some_and(|by_bpf| by_bpf.has(token)) {
                    continue;
                }
                // What fails is told when the connection is read for a row.
                let _ = place.read_locked(token);
            }
        }
    }

    /// Reads at each tick of the timer until `stop` is readable, and then once more.
    pub fn run(mut self, timer: &OwnedFd, stop: &EventFd, new_subflow: &EventFd) -> Result<()> {
        let fds = [timer.as_raw_fd(), stop.as_raw_fd(), new_subflow.as_raw_fd()];
        let mut ready = Vec::new();
        let failed = |error: std::io::Error| Error::call("waiting for the next tick", &error);
        loop {
            sys::clock::wait_any(&fds, &mut ready).map_err(failed)?;
            if ready[2] {
                new_subflow.reset();
                self.identify();
            }
            if !ready[0] && !ready[1] {
                continue;
            }
            sys::clock::expirations(timer.as_raw_fd()).map_err(failed)?;
            if let Err(error) = self.tick() {
                lock(&self.common.failure).get_or_insert(error);
            }
            if ready[1] {
                self.common.connections_cpu_ns.store(sys::clock::thread_cpu_ns(), Ordering::Relaxed);
                return Ok(());
            }
        }
    }
}

impl ConnectionSite {
    /// `struct mptcp_info` of one connection and when it had been read, `None` if it has ended.
    fn read(&mut self, token: u32) -> Result<Option<(Info, u64)>> {
        let before = match self.by_bpf.as_mut().map(|by_bpf| by_bpf.read(token)) {
            Some(Reading::Read(info, time_ns)) => return Ok(Some((info, time_ns))),
            Some(Reading::Unknown(flags)) => flags,
            None => None,
        };
        let Some(info) = self.read_locked(token)? else { return Ok(None) };
        if let Some(by_bpf) = &mut self.by_bpf {
            by_bpf.learn(token, before, &info);
        }
        Ok(Some((info, sys::monotonic_ns())))
    }

    /// The same from the kernel, which takes the connection's lock for it.
    fn read_locked(&mut self, token: u32) -> Result<Option<Info>> {
        if let Some(fd) = self.descriptors.get(&token) {
            match read_full_info(*fd) {
                Ok(read) if read.info.token() == token => {
                    let mut ids = lock(&self.site.known.ids);
                    for reading in read.subflows {
                        if let Some(id) = reading.id {
                            ids.insert((token, reading.local, reading.remote), id);
                        }
                    }
                    return Ok(Some(read.info));
                }
                // Closed, somebody else's by now, fallen back, or before 6.5.
                _ => {
                    self.descriptors.remove(&token);
                }
            }
        }
        match diag::read_info(&mut self.channel, token) {
            Ok(None) => {
                lock(&self.site.known.tokens).remove(&token);
                Ok(None)
            }
            Ok(info) => Ok(info),
            // The reply came without mptcp_info, or late: there is a next time.
            Err(failure) if [libc::EBADMSG, libc::EAGAIN].contains(&failure.errno) => Ok(None),
            Err(failure) => Err(diag::failed(failure)),
        }
    }
}
