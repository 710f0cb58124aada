//! Operations on a connection, however it is reached: the base of the native companions of `mptcp.Socket` and
//! `mptcp.Connection`. `owner` is the Python object that snapshots of subflows act through.

use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use super::address::{endpoint, from_any, to_tuple};
use super::errors::to_py;
use super::events::{Event, EventStream};
use super::integer::{integer, optional, ranged};
use super::options as arguments;
use super::structs::Info;
use super::subflow::Subflow;
use super::timeout::Timeout;
use crate::connection::announce::How;
use crate::connection::open::{self, Opening, Progress, Request};
use crate::connection::{self, addresses, announce, close, priority, withdraw, Connection, Which};
use crate::netlink::pm::Address;
use crate::options;

/// The fields of `mptcp.Address`: address, id, port, and the flags as in `ENDPOINT_FLAGS`.
type AddressFields = (String, u8, Option<u16>, u32);

/// How long a wait goes on before Python may run its signal handlers.
const SIGNALS: Duration = Duration::from_millis(50);

/// A connection.
#[pyclass(frozen, subclass, module = "mptcp._core")]
pub struct Native(pub Arc<dyn Connection>);

impl Native {
    pub fn new(connection: Arc<dyn Connection>) -> Native {
        Native(connection)
    }

    /// Runs an operation of the core without the GIL.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&dyn Connection) -> crate::error::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| act(&*self.0)).map_err(|error| to_py(py, error))
    }
}

#[pymethods]
impl Native {
    fn info(&self, py: Python<'_>) -> PyResult<Info> {
        self.call(py, |connection| connection.info()).map(Info)
    }

    fn path_manager(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.call(py, |connection| connection.path_manager()).map(|path_manager| path_manager.name())
    }

    fn subflows(&self, py: Python<'_>, owner: Py<PyAny>) -> PyResult<Vec<Subflow>> {
        let subflows = self.call(py, |connection| connection.subflows())?;
        Ok(subflows.into_iter().map(|data| Subflow::new(data, owner.clone_ref(py))).collect())
    }

    fn events(&self, py: Python<'_>) -> PyResult<EventStream> {
        self.call(py, connection::events).map(EventStream::new)
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python method")]
    fn open_subflow(
        &self,
        py: Python<'_>,
        owner: Py<PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        backup: bool,
        interface: Option<String>,
        local_id: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = Timeout::extract)] timeout: Timeout,
        force: bool,
    ) -> PyResult<Option<Subflow>> {
        let request = request(local, remote, backup, interface, local_id, force)?;
        let deadline = timeout.deadline();
        if timeout.is_zero() {
            let detach = |connection: &dyn Connection| Opening::new(connection, &request)?.detach(connection);
            return self.call(py, detach).map(|_| None);
        }
        let slice = || {
            let slice = Instant::now() + SIGNALS;
            deadline.map_or(slice, |deadline| deadline.min(slice))
        };
        let mut progress =
            self.call(py, |connection| Opening::new(connection, &request)?.go_on(connection, slice()))?;
        loop {
            let mut opening = match progress {
                Progress::Accepted(data) => return Ok(Some(Subflow::new(data, owner))),
                Progress::Pending(opening) => opening,
            };
            if let Err(interrupt) = py.check_signals() {
                py.detach(|| drop(opening));
                return Err(interrupt);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(to_py(py, py.detach(|| opening.timed_out())));
            }
            progress = self.call(py, |connection| opening.go_on(connection, slice()))?;
        }
    }

    /// The local address that open_subflow(None, remote, interface=interface) would open from.
    fn local_address(
        &self,
        py: Python<'_>,
        remote: &Bound<'_, PyAny>,
        interface: Option<String>,
    ) -> PyResult<String> {
        let request = Request { remote: from_any("remote", remote)?, interface, ..Request::default() };
        let local = self.call(py, |connection| open::local_address(connection, &request))?;
        Ok(local.to_string())
    }

    fn close_subflow(&self, py: Python<'_>, subflow: &Bound<'_, PyAny>, force: bool) -> PyResult<()> {
        if let Ok(subflow) = subflow.cast::<Subflow>() {
            let data = &subflow.get().data;
            return self.call(py, |connection| close::close_snapshot(connection, data, force));
        }
        if let Ok(ends) = subflow.cast::<PyTuple>() {
            let end = |at: usize| {
                let endpoint = from_any("an end of a subflow", &ends.get_item(at)?)?;
                endpoint
                    .ok_or_else(|| PyTypeError::new_err("an end of a subflow must be a tuple (host, port)"))
            };
            if ends.len() != 2 {
                return Err(PyTypeError::new_err("a subflow's ends must be a tuple (local, remote)"));
            }
            let (local, remote) = (end(0)?, end(1)?);
            let which = Which::at(local.socket_address(), remote.socket_address());
            let which = which.map_err(|error| to_py(py, error))?;
            return self.call(py, |connection| close::close_subflow(connection, which, force));
        }
        let id = integer(subflow).ok_or_else(|| {
            PyTypeError::new_err(
                "subflow must be a Subflow, a subflow id, or its ends as a tuple (local, remote)",
            )
        })?;
        self.call(py, |connection| close::close_subflow(connection, Which::of_id(id)?, force))
    }

    fn set_backup(&self, py: Python<'_>, subflow: &Bound<'_, Subflow>, backup: bool) -> PyResult<()> {
        let data = &subflow.get().data;
        self.call(py, |connection| priority::set_backup(connection, Which::of(connection, data)?, backup))
    }

    fn announce_address(
        &self,
        py: Python<'_>,
        address: &Bound<'_, PyAny>,
        port: &Bound<'_, PyAny>,
        id: Option<&Bound<'_, PyAny>>,
        listen: bool,
    ) -> PyResult<u8> {
        if !address.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("address must be a str"));
        }
        let mut endpoint = endpoint("address", address)?;
        if !port.is_none() {
            endpoint.port = ranged("port", port, announce::check_port)?;
        }
        let id = optional("address_id", id, announce::check_id)?;
        announce::check(&endpoint).map_err(|error| to_py(py, error))?;
        self.call(py, |connection| announce::announce(connection, &endpoint, How { id, listen }))
    }

    fn remove_address(&self, py: Python<'_>, id: &Bound<'_, PyAny>, force: bool) -> PyResult<()> {
        let id = ranged("address_id", id, withdraw::check_id)?;
        self.call(py, |connection| withdraw::withdraw(connection, id, force))
    }

    /// The local addresses that the kernel keeps for it.
    fn addresses(&self, py: Python<'_>) -> PyResult<Vec<AddressFields>> {
        let listed = self.call(py, addresses::addresses)?;
        let fields = |address: Address| {
            let port = (address.port != 0).then_some(address.port);
            (address.ip.to_string(), address.id, port, address.flags)
        };
        Ok(listed.into_iter().map(fields).collect())
    }

    /// Token, local and remote end, and whether the peer opened it.
    #[expect(clippy::type_complexity, reason = "a tuple of Python")]
    fn identity<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(u32, Bound<'py, PyTuple>, Bound<'py, PyTuple>, Option<bool>)> {
        let found = self.call(py, connection::identity)?;
        Ok((found.token, to_tuple(py, found.local)?, to_tuple(py, found.remote)?, found.server_side))
    }

    /// What events told of its subflows and addresses; None while nobody of this process listens.
    fn history(&self, py: Python<'_>) -> PyResult<Option<Vec<Event>>> {
        let events = self.call(py, connection::history)?;
        Ok(events.map(|events| events.into_iter().map(Event).collect()))
    }

    /// A new socket in its network namespace.
    fn new_socket(&self, py: Python<'_>, family: i32, kind: i32, protocol: i32) -> PyResult<i32> {
        let socket = self.call(py, |connection| connection.namespace()?.socket(family, kind, protocol))?;
        Ok(socket.into_raw_fd())
    }

    fn deny_join_initial(&self, py: Python<'_>) -> PyResult<Option<bool>> {
        self.call(py, connection::deny_join_initial)
    }

    fn get_subflow_option<'py>(
        &self,
        py: Python<'py>,
        subflow: &Bound<'py, PyAny>,
        level: &Bound<'py, PyAny>,
        optname: &Bound<'py, PyAny>,
        buflen: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let subflow = arguments::subflow(subflow)?.get();
        let option = arguments::option(level, optname)?;
        let room = arguments::room(buflen)?;
        let value =
            self.call(py, |connection| options::get(connection, &subflow.data, option, room.bytes()))?;
        room.result(py, value)
    }

    fn set_subflow_options(&self, py: Python<'_>, options: &Bound<'_, PyAny>) -> PyResult<()> {
        let changes = arguments::changes(options)?;
        self.call(py, |connection| options::set(connection, &changes))
    }
}

/// What open_subflow asks for, if nothing in it is wrong in itself.
pub fn request(
    local: &Bound<'_, PyAny>,
    remote: &Bound<'_, PyAny>,
    backup: bool,
    interface: Option<String>,
    local_id: Option<&Bound<'_, PyAny>>,
    force: bool,
) -> PyResult<Request> {
    let py = local.py();
    let (local, remote) = (from_any("local", local)?, from_any("remote", remote)?);
    let local_id = optional("local_id", local_id, open::check_local_id)?;
    let request = Request { local, remote, backup, interface, local_id, force };
    request.check().map_err(|error| to_py(py, error))?;
    Ok(request)
}
