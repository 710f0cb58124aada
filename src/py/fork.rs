//! What has to be done around a fork.

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
