//! The core's errors as exceptions. The package's own are defined and documented in Python.

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::error::Error;

/// The exception for an error, errno kept.
pub fn to_py(py: Python<'_>, error: Error) -> PyErr {
    let errno = error.errno();
    match error {
        Error::Value { message } => PyValueError::new_err(message),
        // Of OSError Python itself makes PermissionError and the others, by errno.
        Error::Os { message, .. } => PyOSError::new_err((errno, message)),
        Error::NotMultipath { message } => own(py, "NotMultipathError", (errno, message)),
        Error::PathManager { message } => own(py, "PathManagerError", (errno, message)),
        Error::Unsupported { message } => own(py, "UnsupportedError", (errno, message)),
        Error::Subflow { message, reset_reason, .. } => {
            own(py, "SubflowError", (errno, message, reset_reason))
        }
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
