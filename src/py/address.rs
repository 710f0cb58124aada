//! Endpoints to and from what Python's socket module uses.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString, PyTuple};

use super::errors::to_py;
use crate::abi::address::{Endpoint, Scope};

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
    let no_end = || PyValueError::new_err(format!("{tuple} is not an endpoint of a subflow"));
    let Endpoint { ip, port, scope } = from_any("an end", tuple)?.ok_or_else(no_end)?;
    Ok(match (ip, scope) {
        (IpAddr::V6(ip), Some(Scope::Index(index))) => SocketAddrV6::new(ip, port, 0, index).into(),
        _ => SocketAddr::new(ip, port),
    })
}

/// A host, or a tuple of host and port (and flowinfo and scope_id), as an endpoint.
pub fn from_any(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Option<Endpoint>> {
    if value.is_none() {
        return Ok(None);
    }
    if let Ok(host) = value.cast::<PyString>() {
        return parse(name, host, 0).map(Some);
    }
    let wrong = || PyTypeError::new_err(format!("{name} must be a host, a tuple (host, port) or None"));
    let tuple = value.cast::<PyTuple>().map_err(|_| wrong())?;
    if !(2..=4).contains(&tuple.len()) {
        return Err(wrong());
    }
    let host = tuple.get_item(0)?.cast_into::<PyString>().map_err(|_| wrong())?;
    let port = integer(&tuple.get_item(1)?).ok_or_else(wrong)?;
    let port = u16::try_from(port)
        .map_err(|_| PyValueError::new_err(format!("{name}: port must be in 0..65535, not {port}")))?;
    let mut endpoint = parse(name, &host, port)?;
    if tuple.len() == 4 && endpoint.scope.is_none() {
        let scope = integer(&tuple.get_item(3)?).ok_or_else(wrong)?;
        let scope = u32::try_from(scope).map_err(|_| {
            PyValueError::new_err(format!("{name}: scope_id must be the index of an interface, not {scope}"))
        })?;
        endpoint.scope = (scope != 0).then_some(Scope::Index(scope));
    }
    Ok(Some(endpoint))
}

/// An int that is not a bool; one too large for i64 is as wrong as any port or scope can be.
pub fn integer(value: &Bound<'_, PyAny>) -> Option<i64> {
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<pyo3::types::PyInt>() {
        return None;
    }
    Some(value.extract().unwrap_or(i64::MAX))
}

fn parse(name: &str, host: &Bound<'_, PyString>, port: u16) -> PyResult<Endpoint> {
    let text = host.to_string_lossy();
    // '' is any address, as for bind().
    let literal = if text.is_empty() { "0.0.0.0" } else { &text };
    Endpoint::parse(literal, port).map_err(|error| match error {
        crate::error::Error::Value { message, .. } => PyValueError::new_err(format!("{name}: {message}")),
        error => to_py(host.py(), error),
    })
}
