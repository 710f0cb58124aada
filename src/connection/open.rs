//! Opening a subflow: from the request to the peer's acceptance, or to the cause of the failure with nothing left
//! behind.
//!
//! SUBFLOW_CREATE returns when the SYN is out. What follows is watched from two sides. The exact inet_diag look-up
//! shows the acceptance, which is the fourth ACK (RFC 8684, section 3.2) and raises no event. The events show why
//! a subflow that vanished did so.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::abi::address::{self, Endpoint, Scope};
use crate::abi::full_info::Reading;
use crate::abi::uapi::{self, tcp_state};
use crate::connection::acceptance;
use crate::connection::by_token::ByToken;
use crate::connection::path_manager::{explain_einval, has_ended};
use crate::connection::{self, needs_net_admin, not_fully_established, Connection, Subflow};
use crate::error::{describe, Cause, Error, Result};
use crate::events::event::{Event, Kind};
use crate::events::reader::Reader;
use crate::events::subscription::Subscription;
use crate::namespace::address_ids::{self, AddressIds};
use crate::namespace::known::Known;
use crate::namespace::Namespace;
use crate::netlink::diag::{self, Tuple};
use crate::netlink::pm;
use crate::netlink::route;
use crate::netlink::Failure;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait::EventFd;

/// How long the events of a subflow that vanished may take to say why.
const CAUSE: Duration = Duration::from_millis(500);

/// The shortest and the longest time between two looks for acceptance.
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(5);

/// The longest time between two looks for a caller that waits for many subflows, if no event comes.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long to look without a pause: a wait takes the kernel's timer slack of 50 us at least, which is longer than
/// most handshakes on one host.
const BUSY: Duration = Duration::from_micros(300);

/// SUBFLOW_CREATE was seen to open a backup: older kernels (6.1) ignore the flag.
static BACKUP_IS_KEPT: AtomicBool = AtomicBool::new(false);
/// Whether SUBFLOW_CREATE binds a subflow to an interface, once that was seen: older kernels (6.1) ignore that too.
static BINDS: OnceLock<bool> = OnceLock::new();

/// What a caller asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Absent: by the route to the remote end. Port 0: the kernel's choice.
    pub local: Option<Endpoint>,
    /// Absent: the connection's own. Port 0: the connection's own.
    pub remote: Option<Endpoint>,
    pub backup: bool,
    /// The interface to bind the subflow to.
    pub interface: Option<String>,
    /// The address id, 0 for that of the initial address. Absent: one that is free.
    pub local_id: Option<u8>,
    /// To the peer's initial address and port too, where it denies that.
    pub force: bool,
}

impl Request {
    /// What can be refused before any system call.
    pub fn check(&self) -> Result<()> {
        if let (Some(local), Some(remote)) = (&self.local, &self.remote) {
            if local.ip.is_ipv4() != remote.ip.is_ipv4()
                && !local.is_unspecified()
                && !remote.is_unspecified()
            {
                return Err(Error::value(format!(
                    "local {} and remote {} must be of the same address family",
                    local.ip, remote.ip
                )));
            }
        }
        for endpoint in [&self.local, &self.remote].into_iter().flatten() {
            let needs_scope = address::is_link_local(endpoint.ip) && endpoint.scope.is_none();
            if needs_scope && self.interface.is_none() {
                let message = format!("link-local address {} must have an interface", endpoint.ip);
                return Err(Error::value(message).because(Cause::NoInterface));
            }
            if endpoint.ip.is_multicast() {
                return Err(Error::value(format!(
                    "cannot open a subflow to or from the multicast address {}",
                    endpoint.ip
                )));
            }
        }
        Ok(())
    }
}

/// An address id that a subflow can have.
pub fn check_local_id(id: i64) -> Result<u8> {
    u8::try_from(id).map_err(|_| Error::value(format!("local_id must be from 0 to 255, not {id}")))
}

/// The ends of a request after everything left open was filled in; the local port may still be 0.
#[derive(Debug, Clone, Copy)]
struct Ends {
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
    local_id: Option<u8>,
    backup: bool,
}

/// A subflow to open: a request after everything left open was filled in.
#[derive(Debug)]
pub struct Plan {
    namespace: Arc<Namespace>,
    known: Arc<Known>,
    ends: Ends,
    name: Name,
}

/// The request, as error messages name it.
#[derive(Debug, Clone, Copy)]
struct Name {
    local: SocketAddr,
    remote: SocketAddr,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local.port() {
            0 => write!(f, "subflow {} -> {}", self.local.ip(), self.remote),
            _ => write!(f, "subflow {} -> {}", self.local, self.remote),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The connection may not be fully established yet.
    NotSent,
    /// The SYN is out.
    Sent,
    /// Accepted, failed, or left to itself.
    Settled,
}

/// How far an opening has come.
#[derive(Debug)]
pub enum Progress {
    Accepted(Subflow),
    Pending(Opening),
}

/// A subflow on its way. Dropped before it is settled, it is closed.
#[derive(Debug)]
pub struct Opening {
    plan: Plan,
    /// What was asked for, until a reading has shown that the connection is the one that was found before.
    unconfirmed: Option<Request>,
    /// Keeps the subscription alive, without which no event comes.
    reader: Arc<Reader>,
    events: Arc<Subscription>,
    state: State,
    /// The four-tuple that the kernel gave. Absent if the subflow was gone before it could be seen.
    tuple: Option<Tuple>,
    /// The result of the look-up that showed the acceptance.
    accepted: Option<diag::Entry>,
    started: Instant,
    /// The SYN/ACK has come.
    answered: bool,
    closed: Option<Event>,
    /// When the subflow was first missing, while the cause is not known.
    gone: Option<Instant>,
}

impl Plan {
    /// Fills a request in; `peer` is the connection's remote end. Sends nothing yet.
    fn new(
        namespace: Arc<Namespace>,
        known: Arc<Known>,
        request: &Request,
        peer: SocketAddr,
    ) -> Result<Plan> {
        let ends = ends(&namespace, request, peer)?;
        if ends.interface != 0 && BINDS.get() == Some(&false) {
            return Err(cannot_bind());
        }
        let to_initial = ends.remote == address::unmapped(address::without_scope(peer));
        if to_initial && !request.force && namespace.deny_join_initial(known.token) == Some(true) {
            return Err(Error::subflow(
                libc::EACCES,
                format!(
                    "the peer denies further subflows to {peer}, its initial address and port (the C bit of MP_CAPABLE, \
                     RFC 8684, section 3.1)"
                ),
            )
            .because(Cause::DeniedByPeer));
        }
        let name = Name { local: ends.local, remote: ends.remote };
        Ok(Plan { namespace, known, ends, name })
    }

    /// The same for a connection without a descriptor, of which nothing is looked up.
    pub fn by_token(connection: &ByToken, request: &Request) -> Result<Plan> {
        request.check()?;
        let (namespace, known) = connection.shared()?;
        Plan::new(Arc::clone(namespace), Arc::clone(known), request, connection.entry.tuple.remote)
    }

    pub fn token(&self) -> u32 {
        self.known.token
    }

    /// Whether this kernel is known to do all that was asked for, so that nothing has to be looked at afterwards.
    pub fn is_certain(&self) -> bool {
        (!self.ends.backup || BACKUP_IS_KEPT.load(Ordering::Relaxed))
            && (self.ends.interface == 0 || BINDS.get() == Some(&true))
    }

    /// The local end, with port 0 for any, and the remote one.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.ends.local, self.ends.remote)
    }

    /// The SYN alone, for a subflow that is left to itself: neither the live ids nor the new four-tuple are looked up.
    /// An id that another address of this connection has is refused by the kernel, and then its list is asked for.
    ///
    /// The outcome is an event. Waits for the connection's lock.
    pub fn send(&self) -> Result<()> {
        connection::wait_for_lock_of(&self.namespace, &self.known);
        self.create(&mut lock(&self.known.opening), &[])?;
        self.known.was_locked(sys::monotonic_ns());
        Ok(())
    }

    fn create(&self, ids: &mut AddressIds, before: &[Reading]) -> Result<()> {
        let token = self.known.token;
        let local = pm::Address {
            flags: if self.ends.backup { uapi::pm::FLAG_BACKUP } else { 0 },
            interface: self.ends.interface,
            ..pm::Address::new(self.ends.local)
        };
        let remote = pm::Address::new(self.ends.remote);
        let pair = (self.ends.local.ip(), self.ends.local.port());
        let live = self.live(ids, before)?;
        let wanted = address_ids::Request { pair, id: self.ends.local_id, live: &live };
        let command = |id| pm::codec::encode_create(token, &pm::Address { id, ..local }, &remote);
        let explain = || explain_einval(&self.namespace, token, self.ends.local.ip(), 0);
        ids.choose((&self.namespace.pm, token), wanted, command, explain, |failure| self.refused(failure))?;
        Ok(())
    }

    /// The addresses and local ids of the live subflows. Those that are new to us are looked up.
    fn live(&self, ids: &mut AddressIds, before: &[Reading]) -> Result<Vec<(IpAddr, u8)>> {
        ids.by_subflow.retain(|id, _| before.iter().any(|reading| reading.id == Some(*id)));
        let (mut live, mut unknown) = (Vec::new(), Vec::new());
        for reading in before.iter().filter(|reading| is_live(reading)) {
            match reading.id.and_then(|id| ids.by_subflow.get(&id)) {
                Some(local_id) => live.push((reading.local.ip().to_canonical(), *local_id)),
                None => unknown.push(reading),
            }
        }
        if unknown.is_empty() {
            return Ok(live);
        }
        let tuples: Vec<Tuple> = unknown.iter().map(|r| self.known.tuple(r.local, r.remote)).collect();
        let entries = diag::look_up(&mut lock(&self.namespace.diag), &tuples).map_err(diag::failed)?;
        for (reading, entry) in unknown.into_iter().zip(entries) {
            let ours = |subflow: &diag::Ulp| subflow.token == self.known.token;
            let Some(subflow) = entry.and_then(|entry| entry.subflow).filter(ours) else { continue };
            live.push((reading.local.ip().to_canonical(), subflow.local_id));
            if let Some(id) = reading.id {
                ids.by_subflow.insert(id, subflow.local_id);
            }
        }
        Ok(live)
    }

    /// The error of a SUBFLOW_CREATE that failed at once.
    fn refused(&self, failure: &Failure) -> Error {
        let name = &self.name;
        match failure.errno {
            libc::EPERM => needs_net_admin("opening a subflow"),
            libc::ENOTCONN => {
                let state = connection_state(&self.namespace, self.known.token);
                state.ok().and_then(shut_down).unwrap_or_else(not_fully_established)
            }
            libc::EADDRNOTAVAIL => connection::not_local(self.ends.local.ip()),
            libc::EINVAL if address::is_link_local(self.ends.remote.ip()) => cannot_bind(),
            libc::EADDRINUSE => Error::subflow(
                libc::EADDRINUSE,
                format!(
                    "{name}: the local port is in use, perhaps by the previous subflow with this four-tuple, which stays in \
                     TIME_WAIT for 60 s"
                ),
            ),
            errno => Error::subflow(errno, format!("{name}: SUBFLOW_CREATE: {}", failure.describe())),
        }
    }

    /// An error where the kernel has not bound a subflow to the interface that was asked for.
    fn check_binding(&self, entry: &diag::Entry) -> Result<()> {
        if self.ends.interface == 0 {
            return Ok(());
        }
        let is_bound = entry.tuple.interface == self.ends.interface;
        let _ = BINDS.set(is_bound); // which the first one has shown already
        is_bound.then_some(()).ok_or_else(cannot_bind)
    }

    /// The inet_diag entry of this connection's subflow with a four-tuple, if there is one that is not closed.
    fn subflow(&self, tuple: &Tuple) -> Result<Option<diag::Entry>> {
        acceptance::look_at(&self.namespace, self.known.token, tuple)
    }
}

impl Opening {
    /// Fills the request in and subscribes to the connection's events. Sends nothing yet.
    pub fn new(connection: &dyn Connection, request: &Request) -> Result<Opening> {
        request.check()?;
        // The reading before the SYN tells whether it is that connection still.
        let before = connection.known_before().map(|known| Opening::of(connection, known, request, None));
        if let Some(Ok(mut opening)) = before {
            opening.unconfirmed = Some(request.clone());
            return Ok(opening);
        }
        Opening::of(connection, connection.known()?, request, None)
    }

    /// The same with a descriptor for events, which a caller may wait on instead of in `advance`.
    pub fn with_descriptor(connection: &dyn Connection, request: &Request) -> Result<Opening> {
        request.check()?;
        let descriptor = EventFd::new().map_err(|error| Error::call("eventfd", &error))?;
        Opening::of(connection, connection.known()?, request, Some(descriptor))
    }

    fn of(
        connection: &dyn Connection,
        known: Arc<Known>,
        request: &Request,
        descriptor: Option<EventFd>,
    ) -> Result<Opening> {
        let remote = match known.remote.get() {
            Some(remote) => *remote,
            None => {
                let (_, remote) = connection.ends()?;
                *known.remote.get_or_init(|| remote)
            }
        };
        let plan = Plan::new(connection.namespace()?, known, request, remote)?;
        let reader = plan.namespace.reader_of_outcomes().map_err(|error| match error.errno() {
            libc::EPERM => needs_net_admin("opening a subflow"),
            _ => error,
        })?;
        Ok(Opening {
            events: reader.subscribe(plan.known.token, descriptor),
            reader,
            plan,
            unconfirmed: None,
            state: State::NotSent,
            tuple: None,
            accepted: None,
            started: Instant::now(),
            answered: false,
            closed: None,
            gone: None,
        })
    }

    /// Goes on until `until`; true when the peer has accepted the subflow. After an error nothing is left of it.
    pub fn advance(&mut self, connection: &dyn Connection, until: Instant) -> Result<bool> {
        loop {
            let outcome = match self.state {
                State::NotSent if self.closed.is_some() => Err(self.cause()),
                State::NotSent => match self.send(connection) {
                    Ok(()) => self.look(),
                    // It may become fully established before the deadline.
                    Err(error) if error == not_fully_established() => Ok(false),
                    Err(error) => Err(error),
                },
                State::Sent => self.look(),
                State::Settled => Ok(true),
            };
            match outcome {
                Ok(true) => {
                    self.state = State::Settled;
                    return Ok(true);
                }
                Ok(false) => {}
                Err(error) => {
                    self.abandon();
                    return Err(error);
                }
            }
            let now = Instant::now();
            if now >= until {
                return Ok(false);
            }
            if self.state == State::Sent && self.started.elapsed() < BUSY {
                std::thread::yield_now();
                continue;
            }
            if let Some(event) = self.events.next(until.min(now + self.pause())) {
                self.take(event);
            }
        }
    }

    /// The same, and the subflow once it is accepted. What is no longer needed is gone then.
    pub fn go_on(mut self, connection: &dyn Connection, until: Instant) -> Result<Progress> {
        match self.advance(connection, until)? {
            true => self.accepted(connection).map(Progress::Accepted),
            false => Ok(Progress::Pending(self)),
        }
    }

    /// How long to wait at most before the next look, if no event comes. Looking again costs microseconds.
    fn pause(&self) -> Duration {
        acceptance::pause(self.started.elapsed(), SHORTEST..=LONGEST)
    }

    /// The same for a caller that waits for many at once: the SYN/ACK is an event, only the acceptance has to be looked for.
    pub fn patient_pause(&self) -> Duration {
        match self.state {
            State::Sent if !self.answered && self.gone.is_none() => PATIENCE,
            _ => self.pause(),
        }
    }

    /// The descriptor that `new` got, readable when an event has come.
    pub fn fd(&self) -> Option<RawFd> {
        self.events.descriptor().map(AsRawFd::as_raw_fd)
    }

    /// Sends the SYN if it is not out and leaves the subflow to itself. Its four-tuple, unless it was gone before it
    /// could be seen, or would take a dump to see.
    pub fn detach(mut self, connection: &dyn Connection) -> Result<Option<Tuple>> {
        if self.state == State::NotSent {
            if connection.reads_by_dump() && self.plan.is_certain() {
                self.plan.send()?;
            } else {
                self.send(connection)?;
                // Left to itself it is bound and a backup as it was asked, or it is closed and an error says so: MP_PRIO
                // would have to follow the handshake, and nobody waits for that.
                if self.lacks_backup()? {
                    return Err(Error::unsupported(
                        "this kernel cannot open a subflow as a backup (Linux 6.1)",
                    )
                    .because(Cause::NoBackupAtOpening));
                }
            }
        }
        self.state = State::Settled;
        Ok(self.tuple)
    }

    /// Sends the SYN, for a caller that hears when the peer accepts a subflow. The four-tuple if MP_PRIO has to make it a
    /// backup then, because this kernel has ignored the flag.
    pub fn hand_over(mut self, connection: &dyn Connection) -> Result<Option<Tuple>> {
        self.send(connection)?;
        let lacks_backup = self.lacks_backup()?;
        self.state = State::Settled;
        Ok(self.tuple.filter(|_| lacks_backup))
    }

    /// Whether a subflow is not the backup that was asked for. One that is accepted already becomes it now. An error if it
    /// is not bound as it was asked.
    fn lacks_backup(&mut self) -> Result<bool> {
        let Some(tuple) = self.tuple.filter(|_| !self.plan.is_certain()) else { return Ok(false) };
        let Some(entry) = self.plan.subflow(&tuple)? else { return Ok(false) }; // refused already
        self.plan.check_binding(&entry)?;
        match entry.subflow.filter(|_| self.plan.ends.backup) {
            Some(subflow) if subflow.backup() => {
                BACKUP_IS_KEPT.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Some(subflow) if subflow.fully_established() => self.ask_for_backup(&tuple).map(|()| false),
            subflow => Ok(subflow.is_some()),
        }
    }

    /// The subflow that was accepted.
    pub fn accepted(&self, connection: &dyn Connection) -> Result<Subflow> {
        let is_it = |subflow: &Subflow| {
            let ends = Tuple { local: subflow.local, remote: subflow.remote, interface: 0 };
            self.tuple.is_some_and(|tuple| tuple.same_endpoints(&ends))
        };
        let found = match self.accepted_as_seen(connection)? {
            Some(subflow) => Some(subflow),
            None => connection.subflows()?.into_iter().find(is_it),
        };
        found.ok_or_else(|| {
            Error::subflow(libc::ECONNABORTED, format!("{} was accepted, but closed at once", self.plan.name))
        })
    }

    /// The same without another look-up, where the kernel numbers the connection's subflows for us.
    fn accepted_as_seen(&self, connection: &dyn Connection) -> Result<Option<Subflow>> {
        let Some(entry) = self.accepted else { return Ok(None) };
        let is_it = |reading: &Reading| {
            let ends = Tuple { local: reading.local, remote: reading.remote, interface: 0 };
            reading.id.is_some() && is_live(reading) && entry.tuple.same_endpoints(&ends)
        };
        let found = self.read(connection)?.into_iter().find(is_it);
        let id = found.as_ref().and_then(|reading| reading.id);
        // The next opening need not look it up; nor need it wait here for one that is under way.
        if let (Some(id), Some(subflow), Ok(mut ids)) =
            (id, entry.subflow, self.plan.known.opening.try_lock())
        {
            ids.by_subflow.insert(id, subflow.local_id);
        }
        Ok(found.map(|reading| Subflow::new(self.plan.known.token, reading.id, reading, Some(entry))))
    }

    /// The error of a deadline that has passed.
    pub fn timed_out(&mut self) -> Error {
        let message = match self.state {
            State::NotSent => return not_fully_established(),
            _ if self.answered => {
                format!("{}: the peer answered but did not accept it in time", self.plan.name)
            }
            _ => format!(
                "{}: no answer in time: a filter may drop the packets, or the host may be down",
                self.plan.name
            ),
        };
        self.abandon();
        Error::subflow(libc::ETIMEDOUT, message)
    }

    /// SUBFLOW_CREATE with an address id of its own, and finding the new subflow in the connection's list.
    fn send(&mut self, connection: &dyn Connection) -> Result<()> {
        let known = Arc::clone(&self.plan.known);
        let mut ids = lock(&known.opening);
        let before = match (self.read(connection), self.unconfirmed.take()) {
            (Ok(before), _) => before,
            (Err(error), None) => return Err(error),
            // It has ended, or it is another connection now.
            (Err(_), Some(request)) => {
                drop(ids);
                *self = Opening::of(connection, connection.known()?, &request, None)?;
                return self.send(connection);
            }
        };
        connection::wait_for_lock(connection);
        self.plan.create(&mut ids, &before)?;
        self.state = State::Sent;
        let ends = self.plan.ends;
        if ends.local.port() != 0 && ends.interface == 0 {
            self.tuple = Some(Tuple { local: ends.local, remote: ends.remote, interface: 0 });
            return Ok(());
        }
        let listed: HashSet<_> = before.iter().map(|reading| (reading.local, reading.remote)).collect();
        let is_new = |reading: &&Reading| {
            !listed.contains(&(reading.local, reading.remote))
                && reading.local.ip() == ends.local.ip()
                && (ends.local.port() == 0 || reading.local.port() == ends.local.port())
                && (reading.remote.ip(), reading.remote.port()) == (ends.remote.ip(), ends.remote.port())
        };
        self.tuple = self.read(connection)?.iter().find(is_new).map(|reading| {
            if ends.interface != 0 {
                lock(&known.interfaces).insert((reading.local, reading.remote), ends.interface);
            }
            Tuple { local: reading.local, remote: reading.remote, interface: ends.interface }
        });
        if let Some(tuple) = self.tuple {
            self.plan.ends.local = tuple.local;
        }
        Ok(())
    }

    /// The connection's subflows, closed ones too: one that was refused at once is still listed for a moment.
    fn read(&self, connection: &dyn Connection) -> Result<Vec<Reading>> {
        let (token, readings) = connection.read_with_closed()?;
        if token == 0 {
            return Err(Error::subflow(
                libc::ENOTCONN,
                format!("{}: the connection has ended", self.plan.name),
            ));
        }
        if token != self.plan.known.token {
            return Err(Error::os(libc::EBADF, "the socket was closed while a subflow was being opened"));
        }
        Ok(readings)
    }

    /// One look at the subflow: accepted, on its way, or gone.
    fn look(&mut self) -> Result<bool> {
        let is_there = self.look_up()?;
        if self.accepted.is_some() {
            return Ok(true);
        }
        // Only now: the reader thread may be about to deliver an event, and holds the lock while it does.
        self.take_what_is_there();
        if !is_there && self.closed.is_none() {
            // On a busy machine that thread may not have read the event with the cause.
            self.reader.try_catch_up();
            self.take_what_is_there();
        }
        // Gone. The event with the cause may not have arrived yet: a worker of the kernel sends it.
        if !is_there
            && (self.closed.is_some() || self.gone.get_or_insert_with(Instant::now).elapsed() > CAUSE)
        {
            return Err(self.cause());
        }
        Ok(false)
    }

    /// Whether there is such a subflow; `accepted` is set when the peer has accepted it.
    fn look_up(&mut self) -> Result<bool> {
        let Some(tuple) = self.tuple else { return Ok(false) };
        let Some(entry) = self.plan.subflow(&tuple)? else { return Ok(false) };
        self.plan.check_binding(&entry)?;
        if let Some(subflow) = entry.subflow.filter(diag::Ulp::fully_established) {
            if self.plan.ends.backup && !subflow.backup() {
                self.ask_for_backup(&tuple)?; // the next look shows whether it worked
            } else {
                self.accepted = Some(entry);
            }
        }
        Ok(true)
    }

    /// Older kernels (6.1) silently ignore the backup flag of SUBFLOW_CREATE, so MP_PRIO is sent, once.
    fn ask_for_backup(&mut self, tuple: &Tuple) -> Result<()> {
        self.plan.ends.backup = false;
        let local = pm::Address { flags: uapi::pm::FLAG_BACKUP, ..pm::Address::new(tuple.local) };
        let remote = pm::Address::new(tuple.remote);
        let asked = self.plan.namespace.pm.command(&pm::codec::encode_set_flags(
            self.plan.known.token,
            &local,
            &remote,
        ))?;
        asked.map_err(|failure| {
            Error::subflow(failure.errno, format!("{}: SET_FLAGS: {}", self.plan.name, failure.describe()))
        })?;
        Ok(())
    }

    fn take_what_is_there(&mut self) {
        while let Some(event) = self.events.next(Instant::now()) {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        if event.kind == Kind::Closed {
            self.closed = Some(event.clone());
        }
        let Some((local, remote)) = event.local.zip(event.remote) else { return };
        let ends = &self.plan.ends;
        // After a reset the event may have lost the remote port.
        let is_ours = local.ip() == ends.local.ip()
            && (ends.local.port() == 0 || local.port() == ends.local.port())
            && remote.ip() == ends.remote.ip()
            && (remote.port() == 0 || remote.port() == ends.remote.port());
        match event.kind {
            Kind::SubEstablished if is_ours => self.answered = true,
            Kind::SubClosed if is_ours && self.state != State::NotSent => self.closed = Some(event),
            _ => {}
        }
    }

    /// Why the subflow is gone.
    fn cause(&self) -> Error {
        let name = &self.plan.name;
        let Some(closed) = &self.closed else {
            if has_ended(&self.plan.namespace, self.plan.known.token).unwrap_or(false) {
                return Error::subflow(libc::ENOTCONN, format!("{name}: the connection has ended"));
            }
            let message = format!("{name} was closed before the peer accepted it, and no event said why");
            return Error::subflow(libc::ECONNABORTED, message);
        };
        if closed.kind == Kind::Closed {
            return Error::subflow(libc::ENOTCONN, format!("{name}: the connection has ended"));
        }
        let reason = match closed.reset_reason {
            Some(reason) => format!(" (reset reason {reason}: {})", reset_reason(reason)),
            None => String::new(),
        };
        let (errno, message) = match (closed.error, self.answered) {
            (None | Some(0 | libc::ECONNRESET), true) => (
                libc::ECONNABORTED,
                format!(
                    "{name} was refused after the SYN/ACK: the peer has reached its limit of subflows, or no process there \
                     is subscribed to path manager events{reason}"
                ),
            ),
            (None | Some(0), false) => (
                libc::EPROTO,
                format!("{name}: answered without MP_JOIN: the listener there is not one of this connection{reason}"),
            ),
            (Some(libc::ECONNREFUSED), _) => {
                // Nothing in the reset says which of these it was.
                let message = format!(
                    "{name} was refused: a reset answered the SYN (no listener, one that does not know this connection, or a \
                     firewall){reason}"
                );
                (libc::ECONNREFUSED, message)
            }
            (Some(errno), _) => (errno, format!("{name}: {}{reason}", describe(errno))),
        };
        Error::Subflow { errno, message, reset_reason: closed.reset_reason, cause: None }
    }

    /// Closes what is on its way.
    fn abandon(&mut self) {
        // In a forked child it is the parent's.
        if let (State::Sent, Some(tuple), true) = (self.state, self.tuple, self.plan.namespace.is_ours()) {
            let (local, remote) = (pm::Address::new(tuple.local), pm::Address::new(tuple.remote));
            let destroyed = self.plan.namespace.pm.command(&pm::codec::encode_destroy(
                self.plan.known.token,
                &local,
                &remote,
            ));
            // Its event is taken here so that it is not mistaken for the end of a later subflow from the same port.
            self.reader.try_catch_up();
            let deadline = Instant::now() + CAUSE;
            while matches!(destroyed, Ok(Ok(()))) && self.closed.is_none() {
                match self.events.next(deadline) {
                    Some(event) => self.take(event),
                    None => break,
                }
            }
        }
        self.state = State::Settled;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn connection_state(namespace: &Namespace, token: u32) -> Result<u8> {
    let found = diag::look_up_tokens(&mut lock(&namespace.diag), &[token]).map_err(diag::failed)?.pop();
    Ok(found.flatten().map_or(tcp_state::CLOSE, |entry| entry.state))
}

/// The error of a connection in this state, if it takes no subflow any more.
fn shut_down(state: u8) -> Option<Error> {
    let who = match state {
        tcp_state::FIN_WAIT1 | tcp_state::FIN_WAIT2 => "this end has shut down sending (SHUT_WR)",
        tcp_state::CLOSE_WAIT => "the peer has shut down sending (SHUT_WR)",
        tcp_state::TIME_WAIT | tcp_state::LAST_ACK | tcp_state::CLOSING => "both ends have shut down sending",
        tcp_state::CLOSE => "it has ended",
        _ => return None,
    };
    Some(Error::subflow(libc::ENOTCONN, format!("the connection does not take further subflows: {who}")))
}

fn is_live(reading: &Reading) -> bool {
    reading.tcp_info.state() != tcp_state::CLOSE
}

/// Fills in what a request leaves open.
fn ends(namespace: &Namespace, request: &Request, peer: SocketAddr) -> Result<Ends> {
    let given_remote = request.remote.as_ref();
    let remote_ip = given_remote.map(|remote| remote.ip).filter(|ip| !ip.is_unspecified());
    let remote_port = given_remote.map(|remote| remote.port).filter(|port| *port != 0);
    // An IPv4 peer of a dual-stack socket: the subflow itself is IPv4.
    let remote_ip = remote_ip.unwrap_or(peer.ip()).to_canonical();
    let mut interface = match &request.interface {
        Some(name) => namespace.interface_index(name)?,
        None => 0,
    };
    for endpoint in [&request.local, &request.remote].into_iter().flatten() {
        let scope = match &endpoint.scope {
            Some(Scope::Index(index)) => *index,
            Some(Scope::Name(name)) => namespace.interface_index(name)?,
            None => continue,
        };
        if interface != 0 && interface != scope {
            return Err(Error::value("local, remote and interface must name the same interface"));
        }
        interface = scope;
    }
    if let (0, SocketAddr::V6(v6)) = (interface, peer) {
        if given_remote.is_none() {
            interface = v6.scope_id();
        }
    }
    let local = request.local.as_ref().map(|local| (local.ip.to_canonical(), local.port));
    let local = match local.filter(|(ip, _)| !ip.is_unspecified()) {
        Some((ip, port)) if ip.is_ipv4() == remote_ip.is_ipv4() => SocketAddr::new(ip, port),
        Some((ip, _)) => {
            return Err(Error::value(format!(
                "local {ip} must be of the same address family as the connection's remote {remote_ip}"
            ))
            .because(Cause::OtherFamily));
        }
        None => {
            let source = source(namespace, remote_ip, interface)?;
            SocketAddr::new(source, request.local.as_ref().map_or(0, |local| local.port))
        }
    };
    let remote = SocketAddr::new(remote_ip, remote_port.unwrap_or(peer.port()));
    Ok(Ends { local, remote, interface, local_id: request.local_id, backup: request.backup })
}

/// The local address of the route to a remote one.
fn source(namespace: &Namespace, remote: IpAddr, interface: u32) -> Result<IpAddr> {
    let unreachable =
        |errno, text: String| Error::subflow(errno, format!("no local address can reach {remote}: {text}"));
    let route = route::look_up(&mut lock(&namespace.route), remote, interface);
    let route = route.map_err(|failure| unreachable(failure.errno, failure.describe()))?;
    route.source.ok_or_else(|| unreachable(libc::EADDRNOTAVAIL, "the route has no source address".to_owned()))
}

/// The local address that a request would open from.
pub fn local_address(connection: &dyn Connection, request: &Request) -> Result<IpAddr> {
    request.check()?;
    Ok(ends(&*connection.namespace()?, request, connection.ends()?.1)?.local.ip())
}

/// Older kernels (6.1) silently ignore MPTCP_PM_ADDR_ATTR_IF_IDX.
fn cannot_bind() -> Error {
    Error::unsupported("this kernel cannot bind a subflow to an interface under the userspace path manager")
}

/// MPTCP_RST_* by the words of RFC 8684, section 3.6.
fn reset_reason(reason: u32) -> &'static str {
    match reason {
        0 => "unspecified error",
        1 => "MPTCP-specific error",
        2 => "lack of resources",
        3 => "administratively prohibited",
        4 => "too much outstanding data",
        5 => "unacceptable performance",
        6 => "middlebox interference",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_itself_is_refused() {
        let endpoint = |host| Some(Endpoint::parse(host, 0).unwrap());
        let request = Request { local: endpoint("10.0.0.1"), remote: endpoint("::1"), ..Request::default() };
        assert!(matches!(request.check(), Err(Error::Value { .. })));
        let link_local = Request { remote: endpoint("fe80::1"), ..Request::default() };
        assert!(matches!(link_local.check(), Err(Error::Value { .. })));
        let scoped = Request { remote: endpoint("fe80::1%lo"), ..Request::default() };
        assert_eq!(scoped.check(), Ok(()));
        let multicast = Request { remote: endpoint("224.0.0.1"), ..Request::default() };
        assert!(matches!(multicast.check(), Err(Error::Value { .. })));
    }
}
