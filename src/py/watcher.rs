//! The connections of a network namespace, watched: what policies are called for.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::address::to_tuple;
use super::by_token::ByToken;
use super::connection::request;
use super::errors::to_py;
use super::events::Event;
use super::subflow::Subflow;
use super::timeout::Timeout;
use crate::connection::by_token;
use crate::crew::caller::Caller;
use crate::error::{Error, Result};
use crate::events::event::Kind;
use crate::namespace::Namespace;
use crate::sys::lock::lock;
use crate::watcher::commands::Outcome;
use crate::watcher::orders::What;
use crate::watcher::{self, Ends, Report};

/// The number of the first command of a `PolicyOpener`. Those of others are below.
const FIRST: u64 = 1 << 62;

/// A watcher of the network namespace that a socket belongs to.
#[pyclass(frozen, module = "mptcp._core")]
pub struct Watcher {
    open: Mutex<Option<Arc<watcher::Watcher>>>,
    /// Not kept by what is closed: a policy may hold a connection, and so this, for long after.
    caller: Weak<Caller>,
    /// The number of the next command of a `PolicyOpener`.
    pub numbers: AtomicU64,
}

impl Watcher {
    pub fn open_watcher(&self) -> Option<Arc<watcher::Watcher>> {
        lock(&self.open).clone()
    }

    /// Runs an operation of the core without the GIL. Of a closed one nothing is asked any more.
    fn call<T: Default + Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&watcher::Watcher) -> Result<T> + Send,
    ) -> PyResult<T> {
        match self.open_watcher() {
            Some(watcher) => py.detach(|| act(&watcher)).map_err(|error| to_py(py, error)),
            None => Ok(T::default()),
        }
    }
}

#[pymethods]
impl Watcher {
    #[new]
    fn new(py: Python<'_>, fd: i32) -> PyResult<Watcher> {
        let start = || watcher::Watcher::start(Namespace::of_socket(fd)?);
        let watcher = py.detach(start).map_err(|error| to_py(py, error))?;
        let caller = Arc::downgrade(watcher.caller());
        Ok(Watcher { open: Mutex::new(Some(Arc::new(watcher))), caller, numbers: AtomicU64::new(FIRST) })
    }

    /// The next report, or None: after `timeout` seconds, or when no more will come. `owners` has the Python objects of
    /// connections by their tokens, through which subflows act.
    ///
    /// `at_once` has what is called for reports of some names before they are returned: between the event and the commands
    /// of such a call nothing else of Python runs. Both are added to `later`, and it is returned how the call ended.
    fn get<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = Timeout::extract)] timeout: Timeout,
        owners: &Bound<'py, PyDict>,
        at_once: &Bound<'py, PyDict>,
        later: &Bound<'py, PyList>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let deadline = timeout.deadline();
        let Some(watcher) = self.open_watcher() else { return Ok(None) };
        loop {
            match py.detach(|| watcher.next(deadline)) {
                Ok(Some(report)) => {
                    let Some(report) = as_tuple(py, report, owners)? else { continue };
                    // Once it is closed nothing is called any more.
                    return match at_once.get_item(report.get_item(0)?)? {
                        Some(method) if lock(&self.open).is_some() => {
                            call_at_once(py, &watcher, &method, report, later).map(Some)
                        }
                        _ => Ok(Some(report)),
                    };
                }
                Ok(None) => return Ok(None),
                Err(error) if error.errno() == libc::EINTR => py.check_signals()?,
                Err(error) => return Err(to_py(py, error)),
            }
        }
    }

    /// Opens a subflow: what is wrong in itself is an error at once, what the kernel refuses a report with this number.
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python method")]
    fn open(
        &self,
        py: Python<'_>,
        conn: &Bound<'_, PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        backup: bool,
        interface: Option<String>,
        local_id: Option<&Bound<'_, PyAny>>,
        force: bool,
        number: u64,
    ) -> PyResult<()> {
        let request = request(local, remote, backup, interface, local_id, force)?;
        let native = native(conn)?;
        let connection = &native.get().0;
        self.call(py, |watcher| {
            watcher.open(watcher.prepare(connection, &request)?, number);
            Ok(())
        })
    }

    /// Closes a subflow: that it cannot be closed is a report with this number.
    fn close_subflow(
        &self,
        py: Python<'_>,
        conn: &Bound<'_, PyAny>,
        subflow: &Bound<'_, Subflow>,
        force: bool,
        number: u64,
    ) -> PyResult<()> {
        let native = native(conn)?;
        let (connection, ends) = of_subflow(py, &native, subflow)?;
        self.call(py, |watcher| {
            watcher.close(connection, ends, force, number);
            Ok(())
        })
    }

    /// Changes the priority of a subflow: that it was, or cannot be, is a report with this number.
    fn set_backup(
        &self,
        py: Python<'_>,
        conn: &Bound<'_, PyAny>,
        subflow: &Bound<'_, Subflow>,
        backup: bool,
        number: u64,
    ) -> PyResult<()> {
        let native = native(conn)?;
        let (connection, ends) = of_subflow(py, &native, subflow)?;
        self.call(py, |watcher| {
            watcher.set_backup(connection, ends, backup, number);
            Ok(())
        })
    }

    /// Leaves a standing order: to open a subflow when `what`, a Subflow, a local address or an interface, is lost. The
    /// number of one that it replaces.
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python method")]
    fn when_lost(
        &self,
        py: Python<'_>,
        conn: &Bound<'_, PyAny>,
        what: &Bound<'_, PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        backup: bool,
        interface: Option<String>,
        number: u64,
    ) -> PyResult<Option<u64>> {
        let native = native(conn)?;
        let what = self::what(&native, what)?;
        let request = request(local, remote, backup, interface, None, false)?;
        let connection = &native.get().0;
        self.call(py, |watcher| watcher.when_lost(connection, what, &request, number))
    }

    /// Takes a standing order back; its number, unless it has been carried out, or there was none.
    fn take_back(&self, conn: &Bound<'_, PyAny>, what: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
        let native = native(conn)?;
        let what = self::what(&native, what)?;
        let token = native.get().0.token();
        Ok(self.open_watcher().and_then(|watcher| watcher.take_back(token, &what)))
    }

    /// For a thread that takes reports: True when it is its turn; False if it is not needed, and at the end.
    fn stand_by(&self, py: Python<'_>) -> bool {
        self.open_watcher().is_some()
            && self.caller.upgrade().is_some_and(|caller| py.detach(|| caller.stand_by()))
    }

    /// Whether the thread that takes the reports carries out a command at this moment.
    fn carries_out(&self) -> bool {
        self.caller.upgrade().is_some_and(|caller| caller.works())
    }

    /// LINK_UP and ADDRESS_ADDED of the links that are up and the addresses there are.
    fn links(&self) -> Vec<Event> {
        self.open_watcher().iter().flat_map(|watcher| watcher.links()).map(Event).collect()
    }

    /// Ends it, and with it what it holds: who waits for a report goes on.
    fn close(&self, py: Python<'_>) {
        let watcher = lock(&self.open).take();
        if let Some(watcher) = watcher {
            watcher.end();
            py.detach(|| drop(watcher));
        }
    }
}

/// Calls the method of a policy with a report, and carries out what it has left to do. The name "called", the method, its
/// arguments and its exception; and whether another thread takes the reports now.
fn call_at_once<'py>(
    py: Python<'py>,
    watcher: &watcher::Watcher,
    method: &Bound<'py, PyAny>,
    report: Bound<'py, PyTuple>,
    later: &Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyTuple>> {
    let arguments = report.get_slice(1, report.len());
    later.append(report)?;
    let error = match method.call1(&arguments) {
        Ok(_) => None,
        Err(error) if error.is_instance_of::<PyException>(py) => Some(error),
        Err(error) => return Err(error),
    };
    let is_relieved = !py.detach(|| watcher.carry_out());
    (intern!(py, "called"), method, arguments, error, is_relieved).into_pyobject(py)
}

/// The native companion of a mptcp.Connection.
pub fn native<'py>(conn: &Bound<'py, PyAny>) -> PyResult<Bound<'py, ByToken>> {
    Ok(conn.getattr(intern!(conn.py(), "_native"))?.cast_into()?)
}

/// The connection of a subflow, and its ends.
fn of_subflow<'a>(
    py: Python<'_>,
    native: &'a Bound<'_, ByToken>,
    subflow: &Bound<'_, Subflow>,
) -> PyResult<(&'a Arc<by_token::ByToken>, Ends)> {
    let (connection, data) = (&native.get().0, &subflow.get().data);
    if data.token != connection.token() {
        let other = Error::value("the subflow belongs to another connection");
        return Err(to_py(py, other));
    }
    Ok((connection, (data.local, data.remote)))
}

/// What an order waits for: a Subflow, a local address or the name of an interface.
fn what(native: &Bound<'_, ByToken>, what: &Bound<'_, PyAny>) -> PyResult<What> {
    if let Ok(subflow) = what.cast::<Subflow>() {
        return Ok(What::Subflow(of_subflow(what.py(), native, subflow)?.1));
    }
    let name: String = what.extract().map_err(|_| {
        PyTypeError::new_err("what must be a Subflow, a local address or the name of an interface")
    })?;
    What::named(&name).map_err(|error| to_py(what.py(), error))
}

/// What it is called, the owner of its connection, and what else belongs to it; None for a connection without an owner.
fn as_tuple<'py>(
    py: Python<'py>,
    report: Report,
    owners: &Bound<'py, PyDict>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let (name, event) = match report {
        Report::Connection { connection, accepted } => {
            let ends = |(local, remote)| Ok((to_tuple(py, local)?, to_tuple(py, remote)?));
            let accepted = accepted.into_iter().map(ends).collect::<PyResult<Vec<_>>>()?;
            let native = ByToken::new(py, connection)?;
            return (intern!(py, "connection"), native, accepted).into_pyobject(py).map(Some);
        }
        Report::Relieved => return (intern!(py, "relieved"),).into_pyobject(py).map(Some),
        Report::Established { token } => return of_owner(py, intern!(py, "established"), token, owners),
        Report::Closed { token } => return of_owner(py, intern!(py, "closed"), token, owners),
        Report::Accepted(subflow) => {
            let Some(owner) = owners.get_item(subflow.token)? else { return Ok(None) };
            let subflow = Subflow::new(*subflow, owner.clone().unbind());
            return (intern!(py, "accepted"), owner, subflow).into_pyobject(py).map(Some);
        }
        Report::Outcome(outcome) => return of_outcome(py, outcome, owners),
        Report::Answered(event) => (intern!(py, "answered"), event),
        Report::Lost(event) => (intern!(py, "lost"), event),
        Report::Closing(event) => (intern!(py, "closing"), event),
        Report::Failed(event) => (intern!(py, "failed"), event),
        Report::Ended(event) => (intern!(py, "ended"), event),
        Report::Other(event) => (name_of_other(py, event.kind), event),
    };
    match event.token {
        None => (name, Event(event)).into_pyobject(py).map(Some),
        Some(token) => match owners.get_item(token)? {
            Some(owner) => (name, owner, Event(event)).into_pyobject(py).map(Some),
            None => Ok(None),
        },
    }
}

fn of_owner<'py>(
    py: Python<'py>,
    name: &Bound<'py, PyString>,
    token: u32,
    owners: &Bound<'py, PyDict>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let Some(owner) = owners.get_item(token)? else { return Ok(None) };
    (name, owner).into_pyobject(py).map(Some)
}

fn of_outcome<'py>(
    py: Python<'py>,
    outcome: Outcome,
    owners: &Bound<'py, PyDict>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let (Outcome::Ordered { token, .. }
    | Outcome::Done { token, .. }
    | Outcome::Refused { token, .. }
    | Outcome::LacksBackup { token, .. }) = outcome;
    let Some(owner) = owners.get_item(token)? else { return Ok(None) };
    Ok(Some(match outcome {
        Outcome::Ordered { number, .. } => (intern!(py, "ordered"), owner, number).into_pyobject(py)?,
        Outcome::Done { number, .. } => (intern!(py, "done"), owner, number).into_pyobject(py)?,
        Outcome::Refused { number, error, .. } => {
            (intern!(py, "refused"), owner, number, to_py(py, error)).into_pyobject(py)?
        }
        Outcome::LacksBackup { .. } => return Ok(None), // the watcher takes it itself
    }))
}

fn name_of_other(py: Python<'_>, kind: Kind) -> &Bound<'_, PyString> {
    match kind {
        Kind::LinkUp => intern!(py, "link up"),
        Kind::LinkDown => intern!(py, "link down"),
        Kind::AddressAdded => intern!(py, "address added"),
        Kind::AddressRemoved => intern!(py, "address removed"),
        Kind::Overrun => intern!(py, "overrun"),
        Kind::Announced => intern!(py, "announced"),
        Kind::Removed => intern!(py, "removed"),
        _ => intern!(py, "other"),
    }
}
