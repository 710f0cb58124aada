//! Threads that read subflows and connections on a clock, into rows. Nothing here waits for whoever uses the rows.
//!
//! One thread reads the subflows, tick by tick ([`ticks`]); a second reads connections, which waits for their locks
//! unless it is done by BPF ([`connections`]); a third finds new subflows ([`finder`]).

mod by_bpf;
mod by_diag;
mod choice;
mod connections;
mod connections_by_bpf;
mod finder;
mod full_info;
mod ticks;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::connection::by_descriptor::read_info;
use crate::connection::by_token::ByToken;
use crate::connection::Connection;
use crate::endings::Begun;
use crate::error::{Error, Result};
use crate::events::event::Event;
use crate::namespace::sysctls;
use crate::namespace::Namespace;
use crate::netlink::diag::{self, Entry, Tuple};
use crate::samples::row::RawSample;
pub use crate::samples::row::{ConnectionRow, Sample};
use crate::samples::store::Store;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait::EventFd;

pub use choice::{Choice, Cost, Trial};

/// How subflows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// MPTCP_FULL_INFO: atomic for all subflows of a connection, and waits for the connection's lock.
    FullInfo,
    /// inet_diag: each subflow by itself, and no connection's lock.
    InetDiag,
    /// A BPF program: no lock at all.
    Bpf,
}

impl Method {
    /// The method that a recording is asked for; none for "auto", which measures.
    pub fn of_name(name: &str) -> Result<Option<Method>> {
        match name {
            "auto" => Ok(None),
            "full_info" => Ok(Some(Method::FullInfo)),
            "inet_diag" => Ok(Some(Method::InetDiag)),
            "bpf" => Ok(Some(Method::Bpf)),
            _ => Err(Error::value("method must be 'auto', 'full_info', 'inet_diag' or 'bpf'")),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Method::FullInfo => "full_info",
            Method::InetDiag => "inet_diag",
            Method::Bpf => "bpf",
        }
    }
}

/// What is recorded.
#[derive(Debug, Clone)]
pub enum Source {
    /// A connection by a descriptor, which stays its owner's: closed, or somebody else's by now, is noticed by the token.
    Descriptor { fd: RawFd, token: u32, namespace: Arc<Namespace> },
    /// A connection by its token.
    Token { token: u32, namespace: Arc<Namespace> },
    /// Every connection of a network namespace.
    Namespace(Arc<Namespace>),
}

impl Source {
    /// Of a connected socket.
    pub fn descriptor(fd: RawFd) -> Result<Source> {
        let token = read_info(fd)?.token();
        if token == 0 {
            return Err(Error::os(libc::ENOTCONN, "the socket is not connected: it has no token yet"));
        }
        Ok(Source::Descriptor { fd, token, namespace: Namespace::of_socket(fd)? })
    }

    /// Of a connection without a descriptor, if it is still there.
    pub fn of_connection(connection: &ByToken) -> Result<Source> {
        Ok(Source::Token { token: connection.known()?.token, namespace: connection.namespace()? })
    }

    fn namespace(&self) -> &Arc<Namespace> {
        match self {
            Source::Descriptor { namespace, .. }
            | Source::Token { namespace, .. }
            | Source::Namespace(namespace) => namespace,
        }
    }
}

/// How it is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub interval: Duration,
    pub connection_interval: Duration,
    /// If absent by measurement, see [`Choice`], where all sources are descriptors, and inet_diag where not.
    pub method: Option<Method>,
    /// Rows that wait at most.
    pub room: usize,
}

/// What the threads and their owner share.
#[derive(Debug)]
struct Common {
    samples: Store<RawSample>,
    connections: Store<ConnectionRow>,
    missed: AtomicU64,
    ticks: AtomicU64,
    notices_lost: AtomicBool,
    real_time: AtomicBool,
    cpu_ns: AtomicU64,
    connections_cpu_ns: AtomicU64,
    events: Mutex<Vec<Event>>,
    /// How subflows are read now, and why so.
    choice: Mutex<Choice>,
    /// Every subflow that was recorded.
    ends: Mutex<AllEnds>,
    /// The first error that ended a thread.
    failure: Mutex<Option<Error>>,
}

/// Between what a subflow was, which its rows do not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubflowEnds {
    pub token: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Every subflow by its cookie, in the order in which they were found.
#[derive(Debug, Default)]
struct AllEnds {
    cookies: HashSet<u64>,
    ends: Vec<(u64, SubflowEnds)>,
}

impl Common {
    fn new(room: usize, method: Method) -> Common {
        Common {
            samples: Store::new(room),
            connections: Store::new(room),
            missed: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            notices_lost: AtomicBool::new(false),
            real_time: AtomicBool::new(false),
            cpu_ns: AtomicU64::new(0),
            connections_cpu_ns: AtomicU64::new(0),
            events: Mutex::default(),
            choice: Mutex::new(Choice::new(method)),
            ends: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// Whether the subflow has been remembered.
    fn has_noted(&self, cookie: u64) -> bool {
        lock(&self.ends).cookies.contains(&cookie)
    }

    /// Whether a subflow with these ends, of the connection with this token, has been remembered.
    fn has_noted_ends(&self, tuple: &Tuple, token: u32) -> bool {
        let is_it = |ends: &SubflowEnds| {
            let other = Tuple { local: ends.local, remote: ends.remote, interface: 0 };
            ends.token == token && other.same_endpoints(tuple)
        };
        lock(&self.ends).ends.iter().any(|(_, ends)| is_it(ends))
    }

    /// Remembers a new subflow.
    fn note(&self, entry: &Entry, token: u32) {
        let Tuple { local, remote, .. } = entry.tuple;
        let mut all = lock(&self.ends);
        if all.cookies.insert(entry.cookie) {
            all.ends.push((entry.cookie, SubflowEnds { token, local, remote }));
        }
    }
}

/// What surrounds the connections of one network namespace.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// SO_NETNS_COOKIE.
    pub namespace: u64,
    /// The connections that are recorded; all of the namespace if absent.
    pub tokens: Option<BTreeSet<u32>>,
    /// At the start.
    pub sysctls: BTreeMap<String, String>,
}

impl Surroundings {
    fn of(site: &Site) -> Surroundings {
        Surroundings {
            namespace: site.namespace.cookie,
            tokens: site.tokens.clone(),
            // A recording without them is better than none.
            sysctls: sysctls::read(&site.namespace).unwrap_or_default(),
        }
    }
}

/// Subflow ids by token and ends, as MPTCP_FULL_INFO told them.
type Ids = HashMap<(u32, SocketAddr, SocketAddr), u32>;

/// What the threads tell each other of one network namespace.
#[derive(Debug, Default)]
struct Found {
    /// Connections of which subflows were seen.
    tokens: Mutex<BTreeSet<u32>>,
    ids: Mutex<Ids>,
    /// Subflows of which events told.
    begun: Mutex<Begun>,
    /// Addresses of the `mptcp_sock` of connections, by token, that nobody reads by them yet.
    addresses: Mutex<HashMap<u32, u64>>,
    /// Subflows that were found and not taken over yet, by cookie.
    found: Mutex<HashMap<u64, Entry>>,
    /// Whether anybody needs the search.
    searched: AtomicBool,
    /// When the ticks themselves last read by a dump, which finds new subflows.
    dumped_ns: AtomicU64,
}

/// The sources of one network namespace.
#[derive(Debug)]
struct Site {
    namespace: Arc<Namespace>,
    /// Connections by descriptor.
    descriptors: Vec<(RawFd, u32)>,
    /// The connections that are meant; all of the namespace if absent.
    tokens: Option<BTreeSet<u32>>,
    known: Arc<Found>,
}

impl Site {
    fn wants(&self, token: u32) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| tokens.contains(&token))
    }

    /// A netlink socket of its own in the namespace, which no other thread waits for.
    fn diag_socket(&self) -> Result<OwnedFd> {
        self.namespace.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)
    }
}

/// Sources by network namespace.
fn sites(sources: &[Source]) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for source in sources {
        let namespace = source.namespace();
        let found = sites.iter().position(|site| site.namespace.cookie == namespace.cookie);
        let index = found.unwrap_or_else(|| {
            sites.push(Site {
                namespace: Arc::clone(namespace),
                descriptors: Vec::new(),
                tokens: Some(BTreeSet::new()),
                known: Arc::default(),
            });
            sites.len() - 1
        });
        let site = &mut sites[index];
        let token = match source {
            Source::Namespace(_) => {
                site.tokens = None;
                continue;
            }
            Source::Token { token, .. } => *token,
            Source::Descriptor { fd, token, .. } => {
                if !site.descriptors.iter().any(|(_, other)| other == token) {
                    site.descriptors.push((*fd, *token));
                }
                *token
            }
        };
        if let Some(tokens) = &mut site.tokens {
            tokens.insert(token);
        }
    }
    sites
}

/// A timer that expires after each interval from now on.
fn timer(interval: Duration) -> Result<OwnedFd> {
    let interval = interval.as_nanos() as u64;
    sys::clock::timer(sys::monotonic_ns() + interval, interval)
        .map_err(|error| Error::call("timerfd", &error))
}

/// A recording that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Sampler {
    common: Arc<Common>,
    /// Each with what stops it, from the last that is stopped to the first.
    threads: Mutex<Vec<(Arc<EventFd>, JoinHandle<()>)>>,
    process: u32,
    /// By network namespace.
    pub surroundings: Vec<Surroundings>,
}

impl Sampler {
    /// Starts to record. The first tick is read before this returns, so that what cannot be recorded is told at once.
    pub fn start(sources: &[Source], mut settings: Settings) -> Result<Sampler> {
        let failed = |what: &'static str| move |error: std::io::Error| Error::call(what, &error);
        let sites: Vec<Arc<Site>> = sites(sources).into_iter().map(Arc::new).collect();
        let all_descriptors = sources.iter().all(|source| matches!(source, Source::Descriptor { .. }));
        let by_bpf = match settings.method {
            // Taken wherever it can be had.
            None => sites.iter().map(by_bpf::ByBpf::new).collect::<Result<Vec<_>>>().ok(),
            Some(Method::Bpf) => Some(sites.iter().map(by_bpf::ByBpf::new).collect::<Result<_>>()?),
            Some(_) => None,
        };
        if by_bpf.is_some() {
            settings.method = Some(Method::Bpf);
        } else if !all_descriptors {
            settings.method.get_or_insert(Method::InetDiag);
        }
        let by_diag = matches!(settings.method, Some(Method::InetDiag | Method::Bpf));
        let common = Arc::new(Common::new(settings.room, settings.method.unwrap_or(Method::InetDiag)));
        let event_fd = || EventFd::new().map(Arc::new).map_err(failed("eventfd"));
        let (stop, stop_finder) = (event_fd()?, event_fd()?);
        // First the connections: they tell the subflows' ids.
        let mut connections = connections::Connections::new(&sites, &common, by_bpf.is_some())?;
        connections.tick()?;
        let new_subflow = event_fd()?;
        let mut finder = finder::Finder::new(&sites, &common, &new_subflow)?;
        for site in &sites {
            site.known.searched.store(settings.method != Some(Method::FullInfo), Ordering::Relaxed);
        }
        finder.tick()?;
        let ticks = ticks::Ticks::new(&sites, by_bpf, &common, settings)?;
        let sampler = Sampler {
            common: Arc::clone(&common),
            threads: Mutex::default(),
            process: std::process::id(),
            surroundings: sites.iter().map(|site| Surroundings::of(site)).collect(),
        };
        sampler.start_ticks(ticks, &stop, settings.interval)?;
        let is_empty = |site: &&Arc<Site>| lock(&site.known.tokens).is_empty();
        if by_diag {
            for site in sites.iter().filter(is_empty) {
                diag::check_tells(&mut lock(&site.namespace.diag))?;
            }
        }

        let (connection_timer, finder_timer) =
            (timer(settings.connection_interval)?, timer(finder::INTERVAL)?);
        sampler.spawn("mptcp-conns", &stop, move |stop| {
            connections.run(&connection_timer, stop, &new_subflow)
        })?;
        // It is stopped before the others: the last tick uses what events told.
        sampler.spawn("mptcp-finder", &stop_finder, move |stop| finder.run(&finder_timer, stop))?;
        Ok(sampler)
    }

    /// Starts the thread of the ticks; returns when it has read the first. The clock begins there and not before: beside
    /// busy processes a new thread waits for some milliseconds until it runs and has its priority, and the ticks of these
    /// would be missed.
    fn start_ticks(&self, mut ticks: ticks::Ticks, stop: &Arc<EventFd>, interval: Duration) -> Result<()> {
        let (first, outcome) = sync_channel(1);
        let common = Arc::clone(&self.common);
        self.spawn("mptcp-ticks", stop, move |stop| {
            let real_time = sys::clock::become_real_time().is_ok();
            common.real_time.store(real_time, Ordering::Relaxed);
            let timer = ticks.tick().and_then(|()| timer(interval));
            let _ = first.send(timer.as_ref().map(drop).map_err(Error::clone));
            ticks.run(&timer?, stop)
        })?;
        outcome.recv().unwrap_or(Ok(()))
    }

    fn spawn(
        &self,
        name: &str,
        stop: &Arc<EventFd>,
        run: impl FnOnce(&EventFd) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (common, stop) = (Arc::clone(&self.common), Arc::clone(stop));
        let until = Arc::clone(&stop);
        let body = move || {
            if let Err(error) = run(&until) {
                lock(&common.failure).get_or_insert(error);
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|error| Error::call("starting a thread", &error))?;
        lock(&self.threads).push((stop, thread));
        Ok(())
    }

    /// Reads everything once more and ends; returns when the threads have ended. Again is nothing.
    pub fn stop(&self) {
        // After a fork the threads are the parent's. Threads of the child may have got the same pthread_t, which dropping
        // the handles would detach.
        if self.process != std::process::id() {
            std::mem::forget(self.threads.try_lock().map(|mut threads| std::mem::take(&mut *threads)));
            return;
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        for (stop, thread) in threads.into_iter().rev() {
            stop.set();
            let _ = thread.join();
        }
    }

    pub fn take_samples(&self) -> Result<Vec<Sample>> {
        self.common.samples.take(RawSample::decode)
    }

    pub fn take_connections(&self) -> Result<Vec<ConnectionRow>> {
        self.common.connections.take(|row| *row)
    }

    /// Events since the last time, in order.
    pub fn take_events(&self) -> Vec<Event> {
        let mut events = std::mem::take(&mut *lock(&self.common.events));
        // Two threads add to them.
        events.sort_by_key(|event| event.time_ns);
        events
    }

    /// The subflows that were recorded until now, with their cookies, without the first `start`.
    pub fn ends(&self, start: usize) -> Vec<(u64, SubflowEnds)> {
        lock(&self.common.ends).ends.get(start..).unwrap_or_default().to_vec()
    }

    /// How subflows are read now, and why so.
    pub fn choice(&self) -> Choice {
        lock(&self.common.choice).clone()
    }

    pub fn status(&self) -> Status {
        let common = &self.common;
        Status {
            missed: common.missed.load(Ordering::Relaxed),
            ticks: common.ticks.load(Ordering::Relaxed),
            dropped: common.samples.dropped() + common.connections.dropped(),
            notices_lost: common.notices_lost.load(Ordering::Relaxed),
            real_time: common.real_time.load(Ordering::Relaxed),
            cpu_ns: common.cpu_ns.load(Ordering::Relaxed),
            connections_cpu_ns: common.connections_cpu_ns.load(Ordering::Relaxed),
            failure: lock(&common.failure).clone(),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How a recording goes.
#[derive(Debug, Clone)]
pub struct Status {
    /// Ticks that no reading was done for.
    pub missed: u64,
    pub ticks: u64,
    /// Rows that nobody took in time.
    pub dropped: u64,
    /// The kernel dropped notices of subflows that ended: some lack their final row.
    pub notices_lost: bool,
    /// The ticks run under SCHED_FIFO.
    pub real_time: bool,
    /// Processor time of the thread of the ticks, known when it has ended.
    pub cpu_ns: u64,
    /// Likewise of the thread of the connections.
    pub connections_cpu_ns: u64,
    /// What ended the recording before its time.
    pub failure: Option<Error>,
}
