//! A connection of which there is no descriptor, for the Python class `mptcp.Connection`.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::address::{from_any, to_tuple};
use super::control;
use super::errors::to_py;
use super::events::EventStream;
use super::structs::Info;
use super::subflow::Subflow;
use super::timeout::Timeout;
use crate::abi::uapi::tcp_state;
use crate::connection::by_token;
use crate::connection::open::{self, Request};
use crate::namespace::path_manager::PathManager;

fn name(state: u8) -> &'static str {
    tcp_state::NAMES.get(usize::from(state)).copied().unwrap_or(tcp_state::NAMES[0])
}

/// What inet_diag told of a connection, and the way to it.
#[pyclass(frozen, module = "mptcp._core")]
pub struct ByToken(pub by_token::ByToken);

#[pymethods]
impl ByToken {
    #[getter]
    fn token(&self) -> u32 {
        self.0.token()
    }

    #[getter]
    fn cookie(&self) -> u64 {
        self.0.entry.cookie
    }

    #[getter]
    fn local<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_tuple(py, self.0.entry.tuple.local)
    }

    #[getter]
    fn remote<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_tuple(py, self.0.entry.tuple.remote)
    }

    #[getter]
    fn state(&self) -> &'static str {
        name(self.0.entry.state)
    }

    /// The state that the connection has now, not when it was listed; None once it has ended.
    fn state_now(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        let state = py.detach(|| self.0.state_now()).map_err(|error| to_py(py, error))?;
        Ok(state.map(name))
    }

    #[getter]
    fn server_side(&self) -> Option<bool> {
        self.0.server_side
    }

    #[getter]
    fn uid(&self) -> u32 {
        self.0.entry.uid
    }

    #[getter]
    fn inode(&self) -> u32 {
        self.0.entry.inode
    }

    #[getter]
    fn cgroup(&self) -> Option<u64> {
        self.0.entry.cgroup
    }

    #[getter]
    fn age(&self) -> f64 {
        self.0.age().as_secs_f64()
    }

    fn events(&self, py: Python<'_>) -> PyResult<EventStream> {
        control::events(py, &self.0)
    }

    fn path_manager(&self, py: Python<'_>) -> PyResult<&'static str> {
        py.detach(|| self.0.path_manager()).map(PathManager::name).map_err(|error| to_py(py, error))
    }

    fn info(&self, py: Python<'_>) -> PyResult<Info> {
        py.detach(|| self.0.info()).map(Info).map_err(|error| to_py(py, error))
    }

    fn subflows(&self, py: Python<'_>, owner: Py<PyAny>) -> PyResult<Vec<Subflow>> {
        control::subflows(py, &self.0, &owner)
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python method")]
    fn open_subflow(
        &self,
        py: Python<'_>,
        owner: Py<PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        backup: bool,
        interface: Option<String>,
        #[pyo3(from_py_with = Timeout::extract)] timeout: Timeout,
    ) -> PyResult<Option<Subflow>> {
        let open = control::Open { local, remote, backup, interface, timeout };
        control::open_subflow(py, &self.0, owner, open)
    }

    /// The local address that open_subflow(None, remote, interface=interface) would open from.
    fn local_address(
        &self,
        py: Python<'_>,
        remote: &Bound<'_, PyAny>,
        interface: Option<String>,
    ) -> PyResult<String> {
        let request = Request { remote: from_any("remote", remote)?, interface, ..Request::default() };
        let local = py.detach(|| open::local_address(&self.0, &request));
        local.map(|ip| ip.to_string()).map_err(|error| to_py(py, error))
    }

    fn close_subflow(&self, py: Python<'_>, subflow: &Bound<'_, PyAny>, force: bool) -> PyResult<()> {
        control::close_subflow(py, &self.0, subflow, force)
    }

    fn set_backup(&self, py: Python<'_>, subflow: &Bound<'_, Subflow>, backup: bool) -> PyResult<()> {
        control::set_backup(py, &self.0, subflow, backup)
    }

    fn announce_address(
        &self,
        py: Python<'_>,
        address: &Bound<'_, PyAny>,
        port: &Bound<'_, PyAny>,
    ) -> PyResult<u8> {
        control::announce_address(py, &self.0, address, port)
    }

    fn remove_address(&self, py: Python<'_>, id: &Bound<'_, PyAny>) -> PyResult<()> {
        control::remove_address(py, &self.0, id)
    }

    fn get_subflow_option<'py>(
        &self,
        py: Python<'py>,
        subflow: &Bound<'py, PyAny>,
        level: &Bound<'py, PyAny>,
        optname: &Bound<'py, PyAny>,
        buflen: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        control::get_option(py, &self.0, subflow, level, optname, buflen)
    }

    fn set_subflow_options(&self, py: Python<'_>, options: &Bound<'_, PyAny>) -> PyResult<()> {
        control::set_options(py, &self.0, options)
    }
}
