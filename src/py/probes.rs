//! What `mptcp doctor` tries. Each raises the kernel's error where the kernel or the privileges lack the thing.

use std::os::fd::IntoRawFd;

use pyo3::prelude::*;

use super::errors::to_py;
use crate::connection::by_descriptor::read_full_info;
use crate::error::Error;
use crate::namespace::{probe, Namespace};
use crate::options;
use crate::supervisor;

/// Reads MPTCP_FULL_INFO of a connection (Linux 6.5). No privilege.
#[pyfunction]
pub fn probe_full_info(py: Python<'_>, fd: i32) -> PyResult<()> {
    let failed = |error| to_py(py, Error::call("getsockopt(MPTCP_FULL_INFO)", &error));
    py.detach(|| read_full_info(fd)).map(drop).map_err(failed)
}

/// Reads TCP_IS_MPTCP of a socket (Linux 6.10). No privilege.
#[pyfunction]
pub fn probe_is_mptcp(py: Python<'_>, fd: i32) -> PyResult<()> {
    probe::tcp_is_mptcp(fd).map_err(|error| to_py(py, error))
}

/// Whether options can be set on the subflows of a socket's network namespace: raises what setting one would.
#[pyfunction]
pub fn probe_subflow_options(py: Python<'_>, fd: i32) -> PyResult<()> {
    py.detach(|| options::probe(&*Namespace::of_socket(fd)?)).map_err(|error| to_py(py, error))
}

/// Asks the kernel for the generic netlink family mptcp_pm. No privilege.
#[pyfunction]
pub fn probe_path_manager_family(py: Python<'_>) -> PyResult<()> {
    py.detach(probe::path_manager_family).map_err(|error| to_py(py, error))
}

/// Sends a path manager command that names no subflow: tells whether it is permitted and known (Linux 5.19).
#[pyfunction]
pub fn probe_path_manager_commands(py: Python<'_>) -> PyResult<()> {
    py.detach(probe::path_manager_commands).map_err(|error| to_py(py, error))
}

/// Puts the calling thread under a seccomp filter that lets every call pass, for good: for a process that ends at once.
/// Returns the descriptor of its listener.
#[pyfunction]
pub fn probe_user_notification(py: Python<'_>) -> PyResult<i32> {
    supervisor::probe().map(IntoRawFd::into_raw_fd).map_err(|error| to_py(py, error))
}
