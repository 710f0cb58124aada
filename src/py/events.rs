//! Events: the Python class `mptcp.Event`, and the native companion of `mptcp.Events`.

use std::sync::{Arc, Mutex};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::address::{from_any, to_tuple};
use super::errors::to_py;
use super::integer::optional;
use super::timeout::Timeout;
use crate::abi::ranges;
use crate::error::Error;
use crate::events::event;
use crate::events::{Events, Taken};
use crate::namespace::Namespace;
use crate::sys::lock::lock;

/// The member of mptcp.EventKind.
fn kind<'py>(py: Python<'py>, kind: event::Kind) -> PyResult<Bound<'py, PyAny>> {
    static ENUM: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class =
        ENUM.get_or_try_init(py, || py.import("mptcp._event_kind")?.getattr("EventKind").map(Bound::unbind))?;
    class.bind(py).getattr(kind.name())
}

/// One event of an Events stream. Frozen. An attribute that events of its kind do not have is None.
///
/// Two events are equal if all their attributes are. An event can be pickled, and created: ``kind`` and ``time_ns`` are
/// positional, the others keyword arguments.
#[pyclass(frozen, module = "mptcp")]
pub struct Event(pub event::Event);

const FIELDS: [&str; 13] = [
    "kind",
    "time_ns",
    "token",
    "local",
    "remote",
    "local_id",
    "remote_id",
    "backup",
    "error",
    "reset_reason",
    "server_side",
    "deny_join_initial",
    "interface",
];

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (
        kind, time_ns, *, token = None, local = None, remote = None, local_id = None, remote_id = None, backup = None,
        error = None, reset_reason = None, server_side = None, deny_join_initial = None, interface = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "the fields")]
    fn new(
        kind: &Bound<'_, PyAny>,
        time_ns: u64,
        token: Option<u32>,
        local: Option<&Bound<'_, PyAny>>,
        remote: Option<&Bound<'_, PyAny>>,
        local_id: Option<u8>,
        remote_id: Option<u8>,
        backup: Option<bool>,
        error: Option<i32>,
        reset_reason: Option<u32>,
        server_side: Option<bool>,
        deny_join_initial: Option<bool>,
        interface: Option<&str>,
    ) -> PyResult<Event> {
        let name: String = kind
            .getattr("name")
            .and_then(|name| name.extract())
            .map_err(|_| PyTypeError::new_err("kind must be an EventKind"))?;
        let kind = event::Kind::of_name(&name)
            .ok_or_else(|| PyValueError::new_err(format!("{name:?} is not a kind of event")))?;
        let end = |name: &str, value: Option<&Bound<'_, PyAny>>| -> PyResult<_> {
            let endpoint = value.map(|value| from_any(name, value)).transpose()?.flatten();
            Ok(endpoint.map(|endpoint| endpoint.socket_address()))
        };
        Ok(Event(event::Event {
            kind,
            time_ns,
            token,
            local: end("local", local)?,
            remote: end("remote", remote)?,
            local_id,
            remote_id,
            backup,
            error,
            reset_reason,
            server_side,
            deny_join_initial,
            interface: interface.map(Arc::from),
        }))
    }

    /// What happened: an EventKind.
    #[getter]
    fn kind<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        kind(py, self.0.kind)
    }

    /// When this process read the event, in nanoseconds of time.monotonic_ns().
    #[getter]
    fn time_ns(&self) -> u64 {
        self.0.time_ns
    }

    /// The token of the connection on this host. None for links, addresses and listeners.
    #[getter]
    fn token(&self) -> Option<u32> {
        self.0.token
    }

    /// The local end of the connection, subflow or listener, as socket.getsockname() returns it. For an address that
    /// appears or disappears, with port 0.
    #[getter]
    fn local<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.0.local.map(|local| to_tuple(py, local)).transpose()
    }

    /// The remote end, in the form of ``local``. For ANNOUNCED the announced address, with port 0 if it was announced
    /// without one.
    #[getter]
    fn remote<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        self.0.remote.map(|remote| to_tuple(py, remote)).transpose()
    }

    /// The address id of the local address (RFC 8684, section 3.2), from 0 to 255.
    #[getter]
    fn local_id(&self) -> Option<u8> {
        self.0.local_id
    }

    /// The address id of the remote address, from 0 to 255, as the peer gave it.
    #[getter]
    fn remote_id(&self) -> Option<u8> {
        self.0.remote_id
    }

    /// Whether the peer asked this side to use the subflow only when no other is left.
    #[getter]
    fn backup(&self) -> Option<bool> {
        self.0.backup
    }

    /// The errno with which a subflow failed; of CLOSED, ECONNRESET if the peer aborted the connection.
    #[getter]
    fn error(&self) -> Option<i32> {
        self.0.error
    }

    /// The reset reason that the peer gave in MP_TCPRST (RFC 8684, section 3.6).
    #[getter]
    fn reset_reason(&self) -> Option<u32> {
        self.0.reset_reason
    }

    /// Whether the peer opened the connection. Only CREATED and ESTABLISHED have it.
    #[getter]
    fn server_side(&self) -> Option<bool> {
        self.0.server_side
    }

    /// For CREATED and ESTABLISHED, whether the peer denies further subflows to its initial address and port.
    ///
    /// The C bit of MP_CAPABLE (RFC 8684, section 3.1). False on kernels that do not tell (before 6.17).
    #[getter]
    fn deny_join_initial(&self) -> Option<bool> {
        self.0.deny_join_initial
    }

    /// The name of the interface: of the link, of the address, or that the subflow is bound to.
    #[getter]
    fn interface(&self) -> Option<&str> {
        self.0.interface.as_deref()
    }

    /// Return the attributes by name, None included.
    fn asdict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(slf.py());
        for name in FIELDS {
            fields.set_item(name, slf.getattr(name)?)?;
        }
        Ok(fields)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let mut text = format!("<Event {}", slf.get().0.kind.name());
        for name in FIELDS.iter().skip(2) {
            let value = slf.getattr(name)?;
            if !value.is_none() {
                text.push_str(&format!(" {name}={}", value.repr()?));
            }
        }
        Ok(text + ">")
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    fn __hash__(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (self.0.kind, self.0.time_ns, self.0.token, self.0.local, self.0.remote).hash(&mut hasher);
        hasher.finish()
    }

    /// What pickle and copy take.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = slf.py();
        let fields = Event::asdict(slf)?;
        let positional = PyTuple::new(py, [slf.getattr("kind")?, slf.getattr("time_ns")?])?;
        fields.del_item("kind")?;
        fields.del_item("time_ns")?;
        // Calls Event with these arguments: the standard library's own way for one that takes keywords.
        let make = py.import("copyreg")?.getattr("__newobj_ex__")?;
        let arguments = (slf.get_type(), positional, fields).into_pyobject(py)?;
        Ok((make, arguments))
    }
}

/// The native companion of one Events.
#[pyclass(frozen, module = "mptcp._core")]
pub struct EventStream {
    events: Mutex<Option<Arc<Events>>>,
    process: u32,
}

impl EventStream {
    pub fn new(events: Events) -> EventStream {
        EventStream { events: Mutex::new(Some(Arc::new(events))), process: std::process::id() }
    }

    fn is_closed(&self) -> bool {
        self.process == std::process::id() && lock(&self.events).is_none()
    }

    fn events(&self, py: Python<'_>) -> PyResult<Arc<Events>> {
        // Before any lock: a thread that the child lacks may have held it.
        if self.process != std::process::id() {
            let message =
                "an Events object cannot be used in a forked child of the process that created it: create another";
            return Err(to_py(py, Error::os(libc::EBADF, message)));
        }
        lock(&self.events).clone().ok_or_else(|| PyValueError::new_err("the Events object is closed"))
    }
}

#[pymethods]
impl EventStream {
    /// Of the calling thread's network namespace, or of the one that a socket belongs to.
    #[new]
    #[pyo3(signature = (fd, token))]
    fn make(py: Python<'_>, fd: Option<i32>, token: Option<&Bound<'_, PyAny>>) -> PyResult<EventStream> {
        let token = optional("token", token, ranges::token)?;
        let make = || {
            let namespace = match fd {
                Some(fd) => Namespace::of_socket(fd)?,
                None => Namespace::current()?,
            };
            namespace.events(token)
        };
        py.detach(make).map(EventStream::new).map_err(|error| to_py(py, error))
    }

    #[getter]
    fn source(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(if self.events(py)?.is_polling() { "polling" } else { "netlink" })
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        Ok(self.events(py)?.fd())
    }

    /// The next event, or None: after `timeout` seconds, or when no more will come. Of one that is closed no more will
    /// come to who iterates; else it is an error.
    #[pyo3(signature = (timeout, iterating))]
    fn get(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = Timeout::extract)] timeout: Timeout,
        iterating: bool,
    ) -> PyResult<Option<Event>> {
        let deadline = timeout.deadline();
        if iterating && self.is_closed() {
            return Ok(None);
        }
        let events = self.events(py)?;
        loop {
            match py.detach(|| events.next(deadline)) {
                Ok(Taken::Event(event)) => return Ok(Some(Event(event))),
                Ok(Taken::Nothing) => return Ok(None),
                // Perhaps because it was closed meanwhile.
                Ok(Taken::Over) => return if iterating { Ok(None) } else { self.events(py).map(|_| None) },
                Err(error) if error.errno() == libc::EINTR => py.check_signals()?,
                Err(error) => return Err(to_py(py, error)),
            }
        }
    }

    /// LINK_UP and ADDRESS_ADDED of what there is.
    fn links(&self, py: Python<'_>) -> PyResult<Vec<Event>> {
        Ok(self.events(py)?.links().into_iter().map(Event).collect())
    }

    /// Whether no more will come to who iterates.
    fn is_over(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.is_closed() || self.events(py)?.is_over())
    }

    fn close(&self, py: Python<'_>) {
        if self.process != std::process::id() {
            return;
        }
        let events = lock(&self.events).take();
        if let Some(events) = events {
            events.end();
            py.detach(|| drop(events));
        }
    }

    /// For tests of what happens when the kernel has no room for events.
    fn set_receive_buffer(&self, py: Python<'_>, size: i32) -> PyResult<()> {
        self.events(py)?.set_receive_buffer(size).map_err(|error| to_py(py, error))
    }
}
