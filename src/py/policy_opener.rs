//! How the connections of policies open subflows.

use std::sync::atomic::Ordering;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use super::connection::request;
use super::errors::to_py;
use super::watcher::{native, Watcher};
use crate::error::Error;

/// What a policy's connection opens subflows by: without other Python on the way. Its own attributes are `_native`,
/// `_watcher`, and `_later`: the list to which what was opened is added, to be written down.
///
/// It has nothing of its own, so that a class may have another base beside it.
#[pyclass(frozen, subclass, module = "mptcp._core")]
pub struct PolicyOpener;

#[pymethods]
impl PolicyOpener {
    #[new]
    #[pyo3(signature = (*_arguments))]
    fn new(_arguments: &Bound<'_, PyTuple>) -> PolicyOpener {
        PolicyOpener
    }

    /// Open a subflow, and return at once: the outcome is a callback.
    ///
    /// The arguments are those of Connection.open_subflow; ``timeout`` has no effect, see Policy.open_timeout.
    #[pyo3(signature = (
        local = None, remote = None, *, backup = None, interface = None, local_id = None, timeout = None, force = None
    ))]
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python method")]
    fn open_subflow(
        slf: &Bound<'_, Self>,
        local: Option<&Bound<'_, PyAny>>,
        remote: Option<&Bound<'_, PyAny>>,
        backup: Option<&Bound<'_, PyAny>>,
        interface: Option<String>,
        local_id: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
        force: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = timeout;
        let py = slf.py();
        let is_true = |value: Option<&Bound<'_, PyAny>>| value.map_or(Ok(false), |value| value.is_truthy());
        let (backup, force) = (is_true(backup)?, is_true(force)?);
        let none = py.None().into_bound(py);
        let (local, remote) = (local.unwrap_or(&none), remote.unwrap_or(&none));
        let request = request(local, remote, backup, interface.clone(), local_id, force)?;
        let watcher = slf.getattr(intern!(py, "_watcher"))?.cast_into::<Watcher>()?;
        let watcher = watcher.get();
        let Some(open) = watcher.open_watcher() else { return Ok(()) };
        let native = native(slf)?;
        let connection = &native.get().0;
        let number = watcher.numbers.fetch_add(1, Ordering::Relaxed);
        let later = slf.getattr(intern!(py, "_later"))?.cast_into::<PyList>()?;
        let write = |name: &Bound<'_, PyString>, error: Option<PyErr>| {
            later.append((name, slf, local, remote, backup, &interface, local_id, force, number, error))
        };
        match py.detach(|| open.prepare(connection, &request)) {
            Ok(opening) => {
                // Before it is carried out, since its outcome is told of what is known then.
                write(intern!(py, "opened"), None)?;
                open.open(opening, number);
            }
            Err(error) => {
                let is_told = matches!(error, Error::Subflow { .. });
                let error = to_py(py, error);
                if !is_told {
                    return Err(error);
                }
                write(intern!(py, "not opened"), Some(error))?;
            }
        }
        if !open.is_here() {
            slf.getattr(intern!(py, "_runtime"))?.call_method0(intern!(py, "write_down"))?;
        }
        Ok(())
    }
}
