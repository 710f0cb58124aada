//! The thread that reads subflows, tick by tick.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::by_diag::{final_sample, ByDiag};
use super::full_info::{Buffers, FullInfo, Outcome};
use super::notices::Notices;
use super::row::Sample;
use super::{Common, Method, Settings, Site};
use crate::error::{Error, Result};
use crate::reader::lock;
use crate::sys;
use crate::sys::wait::EventFd;

/// What is read in one network namespace.
struct Place {
    by_diag: ByDiag,
    full_info: Vec<FullInfo>,
    buffers: Buffers,
    notices: Notices,
}

impl Place {
    fn read(&mut self, time_ns: u64, rows: &mut Vec<Sample>) -> Result<()> {
        let Place { by_diag, full_info, buffers, .. } = self;
        let mut failed = Ok(());
        for connection in full_info.iter_mut().filter(|connection| !connection.ended) {
            match connection.read(buffers, &mut by_diag.channel, time_ns, rows) {
                Ok(Outcome::Read) => {}
                // It stays for the notices of its subflows. A connection may outlive its descriptor.
                Ok(Outcome::Ended | Outcome::FellBack) => {
                    connection.ended = true;
                    by_diag.add(connection.token);
                }
                Err(error) => failed = Err(error),
            }
        }
        failed?;
        by_diag.read(time_ns, rows)
    }
}

/// The readings of all sources.
pub struct Ticks {
    places: Vec<Place>,
    common: Arc<Common>,
    rows: Vec<Sample>,
}

impl Ticks {
    pub fn new(sites: &[Arc<Site>], common: &Arc<Common>, settings: Settings) -> Result<Ticks> {
        let place = |site: &Arc<Site>| {
            let (tokens, full_info) = match settings.method {
                Method::InetDiag => (site.tokens.clone(), Vec::new()),
                Method::FullInfo => {
                    let connections = site.descriptors.iter();
                    (
                        Some(BTreeSet::new()),
                        connections.map(|(fd, token)| FullInfo::new(common, *fd, *token)).collect(),
                    )
                }
            };
            Ok(Place {
                by_diag: ByDiag::new(site, common, tokens)?,
                full_info,
                buffers: Buffers::new(),
                notices: Notices::new(site.diag_socket()?)?,
            })
        };
        let places = sites.iter().map(place).collect::<Result<_>>()?;
        Ok(Ticks { places, common: Arc::clone(common), rows: Vec::new() })
    }

    /// Reads everything once.
    pub fn tick(&mut self) -> Result<()> {
        self.read_notices()?;
        let time_ns = sys::monotonic_ns();
        for place in &mut self.places {
            place.read(time_ns, &mut self.rows)?;
        }
        self.common.ticks.fetch_add(1, Ordering::Relaxed);
        self.common.samples.append(&mut self.rows);
        Ok(())
    }

    /// Final rows of subflows that have ended.
    fn read_notices(&mut self) -> Result<()> {
        for place in &mut self.places {
            let Place { by_diag, full_info, notices, .. } = place;
            // One that lived for less than a tick.
            by_diag.adopt(sys::monotonic_ns());
            let rows = &mut self.rows;
            let complete = notices.read(|entry, tcp_info| {
                let by_full_info = || full_info.iter_mut().find_map(|connection| connection.take(&entry));
                let target = by_diag.take(&entry).or_else(by_full_info);
                if let Some(mut target) = target.filter(|target| !target.ended && !tcp_info.is_empty()) {
                    rows.push(final_sample(sys::monotonic_ns(), &mut target, tcp_info));
                }
            })?;
            if !complete {
                self.common.notices_lost.store(true, Ordering::Relaxed);
            }
        }
        self.common.samples.append(&mut self.rows);
        Ok(())
    }

    /// Reads at each tick of the timer until `stop` is readable, and then once more.
    pub fn run(mut self, timer: &OwnedFd, stop: &EventFd) -> Result<()> {
        let mut fds: Vec<RawFd> = vec![timer.as_raw_fd(), stop.as_raw_fd()];
        fds.extend(self.places.iter().map(|place| place.notices.fd()));
        let mut ready = Vec::new();
        let failed = |error: std::io::Error| Error::call("waiting for the next tick", &error);
        loop {
            sys::clock::wait_any(&fds, &mut ready).map_err(failed)?;
            let stopped = ready[1];
            if ready[0] {
                let expired = sys::clock::expirations(timer.as_raw_fd()).map_err(failed)?;
                self.common.missed.fetch_add(expired.saturating_sub(1), Ordering::Relaxed);
            }
            let read = if ready[0] || stopped { self.tick() } else { self.read_notices() };
            if let Err(error) = read {
                // A reading that failed is a tick without rows. The next may go well.
                self.rows.clear();
                self.common.missed.fetch_add(1, Ordering::Relaxed);
                lock(&self.common.failure).get_or_insert(error);
            }
            if stopped {
                self.common.cpu_ns.store(sys::clock::thread_cpu_ns(), Ordering::Relaxed);
                return Ok(());
            }
        }
    }
}
