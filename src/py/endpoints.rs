//! The in-kernel path manager and the packet scheduler of a network namespace: that which a socket belongs to, or the
//! calling thread's.

use std::net::IpAddr;
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::errors::to_py;
use super::integer::{optional, ranged, type_name};
use crate::abi::{address, ranges};
use crate::error::{Error, Result};
use crate::namespace::endpoints::{Endpoint, Which};
use crate::namespace::{scheduler, Namespace};

/// The fields of `mptcp.Endpoint`: address, id, port, interface, and the flags as in `ENDPOINT_FLAGS`.
type Fields = (String, u8, Option<u16>, Option<String>, u32);

fn fields(endpoint: Endpoint) -> Fields {
    let Endpoint { ip, port, id, flags, interface } = endpoint;
    (ip.to_string(), id, (port != 0).then_some(port), interface, flags)
}

/// Runs an operation of the core without the GIL.
fn call<T: Send>(
    py: Python<'_>,
    fd: Option<i32>,
    act: impl FnOnce(Arc<Namespace>) -> Result<T> + Send,
) -> PyResult<T> {
    let found = || match fd {
        Some(fd) => Namespace::of_socket(fd),
        None => Namespace::current(),
    };
    py.detach(|| act(found()?)).map_err(|error| to_py(py, error))
}

fn text(name: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let text = value
        .cast::<PyString>()
        .map_err(|_| PyTypeError::new_err(format!("{name} must be a str, not {}", type_name(value))))?;
    Ok(text.to_string_lossy().into_owned())
}

fn ip(value: &Bound<'_, PyAny>) -> PyResult<IpAddr> {
    let host = text("address", value)?;
    let parsed = address::Endpoint::parse(&host, 0).and_then(|parsed| match parsed.scope {
        None => Ok(parsed.ip),
        Some(_) => {
            Err(Error::value(format!("{host:?} must not name an interface: that is a field of its own")))
        }
    });
    parsed.map_err(|error| to_py(value.py(), error))
}

/// The endpoints, in the order of their ids.
#[pyfunction]
pub fn endpoints(py: Python<'_>, fd: Option<i32>) -> PyResult<Vec<Fields>> {
    let found = call(py, fd, |namespace| namespace.endpoints())?;
    Ok(found.into_iter().map(fields).collect())
}

/// Adds an endpoint; returns it as the kernel has it.
#[pyfunction]
pub fn add_endpoint(
    py: Python<'_>,
    fd: Option<i32>,
    address: &Bound<'_, PyAny>,
    id: Option<&Bound<'_, PyAny>>,
    port: Option<&Bound<'_, PyAny>>,
    interface: Option<&Bound<'_, PyAny>>,
    flags: u32,
) -> PyResult<Fields> {
    let wanted = Endpoint {
        ip: ip(address)?,
        port: optional("port", port, ranges::port_of_endpoint)?.unwrap_or(0),
        id: optional("id", id, ranges::endpoint_id)?.unwrap_or(0),
        flags,
        interface: interface.map(|name| text("interface", name)).transpose()?,
    };
    call(py, fd, |namespace| namespace.add_endpoint(&wanted)).map(fields)
}

/// An id, and for one that was read before its address and port.
fn which(
    id: &Bound<'_, PyAny>,
    address: Option<&Bound<'_, PyAny>>,
    port: Option<&Bound<'_, PyAny>>,
) -> PyResult<Which> {
    let id = ranged("id", id, ranges::endpoint_id)?;
    let port = optional("port", port, ranges::port_of_endpoint)?.unwrap_or(0);
    let pair = address.map(|address| ip(address).map(|ip| (ip, port))).transpose()?;
    Ok(Which { id, pair })
}

/// Sets those flags of an endpoint that are not None; returns it.
#[pyfunction]
pub fn change_endpoint(
    py: Python<'_>,
    fd: Option<i32>,
    id: &Bound<'_, PyAny>,
    address: Option<&Bound<'_, PyAny>>,
    port: Option<&Bound<'_, PyAny>>,
    backup: Option<bool>,
    fullmesh: Option<bool>,
) -> PyResult<Fields> {
    let which = which(id, address, port)?;
    call(py, fd, |namespace| namespace.change_endpoint(which, backup, fullmesh)).map(fields)
}

/// Removes an endpoint.
#[pyfunction]
pub fn remove_endpoint(
    py: Python<'_>,
    fd: Option<i32>,
    id: &Bound<'_, PyAny>,
    address: Option<&Bound<'_, PyAny>>,
    port: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let which = which(id, address, port)?;
    call(py, fd, |namespace| namespace.remove_endpoint(which))
}

/// Removes all endpoints.
#[pyfunction]
pub fn flush_endpoints(py: Python<'_>, fd: Option<i32>) -> PyResult<()> {
    call(py, fd, |namespace| namespace.flush_endpoints())
}

/// The limits: subflows and add_addr_accepted.
#[pyfunction]
pub fn get_limits(py: Python<'_>, fd: Option<i32>) -> PyResult<(u32, u32)> {
    let limits = call(py, fd, |namespace| namespace.limits())?;
    Ok((limits.subflows, limits.add_addr_accepted))
}

/// Sets those limits that are not None; returns those before.
#[pyfunction]
pub fn set_limits(
    py: Python<'_>,
    fd: Option<i32>,
    subflows: Option<&Bound<'_, PyAny>>,
    add_addr_accepted: Option<&Bound<'_, PyAny>>,
) -> PyResult<(u32, u32)> {
    let subflows = optional("subflows", subflows, ranges::limit_of_subflows)?;
    let accepted = optional("add_addr_accepted", add_addr_accepted, ranges::limit_of_addresses)?;
    let before = call(py, fd, |namespace| namespace.set_limits(subflows, accepted))?;
    Ok((before.subflows, before.add_addr_accepted))
}

/// The packet scheduler that new connections of the calling thread's network namespace get.
#[pyfunction]
pub fn get_scheduler(py: Python<'_>) -> PyResult<String> {
    call(py, None, |namespace| namespace.scheduler())
}

/// Refuses what cannot be the name of a scheduler; returns it.
#[pyfunction]
pub fn check_scheduler(py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<String> {
    let name = text("scheduler", name)?;
    scheduler::check_name(&name).map_err(|error| to_py(py, error))?;
    Ok(name)
}

/// Sets it and returns the previous one.
#[pyfunction]
pub fn set_scheduler(py: Python<'_>, name: &str) -> PyResult<String> {
    call(py, None, |namespace| namespace.set_scheduler(name))
}

/// Those that this kernel has.
#[pyfunction]
pub fn available_schedulers(py: Python<'_>) -> PyResult<Vec<String>> {
    call(py, None, |namespace| namespace.available_schedulers())
}
