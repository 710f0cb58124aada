//! The native companion of one `mptcp.Socket`.

use std::sync::Arc;

use pyo3::prelude::*;

use super::connection::Native;
use super::errors::to_py;
use crate::connection::by_descriptor::{is_multipath, ByDescriptor};
use crate::connection::Connection;
use crate::namespace::path_manager::PathManager;

/// A socket's descriptor, which stays Python's, and what is held for it.
#[pyclass(frozen, extends = Native, module = "mptcp._core")]
pub struct Handle(pub Arc<ByDescriptor>);

#[pymethods]
impl Handle {
    #[new]
    fn new(fd: i32) -> PyClassInitializer<Handle> {
        let socket = Arc::new(ByDescriptor::new(fd));
        let native = Native::new(Arc::clone(&socket) as Arc<dyn Connection>);
        PyClassInitializer::from(native).add_subclass(Handle(socket))
    }

    /// The socket has another descriptor now.
    fn attach(&self, fd: i32) {
        self.0.attach(fd);
    }

    fn is_multipath(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| is_multipath(self.0.fd())).map_err(|error| to_py(py, error))
    }

    fn hold_events(&self, py: Python<'_>, latched: Option<&str>) -> PyResult<()> {
        let latched = latched.and_then(PathManager::of_name);
        py.detach(|| self.0.hold_events(latched)).map_err(|error| to_py(py, error))
    }

    fn release(&self, py: Python<'_>) {
        py.detach(|| self.0.release());
    }
}
