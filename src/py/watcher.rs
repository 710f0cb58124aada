//! The connections of a network namespace, watched: what policies are called for.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::address::to_tuple;
use super::by_token::ByToken;
use super::errors::to_py;
use super::events::Event;
use super::subflow::Subflow;
use super::timeout::Timeout;
use crate::connection::watcher::{self, Report};
use crate::namespace::Namespace;
use crate::sys::lock::lock;

/// A watcher of the network namespace that a socket belongs to.
#[pyclass(frozen, module = "mptcp._core")]
pub struct Watcher(Mutex<Option<Arc<watcher::Watcher>>>);

impl Watcher {
    fn open(&self) -> Option<Arc<watcher::Watcher>> {
        lock(&self.0).clone()
    }
}

#[pymethods]
impl Watcher {
    #[new]
    fn new(py: Python<'_>, fd: i32) -> PyResult<Watcher> {
        let start = || watcher::Watcher::start(Namespace::of_socket(fd)?);
        let watcher = py.detach(start).map_err(|error| to_py(py, error))?;
        Ok(Watcher(Mutex::new(Some(Arc::new(watcher)))))
    }

    /// The next report, or None: after `timeout` seconds, or when no more will come. `owners` has the Python objects of
    /// connections by their tokens, through which subflows act.
    fn get<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = Timeout::extract)] timeout: Timeout,
        owners: &Bound<'py, PyDict>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let deadline = timeout.deadline();
        let Some(watcher) = self.open() else { return Ok(None) };
        loop {
            match py.detach(|| watcher.next(deadline)) {
                Ok(Some(report)) => {
                    if let Some(report) = as_tuple(py, report, owners)? {
                        return Ok(Some(report));
                    }
                }
                Ok(None) => return Ok(None),
                Err(error) if error.errno() == libc::EINTR => py.check_signals()?,
                Err(error) => return Err(to_py(py, error)),
            }
        }
    }

    /// LINK_UP and ADDRESS_ADDED of the links that are up and the addresses there are.
    fn links(&self) -> Vec<Event> {
        self.open().iter().flat_map(|watcher| watcher.links()).map(Event).collect()
    }

    /// Ends it, and with it what it holds: who waits for a report goes on.
    fn close(&self, py: Python<'_>) {
        let watcher = lock(&self.0).take();
        if let Some(watcher) = watcher {
            watcher.end();
            py.detach(|| drop(watcher));
        }
    }
}

/// What it is called, and what belongs to it; None for the subflow of a connection without an owner.
fn as_tuple<'py>(
    py: Python<'py>,
    report: Report,
    owners: &Bound<'py, PyDict>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let of_event = |name, event| (name, Event(event)).into_pyobject(py);
    Ok(Some(match report {
        Report::Connection { connection, accepted } => {
            let ends = |(local, remote)| Ok((to_tuple(py, local)?, to_tuple(py, remote)?));
            let accepted = accepted.into_iter().map(ends).collect::<PyResult<Vec<_>>>()?;
            ("connection", ByToken::new(py, connection)?, accepted).into_pyobject(py)?
        }
        Report::Established { token } => ("established", token).into_pyobject(py)?,
        Report::Closed { token } => ("closed", token).into_pyobject(py)?,
        Report::Accepted(subflow) => {
            let Some(owner) = owners.get_item(subflow.token)? else { return Ok(None) };
            let token = subflow.token;
            ("accepted", token, Subflow::new(*subflow, owner.unbind())).into_pyobject(py)?
        }
        Report::Answered(event) => of_event("answered", event)?,
        Report::Lost(event) => of_event("lost", event)?,
        Report::Failed(event) => of_event("failed", event)?,
        Report::Other(event) => of_event("other", event)?,
    }))
}
