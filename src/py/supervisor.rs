//! `mptcp run`.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use super::errors::to_py;
use crate::enhanced_api::Layout;
use crate::error::describe;
use crate::namespace::path_manager::PathManager;
use crate::supervisor::{self, End, Settings};
use crate::sys::program::User;

/// To be held back in every thread while a program runs.
#[pyfunction]
pub fn supervised_signals() -> Vec<i32> {
    supervisor::held_back()
}

fn c_strings(strings: Vec<OsString>) -> PyResult<Vec<CString>> {
    let c_string = |string: OsString| CString::new(string.into_vec());
    strings
        .into_iter()
        .map(c_string)
        .collect::<Result<_, _>>()
        .map_err(|_| PyValueError::new_err("arguments and environment variables must not contain NUL"))
}

/// Runs a program to its end; its exit status, or the signal that ended it, negative.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the arguments of the Python function")]
#[pyo3(signature = (arguments, environment, path_manager, except_, draft_layout, user, blocked))]
pub fn run_program(
    py: Python<'_>,
    arguments: Vec<OsString>,
    environment: Vec<OsString>,
    path_manager: Option<&str>,
    except_: Vec<OsString>,
    draft_layout: bool,
    user: Option<(u32, u32, Vec<u32>, Vec<i32>)>,
    blocked: Vec<i32>,
) -> PyResult<i32> {
    let Some(program) = arguments.first().cloned() else {
        return Err(PyValueError::new_err("there is no program to run"));
    };
    let settings = Settings {
        arguments: c_strings(arguments)?,
        environment: c_strings(environment)?,
        path_manager: path_manager.and_then(PathManager::of_name),
        except: except_.into_iter().map(OsString::into_vec).collect(),
        layout: if draft_layout { Layout::Draft } else { Layout::Kernel },
        user: user.map(|(uid, gid, groups, mut descriptors)| {
            descriptors.sort_unstable();
            User { uid, gid, groups, descriptors }
        }),
        blocked,
    };
    match py.detach(|| supervisor::run(&settings)).map_err(|error| to_py(py, error))? {
        End::Exited(status) => Ok(status),
        End::Killed(signal) => Ok(-signal),
        End::NotExecuted(errno) => Err(PyOSError::new_err((errno, describe(errno), program))),
    }
}
