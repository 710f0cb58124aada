//! `mptcp broker`: a daemon that does for ordinary users what needs CAP_NET_ADMIN, on connections that are their own.
//!
//! Each connection to it has a thread, so that a caller who waits for a connection's lock, or who reads nothing, holds
//! nobody up. What a caller says is checked against what the kernel says of him (SO_PEERCRED) and of the connection
//! (inet_diag). The protocol is in [`crate::netlink::broker`], where its client is.

mod checks;
mod client;
mod options;
mod quotas;
pub mod rules;
mod sandbox;
mod streams;

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::broker::checks::{refusal, LowPorts};
use crate::broker::client::{turn_away, Client};
use crate::broker::options::Limits;
use crate::broker::quotas::Quotas;
use crate::broker::rules::Rules;
use crate::broker::streams::Streams;
use crate::error::{Error, Result};
use crate::namespace::path_manager::{Held, PathManager};
use crate::namespace::Namespace;
use crate::netlink::{self, Channel};
use crate::sys::credentials::{Owner, Rights};
use crate::sys::lock::lock;
use crate::sys::seqpacket;
use crate::sys::{self, wait, wait::EventFd};

/// How many connections there are at most, of all users.
const CLIENTS: usize = 1024;

/// How long threads may take to end, with the process to follow.
const ENDING: Duration = Duration::from_secs(1);

/// A thread's stack: it calls nothing deep.
const STACK: usize = 256 * 1024;

/// Bytes of events that the kernel may queue.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// Bytes of the journal.
const RECORD: usize = 64;

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

#[derive(Debug)]
pub struct Settings {
    /// A listening socket of the type SOCK_SEQPACKET.
    pub listener: Socket,
    /// Readable when it is to end.
    pub stop: RawFd,
    /// A file that says which path manager the namespace has to get back, if this process is killed.
    pub journal: File,
    pub rules: Rules,
    /// Gets one byte once the broker serves, with no more rights than it needs.
    pub ready: File,
    /// The user to become. Absent: no change of the uid.
    pub uid: Option<u32>,
}

/// What its threads share.
#[derive(Debug)]
struct Broker {
    namespace: Arc<Namespace>,
    quotas: Arc<Quotas>,
    streams: Streams,
    ports: LowPorts,
    limits: Limits,
    journal: File,
    /// One hold at a time, so that the journal is of that one, and beneath it a longer one.
    holding: Mutex<Option<Longer>>,
}

/// A path manager of the namespace that some callers, whom rules allow it, keep for some time.
#[derive(Debug)]
struct Longer {
    name: PathManager,
    before: String,
    callers: usize,
}

/// New sockets of the namespace latch another path manager, until this is dropped.
struct Hold<'a> {
    held: Option<Held<'a>>,
    broker: &'a Broker,
    longer: MutexGuard<'a, Option<Longer>>,
}

/// The same for some time, in which others may hold, and use the same.
struct Use<'a>(&'a Broker);

impl Broker {
    fn hold(&self, name: PathManager, patience: Duration) -> Result<Hold<'_>> {
        let longer = lock(&self.holding);
        // Beneath a longer one the journal has what was before that.
        if longer.is_none() {
            self.record(&self.namespace.path_manager()?)?;
        }
        let mut hold = Hold { held: None, broker: self, longer };
        hold.held = Some(self.namespace.hold_path_manager(name, patience)?);
        Ok(hold)
    }

    /// `None`: another path manager is in use so.
    fn use_path_manager(&self, name: PathManager, patience: Duration) -> Result<Option<Use<'_>>> {
        let mut longer = lock(&self.holding);
        match &mut *longer {
            Some(other) if other.name != name => return Ok(None),
            Some(same) => same.callers += 1,
            None => {
                self.record(&self.namespace.path_manager()?)?;
                match self.namespace.hold_path_manager(name, patience) {
                    Ok(held) => *longer = Some(Longer { name, before: held.leave(), callers: 1 }),
                    Err(error) => {
                        self.forget();
                        return Err(error);
                    }
                }
            }
        }
        Ok(Some(Use(self)))
    }

    /// What is put back by the keeper of this process, should it be killed meanwhile.
    fn record(&self, before: &str) -> Result<()> {
        let mut record = before.as_bytes().to_vec();
        record.resize(RECORD, 0);
        self.journal.write_all_at(&record, 0).map_err(|error| Error::call("the journal", &error))
    }

    fn forget(&self) {
        let _ = self.journal.write_all_at(&[0; RECORD], 0);
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        drop(self.held.take());
        if self.longer.is_none() {
            self.broker.forget();
        }
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        let mut longer = lock(&self.0.holding);
        let Some(Longer { name, before, callers }) = &mut *longer else { return };
        *callers -= 1;
        if *callers > 0 {
            return;
        }
        // What somebody else has set meanwhile stays.
        let namespace = &self.0.namespace;
        if namespace.path_manager().is_ok_and(|now| now == name.name()) {
            let _ = namespace.set_path_manager(before);
        }
        *longer = None;
        self.0.forget();
    }
}

/// The threads, by number, and their sockets, which are shut down at the end.
#[derive(Debug, Default)]
struct Threads(Mutex<HashMap<u64, Socket>>);

impl Threads {
    /// Each finds its socket closed then. One that closes a caller's descriptor may be held up by that for ever, so no end
    /// is waited for without a limit.
    fn end(&self) {
        for socket in lock(&self.0).values() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        let end = Instant::now() + ENDING;
        while !lock(&self.0).is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Serves until it is told to stop.
pub fn serve(settings: &Settings) -> Result<()> {
    let namespace = Namespace::current()?;
    namespace.path_manager()?;
    let quotas = Arc::new(Quotas::new());
    let socket = namespace.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)?;
    let requests = Channel::new(socket).map_err(|error| Error::call("socket(AF_NETLINK)", &error))?;
    let streams = Streams::new(subscribe(&namespace)?, requests, Arc::clone(&quotas))?;
    let stop = EventFd::new().map_err(|error| Error::call("eventfd", &error))?;
    // Before there is a second thread, which would keep its own.
    let limits = confine(settings)?;
    let broker = Arc::new(Broker {
        streams,
        namespace,
        quotas,
        ports: LowPorts::open(),
        limits,
        journal: settings.journal.try_clone().map_err(|error| Error::call("the journal", &error))?,
        holding: Mutex::default(),
    });
    std::thread::scope(|scope| {
        let (broker, stop) = (&broker, &stop);
        let reader = std::thread::Builder::new()
            .name("mptcp-events".into())
            .spawn_scoped(scope, move || broker.streams.run(stop.as_raw_fd()))
            .map_err(|error| Error::call("starting the thread that reads events", &error))?;
        let told =
            (&settings.ready).write_all(&[1]).map_err(|error| Error::call("telling that it serves", &error));
        let served = told.and_then(|()| accept_all(broker, settings));
        stop.set();
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        served.and(read)
    })
}

/// Drops, for good, all rights that serving does not take. What serves options on one subflow is loaded before, which is
/// what CAP_BPF and CAP_PERFMON are for.
fn confine(settings: &Settings) -> Result<Limits> {
    let failed = |error| Error::call("dropping privileges", &error);
    let uid = settings.uid.unwrap_or_else(|| Owner::current().uid);
    let keep = |capabilities| Rights { uid, capabilities, user_namespace: None }.keep().map_err(failed);
    keep(CAP_NET_ADMIN | CAP_BPF | CAP_PERFMON)?;
    let limits = if settings.rules.allow_options() { Limits::loaded() } else { Limits::without_options() };
    keep(CAP_NET_ADMIN)?;
    for missing in sandbox::enter()? {
        let _ = writeln!(std::io::stderr(), "mptcp broker: this kernel does not have {missing}");
    }
    Ok(limits)
}

/// A subscription to the events of the namespace.
fn subscribe(namespace: &Namespace) -> Result<Socket> {
    let group = namespace.pm.family()?.event_group;
    let socket = Socket::from(namespace.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC)?);
    let joined = sys::bind_netlink(socket.as_raw_fd())
        .and_then(|()| socket.set_nonblocking(true))
        .and_then(|()| netlink::join(&socket, group));
    joined.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => Error::permission(
            "mptcp broker needs CAP_NET_ADMIN in the user namespace that owns the network namespace",
        ),
        _ => Error::call("joining mptcp_pm_events", &error),
    })?;
    netlink::ask_for_room(&socket, RECEIVE_BUFFER);
    Ok(socket)
}

fn accept_all(broker: &Arc<Broker>, settings: &Settings) -> Result<()> {
    let threads = Arc::new(Threads::default());
    let mut number = 0;
    loop {
        match wait::readable([settings.stop, settings.listener.as_raw_fd()], None) {
            Ok([false, true]) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            ended => {
                threads.end();
                return ended.map(drop).map_err(|error| Error::call("poll", &error));
            }
        }
        // It may have gone by now, or there is no descriptor left: the next round tries again.
        let Ok((socket, _)) = settings.listener.accept() else {
            let _ = wait::readable([settings.stop], Some(Duration::from_millis(10)));
            continue;
        };
        number += 1;
        let threads = Arc::clone(&threads);
        if let Some(client) = admit(broker, settings, &threads, socket) {
            let kept = client.duplicate();
            let Ok(kept) = kept else { continue };
            lock(&threads.0).insert(number, kept);
            let those = Arc::clone(&threads);
            let run = move || {
                client.serve();
                lock(&those.0).remove(&number);
            };
            let thread = std::thread::Builder::new().stack_size(STACK).name("mptcp-client".into());
            if thread.spawn(run).is_err() {
                lock(&threads.0).remove(&number);
            }
        }
    }
}

/// The connection of somebody who may come in.
fn admit(broker: &Arc<Broker>, settings: &Settings, threads: &Threads, socket: Socket) -> Option<Client> {
    let peer = seqpacket::peer(socket.as_fd()).ok()?;
    let Some(allowed) = settings.rules.of(&peer).cloned() else {
        turn_away(&socket, &refusal(format!("its rules allow nothing to uid {}", peer.uid)));
        return None;
    };
    let is_full = lock(&threads.0).len() >= CLIENTS;
    let place = if is_full {
        None
    } else {
        broker.quotas.place(peer.uid, allowed.clients, allowed.opens_per_second, allowed.holds_per_second)
    };
    let Some(place) = place else {
        turn_away(
            &socket,
            &refusal(format!(
                "a user may have {} connections to it, and all users together {CLIENTS}",
                allowed.clients
            )),
        );
        return None;
    };
    Some(Client::new(Arc::clone(broker), socket, peer, allowed, place))
}
