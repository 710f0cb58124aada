//! The binding: the export list. One file for each Python type or group of functions; no decisions.

mod address;
mod broker;
mod by_token;
mod connection;
mod connections;
mod emulation;
mod endpoints;
mod enhanced_api;
mod errors;
mod events;
mod fork;
mod handle;
mod integer;
mod namespace;
mod opening;
mod options;
mod policy_opener;
mod probes;
mod rows;
mod sampler;
mod sockets;
mod structs;
mod subflow;
mod supervisor;
mod timeout;
mod trace;
mod tracing;
mod watcher;

use pyo3::prelude::*;

/// The native core of mptcp. Private: use the package's own names.
#[pymodule(gil_used = false)]
mod _core {
    use crate::abi::uapi::pm;
    use crate::namespace::path_manager::PathManager;
    use crate::netlink::broker;
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;
    use pyo3::sync::PyOnceLock;
    use pyo3::types::PyModule;
    use std::collections::BTreeMap;

    /// Refuses a second interpreter of the process. Python before 3.12 and interpreters that are not isolated let
    /// the module in, and what it keeps in statics, classes of exceptions for one, would be the first one's.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        static SYS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
        let sys = module.py().import("sys")?;
        let first = SYS.get_or_init(module.py(), || sys.clone().unbind());
        if first.as_ptr() == sys.as_ptr() {
            module.add("ENDPOINT_FLAGS", pm::FLAGS.into_iter().collect::<BTreeMap<_, _>>())?;
            module.add("BROKER_PATH", broker::codec::PATH)?;
            return module.add("PATH_MANAGERS", PathManager::ALL.map(PathManager::name));
        }
        Err(PyImportError::new_err(
            "mptcp does not support subinterpreters: another interpreter has imported it already",
        ))
    }

    #[pymodule_export]
    use super::broker::{find_broker, serve_broker, use_path_manager, BrokeredPathManager};
    #[pymodule_export]
    use super::by_token::ByToken;
    #[pymodule_export]
    use super::connection::Native;
    #[pymodule_export]
    use super::connections::{connections, subflows_at, subflows_of};
    #[pymodule_export]
    use super::emulation::{LinkEmulator, LinkLimits, LinkTrace};
    #[pymodule_export]
    use super::endpoints::{
        add_endpoint, available_schedulers, change_endpoint, check_scheduler, endpoints, flush_endpoints,
        get_limits, get_scheduler, remove_endpoint, set_limits, set_scheduler,
    };
    #[pymodule_export]
    use super::enhanced_api::{enhanced_getsockopt, enhanced_setsockopt};
    #[pymodule_export]
    use super::events::{Event, EventStream};
    #[pymodule_export]
    use super::fork::{after_fork, before_fork};
    #[pymodule_export]
    use super::handle::Handle;
    #[pymodule_export]
    use super::namespace::{
        check_path_manager, enter_new_network_namespace, enter_new_user_namespace, get_path_manager,
        has_interface, interface_of_route, interfaces, read_sysctls, remount_writable, set_path_manager,
    };
    #[pymodule_export]
    use super::opening::Opening;
    #[pymodule_export]
    use super::options::option_name;
    #[pymodule_export]
    use super::policy_opener::PolicyOpener;
    #[pymodule_export]
    use super::probes::{
        probe_full_info, probe_is_mptcp, probe_path_manager_commands, probe_path_manager_family,
        probe_subflow_options, probe_user_notification,
    };
    #[pymodule_export]
    use super::sampler::{realtime_offset_ns, Sampler};
    #[pymodule_export]
    use super::sockets::{check_socket, create_socket, protocol_of, take_descriptor};
    #[pymodule_export]
    use super::structs::{Info, TcpInfo};
    #[pymodule_export]
    use super::subflow::Subflow;
    #[pymodule_export]
    use super::supervisor::{run_program, supervised_signals};
    #[pymodule_export]
    use super::trace::TraceReader;
    #[pymodule_export]
    use super::tracing::SegmentTracer;
    #[pymodule_export]
    use super::watcher::Watcher;
}
