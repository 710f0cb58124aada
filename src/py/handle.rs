//! The native companion of one Python socket.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt};

use super::address::from_any;
use super::errors::to_py;
use super::options;
use super::subflow::Subflow;
use crate::connection::{self, PathManager, Which};
use crate::open::{Opening, Request};
use crate::subflow_options;

/// How long a wait goes on before Python may run its signal handlers.
const SIGNALS: Duration = Duration::from_millis(50);

/// What a socket needs beside its descriptor. Every method gets the descriptor, which stays Python's.
#[pyclass(frozen, module = "mptcp._core")]
#[derive(Default)]
pub struct Handle(connection::Handle);

#[pymethods]
impl Handle {
    #[new]
    fn new() -> Handle {
        Handle::default()
    }

    fn subflows(&self, py: Python<'_>, fd: i32, owner: Py<PyAny>) -> PyResult<Vec<Subflow>> {
        let subflows = py.detach(|| self.0.subflows(fd)).map_err(|error| to_py(py, error))?;
        Ok(subflows.into_iter().map(|data| Subflow::new(data, owner.clone_ref(py))).collect())
    }

    fn path_manager(&self, py: Python<'_>, fd: i32) -> PyResult<&'static str> {
        py.detach(|| self.0.path_manager(fd)).map(PathManager::name).map_err(|error| to_py(py, error))
    }

    fn hold_events(&self, py: Python<'_>, fd: i32, latched: Option<&str>) -> PyResult<()> {
        let latched = [PathManager::Kernel, PathManager::Userspace]
            .into_iter()
            .find(|path_manager| latched == Some(path_manager.name()));
        py.detach(|| self.0.hold_events(fd, latched)).map_err(|error| to_py(py, error))
    }

    fn release(&self, py: Python<'_>) {
        py.detach(|| self.0.release());
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python method")]
    fn open_subflow(
        &self,
        py: Python<'_>,
        fd: i32,
        owner: Py<PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        backup: bool,
        interface: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Subflow>> {
        let request = Request {
            local: from_any("local", local)?,
            remote: from_any("remote", remote)?,
            backup,
            interface,
        };
        request.check().map_err(|error| to_py(py, error))?;
        // No deadline for a time that no clock can reach.
        let deadline = match timeout {
            None => None,
            Some(seconds) if seconds >= 0.0 => {
                Duration::try_from_secs_f64(seconds).ok().and_then(|wait| Instant::now().checked_add(wait))
            }
            Some(_) => {
                return Err(PyValueError::new_err("timeout must be a number of seconds >= 0, or None"))
            }
        };
        let mut opening =
            py.detach(|| Opening::new(&self.0, fd, &request)).map_err(|error| to_py(py, error))?;
        if timeout == Some(0.0) {
            return py.detach(|| opening.detach(fd)).map(|()| None).map_err(|error| to_py(py, error));
        }
        let subflow = loop {
            let slice = Instant::now() + SIGNALS;
            let slice = deadline.map_or(slice, |deadline| deadline.min(slice));
            match py.detach(|| opening.advance(fd, slice)) {
                Ok(true) => break py.detach(|| opening.accepted(&self.0, fd)),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            if let Err(interrupt) = py.check_signals() {
                py.detach(|| drop(opening));
                return Err(interrupt);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break Err(py.detach(|| opening.timed_out()));
            }
        };
        subflow.map(|data| Some(Subflow::new(data, owner))).map_err(|error| to_py(py, error))
    }

    fn close_subflow(
        &self,
        py: Python<'_>,
        fd: i32,
        subflow: &Bound<'_, PyAny>,
        force: bool,
    ) -> PyResult<()> {
        let which = if let Ok(subflow) = subflow.cast::<Subflow>() {
            let data = &subflow.get().data;
            let token = py.detach(|| connection::read_info(fd)).map_err(|error| to_py(py, error))?.token();
            if token != data.token {
                return Err(PyValueError::new_err("the subflow belongs to another connection"));
            }
            Which::Endpoints { local: data.local, remote: data.remote }
        } else if subflow.is_instance_of::<PyInt>() && !subflow.is_instance_of::<PyBool>() {
            let id = subflow.extract().map_err(|_| PyValueError::new_err("a subflow id is in 0..2**32"))?;
            Which::Id(id)
        } else {
            return Err(PyTypeError::new_err("subflow must be a Subflow or a subflow id"));
        };
        py.detach(|| self.0.close_subflow(fd, which, force)).map_err(|error| to_py(py, error))
    }

    fn get_subflow_option<'py>(
        &self,
        py: Python<'py>,
        fd: i32,
        subflow: &Bound<'py, PyAny>,
        level: &Bound<'py, PyAny>,
        optname: &Bound<'py, PyAny>,
        buflen: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let subflow = options::subflow(subflow)?.get();
        let option = options::option(level, optname)?;
        let room = options::room(buflen)?;
        let value = py.detach(|| subflow_options::get(&self.0, fd, &subflow.data, option, room.bytes()));
        room.result(py, value.map_err(|error| to_py(py, error))?)
    }

    fn set_subflow_options(&self, py: Python<'_>, fd: i32, options: &Bound<'_, PyAny>) -> PyResult<()> {
        let changes = options::changes(options)?;
        py.detach(|| subflow_options::set(&self.0, fd, &changes)).map_err(|error| to_py(py, error))
    }
}
