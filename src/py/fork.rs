//! What a fork does to the locks of the core: for os.register_at_fork.

use pyo3::prelude::*;

use crate::sys::lock;

#[pyfunction]
pub fn before_fork() {
    lock::before_fork();
}

#[pyfunction]
pub fn after_fork() {
    lock::after_fork();
}
