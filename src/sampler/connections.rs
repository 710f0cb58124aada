//! The thread that reads connections. It waits for their locks, so nothing else is done in it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::row::{put_mptcp_info, ConnectionRow, MPTCP_INFO_COUNT};
use super::{Common, Site};
use crate::abi::mptcp_info::{self, Info};
use crate::abi::uapi;
use crate::connection::by_descriptor::read_full_info;
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::netlink::diag;
use crate::netlink::Channel;
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
}

/// The readings of all connections.
pub struct Connections {
    places: Vec<ConnectionSite>,
    common: Arc<Common>,
    rows: Vec<ConnectionRow>,
}

impl Connections {
    pub fn new(sites: &[Arc<Site>], common: &Arc<Common>) -> Result<Connections> {
        let place = |site: &Arc<Site>| {
            let channel = Channel::new(site.diag_socket()?);
            Ok(ConnectionSite {
                site: Arc::clone(site),
                channel: channel.map_err(|error| Error::call("socket(NETLINK_SOCK_DIAG)", &error))?,
                descriptors: site.descriptors.iter().map(|(fd, token)| (*token, *fd)).collect(),
                fallen: BTreeSet::new(),
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
            for token in tokens {
                let Some(info) = place.read(token)? else { continue };
                let flags = mptcp_info::field::flags.read(info.bytes()).unwrap_or(0);
                let fallen = flags & u64::from(uapi::MPTCP_INFO_FLAG_FALLBACK) != 0;
                if fallen && place.fallen.insert(token) {
                    let now = sys::monotonic_ns();
                    let event = Event { token: Some(token), ..Event::new(Kind::Fallback, now) };
                    lock(&self.common.events).push(event);
                }
                let mut row = ConnectionRow {
                    time_ns: time_ns as i64,
                    wait_ns: (sys::monotonic_ns() - time_ns) as i64,
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
                // What fails is told when the connection is read for a row.
                let _ = place.read(token);
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
    /// `struct mptcp_info` of one connection, `None` if it has ended.
    fn read(&mut self, token: u32) -> Result<Option<Info>> {
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
