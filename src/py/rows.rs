//! Rows as elements of numpy arrays, without a copy. With the system calls, the only unsafe.
#![expect(unsafe_code, reason = "numpy takes a type for an element by its promise alone")]

use numpy::{Element, PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyList};

use crate::samples::row::{self, Column, ConnectionRow, Named, Sample};
use crate::traces::row::Packet;

/// numpy's type string of a column.
fn format(column: Column) -> &'static str {
    match column {
        Column::Signed => "i8",
        Column::Unsigned => "u8",
        Column::Float | Column::Unknown(_) | Column::Unlimited(_) => "f8",
    }
}

/// The type of a row: its head and then its fields, aligned as the compiler aligns a repr(C) structure.
fn descriptor(
    py: Python<'_>,
    head: &[(&'static str, &'static str)],
    fields: impl Iterator<Item = Named>,
    size: usize,
) -> PyResult<Py<PyArrayDescr>> {
    let fields = fields.map(|(name, column)| (name, format(column)));
    let columns = PyList::new(py, head.iter().copied().chain(fields).collect::<Vec<_>>())?;
    let aligned = [("align", true)].into_py_dict(py)?;
    let descriptor = py.import("numpy")?.call_method("dtype", (columns,), Some(&aligned))?;
    let descriptor = descriptor.cast_into::<PyArrayDescr>()?;
    if descriptor.itemsize() != size {
        return Err(PyRuntimeError::new_err("numpy and this package disagree on the layout of a row"));
    }
    Ok(descriptor.unbind())
}

/// Makes the types of both rows, which is what can fail. To be called before there are arrays of them.
pub fn prepare(py: Python<'_>) -> PyResult<()> {
    sample_type(py)?;
    connection_type(py)?;
    Ok(())
}

/// Makes the type of a trace's rows, as above.
pub fn prepare_packets(py: Python<'_>) -> PyResult<()> {
    packet_type(py).map(|_| ())
}

fn sample_type(py: Python<'_>) -> PyResult<&Py<PyArrayDescr>> {
    static DESCRIPTOR: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
    let head = [
        ("time_ns", "i8"),
        ("wait_ns", "i8"),
        ("token", "u4"),
        ("subflow", "i4"),
        ("cookie", "u8"),
        ("state", "i2"),
        ("local_id", "i2"),
        ("remote_id", "i2"),
        ("backup", "i1"),
        ("final", "?"),
    ];
    DESCRIPTOR.get_or_try_init(py, || descriptor(py, &head, row::tcp_info_columns(), size_of::<Sample>()))
}

fn connection_type(py: Python<'_>) -> PyResult<&Py<PyArrayDescr>> {
    static DESCRIPTOR: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
    let head = [("time_ns", "i8"), ("wait_ns", "i8"), ("token", "u4")];
    let make = || descriptor(py, &head, row::mptcp_info_columns(), size_of::<ConnectionRow>());
    DESCRIPTOR.get_or_try_init(py, make)
}

fn packet_type(py: Python<'_>) -> PyResult<&Py<PyArrayDescr>> {
    static DESCRIPTOR: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
    let columns = [
        ("time_ns", "i8"),
        ("capture", "i4"),
        ("token", "u4"),
        ("subflow", "i4"),
        ("direction", "i1"),
        ("dsn", "i8"),
        ("length", "i4"),
        ("retransmitted", "?"),
        ("reinjected", "?"),
        ("data_acked_ns", "i8"),
        ("data_delivered_ns", "i8"),
        ("received_ns", "i8"),
        ("connection", "i4"),
        ("sequence", "u4"),
    ];
    let make = || descriptor(py, &columns, std::iter::empty(), size_of::<Packet>());
    DESCRIPTOR.get_or_try_init(py, make)
}

// SAFETY: a Sample is plain data without Python objects, and the type is built from the same table of fields, in the
// order and with the alignment of the structure; its size is compared.
unsafe impl Element for Sample {
    const IS_COPY: bool = true;

    fn get_dtype(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
        sample_type(py).expect("prepare() has made it").bind(py).clone()
    }

    fn clone_ref(&self, _py: Python<'_>) -> Sample {
        *self
    }
}

// SAFETY: as above.
unsafe impl Element for ConnectionRow {
    const IS_COPY: bool = true;

    fn get_dtype(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
        connection_type(py).expect("prepare() has made it").bind(py).clone()
    }

    fn clone_ref(&self, _py: Python<'_>) -> ConnectionRow {
        *self
    }
}

// SAFETY: a Packet is plain data without Python objects, and the type has its columns in the order and with the alignment
// of the structure; its size is compared.
unsafe impl Element for Packet {
    const IS_COPY: bool = true;

    fn get_dtype(py: Python<'_>) -> Bound<'_, PyArrayDescr> {
        packet_type(py).expect("prepare_packets() has made it").bind(py).clone()
    }

    fn clone_ref(&self, _py: Python<'_>) -> Packet {
        *self
    }
}
