//! What a socket and a connection without a descriptor have in common: opening, closing and changing subflows,
//! announcing addresses, options on one subflow. `owner` is the Python object that snapshots act through.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

use super::address::{from_any, integer};
use super::errors::to_py;
use super::events::EventStream;
use super::options;
use super::subflow::Subflow;
use super::timeout::Timeout;
use crate::connection::announce;
use crate::connection::close;
use crate::connection::open::{Opening, Request};
use crate::connection::priority;
use crate::connection::{self, Connection, Which};

/// How long a wait goes on before Python may run its signal handlers.
const SIGNALS: Duration = Duration::from_millis(50);

pub fn subflows(py: Python<'_>, connection: &dyn Connection, owner: &Py<PyAny>) -> PyResult<Vec<Subflow>> {
    let subflows = py.detach(|| connection.subflows()).map_err(|error| to_py(py, error))?;
    Ok(subflows.into_iter().map(|data| Subflow::new(data, owner.clone_ref(py))).collect())
}

pub fn events(py: Python<'_>, connection: &dyn Connection) -> PyResult<EventStream> {
    py.detach(|| connection::events(connection)).map(EventStream::new).map_err(|error| to_py(py, error))
}

/// The arguments of open_subflow.
pub struct Open<'a, 'py> {
    pub local: &'a Bound<'py, PyAny>,
    pub remote: &'a Bound<'py, PyAny>,
    pub backup: bool,
    pub interface: Option<String>,
    pub timeout: Timeout,
}

impl Open<'_, '_> {
    pub fn request(self, py: Python<'_>) -> PyResult<Request> {
        let Open { local, remote, backup, interface, .. } = self;
        let (local, remote) = (from_any("local", local)?, from_any("remote", remote)?);
        let request = Request { local, remote, backup, interface };
        request.check().map_err(|error| to_py(py, error))?;
        Ok(request)
    }
}

pub fn open_subflow(
    py: Python<'_>,
    connection: &dyn Connection,
    owner: Py<PyAny>,
    open: Open<'_, '_>,
) -> PyResult<Option<Subflow>> {
    let timeout = open.timeout;
    let request = open.request(py)?;
    let deadline = timeout.deadline();
    let mut opening = py.detach(|| Opening::new(connection, &request)).map_err(|error| to_py(py, error))?;
    if timeout.is_zero() {
        return py.detach(|| opening.detach(connection)).map(|_| None).map_err(|error| to_py(py, error));
    }
    let subflow = loop {
        let slice = Instant::now() + SIGNALS;
        let slice = deadline.map_or(slice, |deadline| deadline.min(slice));
        match py.detach(|| opening.advance(connection, slice)) {
            Ok(true) => break py.detach(|| opening.accepted(connection)),
            Ok(false) => {}
            Err(error) => break Err(error),
        }
        if let Err(interrupt) = py.check_signals() {
            py.detach(|| drop(opening));
            return Err(interrupt);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break Err(py.detach(|| opening.timed_out()));
        }
    };
    subflow.map(|data| Some(Subflow::new(data, owner))).map_err(|error| to_py(py, error))
}

pub fn close_subflow(
    py: Python<'_>,
    connection: &dyn Connection,
    subflow: &Bound<'_, PyAny>,
    force: bool,
) -> PyResult<()> {
    let which = if let Ok(subflow) = subflow.cast::<Subflow>() {
        endpoints(py, connection, subflow)?
    } else if subflow.is_instance_of::<PyInt>() && !subflow.is_instance_of::<PyBool>() {
        let id = subflow.extract().map_err(|_| PyValueError::new_err("a subflow id is in 0..2**32"))?;
        Which::Id(id)
    } else {
        return Err(PyTypeError::new_err("subflow must be a Subflow or a subflow id"));
    };
    py.detach(|| close::close_subflow(connection, which, force)).map_err(|error| to_py(py, error))
}

pub fn set_backup(
    py: Python<'_>,
    connection: &dyn Connection,
    subflow: &Bound<'_, Subflow>,
    backup: bool,
) -> PyResult<()> {
    let which = endpoints(py, connection, subflow)?;
    py.detach(|| priority::set_backup(connection, which, backup)).map_err(|error| to_py(py, error))
}

/// The ends of a snapshot, which must be of this connection.
fn endpoints(py: Python<'_>, connection: &dyn Connection, subflow: &Bound<'_, Subflow>) -> PyResult<Which> {
    let data = &subflow.get().data;
    let token = py.detach(|| connection.known()).map_err(|error| to_py(py, error))?.token;
    if token != data.token {
        return Err(PyValueError::new_err("the subflow belongs to another connection"));
    }
    Ok(Which::Endpoints { local: data.local, remote: data.remote })
}

pub fn announce_address(
    py: Python<'_>,
    connection: &dyn Connection,
    address: &Bound<'_, PyAny>,
    port: &Bound<'_, PyAny>,
) -> PyResult<u8> {
    let wrong =
        || PyTypeError::new_err("announce_address() takes an address, a str, and a port, an int or None");
    if !address.is_instance_of::<PyString>() {
        return Err(wrong());
    }
    let mut endpoint = from_any("address", address)?.ok_or_else(wrong)?;
    if !port.is_none() {
        let port = integer(port).ok_or_else(wrong)?;
        endpoint.port = u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| PyValueError::new_err(format!("port {port} is not in 1..65535")))?;
    }
    announce::check(&endpoint).map_err(|error| to_py(py, error))?;
    py.detach(|| announce::announce(connection, &endpoint)).map_err(|error| to_py(py, error))
}

pub fn remove_address(py: Python<'_>, connection: &dyn Connection, id: &Bound<'_, PyAny>) -> PyResult<()> {
    let number = integer(id).ok_or_else(|| PyTypeError::new_err("an address id is an int"))?;
    let id = u8::try_from(number).ok().filter(|id| *id != 0).ok_or_else(|| {
        PyValueError::new_err(format!(
            "address id {number} is not in 1..255 (0 is the initial subflow's, which is never announced)"
        ))
    })?;
    py.detach(|| announce::remove(connection, id)).map_err(|error| to_py(py, error))
}

pub fn get_option<'py>(
    py: Python<'py>,
    connection: &dyn Connection,
    subflow: &Bound<'py, PyAny>,
    level: &Bound<'py, PyAny>,
    optname: &Bound<'py, PyAny>,
    buflen: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let subflow = options::subflow(subflow)?.get();
    let option = options::option(level, optname)?;
    let room = options::room(buflen)?;
    let value = py.detach(|| crate::options::get(connection, &subflow.data, option, room.bytes()));
    room.result(py, value.map_err(|error| to_py(py, error))?)
}

pub fn set_options(py: Python<'_>, connection: &dyn Connection, options: &Bound<'_, PyAny>) -> PyResult<()> {
    let changes = options::changes(options)?;
    py.detach(|| crate::options::set(connection, &changes)).map_err(|error| to_py(py, error))
}
