//! Endpoints to and from what Python's socket module uses.

use std::net::SocketAddr;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use super::errors::to_py;
use super::integer::integer;
use crate::abi::address::Endpoint;
use crate::error::Error;

/// `(host, port)`, or `(host, port, flowinfo, scope_id)` for IPv6, as `socket.getsockname()` gives them.
pub fn to_tuple(py: Python<'_>, address: SocketAddr) -> PyResult<Bound<'_, PyTuple>> {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_string(), v4.port()).into_pyobject(py),
        SocketAddr::V6(v6) => {
            (v6.ip().to_string(), v6.port(), v6.flowinfo(), v6.scope_id()).into_pyobject(py)
        }
    }
}

/// An end as `to_tuple` gives it.
pub fn from_tuple(tuple: &Bound<'_, PyAny>) -> PyResult<SocketAddr> {
    endpoint("an end", tuple).map(|endpoint| endpoint.socket_address())
}

/// A host, a tuple of host and port (and flowinfo and scope_id), or None.
pub fn from_any(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Endpoint>> {
    if value.is_none() {
        return Ok(None);
    }
    endpoint(name, value).map(Some)
}

/// A host, or a tuple of host and port (and flowinfo and scope_id).
pub fn endpoint(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Endpoint> {
    let wrong = || PyTypeError::new_err(format!("{name} must be a host, a tuple (host, port) or None"));
    let (host, port, scope_id) = match value.cast::<PyString>() {
        Ok(host) => (host.clone(), 0, 0),
        Err(_) => {
            let tuple = value.cast::<PyTuple>().map_err(|_| wrong())?;
            if !(2..=4).contains(&tuple.len()) {
                return Err(wrong());
            }
            let host = tuple.get_item(0)?.cast_into::<PyString>().map_err(|_| wrong())?;
            let number = |at: usize| integer(&tuple.get_item(at)?).ok_or_else(wrong);
            (host, number(1)?, if tuple.len() == 4 { number(3)? } else { 0 })
        }
    };
    Endpoint::of_parts(&host.to_string_lossy(), port, scope_id).map_err(|error| match error {
        Error::Value { message, .. } => PyValueError::new_err(format!("{name}: {message}")),
        error => to_py(host.py(), error),
    })
}
