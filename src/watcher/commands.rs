//! Commands of a watcher: to open and to close subflows. They wait for the lock of their connection, so they are carried out
//! later: by the caller itself before it waits for the next report, or by another thread. Their failures are told then.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use crate::abi::address::unmapped;
use crate::connection::by_token::ByToken;
use crate::connection::close::close_at;
use crate::connection::open::{Opening, Plan, Request};
use crate::connection::path_manager::check_userspace_at_once;
use crate::connection::{priority, Which};
use crate::crew::caller::Caller;
use crate::error::{Error, Result};
use crate::events::reader::Reader;
use crate::sys::lock::lock;
use crate::sys::wait::EventFd;
use crate::watcher::Ends;

/// What became of a command at once. Its number is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A standing order is being carried out: its subflow is requested.
    Ordered { token: u32, number: u64 },
    /// A change of which no event tells has been made.
    Done { token: u32, number: u64 },
    /// A command failed.
    Refused { token: u32, number: u64, error: Error },
    /// A subflow is on its way that has to become a backup when the peer has accepted it. For the watcher itself.
    LacksBackup { token: u32, ends: Ends },
}

/// The outcomes that are still to be taken.
#[derive(Debug)]
pub struct Outcomes {
    queue: Mutex<VecDeque<Outcome>>,
    /// Readable while there are some.
    ready: EventFd,
}

impl Outcomes {
    pub fn new() -> Result<Arc<Outcomes>> {
        let ready = EventFd::new().map_err(|error| Error::call("eventfd", &error))?;
        Ok(Arc::new(Outcomes { queue: Mutex::default(), ready }))
    }

    pub fn push(&self, outcome: Outcome) {
        self.push_silently(outcome);
        self.tell();
    }

    /// The same, but `tell` is called later: until then who waits is not woken.
    pub fn push_silently(&self, outcome: Outcome) {
        lock(&self.queue).push_back(outcome);
    }

    /// Wakes who waits, if there is something to take.
    pub fn tell(&self) {
        let queue = lock(&self.queue);
        if !queue.is_empty() {
            self.ready.set();
        }
    }

    pub fn pop(&self) -> Option<Outcome> {
        let mut queue = lock(&self.queue);
        let outcome = queue.pop_front();
        if outcome.is_some() && queue.is_empty() {
            self.ready.reset();
        }
        outcome
    }

    pub fn fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }
}

/// What opens a subflow: the SYN alone where the kernel is known to do all that was asked for.
pub fn prepare(
    connection: &Arc<ByToken>,
    request: &Request,
    outcomes: &Arc<Outcomes>,
) -> Result<impl FnOnce() -> Result<()> + Send> {
    let plan = Plan::by_token(connection, request)?;
    let (namespace, known) = connection.shared()?;
    check_userspace_at_once(namespace, known)?;
    let (connection, request, outcomes) = (Arc::clone(connection), request.clone(), Arc::clone(outcomes));
    Ok(move || {
        if plan.is_certain() {
            return plan.send();
        }
        if let Some(tuple) = Opening::new(&*connection, &request)?.hand_over(&*connection)? {
            let ends = (unmapped(tuple.local), unmapped(tuple.remote));
            outcomes.push(Outcome::LacksBackup { token: connection.token(), ends });
        }
        Ok(())
    })
}

/// Where commands of a watcher go.
pub struct Desk<'a> {
    pub reader: &'a Reader,
    pub caller: &'a Caller,
    pub outcomes: &'a Arc<Outcomes>,
}

impl Desk<'_> {
    /// Closes a subflow by its ends.
    pub fn close(&self, connection: &Arc<ByToken>, ends: Ends, force: bool, number: u64) {
        let connection = Arc::clone(connection);
        self.submit(connection.token(), number, move || close_at(&connection, ends, force));
    }

    /// Changes the priority of a subflow by its ends, and tells when it has been done.
    pub fn set_backup(&self, connection: &Arc<ByToken>, (local, remote): Ends, backup: bool, number: u64) {
        let connection = Arc::clone(connection);
        let token = connection.token();
        let done = Arc::clone(self.outcomes);
        self.submit(token, number, move || {
            priority::set_backup(&*connection, Which::Endpoints { local, remote }, backup)?;
            done.push(Outcome::Done { token, number });
            Ok(())
        });
    }

    /// Carries a command out, later.
    pub fn submit(&self, token: u32, number: u64, command: impl FnOnce() -> Result<()> + Send + 'static) {
        let outcomes = Arc::clone(self.outcomes);
        let job = Box::new(move || run(&outcomes, token, number, command));
        self.reader.submit(self.caller, token, job);
    }
}

/// Runs a command and keeps its failure.
pub fn run(outcomes: &Outcomes, token: u32, number: u64, command: impl FnOnce() -> Result<()>) {
    if let Err(error) = command() {
        outcomes.push(Outcome::Refused { token, number, error });
    }
}
