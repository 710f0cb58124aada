//! The binding: the export list. One file a Python type, no decisions.

mod address;
mod errors;
mod handle;
mod options;
mod structs;
mod subflow;

use pyo3::prelude::*;

/// The native core of mptcp. Private: use the package's own names.
#[pymodule(gil_used = false)]
mod _core {
    use super::errors::to_py;
    use crate::{bpf, connection, namespace};
    use pyo3::prelude::*;
    use std::os::fd::IntoRawFd;

    #[pymodule_export]
    use super::handle::Handle;
    #[pymodule_export]
    use super::structs::{Info, TcpInfo};
    #[pymodule_export]
    use super::subflow::Subflow;

    #[pyfunction]
    #[pyo3(signature = (family, r#type, proto, path_manager))]
    fn create_socket(
        py: Python<'_>,
        family: i32,
        r#type: i32,
        proto: i32,
        path_manager: Option<&str>,
    ) -> PyResult<i32> {
        py.detach(|| namespace::create_socket(family, r#type, proto, path_manager))
            .map(IntoRawFd::into_raw_fd)
            .map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn is_multipath(py: Python<'_>, fd: i32) -> PyResult<bool> {
        py.detach(|| connection::is_multipath(fd)).map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn info(py: Python<'_>, fd: i32) -> PyResult<Info> {
        py.detach(|| connection::read_info(fd)).map(Info).map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn get_path_manager(py: Python<'_>) -> PyResult<String> {
        py.detach(|| namespace::Namespace::current()?.path_manager()).map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn set_path_manager(py: Python<'_>, name: &str) -> PyResult<String> {
        py.detach(|| namespace::Namespace::current()?.set_path_manager(name))
            .map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn before_fork() {
        namespace::before_fork();
        bpf::before_fork();
    }

    #[pyfunction]
    fn after_fork(in_child: bool) {
        bpf::after_fork(in_child);
        namespace::after_fork(in_child);
    }
}
