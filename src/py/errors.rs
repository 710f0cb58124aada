//! The core's errors as exceptions. The package's own are defined and documented in Python.

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::error::{Cause, Error};

/// What a Python program can do about a cause.
fn advice(cause: Cause) -> &'static str {
    match cause {
        Cause::AddressForgotten => {
            "pass force=True to announce it once more and withdraw it at once, between which the peer may open a subflow to it"
        }
        Cause::AddressInUse => "close every subflow from that address first, or pass force=True to have the peer close them",
        Cause::DeniedByPeer => "open one to an address that it announces, or pass force=True",
        Cause::KernelPathManager => {
            "create the socket with path_manager=\"userspace\", or accept it within use_path_manager(\"userspace\")"
        }
        Cause::LastSubflow => "pass force=True to close it anyway, or close the socket",
        Cause::NoBackupAtOpening => {
            "pass open_subflow() a timeout, so that it sends MP_PRIO, or call set_backup() once the subflow is established"
        }
        Cause::NoInterface => "name it as in \"fe80::1%eth0\", or pass interface=",
        Cause::OtherFamily => "pass remote as well",
        Cause::OtherNamespace => "info() still works; or call this from a process inside that namespace",
        Cause::OtherProcess => "list it again",
    }
}

/// The exception for an error, errno kept.
pub fn to_py(py: Python<'_>, error: Error) -> PyErr {
    let errno = error.errno();
    let message = match error.cause() {
        Some(cause) => format!("{error}: {}", advice(cause)),
        None => error.to_string(),
    };
    match error {
        Error::Value { .. } => PyValueError::new_err(message),
        // Of OSError Python itself makes PermissionError and the others, by errno.
        Error::Os { .. } => PyOSError::new_err((errno, message)),
        Error::NotMultipath { .. } => own(py, "NotMultipathError", (errno, message)),
        Error::PathManager { .. } => own(py, "PathManagerError", (errno, message)),
        Error::Unsupported { .. } => own(py, "UnsupportedError", (errno, message)),
        Error::Subflow { reset_reason, .. } => own(py, "SubflowError", (errno, message, reset_reason)),
    }
}

fn own<'py>(py: Python<'py>, name: &str, arguments: impl pyo3::call::PyCallArgs<'py>) -> PyErr {
    static MODULE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || Ok::<_, PyErr>(py.import("mptcp._errors")?.into_any().unbind()));
    let exception = module.and_then(|module| {
        let class = module.bind(py).getattr(name)?.cast_into::<PyType>()?;
        class.call1(arguments)
    });
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}
