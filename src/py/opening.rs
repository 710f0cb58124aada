//! A subflow on its way, for one who waits for many at once: the native part of `mptcp.aio.open_subflow`.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::connection::{request, Native};
use super::errors::to_py;
use super::subflow::Subflow;
use crate::connection::open;
use crate::connection::Connection;
use crate::sys::lock::lock;

/// Closed before it is accepted, nothing is left of the subflow.
#[pyclass(frozen, module = "mptcp._core")]
pub struct Opening {
    connection: Arc<dyn Connection>,
    owner: Py<PyAny>,
    opening: Mutex<Option<open::Opening>>,
}

impl Opening {
    fn with<T: Send>(&self, py: Python<'_>, act: impl FnOnce(&mut open::Opening) -> T + Send) -> PyResult<T> {
        let closed = || PyValueError::new_err("the opening is closed");
        py.detach(|| lock(&self.opening).as_mut().map(act)).ok_or_else(closed)
    }
}

#[pymethods]
impl Opening {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python function")]
    fn new(
        py: Python<'_>,
        native: &Bound<'_, Native>,
        owner: Py<PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        backup: bool,
        interface: Option<String>,
        local_id: Option<&Bound<'_, PyAny>>,
        force: bool,
    ) -> PyResult<Opening> {
        let request = request(local, remote, backup, interface, local_id, force)?;
        let connection = Arc::clone(&native.get().0);
        let open = || open::Opening::with_descriptor(&*connection, &request);
        let opening = py.detach(open).map_err(|error| to_py(py, error))?;
        Ok(Opening { connection, owner, opening: Mutex::new(Some(opening)) })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |opening| opening.fd().unwrap_or(-1))
    }

    /// The subflow if it is accepted by now.
    fn look(&self, py: Python<'_>) -> PyResult<Option<Subflow>> {
        let look = |opening: &mut open::Opening| match opening.advance(&*self.connection, Instant::now())? {
            true => opening.accepted(&*self.connection).map(Some),
            false => Ok(None),
        };
        let found = self.with(py, look)?.map_err(|error| to_py(py, error))?;
        Ok(found.map(|data| Subflow::new(data, self.owner.clone_ref(py))))
    }

    /// Seconds to wait at most until the next look, if the descriptor does not become readable.
    fn pause(&self, py: Python<'_>) -> PyResult<f64> {
        self.with(py, |opening| opening.patient_pause().as_secs_f64())
    }

    /// Raises the error of a deadline that has passed.
    fn time_out(&self, py: Python<'_>) -> PyResult<()> {
        let error = self.with(py, open::Opening::timed_out)?;
        Err(to_py(py, error))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.opening).take()));
    }
}
