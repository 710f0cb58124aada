//! The thread that reads subflows, tick by tick.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::by_bpf::{self, ByBpf};
use super::by_diag::{final_sample, ByDiag, Target};
use super::choice::{self, Choice, Cost, Trial};
use super::full_info::{Buffers, FullInfo, ReadOutcome};
use super::{Common, Method, Settings, Site};
use crate::abi::tcp_info::TcpInfo;
use crate::endings::{Beginning, Destroyed, Ended, Notices};
use crate::error::{Error, Result};
use crate::netlink::diag::{Entry, Tuple};
use crate::samples::row::RawSample;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait::{self, EventFd};
use crate::tcp_sock::{Ending, Endings};

/// What is read in one network namespace.
struct TickSite {
    site: Arc<Site>,
    by_diag: ByDiag,
    by_bpf: Option<ByBpf>,
    full_info: Vec<FullInfo>,
    buffers: Buffers,
    notices: Notices,
    ended: Ended,
}

impl TickSite {
    /// Reads every subflow, those of connections with a descriptor by `method`.
    fn read(&mut self, method: Method, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        if let Some(by_bpf) = &mut self.by_bpf {
            return by_bpf.read(&mut self.by_diag, time_ns, rows);
        }
        if method == Method::FullInfo {
            self.read_full_info(time_ns, rows)?;
        }
        self.by_diag.read(time_ns, rows)
    }

    fn read_full_info(&mut self, time_ns: u64, rows: &mut Vec<RawSample>) -> Result<()> {
        let TickSite { by_diag, full_info, buffers, ended, .. } = self;
        let mut failed = Ok(());
        for connection in full_info.iter_mut().filter(|connection| !connection.ended) {
            let first = rows.len();
            let outcome = connection.read(buffers, &mut by_diag.channel, time_ns, rows);
            let finals = rows.iter().skip(first).filter(|row| row.head.last == 1);
            finals.for_each(|row| ended.insert(row.head.cookie));
            match outcome {
                Ok(ReadOutcome::Read) => {}
                // It stays for the notices of its subflows. A connection may outlive its descriptor.
                Ok(ReadOutcome::Ended | ReadOutcome::FellBack) => {
                    connection.ended = true;
                    by_diag.add(connection.token);
                }
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    /// Whether a subflow of which an event told has no row, which its notice will give it.
    fn lacks_rows(&self, common: &Common) -> bool {
        let is_noted = |tuple: &Tuple, token, cookie: Option<u64>| match cookie {
            Some(cookie) => common.has_noted(cookie),
            None => common.has_noted_ends(tuple, token),
        };
        let begun = lock(&self.site.known.begun);
        self.by_diag.has_unread_gone()
            || begun.iter().any(|(tuple, token, cookie)| !is_noted(&tuple, token, cookie))
    }

    /// What is known of a subflow that has ended.
    fn end(&mut self, cookie: u64) -> Option<Target> {
        // In a measurement both have read it.
        let by_full_info = self.full_info.iter_mut().find_map(|connection| connection.end(cookie));
        self.by_diag.end(cookie).or(by_full_info)
    }

    /// Adds the final row of a subflow, from what it had counted when it ended.
    fn add_ending(&mut self, ending: &Ending, common: &Common, rows: &mut Vec<RawSample>) {
        let state = &ending.subflow;
        let known = self.end(ending.cookie);
        let mut target = match known {
            Some(target) if target.ended => return,
            Some(target) => target,
            None if ending.was_established && self.site.wants(state.token) => {
                let tuple = Tuple { local: ending.local, remote: ending.remote, interface: 0 };
                let entry = Entry::of_ends(tuple, ending.cookie);
                common.note(&entry, state.token);
                Target::new(entry, state.token, -1, ending.time_ns)
            }
            None => return,
        };
        by_bpf::update(&mut target, *state);
        rows.push(final_sample(ending.time_ns, &mut target, ending.tcp_info.bytes()));
        self.ended.insert(ending.cookie);
    }

    /// Final rows of the sockets that the kernel has destroyed. False if some were lost.
    fn read_notices(&mut self, common: &Common, rows: &mut Vec<RawSample>) -> Result<bool> {
        // One that lived for less than a tick.
        self.by_diag.adopt(sys::monotonic_ns());
        let mut destroyed = self.ended.unclaimed();
        let complete = self.notices.read(|entry, tcp_info| {
            destroyed.push(Destroyed {
                entry,
                tcp_info: TcpInfo::decode(tcp_info),
                time_ns: sys::monotonic_ns(),
            });
        })?;
        for Destroyed { entry, tcp_info, time_ns } in destroyed {
            let known = self.end(entry.cookie);
            let tuple = known.map_or(entry.tuple, |target| target.entry.tuple);
            let beginning = lock(&self.site.known.begun).take(&Entry { tuple, ..entry });
            if self.ended.remove(entry.cookie) {
                continue;
            }
            let target = known.or_else(|| {
                let Beginning { subflow, local, time_ns, .. } = beginning?;
                let tuple = Tuple { local, ..entry.tuple };
                let entry = Entry { tuple, subflow: Some(subflow), ..entry };
                common.note(&entry, subflow.token);
                Some(Target::new(entry, subflow.token, -1, time_ns))
            });
            match target {
                None => self.ended.keep(Destroyed { entry, tcp_info, time_ns }),
                Some(target) if target.ended || tcp_info.bytes().is_empty() => {}
                Some(mut target) => rows.push(final_sample(time_ns, &mut target, tcp_info.bytes())),
            }
        }
        Ok(complete)
    }

    /// Gives inet_diag all connections, and their subflows as MPTCP_FULL_INFO knew them.
    fn hand_over(&mut self) {
        for target in self.full_info.iter().flat_map(FullInfo::targets) {
            self.by_diag.receive(*target);
        }
        self.by_diag.take_over(self.site.tokens.clone());
    }

    /// Takes the connections with a descriptor back from inet_diag.
    fn take_back(&mut self) {
        let known = self.full_info.iter().filter(|connection| !connection.ended);
        let cookies = known.flat_map(FullInfo::targets).map(|target| target.entry.cookie).collect();
        self.by_diag.leave(&cookies);
        for connection in self.full_info.iter().filter(|connection| connection.ended) {
            self.by_diag.add(connection.token);
        }
    }
}

/// How long the end of a recording waits for the notices of subflows that have no row otherwise. The kernel sends them from
/// a worker thread, some milliseconds after the socket was destroyed on a busy machine.
const NOTICES: Duration = Duration::from_secs(1);

/// Of two readings by one way: the least processor time, and whether one of them waited.
fn better(before: Option<Result<Cost>>, now: Result<Cost>) -> Result<Cost> {
    let Some(before) = before else { return now };
    let (before, now) = (before?, now?);
    Ok(Cost {
        cpu_ns: before.cpu_ns.min(now.cpu_ns),
        subflows: now.subflows,
        waited: before.waited || now.waited,
    })
}

/// The readings of all sources.
pub struct Ticks {
    places: Vec<TickSite>,
    common: Arc<Common>,
    /// Absent where that is not permitted.
    endings: Option<Endings>,
    rows: Vec<RawSample>,
    /// Absent where the way was asked for.
    choice: Option<Choice>,
    method: Method,
    /// Subflows of the last tick.
    subflows: usize,
}

impl Ticks {
    /// `by_bpf` is what reads each site, where that is [`Method::Bpf`].
    pub fn new(
        sites: &[Arc<Site>],
        by_bpf: Option<Vec<ByBpf>>,
        common: &Arc<Common>,
        settings: Settings,
    ) -> Result<Ticks> {
        let mut by_bpf = by_bpf.into_iter().flatten();
        // Whatever the method: nothing else has the last counters of every subflow.
        let endings = Endings::new().ok();
        let place = |site: &Arc<Site>| {
            let by_descriptor = || {
                let connections = site.descriptors.iter();
                connections.map(|(fd, token)| FullInfo::new(common, *fd, *token, endings.is_some())).collect()
            };
            let (tokens, full_info) = match settings.method {
                Some(Method::InetDiag | Method::Bpf) => (site.tokens.clone(), Vec::new()),
                Some(Method::FullInfo) => (Some(BTreeSet::new()), by_descriptor()),
                None => (site.tokens.clone(), by_descriptor()),
            };
            Ok(TickSite {
                site: Arc::clone(site),
                by_diag: ByDiag::new(site, common, tokens)?,
                by_bpf: by_bpf.next(),
                full_info,
                buffers: Buffers::new(),
                notices: Notices::new(site.diag_socket()?)?,
                ended: Ended::default(),
            })
        };
        let places = sites.iter().map(place).collect::<Result<_>>()?;
        let method = settings.method.unwrap_or(Method::InetDiag);
        let choice = settings.method.is_none().then(|| Choice::new(method));
        let common = Arc::clone(common);
        Ok(Ticks { places, common, endings, rows: Vec::new(), choice, method, subflows: 0 })
    }

    /// Reads everything once.
    pub fn tick(&mut self) -> Result<()> {
        self.read_endings()?;
        if self.choice.as_ref().is_some_and(|choice| choice.is_due(sys::monotonic_ns(), self.subflows)) {
            self.measure()?;
        }
        let watched = self.choice.is_some() && self.method == Method::FullInfo;
        let sleeps = || if watched { sys::clock::thread_sleeps() } else { 0 };
        let before = sleeps();
        let time_ns = sys::monotonic_ns();
        for place in &mut self.places {
            place.read(self.method, time_ns, &mut self.rows)?;
        }
        self.subflows = self.rows.len();
        if sleeps() != before {
            self.decide(Choice::wait);
        }
        self.common.ticks.fetch_add(1, Ordering::Relaxed);
        self.common.samples.append(&mut self.rows);
        Ok(())
    }

    /// Reads everything some times by each way.
    fn measure(&mut self) -> Result<()> {
        if self.method == Method::FullInfo {
            self.places.iter_mut().for_each(TickSite::hand_over);
        }
        let begin = sys::monotonic_ns();
        let mut costs: [Option<Result<Cost>>; 2] = [None, None];
        for reading in 0..choice::READINGS {
            // The first by inet_diag reads by a dump, to see what that takes.
            if reading >= 2 && sys::monotonic_ns() - begin > choice::NS {
                break;
            }
            for (cost, method) in costs.iter_mut().zip([Method::FullInfo, Method::InetDiag]) {
                *cost = Some(better(cost.take(), self.cost(method)));
            }
        }
        let [full_info, inet_diag] = costs.map(|cost| cost.unwrap_or(Err(Error::os(libc::ENODATA, ""))));
        if let (Err(error), Err(_)) = (&full_info, &inet_diag) {
            return Err(error.clone());
        }
        // Both know all the connections now.
        self.method = Method::InetDiag;
        let trial = Trial { time_ns: begin, full_info: full_info.ok(), inet_diag: inet_diag.ok() };
        self.decide(|choice| choice.add(trial));
        Ok(())
    }

    fn cost(&mut self, method: Method) -> Result<Cost> {
        let mut rows = Vec::new();
        let time_ns = sys::monotonic_ns();
        let (cpu_ns, sleeps) = (sys::clock::thread_cpu_ns(), sys::clock::thread_sleeps());
        for place in &mut self.places {
            match method {
                Method::FullInfo => place.read_full_info(time_ns, &mut rows)?,
                Method::InetDiag | Method::Bpf => place.by_diag.read(time_ns, &mut rows)?,
            }
        }
        Ok(Cost {
            cpu_ns: sys::clock::thread_cpu_ns() - cpu_ns,
            subflows: rows.len(),
            waited: sys::clock::thread_sleeps() != sleeps,
        })
    }

    /// Changes the choice, and follows it.
    fn decide(&mut self, change: impl FnOnce(&mut Choice)) {
        let Some(choice) = &mut self.choice else { return };
        change(choice);
        lock(&self.common.choice).clone_from(choice);
        if choice.method != self.method {
            self.method = choice.method;
            let follow = match self.method {
                Method::FullInfo => TickSite::take_back,
                Method::InetDiag | Method::Bpf => TickSite::hand_over,
            };
            self.places.iter_mut().for_each(follow);
        }
    }

    /// Final rows of subflows that have ended.
    fn read_endings(&mut self) -> Result<()> {
        let Ticks { places, common, endings, rows, .. } = self;
        if let Some(endings) = endings {
            endings.read(|ending| {
                let of_it = |place: &&mut TickSite| place.site.namespace.cookie == ending.namespace;
                if let Some(place) = places.iter_mut().find(of_it) {
                    place.add_ending(&ending, common, rows);
                }
            });
        }
        for place in places {
            if !place.read_notices(common, rows)? {
                common.notices_lost.store(true, Ordering::Relaxed);
            }
        }
        common.samples.append(rows);
        Ok(())
    }

    /// Subflows of which an event told, and that were closed before a tick.
    fn read_unread(&mut self) -> Result<()> {
        let time_ns = sys::monotonic_ns();
        for place in &mut self.places {
            place.by_diag.read_unread(time_ns, &mut self.rows)?;
        }
        self.common.samples.append(&mut self.rows);
        Ok(())
    }

    /// Waits for what only notices tell, unless some of them were lost.
    fn read_late_notices(&mut self) -> Result<()> {
        let end = Instant::now() + NOTICES;
        while !self.common.notices_lost.load(Ordering::Relaxed) {
            let lacking = self.places.iter().find(|place| place.lacks_rows(&self.common));
            let left = end.saturating_duration_since(Instant::now());
            let Some(place) = lacking.filter(|_| !left.is_zero()) else { break };
            // Interrupted by a signal it waits again.
            let _ = wait::readable([place.notices.fd()], Some(left));
            self.read_endings()?;
        }
        Ok(())
    }

    /// Reads at each tick of the timer until `stop` is readable, and then once more.
    pub fn run(mut self, timer: &OwnedFd, stop: &EventFd) -> Result<()> {
        let mut fds: Vec<RawFd> = vec![timer.as_raw_fd(), stop.as_raw_fd()];
        fds.extend(self.places.iter().map(|place| place.notices.fd()));
        fds.extend(self.endings.as_ref().map(Endings::fd));
        let mut ready = Vec::new();
        let failed = |error: std::io::Error| Error::call("waiting for the next tick", &error);
        loop {
            sys::clock::wait_any(&fds, &mut ready).map_err(failed)?;
            let stopped = ready[1];
            if ready[0] {
                let expired = sys::clock::expirations(timer.as_raw_fd()).map_err(failed)?;
                self.common.missed.fetch_add(expired.saturating_sub(1), Ordering::Relaxed);
            }
            let mut read = if ready[0] || stopped { self.tick() } else { self.read_endings() };
            if stopped {
                // What ended while the last tick was read has no row by that.
                read = read.and_then(|()| self.read_endings()).and_then(|()| self.read_unread());
                read = read.and_then(|()| self.read_late_notices());
            }
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
