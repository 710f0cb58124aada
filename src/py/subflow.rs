//! A snapshot of one subflow as a Python object.

use std::hash::{DefaultHasher, Hash, Hasher};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

use super::address::to_tuple;
use super::structs::TcpInfo;
use crate::abi::address::unmapped;
use crate::connection;

/// A snapshot of one subflow. Its methods act on the live subflow, through the socket that it was read from.
#[pyclass(frozen, module = "mptcp")]
pub struct Subflow {
    pub data: connection::Subflow,
    owner: Py<PyAny>,
}

impl Subflow {
    pub fn new(data: connection::Subflow, owner: Py<PyAny>) -> Subflow {
        Subflow { data, owner }
    }

    fn ulp(&self) -> Option<crate::netlink::diag::Ulp> {
        self.data.entry.and_then(|entry| entry.subflow)
    }
}

#[pymethods]
impl Subflow {
    #[getter]
    fn id(&self) -> Option<u32> {
        self.data.id
    }

    #[getter]
    fn token(&self) -> u32 {
        self.data.token
    }

    #[getter]
    fn cookie(&self) -> Option<u64> {
        self.data.entry.map(|entry| entry.cookie)
    }

    #[getter]
    fn local<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_tuple(py, self.data.local)
    }

    #[getter]
    fn remote<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_tuple(py, self.data.remote)
    }

    #[getter]
    fn local_id(&self) -> Option<u8> {
        self.ulp().map(|ulp| ulp.local_id)
    }

    #[getter]
    fn remote_id(&self) -> Option<u8> {
        self.ulp().map(|ulp| ulp.remote_id)
    }

    #[getter]
    fn initial(&self) -> Option<bool> {
        self.ulp().map(|ulp| ulp.initial())
    }

    #[getter]
    fn backup(&self) -> Option<bool> {
        self.ulp().map(|ulp| ulp.backup())
    }

    #[getter]
    fn peer_backup(&self) -> Option<bool> {
        self.ulp().map(|ulp| ulp.peer_backup())
    }

    #[getter]
    fn _accepted(&self) -> Option<bool> {
        self.ulp().map(|ulp| ulp.accepted())
    }

    /// The same with IPv4-mapped ends as IPv4 ones.
    fn _unmapped(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let Subflow { data, owner } = slf.get();
        let (local, remote) = (unmapped(data.local), unmapped(data.remote));
        if (local, remote) == (data.local, data.remote) {
            return Ok(slf);
        }
        let data = connection::Subflow { local, remote, ..data.clone() };
        Bound::new(slf.py(), Subflow { data, owner: owner.clone_ref(slf.py()) })
    }

    #[getter]
    fn state(&self) -> &'static str {
        self.data.tcp_info.state_name()
    }

    #[getter]
    fn tcp_info(&self) -> TcpInfo {
        TcpInfo(self.data.tcp_info)
    }

    fn close(slf: Bound<'_, Self>) -> PyResult<()> {
        slf.get().owner.bind(slf.py()).call_method1("close_subflow", (&slf,)).map(drop)
    }

    fn set_backup(slf: Bound<'_, Self>, backup: &Bound<'_, PyAny>) -> PyResult<()> {
        let backup =
            backup.cast::<PyBool>().map_err(|_| PyTypeError::new_err("backup must be True or False"))?;
        slf.get().owner.bind(slf.py()).call_method1("_set_backup", (&slf, backup)).map(drop)
    }

    #[pyo3(signature = (level, optname, buflen = None), text_signature = "($self, level, optname, buflen=0)")]
    fn getsockopt<'py>(
        slf: Bound<'py, Self>,
        level: Bound<'py, PyAny>,
        optname: Bound<'py, PyAny>,
        buflen: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.get().owner.bind(slf.py()).call_method1("_get_subflow_option", (&slf, level, optname, buflen))
    }

    fn setsockopt(
        slf: Bound<'_, Self>,
        level: Bound<'_, PyAny>,
        optname: Bound<'_, PyAny>,
        value: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let (option, changes) = (PyDict::new(py), PyDict::new(py));
        option.set_item((level, optname), value)?;
        changes.set_item(&slf, option)?;
        slf.get().owner.bind(py).call_method1("set_subflow_options", (changes,)).map(drop)
    }

    fn __repr__(&self) -> String {
        let id = self.data.id.map_or_else(|| "?".to_owned(), |id| id.to_string());
        let (local, remote) = (self.data.local, self.data.remote);
        format!("<Subflow {id} {local} -> {remote} {}>", self.state())
    }

    /// Two snapshots are equal if they are of the same subflow.
    fn __eq__(&self, other: &Self) -> bool {
        self.key() == other.key()
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.key().hash(&mut hasher);
        hasher.finish()
    }
}

impl Subflow {
    fn key(&self) -> (u32, std::net::SocketAddr, std::net::SocketAddr, Option<u32>) {
        (self.data.token, self.data.local, self.data.remote, self.data.id)
    }
}
