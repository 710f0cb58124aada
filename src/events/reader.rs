//! The thread that passes the events of one network namespace to its subscribers: one for each namespace and process,
//! however many subscribers there are.
//!
//! It reads `mptcp_pm_events`, which needs CAP_NET_ADMIN. The subscription matters as much as the events: under the
//! userspace path manager the kernel accepts joins only while a process is subscribed. An overrun loses events, never the
//! subscription. Without the privilege it compares readings of the sockets instead, at intervals and whenever a
//! subflow dies. In both cases it also reads links and addresses while a subscriber wants them.
//!
//! The thread is one of a [`Crew`]: before it carries a command out, which may wait for a connection's lock, it has
//! another one read. While a [`Caller`] waits for events and reads them itself, no thread of the crew is woken by them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::{Duration, Instant};

use netlink_packet_core::NLMSG_OVERRUN;

use crate::abi::uapi;
use crate::crew::caller::Caller;
use crate::crew::{Crew, Job, Next};
use crate::error::{Error, Result};
use crate::events::ends::{Ends, Listener, Rounds};
use crate::events::event::{self, Event, Kind};
use crate::events::history::History;
use crate::events::links::Watch;
use crate::events::snapshot::{self, Snapshot};
use crate::events::subscription::{Filter, Loss, Subscription};
use crate::events::Sockets;
use crate::netlink::broker::Broker;
use crate::netlink::codec::{messages, Message};
use crate::netlink::diag::{self, Tuple};
use crate::netlink::{self, receive_buffer, Channel, Failure};
use crate::sys::lock::lock;
use crate::sys::{self, descriptor, wait, wait::EventFd};

/// Bytes of events that the kernel may queue for us, if it lets us choose; else net.core.rmem_max.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// The shortest time between two readings of the sockets, without privilege.
const INTERVAL: Duration = Duration::from_millis(50);

/// The same as a multiple of what the last reading took.
const IDLE: u32 = 20;

/// How long to wait before looking for a broker again.
const ABSENCE: Duration = Duration::from_millis(100);

/// How many datagrams are read from one socket before the others.
const TURN: usize = 256;

/// Sees each event before it is passed to subscribers.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Commands to be carried out at once, with the connections' tokens.
    fn observe(&self, event: &Event) -> Vec<(u32, Job)>;
}

/// Where events come from.
#[derive(Debug)]
enum Origin {
    /// The multicast group of this number.
    Netlink {
        group: u32,
    },
    /// The broker of the namespace, which passes on those of the caller's connections.
    Broker(Arc<Broker>),
    Polling {
        requests: Mutex<Channel>,
        snapshot: Mutex<Snapshot>,
    },
}

#[derive(Debug, Default)]
struct Subscribers {
    of_all: Vec<Weak<Subscription>>,
    by_token: HashMap<u32, Vec<Weak<Subscription>>>,
}

impl Subscribers {
    fn add(&mut self, subscription: &Arc<Subscription>) {
        let is_live = |subscriber: &Weak<Subscription>| subscriber.strong_count() > 0;
        let list = match subscription.filter {
            Filter::Token(token) => {
                // Make room only when the table is about to grow, so that the cost of each subscriber stays constant.
                if self.by_token.len() == self.by_token.capacity() {
                    self.by_token.retain(|_, list| list.iter().any(is_live));
                }
                self.by_token.entry(token).or_default()
            }
            _ => &mut self.of_all,
        };
        list.retain(is_live);
        list.push(Arc::downgrade(subscription));
    }

    fn of(&self, token: Option<u32>) -> impl Iterator<Item = Arc<Subscription>> + '_ {
        let of_token = token.and_then(|token| self.by_token.get(&token)).into_iter().flatten();
        self.of_all.iter().chain(of_token).filter_map(Weak::upgrade)
    }

    fn all(&self) -> impl Iterator<Item = Arc<Subscription>> + '_ {
        self.of_all.iter().chain(self.by_token.values().flatten()).filter_map(Weak::upgrade)
    }

    /// The tokens that subscribers want events of; `None` for all.
    fn wanted(&self) -> Option<HashSet<u32>> {
        if self.of_all.iter().any(|subscriber| subscriber.strong_count() > 0) {
            return None;
        }
        let is_wanted = |list: &[Weak<Subscription>]| list.iter().any(|s| s.strong_count() > 0);
        Some(self.by_token.iter().filter(|(_, list)| is_wanted(list)).map(|(token, _)| *token).collect())
    }
}

/// Held while events are read and passed on, so that they stay in order.
#[derive(Debug)]
struct Reading {
    buffer: Vec<u8>,
    rounds: Rounds,
}

/// What the threads and the reader's owners share.
#[derive(Debug)]
struct Inner {
    origin: Origin,
    reading: Mutex<Reading>,
    crew: Crew,
    observers: Mutex<Vec<Weak<dyn Observer>>>,
    /// Descriptors of the origin's sockets.
    socket: Arc<socket2::Socket>,
    wake: EventFd,
    stop: AtomicBool,
    /// Who reads events in the crew's place.
    caller: Mutex<Weak<Caller>>,
    subscribers: Mutex<Subscribers>,
    /// Who is still to be woken for events that commands come before.
    unaware: Mutex<Vec<Arc<Subscription>>>,
    /// Links, while a subscriber wants their events.
    watch: Mutex<Weak<Watch>>,
    /// The ends of connections, where events come from the kernel.
    ends: Ends,
    history: History,
}

/// The subscription of this process to the events of one namespace. It ends when the last owner drops it.
#[derive(Debug)]
pub struct Reader {
    inner: Arc<Inner>,
    process: u32,
}

impl Reader {
    /// Reads the multicast group on a bound socket of generic netlink. Needs CAP_NET_ADMIN.
    pub fn of_netlink(
        socket: Arc<socket2::Socket>,
        group: u32,
        sockets: Weak<dyn Sockets>,
    ) -> Result<Reader> {
        // Events that an earlier reader left in the queue are outdated.
        while (&*socket).read(&mut [0; 16]).is_ok() {}
        netlink::join(&socket, group)
            .map_err(|error| Error::call("joining mptcp_pm_events (CAP_NET_ADMIN)", &error))?;
        Reader::start(socket, Origin::Netlink { group }, Ends::new(sockets))
    }

    /// Takes events from the broker of the namespace.
    pub fn of_broker(broker: Arc<Broker>, sockets: Weak<dyn Sockets>) -> Result<Reader> {
        let socket = broker.events().map_err(|error| Error::call("events of the broker", &error))?;
        Reader::start(Arc::new(socket), Origin::Broker(broker), Ends::new(sockets))
    }

    /// Compares readings of the sockets. Takes a bound socket of sock_diag for notices, and one for requests.
    pub fn of_polling(socket: Arc<socket2::Socket>, requests: Channel) -> Result<Reader> {
        for group in [uapi::diag::SKNLGRP_INET_TCP_DESTROY, uapi::diag::SKNLGRP_INET6_TCP_DESTROY] {
            netlink::join(&socket, group)
                .map_err(|error| Error::call("joining SKNLGRP_INET_TCP_DESTROY", &error))?;
        }
        Reader::start(
            socket,
            Origin::Polling { requests: Mutex::new(requests), snapshot: Mutex::default() },
            Ends::default(),
        )
    }

    fn start(socket: Arc<socket2::Socket>, origin: Origin, ends: Ends) -> Result<Reader> {
        netlink::ask_for_room(&socket, RECEIVE_BUFFER);
        let wake = EventFd::new().map_err(|error| Error::call("eventfd", &error))?;
        let buffer = receive_buffer().map_err(|error| Error::call("reading events", &error))?;
        let crew = Crew::new().map_err(|error| Error::call("eventfd", &error))?;
        let inner = Arc::new(Inner {
            origin,
            reading: Mutex::new(Reading { buffer, rounds: Rounds::default() }),
            crew,
            observers: Mutex::default(),
            socket,
            wake,
            stop: AtomicBool::new(false),
            caller: Mutex::default(),
            subscribers: Mutex::default(),
            unaware: Mutex::default(),
            watch: Mutex::default(),
            ends,
            history: History::default(),
        });
        start_thread(&inner).map_err(|error| Error::call("starting the thread that reads events", &error))?;
        Ok(Reader { inner, process: sys::process::id() })
    }

    /// Subscribes to the events of one connection, to be taken by `Subscription::next` or by its descriptor.
    pub fn subscribe(&self, token: u32, descriptor: Option<EventFd>) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription::new(Filter::Token(token), descriptor));
        lock(&self.inner.subscribers).add(&subscription);
        subscription
    }

    /// Subscribes with a descriptor to wait on.
    pub fn subscribe_to_stream(&self, filter: Filter) -> Result<Arc<Subscription>> {
        let descriptor = EventFd::new().map_err(|error| Error::call("eventfd", &error))?;
        let subscription = Arc::new(Subscription::new(filter, Some(descriptor)));
        let Origin::Polling { requests, snapshot } = &self.inner.origin else {
            self.catch_up();
            lock(&self.inner.subscribers).add(&subscription);
            let token = match filter {
                Filter::Token(token) => Some(token),
                _ => None,
            };
            self.inner.ends.watch(token)?;
            self.inner.wake.set(); // the interval begins
            return Ok(subscription);
        };
        // Events are changes from now on, so the present state must be known first.
        let mut snapshot = lock(snapshot);
        let wanted = match (lock(&self.inner.subscribers).wanted(), filter) {
            (Some(mut wanted), Filter::Token(token)) => {
                wanted.insert(token);
                Some(wanted)
            }
            _ => None,
        };
        let compared = self.inner.compare(&mut lock(requests), &mut snapshot, wanted.as_ref());
        compared.map_err(diag::failed)?;
        if filter == Filter::Namespace && !snapshot.has_subflows() {
            diag::check_tells(&mut lock(requests))?;
        }
        lock(&self.inner.subscribers).add(&subscription);
        drop(snapshot);
        self.inner.wake.set(); // the interval begins
        Ok(subscription)
    }

    /// The links of the namespace, read as long as the result is held; `start` makes the sockets for it. Whoever drops it
    /// calls `wake`.
    pub fn watch(&self, start: impl FnOnce() -> Result<Watch>) -> Result<Arc<Watch>> {
        let mut watch = lock(&self.inner.watch);
        if let Some(running) = watch.upgrade() {
            return Ok(running);
        }
        let started = Arc::new(start()?);
        *watch = Arc::downgrade(&started);
        self.wake();
        Ok(started)
    }

    /// Has the thread look again at what is wanted.
    pub fn wake(&self) {
        if self.process == sys::process::id() {
            self.inner.wake.set();
        }
    }

    /// Shows an observer the events from now on, as long as it lives.
    pub fn add_observer(&self, observer: &Arc<dyn Observer>) {
        let mut observers = lock(&self.inner.observers);
        observers.retain(|observer| observer.strong_count() > 0);
        observers.push(Arc::downgrade(observer));
        drop(observers);
        self.inner.start_deputy();
    }

    /// Has a command carried out by the caller if it is the one that submits it, and otherwise by another thread: after
    /// those of the same connection, whatever others wait for.
    pub fn submit(&self, caller: &Caller, token: u32, job: Job) {
        if caller.takes_commands() {
            self.inner.crew.put(token, job);
        } else {
            self.inner.submit(token, job);
        }
    }

    /// Has a thread of the crew carry out a command.
    pub fn submit_to_crew(&self, token: u32, job: Job) {
        self.inner.submit(token, job);
    }

    /// Has a caller read events in the crew's place while there is one, by `sockets` and `read`.
    pub fn attach(&self, caller: &Arc<Caller>) {
        *lock(&self.inner.caller) = Arc::downgrade(caller);
        self.wake();
    }

    /// The crew reads all events again, and keeps nothing of the caller.
    pub fn detach(&self, caller: &Arc<Caller>) {
        let mut current = lock(&self.inner.caller);
        if Weak::ptr_eq(&current, &Arc::downgrade(caller)) {
            *current = Weak::new();
        }
        drop(current);
        self.wake();
    }

    /// Carries out the commands that wait, if the current thread is the caller; false if another one has taken its place
    /// meanwhile.
    pub fn carry_out(&self, caller: &Caller) -> bool {
        if !caller.is_here() {
            return true;
        }
        while let Some((token, job)) = self.inner.crew.take() {
            caller.begin();
            job();
            let others_wait = self.inner.crew.put_down(token);
            if !caller.finish() {
                if others_wait {
                    self.wake();
                }
                return false;
            }
        }
        true
    }

    /// The sockets that a caller may wait on to read events itself, by `read`, when one of them is readable; none where
    /// only the crew can read.
    pub fn sockets(&self) -> Option<[RawFd; 2]> {
        let Origin::Netlink { .. } = self.inner.origin else { return None };
        let links = lock(&self.inner.watch).upgrade().map_or(-1, |watch| watch.fd());
        Some([self.inner.socket.as_raw_fd(), links])
    }

    /// Reads the events that are there, and passes them to their subscribers, in the place of the thread that does so:
    /// who waits for them is woken by the kernel, and not by that thread.
    pub fn read(&self, [source, links]: [bool; 2]) {
        if source || links {
            self.inner.read_sockets(&mut lock(&self.inner.reading).buffer, source, links);
            self.inner.wake_subscribers();
        }
    }

    /// Passes on what has happened so far, which the thread may not have read yet.
    pub fn catch_up(&self) {
        if self.catches_up() {
            self.inner.catch_up(lock(&self.inner.reading));
        }
    }

    /// Reads the events that are there, so that what has happened so far is known; false while another thread reads some.
    pub fn try_catch_up(&self) -> bool {
        if !self.catches_up() {
            return true;
        }
        let reading = match self.inner.reading.try_lock() {
            Ok(reading) => reading,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        self.inner.catch_up(reading);
        true
    }

    /// Whether others than the thread may read. After a fork the events are the parent's; a broker's socket is left to the
    /// thread, which waits with `reading` locked for another broker where that has ended.
    fn catches_up(&self) -> bool {
        self.process == sys::process::id() && matches!(self.inner.origin, Origin::Netlink { .. })
    }

    pub fn is_polling(&self) -> bool {
        matches!(self.inner.origin, Origin::Polling { .. })
    }

    /// The connections known from the kernel's events: one without any subflow is found by its token only.
    pub fn ends(&self) -> &Ends {
        &self.inner.ends
    }

    /// What the events of a connection have told so far.
    pub fn history(&self, token: u32) -> Vec<Event> {
        self.inner.history.of(token)
    }

    /// Closes a listener when the connection that it was opened for ends.
    pub fn close_at_end(&self, token: u32, listener: &Arc<Listener>) -> Result<()> {
        self.inner.ends.close_at_end(token, listener);
        self.inner.ends.watch(Some(token))?;
        self.inner.wake.set();
        Ok(())
    }

    /// Bytes of events that the kernel may queue: for tests of what happens when they do not fit.
    pub fn set_receive_buffer(&self, size: i32) -> std::io::Result<()> {
        sys::setsockopt_i32(self.inner.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, size)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // After a fork the threads and the subscription are the parent's.
        if self.process != sys::process::id() {
            return;
        }
        if let Origin::Netlink { group } = self.inner.origin {
            let _ = netlink::leave(&self.inner.socket, group);
        }
        self.inner.stop.store(true, Ordering::Relaxed);
        self.inner.crew.refuse();
        self.inner.wake.set();
        self.inner.crew.end();
    }
}

fn start_thread(inner: &Arc<Inner>) -> std::io::Result<()> {
    if !inner.crew.begin() {
        return Ok(());
    }
    let for_thread = Arc::clone(inner);
    let spawned = std::thread::Builder::new().name("mptcp-events".into()).spawn(move || work(&for_thread));
    if spawned.is_err() {
        inner.crew.leave();
    }
    spawned.map(drop)
}

/// A thread: reads events while no other does, and carries commands out.
fn work(inner: &Arc<Inner>) {
    let mut next = inner.crew.next();
    loop {
        next = match next {
            Next::Read => {
                inner.run();
                inner.crew.stop_reading()
            }
            Next::Job { token, job, needs_deputy } => {
                if needs_deputy {
                    inner.start_deputy();
                }
                job();
                inner.crew.finish(token)
            }
            Next::End => return,
        };
    }
}

impl Inner {
    /// Starts a thread more, unless there are enough, to read while another carries commands out. Where none can be started,
    /// events wait for the command.
    fn start_deputy(self: &Arc<Self>) {
        if self.crew.lacks_deputy() {
            let _ = start_thread(self);
        }
    }

    fn submit(&self, token: u32, job: Job) {
        if self.crew.submit(token, job) {
            self.wake.set();
        }
    }

    /// Reads until it is told to stop, or until there are commands and another thread can read.
    fn run(&self) {
        let mut polling = match &self.origin {
            Origin::Netlink { .. } | Origin::Broker(_) => None,
            Origin::Polling { requests, snapshot } => {
                Some(Polling { inner: self, requests, snapshot, earliest: Instant::now(), due: None })
            }
        };
        while self.crew.goes_on_reading() {
            self.wake_subscribers();
            let watched: RawFd = lock(&self.watch).upgrade().map_or(-1, |watch| watch.fd());
            let caller = lock(&self.caller).upgrade();
            let timer = caller.as_ref().map_or(-1, |caller| caller.timer().as_raw_fd());
            let [source, watched] = match caller.as_ref().is_some_and(|caller| caller.reads()) {
                true => [-1, -1],
                false => [self.socket.as_raw_fd(), watched],
            };
            let timeout =
                polling.as_ref().map_or_else(|| lock(&self.reading).rounds.timeout(), Polling::timeout);
            let ready = wait::readable([self.wake.as_raw_fd(), source, watched, timer], timeout);
            self.crew.attend();
            let [woken, source, links, timed] = match ready {
                Ok(ready) => ready,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return self.crew.refuse(),
            };
            if woken {
                self.wake.reset();
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            if let Some(caller) = caller.filter(|_| timed) {
                caller.timer().reset();
                caller.look();
            }
            let mut reading = lock(&self.reading);
            let Reading { buffer, rounds } = &mut *reading;
            match &mut polling {
                Some(polling) => {
                    self.read_sockets(buffer, false, links);
                    polling.go_on(source, buffer);
                }
                None => {
                    // The caller may have read them meanwhile.
                    self.read_sockets(buffer, source, links);
                    // Commands that events have led to come first.
                    if !self.crew.has_jobs() {
                        self.look_for_ends(rounds, buffer);
                    }
                }
            }
        }
    }

    /// Passes on what has happened so far, which the thread may not have read yet: who subscribes next has no part in it,
    /// and who ends has all of it. Only where `Reader::catches_up`.
    fn catch_up(&self, mut reading: MutexGuard<'_, Reading>) {
        while !self.read_sockets(&mut reading.buffer, true, true) && !self.stop.load(Ordering::Relaxed) {}
        drop(reading);
        self.wake_subscribers();
    }

    /// Reads events, of links too; true if the socket of connections is empty.
    fn read_sockets(&self, buffer: &mut [u8], source: bool, links: bool) -> bool {
        if let Some(watch) = lock(&self.watch).upgrade().filter(|_| links) {
            let drained = drain(self, watch.socket(), buffer, |datagram, now| {
                watch.take(datagram, now, |event| self.dispatch(&event));
            });
            if drained.lost {
                // What cannot be read now is reported with later changes.
                let _ = watch.read_back();
                self.lost(|filter| filter == Filter::Namespace);
            }
        }
        !source || self.read_events(buffer)
    }

    /// Reports connections that ended without an event from the kernel.
    fn look_for_ends(&self, rounds: &mut Rounds, buffer: &mut [u8]) {
        let gone = rounds.go_on(&self.ends, || lock(&self.subscribers).wanted());
        // If there was an event after all, it is in the socket by now. If not all of them could be read, the next round
        // reports the rest.
        if gone.is_empty() || !self.read_events(buffer) {
            return;
        }
        let time_ns = sys::monotonic_ns();
        for token in gone {
            let (token, error) = (Some(token), Some(libc::ECONNRESET));
            let closed = Event { token, error, ..Event::new(Kind::Closed, time_ns) };
            if self.note(&closed) {
                self.dispatch(&closed);
            }
        }
    }

    /// True if the sockets are empty.
    fn read_events(&self, buffer: &mut [u8]) -> bool {
        let interface_name = |index| sys::interface_name(self.socket.as_raw_fd(), index).ok().map(Arc::from);
        let mut was_dropped = false;
        let drained = drain(self, &self.socket, buffer, |datagram, now| {
            for message in messages(datagram) {
                if let Message::Data { message_type, payload, .. } = message {
                    was_dropped |= message_type == NLMSG_OVERRUN;
                    if let Some(event) = event::decode(payload, now, interface_name) {
                        self.note(&event);
                        self.dispatch(&event);
                    }
                }
            }
        });
        if drained.lost || was_dropped {
            self.lost(|_| true);
        }
        if drained.ended {
            self.find_broker_again();
        }
        drained.all
    }

    /// The broker has ended: events that it would have passed on are lost, until another listens in its place.
    fn find_broker_again(&self) {
        let Origin::Broker(broker) = &self.origin else { return };
        self.lost(|_| true);
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok(socket) = broker.events() {
                if descriptor::replace(self.socket.as_fd(), socket.as_fd()).is_ok() {
                    return self.lost(|_| true);
                }
            }
            // Nothing tells when there is one.
            let _ = wait::readable([self.wake.as_raw_fd()], Some(ABSENCE));
            if !self.stop.load(Ordering::Relaxed) {
                self.wake.reset();
            }
        }
    }

    /// Reads the sockets, and reports what has changed since the last reading: of the wanted connections, or of all.
    fn compare(
        &self,
        requests: &mut Channel,
        snapshot: &mut Snapshot,
        wanted: Option<&HashSet<u32>>,
    ) -> std::result::Result<(), Failure> {
        let is_wanted = |token| wanted.is_none_or(|wanted| wanted.contains(&token));
        let known = snapshot.tokens().chain(wanted.into_iter().flatten().copied());
        let mut now = Snapshot::read(requests, known, is_wanted)?;
        let missing = snapshot.missing_in(&now);
        let tuples: Vec<Tuple> = missing.iter().map(|(_, entry)| entry.tuple).collect();
        for ((token, before), entry) in missing.into_iter().zip(diag::look_up(requests, &tuples)?) {
            let is_it = |entry: &diag::Entry| entry.cookie == before.cookie && snapshot::is_connected(entry);
            if let Some(entry) = entry.filter(is_it) {
                now.add_subflow(token, entry);
            }
        }
        for event in snapshot.changes(&now) {
            self.dispatch(&event);
        }
        *snapshot = now;
        Ok(())
    }

    /// False for the end of a connection that is not watched, or that was reported before.
    fn note(&self, event: &Event) -> bool {
        match event.token {
            Some(token) if event.kind == Kind::Closed => self.ends.note_end(token),
            Some(token) if event.kind == Kind::Created => {
                let deny_join_initial = event.deny_join_initial.unwrap_or(false);
                self.ends.note_begin(token, event.time_ns, deny_join_initial);
                true
            }
            _ => true,
        }
    }

    fn dispatch(&self, event: &Event) {
        let mut comes_later = false;
        for observer in lock(&self.observers).iter().filter_map(Weak::upgrade) {
            for (token, job) in observer.observe(event) {
                self.submit(token, job);
                comes_later = true;
            }
        }
        self.history.note(event);
        for subscriber in lock(&self.subscribers).of(event.token) {
            // Another thread that is woken delays the commands.
            if comes_later {
                subscriber.push_silently(event);
                lock(&self.unaware).push(subscriber);
            } else {
                subscriber.push(event);
            }
        }
    }

    fn wake_subscribers(&self) {
        for subscriber in std::mem::take(&mut *lock(&self.unaware)) {
            subscriber.tell();
        }
    }

    fn lost(&self, whose: impl Fn(Filter) -> bool) {
        let loss = Arc::<Loss>::default();
        for subscriber in lock(&self.subscribers).all().filter(|subscriber| whose(subscriber.filter)) {
            subscriber.lost(&loss);
        }
    }
}

/// The result of reading a socket.
struct Drained {
    /// The kernel dropped some.
    lost: bool,
    /// The socket is empty.
    all: bool,
    /// The other end of the socket has been closed.
    ended: bool,
}

/// Reads the datagrams in a socket: all of them if the kernel dropped some, because it queues no more until they are read.
fn drain(
    inner: &Inner,
    mut socket: &socket2::Socket,
    buffer: &mut [u8],
    mut on_datagram: impl FnMut(&[u8], u64),
) -> Drained {
    let mut lost = false;
    let mut left = TURN;
    while (lost || left > 0) && !inner.stop.load(Ordering::Relaxed) {
        match socket.read(buffer) {
            Ok(0) => return Drained { lost, all: true, ended: true },
            Ok(length) => on_datagram(&buffer[..length], sys::monotonic_ns()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return Drained { lost, all: true, ended: false },
        }
        left = left.saturating_sub(1);
    }
    Drained { lost, all: false, ended: false }
}

/// The state of the thread that compares readings.
struct Polling<'a> {
    inner: &'a Inner,
    requests: &'a Mutex<Channel>,
    snapshot: &'a Mutex<Snapshot>,
    /// The earliest time of the next reading.
    earliest: Instant,
    /// When to read again; absent while nobody is subscribed.
    due: Option<Instant>,
}

impl Polling<'_> {
    fn timeout(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// What to do now. `notices`: sockets have been destroyed.
    fn go_on(&mut self, notices: bool, buffer: &mut [u8]) {
        if notices {
            let mut concerned = false;
            let drained = drain(self.inner, &self.inner.socket, buffer, |datagram, _| {
                let snapshot = lock(self.snapshot);
                concerned |= messages(datagram).any(|message| match message {
                    Message::Data { payload, .. } => {
                        diag::codec::cookie(payload).is_some_and(|cookie| snapshot.knows(cookie))
                    }
                    _ => false,
                });
            });
            if drained.lost || concerned {
                self.due = Some(self.earliest);
            }
        }
        let now = Instant::now();
        if self.due.is_some_and(|due| now < due) {
            return;
        }
        // Locked first, as a subscriber does, so that none is added in between.
        let mut snapshot = lock(self.snapshot);
        let wanted = lock(&self.inner.subscribers).wanted();
        if wanted.as_ref().is_some_and(HashSet::is_empty) {
            *snapshot = Snapshot::default();
            self.due = None;
            return;
        }
        // A reading that failed is repeated when the next is due.
        let _ = self.inner.compare(&mut lock(self.requests), &mut snapshot, wanted.as_ref());
        let end = Instant::now();
        self.earliest = end + (end - now) * IDLE;
        self.due = Some(self.earliest.max(end + INTERVAL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_go_to_whom_they_concern() {
        let mut subscribers = Subscribers::default();
        let [one, other, all] = [Filter::Token(1), Filter::Token(2), Filter::Namespace].map(|filter| {
            let subscription = Arc::new(Subscription::new(filter, None));
            subscribers.add(&subscription);
            subscription
        });
        let filters =
            |subscribers: &Subscribers, token| subscribers.of(token).map(|s| s.filter).collect::<Vec<_>>();
        assert_eq!(filters(&subscribers, Some(1)), [Filter::Namespace, Filter::Token(1)]);
        assert_eq!(filters(&subscribers, None), [Filter::Namespace]);
        assert_eq!(subscribers.wanted(), None);
        drop((all, other));
        assert_eq!(subscribers.wanted(), Some(HashSet::from([1])));
        assert_eq!(filters(&subscribers, Some(2)), []);
        drop(one);
    }
}
