//! The native companion of one `mptcp.Connection`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::address::to_tuple;
use super::connection::Native;
use super::errors::to_py;
use crate::abi::uapi::tcp_state;
use crate::connection::by_token;
use crate::connection::Connection;

/// What inet_diag told of a connection, and the way to it.
#[pyclass(frozen, extends = Native, module = "mptcp._core")]
pub struct ByToken(pub Arc<by_token::ByToken>);

impl ByToken {
    pub fn new(py: Python<'_>, connection: by_token::ByToken) -> PyResult<Py<ByToken>> {
        let connection = Arc::new(connection);
        let native = Native::new(Arc::clone(&connection) as Arc<dyn Connection>);
        Py::new(py, PyClassInitializer::from(native).add_subclass(ByToken(connection)))
    }
}

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
        tcp_state::name(self.0.entry.state)
    }

    /// The state that the connection has now, not when it was listed; None once it has ended.
    fn state_now(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        let state = py.detach(|| self.0.state_now()).map_err(|error| to_py(py, error))?;
        Ok(state.map(tcp_state::name))
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
}
