//! Many connections of a network namespace at once.

use pyo3::prelude::*;

use super::address::from_tuple;
use super::by_token::ByToken;
use super::errors::to_py;
use super::integer::optional;
use super::subflow::Subflow;
use crate::abi::ranges;
use crate::connection::by_token;
use crate::namespace::Namespace;

/// The connections of the network namespace that a socket belongs to, or of the calling thread's: with this token, with
/// this port at either end, or all. `pid` is only checked here: who holds them is for the caller to look up.
#[pyfunction]
#[pyo3(signature = (fd, token, pid, port))]
pub fn connections(
    py: Python<'_>,
    fd: Option<i32>,
    token: Option<&Bound<'_, PyAny>>,
    pid: Option<&Bound<'_, PyAny>>,
    port: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<Py<ByToken>>> {
    let token = optional("token", token, ranges::token)?;
    optional("pid", pid, ranges::pid)?;
    let port = optional("port", port, ranges::port)?;
    let list = || {
        let namespace = match fd {
            Some(fd) => Namespace::of_socket(fd)?,
            None => Namespace::current()?,
        };
        by_token::list(&namespace, token)
    };
    let mut connections = py.detach(list).map_err(|error| to_py(py, error))?;
    connections.retain(|connection| port.is_none_or(|port| connection.has_port(port)));
    connections.into_iter().map(|connection| ByToken::new(py, connection)).collect()
}

/// The subflows of each of these connections, by one dump; None for one that has ended or fallen back.
#[pyfunction]
pub fn subflows_of(
    py: Python<'_>,
    connections: Vec<Py<ByToken>>,
    owners: Vec<Py<PyAny>>,
) -> PyResult<Vec<Option<Vec<Subflow>>>> {
    let natives: Vec<_> = connections.iter().map(|connection| &*connection.get().0).collect();
    let read = py.detach(|| by_token::subflows_of(&natives)).map_err(|error| to_py(py, error))?;
    let with_owner = |(subflows, owner): (Option<Vec<_>>, Py<PyAny>)| {
        subflows.map(|subflows| {
            subflows.into_iter().map(|data| Subflow::new(data, owner.clone_ref(py))).collect()
        })
    };
    Ok(read.into_iter().zip(owners).map(with_owner).collect())
}

/// A connection, its owner in Python, and the ends of a subflow of it.
type AskedFor<'py> = (Py<ByToken>, Py<PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Subflows by the connections that they belong to and their ends, by exact look-ups; None for one that is gone.
#[pyfunction]
pub fn subflows_at(py: Python<'_>, asked: Vec<AskedFor<'_>>) -> PyResult<Vec<Option<Subflow>>> {
    let mut ends = Vec::with_capacity(asked.len());
    for (native, _, local, remote) in &asked {
        ends.push((&*native.get().0, from_tuple(local)?, from_tuple(remote)?));
    }
    let read = py.detach(|| by_token::subflows_at(&ends)).map_err(|error| to_py(py, error))?;
    let with_owner = |(data, (_, owner, ..)): (Option<_>, &AskedFor<'_>)| {
        data.map(|data| Subflow::new(data, owner.clone_ref(py)))
    };
    Ok(read.into_iter().zip(&asked).map(with_owner).collect())
}
