//! A network namespace: its interfaces and its path manager, and new ones for the processes of a lab.

use std::collections::BTreeMap;
use std::ffi::CString;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::errors::to_py;
use super::integer::type_name;
use crate::abi::address::Endpoint;
use crate::error::Error;
use crate::namespace::path_manager::PathManager;
use crate::namespace::{sysctls, Interface, Namespace};
use crate::sys::namespaces;

/// Whether the network namespace that a socket belongs to has an interface of this name, whatever its state.
#[pyfunction]
pub fn has_interface(py: Python<'_>, fd: i32, name: &str) -> PyResult<bool> {
    py.detach(|| Namespace::of_socket(fd)?.has_interface(name)).map_err(|error| to_py(py, error))
}

/// The interface by which the network namespace of a socket sends from a local address to a remote one, by their text.
/// None without a route.
#[pyfunction]
pub fn interface_of_route(py: Python<'_>, fd: i32, local: &str, remote: &str) -> PyResult<Option<String>> {
    let parse = |text: &str| Endpoint::parse(text, 0).map(|end| end.ip).map_err(|error| to_py(py, error));
    let (local, remote) = (parse(local)?, parse(remote)?);
    py.detach(|| Namespace::of_socket(fd)?.interface_of_route(local, remote))
        .map_err(|error| to_py(py, error))
}

/// The interfaces of the network namespace that a socket belongs to: name, whether it is up, addresses.
#[pyfunction]
pub fn interfaces(py: Python<'_>, fd: i32) -> PyResult<Vec<(String, bool, Vec<String>)>> {
    let found = py.detach(|| Namespace::of_socket(fd)?.interfaces()).map_err(|error| to_py(py, error))?;
    let row =
        |each: Interface| (each.name, each.up, each.addresses.iter().map(ToString::to_string).collect());
    Ok(found.into_iter().map(row).collect())
}

/// The sysctls net.mptcp and some of net.ipv4 of that network namespace.
#[pyfunction]
pub fn read_sysctls(py: Python<'_>, fd: i32) -> PyResult<BTreeMap<String, String>> {
    py.detach(|| sysctls::read(&*Namespace::of_socket(fd)?)).map_err(|error| to_py(py, error))
}

/// Refuses what is not the name of a path manager; returns it.
#[pyfunction]
pub fn check_path_manager(py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<&'static str> {
    let text = name
        .cast::<PyString>()
        .map_err(|_| PyTypeError::new_err(format!("path_manager must be a str, not {}", type_name(name))))?;
    let found = PathManager::parse(&text.to_string_lossy()).map_err(|error| to_py(py, error))?;
    Ok(found.name())
}

/// The path manager that new sockets of the calling thread's network namespace latch.
#[pyfunction]
pub fn get_path_manager(py: Python<'_>) -> PyResult<String> {
    py.detach(|| Namespace::current()?.path_manager()).map_err(|error| to_py(py, error))
}

/// Sets it and returns the previous one.
#[pyfunction]
pub fn set_path_manager(py: Python<'_>, name: &str) -> PyResult<String> {
    py.detach(|| Namespace::current()?.set_path_manager(name)).map_err(|error| to_py(py, error))
}

/// Moves the calling process, which must have one thread only, to a new user namespace.
#[pyfunction]
pub fn enter_new_user_namespace(py: Python<'_>) -> PyResult<()> {
    namespaces::enter_new_user_namespace()
        .map_err(|error| to_py(py, Error::call("unshare(CLONE_NEWUSER)", &error)))
}

/// Moves the calling thread to a new network namespace.
#[pyfunction]
pub fn enter_new_network_namespace(py: Python<'_>) -> PyResult<()> {
    namespaces::enter_new_network_namespace()
        .map_err(|error| to_py(py, Error::call("unshare(CLONE_NEWNET)", &error)))
}

/// Remounts a file system for writing, in a new mount namespace that the calling thread moves to.
#[pyfunction]
pub fn remount_writable(py: Python<'_>, path: CString) -> PyResult<()> {
    namespaces::remount_writable(&path)
        .map_err(|error| to_py(py, Error::call("remounting for writing", &error)))
}
