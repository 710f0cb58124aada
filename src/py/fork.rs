//! What a fork does to the locks and threads of the core: for os.register_at_fork.

use pyo3::prelude::*;

use crate::namespace;
use crate::options::bpf;

#[pyfunction]
pub fn before_fork() {
    namespace::before_fork();
    bpf::before_fork();
}

#[pyfunction]
pub fn after_fork(in_child: bool) {
    bpf::after_fork(in_child);
    namespace::after_fork(in_child);
}
