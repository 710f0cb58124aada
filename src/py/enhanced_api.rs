//! The enhanced socket API of 2016, for the Python module `mptcp.enhanced_api`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::to_py;
use super::handle::Handle;
use super::integer::int;
use crate::enhanced_api::{serve, Call, Layout, ThisProcess};

/// The option's number, and what it means.
fn call(optname: &Bound<'_, PyAny>, draft: bool) -> PyResult<(i32, Call)> {
    let optname = int("optname", optname)?;
    let layout = if draft { Layout::Draft } else { Layout::Kernel };
    let call = Call::of(optname, layout).ok_or_else(|| {
        PyValueError::new_err(format!(
            "optname must be one of the six options, or one of the header's, not {optname}"
        ))
    })?;
    Ok((optname, call))
}

/// What goes to the start of the buffer, and the new length.
#[pyfunction]
pub fn enhanced_getsockopt<'py>(
    py: Python<'py>,
    handle: &Bound<'py, Handle>,
    optname: &Bound<'_, PyAny>,
    buffer: &[u8],
    draft: bool,
) -> PyResult<(Bound<'py, PyBytes>, usize)> {
    let (optname, call) = call(optname, draft)?;
    let connection = &handle.get().0;
    let reply = py.detach(|| serve::getsockopt(connection, &ThisProcess, call, optname, buffer));
    let reply = reply.map_err(|error| to_py(py, error))?;
    Ok((PyBytes::new(py, &reply.bytes), reply.length))
}

#[pyfunction]
pub fn enhanced_setsockopt(
    py: Python<'_>,
    handle: &Bound<'_, Handle>,
    optname: &Bound<'_, PyAny>,
    buffer: &[u8],
    draft: bool,
) -> PyResult<()> {
    let (optname, call) = call(optname, draft)?;
    let connection = &handle.get().0;
    py.detach(|| serve::setsockopt(connection, &ThisProcess, call, optname, buffer))
        .map_err(|error| to_py(py, error))
}
