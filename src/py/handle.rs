//! The native companion of one Python socket.

use pyo3::prelude::*;

use super::control;
use super::errors::to_py;
use super::events::EventStream;
use super::subflow::Subflow;
use super::timeout::Timeout;
use crate::connection::by_descriptor::{self, ByDescriptor};
use crate::namespace::path_manager::PathManager;

/// What a socket needs beside its descriptor. Every method gets the descriptor, which stays Python's.
#[pyclass(frozen, module = "mptcp._core")]
#[derive(Default)]
pub struct Handle(pub(super) by_descriptor::Handle);

#[pymethods]
impl Handle {
    #[new]
    fn new() -> Handle {
        Handle::default()
    }

    fn subflows(&self, py: Python<'_>, fd: i32, owner: Py<PyAny>) -> PyResult<Vec<Subflow>> {
        control::subflows(py, &ByDescriptor { handle: &self.0, fd }, &owner)
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

    fn events(&self, py: Python<'_>, fd: i32) -> PyResult<EventStream> {
        control::events(py, &ByDescriptor { handle: &self.0, fd })
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
        #[pyo3(from_py_with = Timeout::extract)] timeout: Timeout,
    ) -> PyResult<Option<Subflow>> {
        let open = control::Open { local, remote, backup, interface, timeout };
        control::open_subflow(py, &ByDescriptor { handle: &self.0, fd }, owner, open)
    }

    fn close_subflow(
        &self,
        py: Python<'_>,
        fd: i32,
        subflow: &Bound<'_, PyAny>,
        force: bool,
    ) -> PyResult<()> {
        control::close_subflow(py, &ByDescriptor { handle: &self.0, fd }, subflow, force)
    }

    fn set_backup(
        &self,
        py: Python<'_>,
        fd: i32,
        subflow: &Bound<'_, Subflow>,
        backup: bool,
    ) -> PyResult<()> {
        control::set_backup(py, &ByDescriptor { handle: &self.0, fd }, subflow, backup)
    }

    fn announce_address(
        &self,
        py: Python<'_>,
        fd: i32,
        address: &Bound<'_, PyAny>,
        port: &Bound<'_, PyAny>,
    ) -> PyResult<u8> {
        control::announce_address(py, &ByDescriptor { handle: &self.0, fd }, address, port)
    }

    fn remove_address(&self, py: Python<'_>, fd: i32, id: &Bound<'_, PyAny>) -> PyResult<()> {
        control::remove_address(py, &ByDescriptor { handle: &self.0, fd }, id)
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
        control::get_option(py, &ByDescriptor { handle: &self.0, fd }, subflow, level, optname, buflen)
    }

    fn set_subflow_options(&self, py: Python<'_>, fd: i32, options: &Bound<'_, PyAny>) -> PyResult<()> {
        control::set_options(py, &ByDescriptor { handle: &self.0, fd }, options)
    }
}
