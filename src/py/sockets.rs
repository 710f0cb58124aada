//! Descriptors of sockets, which are Python's from then on.

use std::os::fd::IntoRawFd;

use pyo3::prelude::*;

use super::errors::to_py;
use super::integer::{int, ranged};
use crate::abi::ranges;
use crate::connection::attach;
use crate::namespace::path_manager;
use crate::sys;

#[pyfunction]
#[pyo3(signature = (family, r#type, proto, path_manager))]
pub fn create_socket(
    py: Python<'_>,
    family: &Bound<'_, PyAny>,
    r#type: &Bound<'_, PyAny>,
    proto: &Bound<'_, PyAny>,
    path_manager: Option<&str>,
) -> PyResult<i32> {
    let (family, r#type) = (int("family", family)?, int("type", r#type)?);
    let proto = int("proto", proto)?;
    py.detach(|| path_manager::create_socket(family, r#type, proto, path_manager, None))
        .map(IntoRawFd::into_raw_fd)
        .map_err(|error| to_py(py, error))
}

/// Refuses a Multipath TCP socket of a family or type that it cannot have.
#[pyfunction]
pub fn check_socket(
    py: Python<'_>,
    family: &Bound<'_, PyAny>,
    r#type: &Bound<'_, PyAny>,
    proto: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (family, r#type) = (int("family", family)?, int("type", r#type)?);
    let proto = int("proto", proto)?;
    path_manager::check_socket(family, r#type, proto).map_err(|error| to_py(py, error))
}

/// A duplicate of another process's descriptor.
#[pyfunction]
pub fn take_descriptor(py: Python<'_>, pid: &Bound<'_, PyAny>, fd: &Bound<'_, PyAny>) -> PyResult<i32> {
    let (pid, fd) = (ranged("pid", pid, ranges::pid)?, ranged("fd", fd, ranges::descriptor)?);
    py.detach(|| attach::take_descriptor(pid, fd))
        .map(IntoRawFd::into_raw_fd)
        .map_err(|error| to_py(py, error))
}

/// SO_PROTOCOL of a socket; -1 for anything else, which the next use of the descriptor will report.
#[pyfunction]
pub fn protocol_of(fd: &Bound<'_, PyAny>) -> i32 {
    let read = |fd| sys::getsockopt_i32(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL).ok();
    fd.extract().ok().and_then(read).unwrap_or(-1)
}
