//! The thread that takes events, and finds new subflows by them: by an exact look-up of the one that an event tells of,
//! and by a dump of inet_diag now and then, since without privilege events come late. A dump goes through the whole
//! table of TCP sockets of the host, which is too slow for the tick.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::{Common, Site};
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::events::{Events, Taken};
use crate::netlink::diag::{self, Entry, Tuple};
use crate::netlink::Channel;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait::EventFd;

/// How long a new subflow may stay unknown.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// What looks for subflows in one network namespace.
struct SearchSite {
    site: Arc<Site>,
    channel: Channel,
    /// Absent where this process may not have them.
    events: Option<Events>,
}

pub struct Finder {
    places: Vec<SearchSite>,
    common: Arc<Common>,
    /// Set when a subflow was found whose id a descriptor could tell.
    new_subflow: Arc<EventFd>,
}

impl Finder {
    pub fn new(sites: &[Arc<Site>], common: &Arc<Common>, new_subflow: &Arc<EventFd>) -> Result<Finder> {
        let place = |site: &Arc<Site>| {
            let channel = Channel::new(site.diag_socket()?);
            Ok(SearchSite {
                site: Arc::clone(site),
                channel: channel.map_err(|error| Error::call("socket(NETLINK_SOCK_DIAG)", &error))?,
                events: site.namespace.events(None).ok(),
            })
        };
        Ok(Finder {
            places: sites.iter().map(place).collect::<Result<_>>()?,
            common: Arc::clone(common),
            new_subflow: Arc::clone(new_subflow),
        })
    }

    /// Looks once, wherever nobody has looked of late.
    pub fn tick(&mut self) -> Result<()> {
        let recent = sys::monotonic_ns().saturating_sub(INTERVAL.as_nanos() as u64);
        for place in &mut self.places {
            if place.site.known.dumped_ns.load(Ordering::Relaxed) <= recent {
                place.search()?;
            }
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<()> {
        let mut found = false;
        for place in &mut self.places {
            while let Some(events) = &place.events {
                match events.take()? {
                    Taken::Event(event) => {
                        if place.records(&event) {
                            lock(&place.site.known.begun).follow(&event);
                        }
                        found |= place.follow(&event)?;
                        if place.records(&event) {
                            lock(&self.common.events).push(event);
                        }
                    }
                    Taken::Nothing => break,
                    Taken::Over => place.events = None,
                }
            }
        }
        if found {
            self.new_subflow.set();
        }
        Ok(())
    }

    /// Looks at each tick of the timer and at each event until `stop` is readable.
    pub fn run(mut self, timer: &OwnedFd, stop: &EventFd) -> Result<()> {
        let mut fds: Vec<RawFd> = vec![timer.as_raw_fd(), stop.as_raw_fd()];
        fds.extend(self.places.iter().filter_map(|place| place.events.as_ref()).map(Events::fd));
        let mut ready = Vec::new();
        let failed = |error: std::io::Error| Error::call("waiting for the next tick", &error);
        loop {
            sys::clock::wait_any(&fds, &mut ready).map_err(failed)?;
            if ready[1] {
                // A connection that has come and gone is known by its events alone.
                self.places.iter().filter_map(|place| place.events.as_ref()).for_each(Events::catch_up);
            }
            // The next time may go well; what fails for good fails in the ticks too, and is told there.
            let _ = self.take_events();
            if ready[1] {
                return Ok(());
            }
            if ready[0] {
                sys::clock::expirations(timer.as_raw_fd()).map_err(failed)?;
                let _ = self.tick();
            }
        }
    }
}

impl SearchSite {
    /// Whether a subflow or a connection that is recorded, or a link, is what the event tells of.
    fn records(&self, event: &Event) -> bool {
        match event.token {
            Some(token) => self.site.wants(token),
            None => event.kind.is_of_link() || event.kind == Kind::Overrun || self.site.tokens.is_none(),
        }
    }

    /// Finds the subflow that an event tells of; true if there is one.
    fn follow(&mut self, event: &Event) -> Result<bool> {
        let begins = matches!(event.kind, Kind::Created | Kind::Established | Kind::SubEstablished);
        if !begins || !self.records(event) {
            return Ok(false);
        }
        let (Some(local), Some(remote)) = (event.local, event.remote) else { return Ok(false) };
        let tuple = Tuple { local, remote, interface: 0 };
        let entries = diag::look_up(&mut self.channel, &[tuple]).map_err(diag::failed)?;
        match entries.into_iter().flatten().next() {
            Some(entry) => self.add(entry),
            // Bound to an interface, which the look-up would have to name.
            None => self.search()?,
        }
        Ok(true)
    }

    fn search(&mut self) -> Result<()> {
        if !self.site.known.searched.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut found = Vec::new();
        diag::dump(&mut self.channel, |entry, _| found.push(entry)).map_err(diag::failed)?;
        found.into_iter().for_each(|entry| self.add(entry));
        Ok(())
    }

    fn add(&self, entry: Entry) {
        if entry.subflow.is_some_and(|ulp| self.site.wants(ulp.token)) {
            lock(&self.site.known.begun).find(&entry);
            lock(&self.site.known.found).insert(entry.cookie, entry);
        }
    }
}
