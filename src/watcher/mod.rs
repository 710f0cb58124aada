//! The connections of a network namespace and their subflows, watched by its events: which subflows the peers have
//! accepted, which were lost, and, after a loss of events, what changed meanwhile.
//!
//! An event reports the SYN/ACK of a subflow, not its acceptance, so that is looked for (see
//! [`crate::connection::acceptance`]). After a loss the connections and subflows are read again and compared with what was
//! known. IPv4-mapped ends are reported as IPv4 ones.

pub mod commands;
pub mod orders;

use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::abi::address::unmapped;
use crate::abi::uapi::tcp_state;
use crate::connection::acceptance;
use crate::connection::by_token::{self, ByToken};
use crate::connection::open::Request;
use crate::connection::{needs_net_admin, priority, Connection, Subflow, Which};
use crate::crew::caller::Caller;
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::events::reader::Observer;
use crate::events::{Events, Taken};
use crate::namespace::Namespace;
use crate::sys::lock::lock;
use crate::sys::{self, wait};
use crate::watcher::commands::{prepare, Desk, Outcome, Outcomes};
use crate::watcher::orders::{is_of, Orders, What};

/// The shortest and the longest time between two looks for acceptance.
const SHORTEST: Duration = Duration::from_micros(250);
const LONGEST: Duration = Duration::from_millis(50);

/// The local and the remote end of a subflow.
pub type Ends = (SocketAddr, SocketAddr);

/// What the watcher reports, in order.
#[derive(Debug)]
pub enum Report {
    /// A connection that is fully established, or existed when the watcher began, and its accepted subflows.
    Connection { connection: ByToken, accepted: Vec<Ends> },
    /// A connection that was reported before has become fully established.
    Established { token: u32 },
    /// A connection has ended or fallen back.
    Closed { token: u32 },
    /// The SYN/ACK of a subflow has come, or the peer's own subflow.
    Answered(Event),
    /// The peer has accepted a subflow, or joined one itself.
    Accepted(Box<Subflow>),
    /// An accepted subflow was closed, unasked.
    Lost(Event),
    /// A subflow was closed that was to be closed, whether it had been accepted or not.
    Closing(Event),
    /// A subflow that had not been accepted was closed.
    Failed(Event),
    /// A subflow was closed with its connection, which is about to end: found after a loss of events.
    Ended(Event),
    /// The calling thread was stuck in a command, and another one takes the reports meanwhile.
    Relieved,
    /// What became of a command at once.
    Outcome(Outcome),
    /// Anything else: links, addresses, announced addresses, or a loss of events.
    Other(Event),
}

/// What is known of one connection.
#[derive(Debug)]
struct Watched {
    connection: Arc<ByToken>,
    accepted: HashSet<Ends>,
    /// Subflows whose SYN/ACK has arrived and that are not accepted yet.
    answered: HashSet<Ends>,
    /// Those that were to be closed.
    closing: HashSet<Ends>,
    /// Subflows that become backups when they are accepted, where the kernel cannot open them as such.
    to_be_backups: HashSet<Ends>,
}

/// A subflow that is to be opened.
pub struct Opening {
    token: u32,
    send: Box<dyn FnOnce() -> Result<()> + Send>,
}

impl Watched {
    /// An event for what the kernel sent no event for.
    fn event(&self, kind: Kind, (local, remote): Ends) -> Event {
        Event {
            token: Some(self.connection.token()),
            local: Some(local),
            remote: Some(remote),
            ..Event::new(kind, sys::monotonic_ns())
        }
    }
}

#[derive(Debug, Default)]
struct Ledger {
    watched: HashMap<u32, Watched>,
    reports: VecDeque<Report>,
    /// Events were lost, and the connections have not been read since.
    is_stale: bool,
    /// When to look for acceptance next, while there is one to look for.
    due: Option<Instant>,
    /// When the last SYN/ACK came.
    answered: Option<Instant>,
}

/// The connections of one network namespace. One thread at a time takes its reports; another may close it.
#[derive(Debug)]
pub struct Watcher {
    namespace: Arc<Namespace>,
    events: Events,
    caller: Arc<Caller>,
    ledger: Mutex<Ledger>,
    outcomes: Arc<Outcomes>,
    orders: Arc<Orders>,
}

impl Watcher {
    /// Begins with the connections that exist, which are reported first. Needs CAP_NET_ADMIN.
    pub fn start(namespace: Arc<Namespace>) -> Result<Watcher> {
        let events = namespace.events(None)?;
        if events.is_polling() {
            return Err(needs_net_admin("watching the subflows of all connections"));
        }
        let outcomes = Outcomes::new()?;
        let orders = Arc::new(Orders::new(Arc::clone(&outcomes)));
        events.reader().add_observer(&(Arc::clone(&orders) as Arc<dyn Observer>));
        let caller = Arc::new(Caller::new()?);
        events.reader().attach(&caller);
        let watcher = Watcher { namespace, events, caller, ledger: Mutex::default(), outcomes, orders };
        watcher.read_again(&mut lock(&watcher.ledger))?;
        Ok(watcher)
    }

    /// The links that are up and the present addresses, as events.
    pub fn links(&self) -> Vec<Event> {
        self.events.links()
    }

    /// What opens a subflow. What is wrong in itself is an error.
    pub fn prepare(&self, connection: &Arc<ByToken>, request: &Request) -> Result<Opening> {
        Ok(Opening {
            token: connection.token(),
            send: Box::new(prepare(connection, request, &self.outcomes)?),
        })
    }

    /// Opens a subflow. What the kernel refuses is an outcome with this number.
    pub fn open(&self, opening: Opening, number: u64) {
        self.desk().submit(opening.token, number, opening.send);
    }

    /// Closes a subflow. That it cannot be closed is an outcome with this number.
    pub fn close(&self, connection: &Arc<ByToken>, ends: Ends, force: bool, number: u64) {
        self.orders.take_back(connection.token(), &What::Subflow(ends));
        if let Some(watched) = lock(&self.ledger).watched.get_mut(&connection.token()) {
            watched.closing.insert((unmapped(ends.0), unmapped(ends.1)));
        }
        self.desk().close(connection, ends, force, number);
    }

    /// Changes the priority of a subflow. That it was, or cannot be, is an outcome with this number.
    pub fn set_backup(&self, connection: &Arc<ByToken>, ends: Ends, backup: bool, number: u64) {
        self.desk().set_backup(connection, ends, backup, number);
    }

    fn desk(&self) -> Desk<'_> {
        Desk { reader: self.events.reader(), caller: &self.caller, outcomes: &self.outcomes }
    }

    /// Leaves a standing order to open a subflow when `what` is lost, and returns the number of one that it replaces.
    pub fn when_lost(
        &self,
        connection: &Arc<ByToken>,
        what: What,
        request: &Request,
        number: u64,
    ) -> Result<Option<u64>> {
        self.orders.leave(connection, self.placed(what), request, number)
    }

    /// Takes a standing order back; its number, unless it has been carried out, or there was none.
    pub fn take_back(&self, token: u32, what: &What) -> Option<u64> {
        self.orders.take_back(token, what)
    }

    /// An address with the interface that has it now.
    fn placed(&self, what: What) -> What {
        let What::Address { ip, .. } = what else { return what };
        let has_it = |event: &Event| event.local.is_some_and(|local| local.ip() == ip);
        let interface = self.links().into_iter().find(has_it).and_then(|event| event.interface);
        What::Address { ip, interface }
    }

    /// Ends it: a waiting thread returns.
    pub fn end(&self) {
        self.events.end();
        self.caller.end();
        self.events.reader().wake();
    }

    /// The threads that take reports.
    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Carries out the commands that the calling thread has submitted, if it takes the reports; false if another one has taken
    /// its place meanwhile.
    pub fn carry_out(&self) -> bool {
        self.events.reader().carry_out(&self.caller)
    }

    /// Whether the calling thread takes the reports.
    pub fn is_here(&self) -> bool {
        self.caller.is_here()
    }

    /// The next report, waited for until `deadline`, or for ever; `None` when that has passed and once it was ended. A
    /// signal is the error EINTR. First carries out the commands that the calling thread has submitted.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Option<Report>> {
        if !self.carry_out() {
            return Ok(Some(Report::Relieved));
        }
        loop {
            if let Some(report) = self.take()? {
                return Ok(Some(report));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if self.events.is_over() || left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.wait(left).map_err(|error| Error::call("poll", &error))?;
        }
    }

    /// The next report, if there is one.
    fn take(&self) -> Result<Option<Report>> {
        let mut ledger = lock(&self.ledger);
        loop {
            // First, since an order is carried out before the event that it waited for is passed on.
            match self.outcomes.pop() {
                Some(Outcome::LacksBackup { token, ends }) => {
                    if let Some(watched) = ledger.watched.get_mut(&token) {
                        watched.to_be_backups.insert(ends);
                        self.make_backup(watched, ends);
                    }
                    continue;
                }
                Some(outcome) => return Ok(Some(Report::Outcome(outcome))),
                None => {}
            }
            if let Some(report) = ledger.reports.pop_front() {
                return Ok(Some(report));
            }
            if ledger.is_stale {
                self.read_again(&mut ledger)?;
                continue;
            }
            if ledger.due.is_some_and(|due| due <= Instant::now()) {
                self.look(&mut ledger)?;
                continue;
            }
            match self.events.take()? {
                Taken::Event(event) => self.handle(&mut ledger, event)?,
                Taken::Nothing | Taken::Over => return Ok(None),
            }
        }
    }

    /// Waits until there may be a report, for `timeout` at most. A signal is the error Interrupted.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let due = lock(&self.ledger).due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = [timeout, due].into_iter().flatten().min();
        // The kernel's sockets too: this thread is woken by them directly, and not by the thread that reads them. But where
        // there are standing orders, that one carries them out sooner than another that is told of them.
        let reader = self.events.reader();
        let sockets = reader.sockets().filter(|_| self.orders.is_empty());
        if self.caller.wait(sockets.is_some()) {
            reader.wake();
        }
        let [source, links] = sockets.unwrap_or([-1, -1]);
        self.events.set_awake(false);
        let ready = wait::readable([self.events.fd(), self.outcomes.fd(), source, links], timeout);
        self.events.set_awake(true);
        self.caller.wake();
        let [_, _, source, links] = ready?;
        reader.read([source, links]);
        Ok(())
    }

    fn handle(&self, ledger: &mut Ledger, event: Event) -> Result<()> {
        let event = Event { local: event.local.map(unmapped), remote: event.remote.map(unmapped), ..event };
        let Some(token) = event.token.filter(|_| event.kind != Kind::Overrun) else {
            let is_loss = event.kind == Kind::Overrun;
            ledger.reports.push_back(Report::Other(event));
            ledger.is_stale |= is_loss;
            return Ok(());
        };
        let ends = event.local.zip(event.remote);
        let Some(watched) = ledger.watched.get_mut(&token) else {
            if event.kind == Kind::Established {
                for connection in by_token::list(&self.namespace, Some(token))? {
                    ledger.begin(connection, &[]);
                }
            }
            return Ok(());
        };
        match (event.kind, ends) {
            (Kind::Established, _) => ledger.reports.push_back(Report::Established { token }),
            (Kind::Closed, _) => ledger.close(token),
            (Kind::SubEstablished, Some(ends)) => {
                if !watched.accepted.contains(&ends) && watched.answered.insert(ends) {
                    ledger.reports.push_back(Report::Answered(event));
                    ledger.expect_acceptance();
                }
            }
            (Kind::SubClosed, Some(ends)) => {
                watched.connection.was_locked(event.time_ns);
                let was_accepted = watched.accepted.remove(&ends);
                let count = watched.closing.len();
                watched.closing.retain(|closing| !is_of(ends, *closing));
                watched.answered.retain(|answered| !is_of(ends, *answered));
                watched.to_be_backups.retain(|waiting| !is_of(ends, *waiting));
                // The kernel raises this only while the connection is established, not when it ends.
                ledger.reports.push_back(match was_accepted {
                    _ if watched.closing.len() < count => Report::Closing(event),
                    true => Report::Lost(event),
                    false => Report::Failed(event),
                });
            }
            (Kind::SubEstablished | Kind::SubClosed, None) => {}
            _ => ledger.reports.push_back(Report::Other(event)),
        }
        Ok(())
    }

    /// Looks whether the fourth ACK has arrived for the subflows whose SYN/ACK has.
    fn look(&self, ledger: &mut Ledger) -> Result<()> {
        let asked: Vec<(Arc<ByToken>, Ends)> = ledger
            .watched
            .values()
            .flat_map(|watched| watched.answered.iter().map(|ends| (Arc::clone(&watched.connection), *ends)))
            .collect();
        let elapsed = ledger.answered.map_or(Duration::ZERO, |answered| answered.elapsed());
        ledger.due =
            (!asked.is_empty()).then(|| Instant::now() + acceptance::pause(elapsed, SHORTEST..=LONGEST));
        let tuples: Vec<_> = asked.iter().map(|(of, (local, remote))| (&**of, *local, *remote)).collect();
        let found = by_token::subflows_at(&tuples)?;
        for ((connection, ends), found) in asked.iter().zip(found) {
            // Bound to an interface; or closed, which an event is about to report.
            let found = found.or_else(|| find_in_dump(connection, *ends));
            if let Some(subflow) = found.filter(is_accepted) {
                let token = connection.token();
                ledger.accept(token, *ends, subflow);
                if let Some(watched) = ledger.watched.get_mut(&token) {
                    self.make_backup(watched, *ends);
                }
            }
        }
        Ok(())
    }

    /// Sends MP_PRIO for a subflow that has to become a backup, if it is accepted.
    fn make_backup(&self, watched: &mut Watched, ends: Ends) {
        if !watched.accepted.contains(&ends) || !watched.to_be_backups.remove(&ends) {
            return;
        }
        let (connection, (local, remote)) = (Arc::clone(&watched.connection), ends);
        let command = move || {
            // It may be closed by now, which is reported.
            let _ = priority::set_backup(&*connection, Which::Endpoints { local, remote }, true);
        };
        self.events.reader().submit_to_crew(watched.connection.token(), Box::new(command));
    }

    /// Reads all connections and subflows, and reports what differs from what was known.
    fn read_again(&self, ledger: &mut Ledger) -> Result<()> {
        let mut found = by_token::list(&self.namespace, None)?;
        // One that its owner has closed lives on for its last segments. Its end was reported, or lost, before.
        let is_owned =
            |entry: &crate::netlink::diag::Entry| entry.inode != 0 || !is_ending(Some(entry.state));
        found.retain(|connection| is_owned(&connection.entry));
        let read = by_token::subflows_of(&found.iter().collect::<Vec<_>>())?;
        let there: HashMap<u32, u64> = found.iter().map(|c| (c.token(), c.entry.cookie)).collect();
        let is_gone =
            |(token, watched): &(&u32, &Watched)| there.get(token) != Some(&watched.connection.entry.cookie);
        let gone: Vec<u32> = ledger.watched.iter().filter(is_gone).map(|(token, _)| *token).collect();
        gone.into_iter().for_each(|token| ledger.close(token));
        for (connection, subflows) in found.into_iter().zip(read) {
            let subflows = subflows.unwrap_or_default();
            match ledger.watched.get_mut(&connection.token()) {
                None => ledger.begin(connection, &subflows),
                Some(watched) => {
                    let reports = compare(watched, &subflows, is_ending(Some(connection.entry.state)));
                    ledger.reports.extend(reports);
                }
            }
        }
        ledger.expect_acceptance();
        ledger.is_stale = false;
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // After a fork the threads are the parent's, and so is what they hold.
        if self.events.is_ours() {
            self.caller.end();
            self.events.reader().detach(&self.caller);
        }
    }
}

/// A state, or none, of a connection that has ended or is about to.
pub fn is_ending(state: Option<u8>) -> bool {
    let ends = [tcp_state::CLOSE, tcp_state::TIME_WAIT];
    state.is_none_or(|state| ends.contains(&state) || tcp_state::FIN_SENT.contains(&state))
}

fn ends_of(subflow: &Subflow) -> Ends {
    (unmapped(subflow.local), unmapped(subflow.remote))
}

fn is_accepted(subflow: &Subflow) -> bool {
    subflow.entry.and_then(|entry| entry.subflow).is_some_and(|subflow| subflow.accepted())
}

fn find_in_dump(connection: &ByToken, ends: Ends) -> Option<Subflow> {
    connection.subflows().ok()?.into_iter().find(|subflow| ends_of(subflow) == ends)
}

/// What a reading shows to have happened to the subflows of a known connection.
fn compare(watched: &mut Watched, subflows: &[Subflow], is_ending: bool) -> Vec<Report> {
    let there: HashSet<Ends> = subflows.iter().map(ends_of).collect();
    let closed = |ends: &Ends, report: fn(Event) -> Report| {
        let event = watched.event(Kind::SubClosed, *ends);
        match is_ending {
            true => Report::Ended(event),
            false if watched.closing.contains(ends) => Report::Closing(event),
            false => report(event),
        }
    };
    let lost = watched.accepted.difference(&there).map(|ends| closed(ends, Report::Lost));
    let failed = watched.answered.difference(&there).map(|ends| closed(ends, Report::Failed));
    let mut reports: Vec<Report> = lost.chain(failed).collect();
    watched.accepted.retain(|ends| there.contains(ends));
    watched.answered.retain(|ends| there.contains(ends));
    watched.closing.retain(|ends| there.contains(ends));
    watched.to_be_backups.retain(|ends| there.contains(ends));
    reports.extend(newly_answered(watched, subflows));
    reports
}

/// The subflows of a reading whose SYN/ACK arrived without an event.
fn newly_answered(watched: &mut Watched, subflows: &[Subflow]) -> Vec<Report> {
    let mut reports = Vec::new();
    for subflow in subflows.iter().filter(|subflow| subflow.tcp_info.state() == tcp_state::ESTABLISHED) {
        let ends = ends_of(subflow);
        if !watched.accepted.contains(&ends) && watched.answered.insert(ends) {
            reports.push(Report::Answered(watched.event(Kind::SubEstablished, ends)));
        }
    }
    reports
}

impl Ledger {
    /// A connection that was not known.
    fn begin(&mut self, connection: ByToken, subflows: &[Subflow]) {
        let Place::Vacant(place) = self.watched.entry(connection.token()) else { return };
        let tuple = connection.entry.tuple;
        let mut accepted: HashSet<Ends> =
            subflows.iter().filter(|subflow| is_accepted(subflow)).map(ends_of).collect();
        accepted.insert((unmapped(tuple.local), unmapped(tuple.remote)));
        self.reports.push_back(Report::Connection {
            connection: connection.clone(),
            accepted: accepted.iter().copied().collect(),
        });
        let watched = place.insert(Watched {
            connection: Arc::new(connection),
            accepted,
            answered: HashSet::new(),
            closing: HashSet::new(),
            to_be_backups: HashSet::new(),
        });
        let reports = newly_answered(watched, subflows);
        if !reports.is_empty() {
            self.expect_acceptance();
        }
        self.reports.extend(reports);
    }

    fn close(&mut self, token: u32) {
        self.watched.remove(&token);
        self.reports.push_back(Report::Closed { token });
    }

    fn accept(&mut self, token: u32, ends: Ends, subflow: Subflow) {
        let Some(watched) = self.watched.get_mut(&token) else { return };
        watched.answered.remove(&ends);
        watched.accepted.insert(ends);
        let (local, remote) = ends;
        self.reports.push_back(Report::Accepted(Box::new(Subflow { local, remote, ..subflow })));
    }

    /// The next look is now.
    fn expect_acceptance(&mut self) {
        let now = Instant::now();
        self.answered = Some(now);
        self.due = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::by_descriptor::read_info;
    use crate::connection::tests::loopback;
    use std::os::fd::AsRawFd;

    /// The next report of a connection.
    fn report_of(watcher: &Watcher, token: u32) -> Report {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match watcher.next(Some(deadline)).unwrap() {
                Some(Report::Connection { connection, .. }) if connection.token() != token => {}
                Some(Report::Closed { token: other } | Report::Established { token: other })
                    if other != token => {}
                Some(Report::Other(_)) => {}
                Some(report) => return report,
                None => panic!("no report"),
            }
        }
    }

    #[test]
    fn connections_are_reported_from_their_beginning_to_their_end() {
        let Some((there_before, _peer)) = loopback() else {
            eprintln!("skipped: no Multipath TCP here");
            return;
        };
        let token = |socket: &socket2::Socket| read_info(socket.as_raw_fd()).unwrap().token();
        let watcher = match Watcher::start(Namespace::current().unwrap()) {
            Err(error) if error.errno() == libc::EPERM => {
                eprintln!("skipped: needs CAP_NET_ADMIN");
                return;
            }
            watcher => watcher.unwrap(),
        };
        let Report::Connection { connection, accepted } = report_of(&watcher, token(&there_before)) else {
            panic!("the connection that existed is not the first report of it")
        };
        assert_eq!(accepted, [(connection.entry.tuple.local, connection.entry.tuple.remote)]);
        let (client, server) = loopback().unwrap();
        let of_client = token(&client);
        assert!(matches!(report_of(&watcher, of_client), Report::Connection { .. }));
        drop((client, server));
        assert!(matches!(report_of(&watcher, of_client), Report::Closed { .. }));
    }

    #[test]
    fn a_connection_ends_with_its_last_state() {
        assert!(
            is_ending(None) && is_ending(Some(tcp_state::CLOSE)) && is_ending(Some(tcp_state::FIN_SENT[0]))
        );
        assert!(!is_ending(Some(tcp_state::ESTABLISHED)));
    }
}
