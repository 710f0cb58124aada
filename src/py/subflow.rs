//! A snapshot of one subflow as a Python object.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

use super::address::{endpoint, to_tuple};
use super::errors::to_py;
use super::integer::{ranged, whole};
use super::structs::TcpInfo;
use crate::abi::address::unmapped;
use crate::abi::{ranges, tcp_info};
use crate::connection;
use crate::error::Error;
use crate::netlink::diag::{Entry, Tuple, Ulp};

/// The next cookie of a subflow that is created: apart from the kernel's, which count from 1 on.
static CREATED: AtomicU64 = AtomicU64::new(1 << 63);

/// A frozen snapshot of one subflow, whose methods act on the live subflow.
///
/// ``id``, the addresses and ``tcp_info`` are one atomic reading (MPTCP_FULL_INFO). ``cookie``, the address ids,
/// ``initial`` and the backup flags are a second one (inet_diag), and None if the subflow was gone by then; before
/// Linux 6.15 all of these but the cookie are None without CAP_NET_ADMIN. Two snapshots are equal if they are of the
/// same subflow.
///
/// For tests, one can be created, of a connection with the ``token`` and with ``tcp_info``; ``cookie`` is a new one unless
/// given. Its methods go to ``owner``, a Connection for instance, and raise SubflowError (ENOTCONN) without one.
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

    fn owner<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let owner = self.owner.bind(py);
        if owner.is_none() {
            let what = "this snapshot was created without an owner: there is no live subflow behind it";
            return Err(to_py(py, Error::subflow(libc::ENOTCONN, what.to_owned())));
        }
        Ok(owner)
    }
}

#[pymethods]
impl Subflow {
    #[new]
    #[pyo3(signature = (
        *, token, local, remote, tcp_info = None, id = None, cookie = None, local_id = None, remote_id = None,
        initial = false, backup = false, peer_backup = false, owner = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "the fields")]
    fn create(
        py: Python<'_>,
        token: &Bound<'_, PyAny>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        tcp_info: Option<&Bound<'_, TcpInfo>>,
        id: Option<&Bound<'_, PyAny>>,
        cookie: Option<&Bound<'_, PyAny>>,
        local_id: Option<&Bound<'_, PyAny>>,
        remote_id: Option<&Bound<'_, PyAny>>,
        initial: bool,
        backup: bool,
        peer_backup: bool,
        owner: Option<Py<PyAny>>,
    ) -> PyResult<Subflow> {
        let end = |name, value| endpoint(name, value).map(|endpoint| endpoint.socket_address());
        let address_id =
            |name, value: Option<&Bound<'_, PyAny>>| value.map_or(Ok(0), |value| whole(name, value));
        let token = ranged("token", token, ranges::token)?;
        let (local, remote) = (end("local", local)?, end("remote", remote)?);
        let tcp_info = tcp_info.map_or_else(|| tcp_info::TcpInfo::of([]), |info| info.get().0);
        let ids = (address_id("local_id", local_id)?, address_id("remote_id", remote_id)?);
        let cookie = cookie.map(|cookie| whole("cookie", cookie)).transpose()?;
        let entry = Entry {
            tuple: Tuple { local, remote, interface: 0 },
            state: tcp_info.state(),
            cookie: cookie.unwrap_or_else(|| CREATED.fetch_add(1, Ordering::Relaxed)),
            uid: 0,
            inode: 0,
            cgroup: None,
            subflow: Some(Ulp::made(token, ids, initial, backup, peer_backup)),
        };
        let id = id.map(|id| whole("id", id)).transpose()?;
        let data = connection::Subflow { token, id, local, remote, tcp_info, entry: Some(entry) };
        Ok(Subflow { data, owner: owner.unwrap_or_else(|| py.None()) })
    }

    /// The kernel's subflow id, never reused within the connection. Before Linux 6.5 this package counts subflows
    /// instead, in order of appearance. None where neither is known, as for a Connection.
    #[getter]
    fn id(&self) -> Option<u32> {
        self.data.id
    }

    /// The token of the connection that the subflow belongs to, on this host.
    #[getter]
    fn token(&self) -> u32 {
        self.data.token
    }

    /// SO_COOKIE of the subflow's TCP socket: unique on this host and never reused.
    #[getter]
    fn cookie(&self) -> Option<u64> {
        self.data.entry.map(|entry| entry.cookie)
    }

    /// The local end as socket.getsockname() returns it: (host, port), or (host, port, flowinfo, scope_id) for IPv6.
    #[getter]
    fn local<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_tuple(py, self.data.local)
    }

    /// The remote end, in the form of ``local``.
    #[getter]
    fn remote<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_tuple(py, self.data.remote)
    }

    /// The address id of the local address (RFC 8684, section 3.2), from 0 to 255; 0 is the initial subflow's.
    #[getter]
    fn local_id(&self) -> Option<u8> {
        self.ulp().map(|ulp| ulp.local_id)
    }

    /// The address id of the remote address, from 0 to 255, as the peer gave it.
    #[getter]
    fn remote_id(&self) -> Option<u8> {
        self.ulp().map(|ulp| ulp.remote_id)
    }

    /// True for the subflow that opened the connection by MP_CAPABLE, False for one that joined it by MP_JOIN.
    #[getter]
    fn initial(&self) -> Option<bool> {
        self.ulp().map(|ulp| ulp.initial())
    }

    /// Whether this side asked the peer to use the subflow only when no other is left.
    #[getter]
    fn backup(&self) -> Option<bool> {
        self.ulp().map(|ulp| ulp.backup())
    }

    /// Whether the peer asked this side to use the subflow only when no other is left.
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

    /// The TCP state by its name in <net/tcp_states.h>: "ESTABLISHED", "SYN_SENT" and so on.
    #[getter]
    fn state(&self) -> &'static str {
        self.data.tcp_info.state_name()
    }

    /// The subflow's ``struct tcp_info``, read together with its id and addresses.
    #[getter]
    fn tcp_info(&self) -> TcpInfo {
        TcpInfo(self.data.tcp_info)
    }

    /// Close this subflow, as Socket.close_subflow() does; data that it has not delivered goes over the others.
    ///
    /// SUBFLOW_DESTROY of the generic netlink family mptcp_pm, or SOCK_DESTROY of sock_diag under the in-kernel path
    /// manager. Needs CAP_NET_ADMIN in the user namespace that owns the network namespace.
    ///
    /// Raises SubflowError (ENOTCONN) if the subflow is closed already, PathManagerError for the last one under the
    /// in-kernel path manager, NotMultipathError, PermissionError.
    fn close(slf: Bound<'_, Self>) -> PyResult<()> {
        slf.get().owner(slf.py())?.call_method1("close_subflow", (&slf,)).map(drop)
    }

    /// Ask the peer, by MP_PRIO, to use the subflow only when no other is left, or like the others again.
    ///
    /// On this side it takes effect at once, as far as the packet scheduler respects it; the peer gets the event
    /// SUB_PRIORITY. The snapshot itself does not change.
    ///
    /// SET_FLAGS of the generic netlink family mptcp_pm. Needs CAP_NET_ADMIN in the user namespace that owns the
    /// network namespace.
    ///
    /// Raises SubflowError (ENOTCONN) if the subflow is closed already, PathManagerError under the in-kernel path
    /// manager, PermissionError, and TypeError if ``backup`` is not a bool.
    fn set_backup(slf: Bound<'_, Self>, backup: &Bound<'_, PyAny>) -> PyResult<()> {
        let backup =
            backup.cast::<PyBool>().map_err(|_| PyTypeError::new_err("backup must be True or False"))?;
        slf.get().owner(slf.py())?.call_method1("_set_backup", (&slf, backup)).map(drop)
    }

    /// Read a socket option of this subflow alone, as socket.getsockopt does: an int, or with ``buflen`` at most that
    /// many bytes (1 to 1024).
    ///
    /// TCP_INFO, TCP_CC_INFO, TCP_CONGESTION, TCP_MAXSEG, IP_TOS, IPV6_TCLASS, SO_SNDBUF, SO_RCVBUF, SO_MEMINFO,
    /// SO_MAX_PACING_RATE, SO_BINDTOIFINDEX and SO_COOKIE are read by inet_diag without privilege; so is SO_MARK, with
    /// CAP_NET_ADMIN in the user namespace that owns the Socket's network namespace. Any other option is read by BPF,
    /// with the privilege and the errors of Socket.set_subflow_options. docs/subflow-options.md has the table.
    ///
    /// Raises SubflowError with the errno of an option that the kernel refuses, which the message names, and with
    /// ENOTCONN for a subflow that is closed; NotMultipathError; TypeError and ValueError before any system call.
    #[pyo3(signature = (level, optname, buflen = None), text_signature = "($self, level, optname, buflen=0)")]
    fn getsockopt<'py>(
        slf: Bound<'py, Self>,
        level: Bound<'py, PyAny>,
        optname: Bound<'py, PyAny>,
        buflen: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.get().owner(slf.py())?.call_method1("_get_subflow_option", (&slf, level, optname, buflen))
    }

    /// Set a socket option on this subflow alone: Socket.set_subflow_options with one option.
    ///
    /// ``value`` is an int or a bytes-like object. The privilege and the errors are those of
    /// Socket.set_subflow_options.
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
        slf.get().owner(py)?.call_method1("set_subflow_options", (changes,)).map(drop)
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
