//! The binding: the export list. One file a Python type, no decisions.

mod address;
mod by_token;
mod connection;
mod emulation;
mod enhanced_api;
mod errors;
mod events;
mod handle;
mod opening;
mod options;
mod probes;
mod rows;
mod sampler;
mod structs;
mod subflow;
mod supervisor;
mod timeout;
mod watcher;

use pyo3::prelude::*;

/// The native core of mptcp. Private: use the package's own names.
#[pymodule(gil_used = false)]
mod _core {
    use super::address::from_tuple;
    use super::errors::to_py;
    use super::options::int;
    use crate::connection::{attach, by_token};
    use crate::namespace;
    use crate::namespace::path_manager;
    use crate::options::bpf;
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;
    use pyo3::sync::PyOnceLock;
    use pyo3::types::PyModule;
    use std::os::fd::IntoRawFd;

    /// Refuses a second interpreter of the process. Python before 3.12 and interpreters that are not isolated let
    /// the module in, and what it keeps in statics, classes of exceptions for one, would be the first one's.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        static SYS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
        let sys = module.py().import("sys")?;
        let first = SYS.get_or_init(module.py(), || sys.clone().unbind());
        if first.as_ptr() == sys.as_ptr() {
            return Ok(());
        }
        Err(PyImportError::new_err(
            "mptcp does not support subinterpreters: another interpreter has imported it already",
        ))
    }

    #[pymodule_export]
    use super::by_token::ByToken;
    #[pymodule_export]
    use super::connection::Native;
    #[pymodule_export]
    use super::emulation::{LinkEmulator, LinkLimits, LinkTrace};
    #[pymodule_export]
    use super::enhanced_api::{enhanced_getsockopt, enhanced_setsockopt};
    #[pymodule_export]
    use super::events::{Event, EventStream};
    #[pymodule_export]
    use super::handle::Handle;
    #[pymodule_export]
    use super::opening::Opening;
    #[pymodule_export]
    use super::probes::{
        probe_full_info, probe_is_mptcp, probe_path_manager_commands, probe_path_manager_family,
        probe_user_notification,
    };
    #[pymodule_export]
    use super::sampler::{realtime_offset_ns, Sampler};
    #[pymodule_export]
    use super::structs::{Info, TcpInfo};
    #[pymodule_export]
    use super::subflow::Subflow;
    #[pymodule_export]
    use super::supervisor::{run_program, supervised_signals};

    #[pymodule_export]
    use super::watcher::Watcher;

    #[pyfunction]
    #[pyo3(signature = (family, r#type, proto, path_manager))]
    fn create_socket(
        py: Python<'_>,
        family: &Bound<'_, PyAny>,
        r#type: &Bound<'_, PyAny>,
        proto: &Bound<'_, PyAny>,
        path_manager: Option<&str>,
    ) -> PyResult<i32> {
        let (family, r#type) = (int("family", family)?, int("type", r#type)?);
        let proto = int("proto", proto)?;
        py.detach(|| path_manager::create_socket(family, r#type, proto, path_manager, None))
            .map(IntoRawFd::into_raw_fd)
            .map_err(|error| to_py(py, error))
    }

    /// The connections of the network namespace that a socket belongs to, or of the calling thread's.
    #[pyfunction]
    #[pyo3(signature = (fd, token))]
    fn connections(py: Python<'_>, fd: Option<i32>, token: Option<u32>) -> PyResult<Vec<Py<ByToken>>> {
        let list = || {
            let namespace = match fd {
                Some(fd) => namespace::Namespace::of_socket(fd)?,
                None => namespace::Namespace::current()?,
            };
            by_token::list(&namespace, token)
        };
        let connections = py.detach(list).map_err(|error| to_py(py, error))?;
        connections.into_iter().map(|connection| ByToken::new(py, connection)).collect()
    }

    /// The subflows of each of these connections, by one dump; None for one that has ended or fallen back.
    #[pyfunction]
    fn subflows_of(
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
    fn subflows_at(py: Python<'_>, asked: Vec<AskedFor<'_>>) -> PyResult<Vec<Option<Subflow>>> {
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

    /// Whether the network namespace that a socket belongs to has an interface of this name, whatever its state.
    #[pyfunction]
    fn has_interface(py: Python<'_>, fd: i32, name: &str) -> PyResult<bool> {
        let look = || match namespace::Namespace::of_socket(fd)?.interface_index(name) {
            Err(error) if [libc::ENODEV, libc::EINVAL].contains(&error.errno()) => Ok(false),
            found => found.map(|_| true),
        };
        py.detach(look).map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn take_descriptor(py: Python<'_>, pid: i32, fd: i32) -> PyResult<i32> {
        attach::take_descriptor(pid, fd).map(IntoRawFd::into_raw_fd).map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn get_path_manager(py: Python<'_>) -> PyResult<String> {
        py.detach(|| namespace::Namespace::current()?.path_manager()).map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn set_path_manager(py: Python<'_>, name: &str) -> PyResult<String> {
        py.detach(|| namespace::Namespace::current()?.set_path_manager(name))
            .map_err(|error| to_py(py, error))
    }

    #[pyfunction]
    fn before_fork() {
        namespace::before_fork();
        bpf::before_fork();
    }

    #[pyfunction]
    fn after_fork(in_child: bool) {
        bpf::after_fork(in_child);
        namespace::after_fork(in_child);
    }
}
