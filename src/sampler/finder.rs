//! The thread that finds new subflows, by a dump of inet_diag now and then: it goes through the whole table of TCP
//! sockets of the host, which is too slow for the tick.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::Site;
use crate::connection::diag_failed;
use crate::diag;
use crate::error::{Error, Result};
use crate::netlink::Channel;
use crate::reader::lock;
use crate::sys;

/// How long a new subflow may stay unknown.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// What looks for subflows in each network namespace.
pub struct Finder {
    places: Vec<(Arc<Site>, Channel)>,
}

impl Finder {
    pub fn new(sites: &[Arc<Site>]) -> Result<Finder> {
        let place = |site: &Arc<Site>| {
            let channel = Channel::new(site.diag_socket()?);
            let channel = channel.map_err(|error| Error::call("socket(NETLINK_SOCK_DIAG)", &error))?;
            Ok((Arc::clone(site), channel))
        };
        Ok(Finder { places: sites.iter().map(place).collect::<Result<_>>()? })
    }

    /// Looks once, wherever nobody has looked of late.
    pub fn tick(&mut self) -> Result<()> {
        let recent = sys::monotonic_ns().saturating_sub(INTERVAL.as_nanos() as u64);
        for (site, channel) in &mut self.places {
            if !site.known.searched.load(Ordering::Relaxed)
                || site.known.dumped_ns.load(Ordering::Relaxed) > recent
            {
                continue;
            }
            let mut found = Vec::new();
            diag::dump_payloads(channel, |payload| {
                if let Some(entry) = diag::decode(payload) {
                    if entry.subflow.is_some_and(|ulp| site.wants(ulp.token)) {
                        found.push(entry);
                    }
                }
            })
            .map_err(diag_failed)?;
            *lock(&site.known.found) = found;
        }
        Ok(())
    }

    /// Looks at each tick of the timer until `stop` is readable.
    pub fn run(mut self, timer: &OwnedFd, stop: &OwnedFd) -> Result<()> {
        let fds = [timer.as_raw_fd(), stop.as_raw_fd()];
        let mut ready = Vec::new();
        let failed = |error: std::io::Error| Error::call("waiting for the next tick", &error);
        loop {
            sys::clock::wait_any(&fds, &mut ready).map_err(failed)?;
            if ready[1] {
                return Ok(());
            }
            sys::clock::expirations(timer.as_raw_fd()).map_err(failed)?;
            // The next time may go well; what fails for good fails in the ticks too, and is told there.
            let _ = self.tick();
        }
    }
}
