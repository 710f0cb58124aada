//! The arguments and results of getsockopt and setsockopt, as Python's socket module has them.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMapping, PyTuple};

use super::errors::to_py;
use super::integer::{int, type_name};
use super::subflow::Subflow;
use crate::abi::ranges;
use crate::options::table::SocketOption;
use crate::options::Change;

/// A Subflow.
pub fn subflow<'a, 'py>(value: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, Subflow>> {
    value.cast::<Subflow>().map_err(|_| PyTypeError::new_err("options can be set and read only on a Subflow"))
}

/// A level and a name.
pub fn option(level: &Bound<'_, PyAny>, optname: &Bound<'_, PyAny>) -> PyResult<SocketOption> {
    Ok(SocketOption { level: int("level", level)?, number: int("optname", optname)? })
}

/// The name of an option in the kernel's headers, or its level and number.
#[pyfunction]
pub fn option_name(level: i32, optname: i32) -> String {
    SocketOption { level, number: optname }.to_string()
}

/// What `buflen` asks for: an int, or so many bytes.
#[derive(Clone, Copy)]
pub enum Room {
    Int,
    Bytes(usize),
}

pub fn room(buflen: &Bound<'_, PyAny>) -> PyResult<Room> {
    if buflen.is_none() {
        return Ok(Room::Int);
    }
    let length = int("buflen", buflen)?.into();
    Ok(match ranges::buffer_length(length).map_err(|error| to_py(buflen.py(), error))? {
        0 => Room::Int,
        length => Room::Bytes(length),
    })
}

impl Room {
    pub fn bytes(self) -> usize {
        match self {
            Room::Int => size_of::<i32>(),
            Room::Bytes(length) => length,
        }
    }

    pub fn result(self, py: Python<'_>, value: Vec<u8>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Room::Int => {
                // An option may be shorter, and what is missing is 0.
                let bytes = std::array::from_fn(|i| value.get(i).copied().unwrap_or(0));
                Ok(i32::from_ne_bytes(bytes).into_pyobject(py)?.into_any())
            }
            Room::Bytes(_) => Ok(PyBytes::new(py, &value).into_any()),
        }
    }
}

/// An int or a bytes-like object.
fn value(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if value.is_none() {
        return Err(PyTypeError::new_err(
            "value must be an int or a bytes-like object: None with a length is not possible on one subflow",
        ));
    }
    match PyBuffer::<u8>::get(value) {
        Ok(buffer) => buffer.to_vec(value.py()),
        Err(_) if value.hasattr("__index__")? => Ok(int("value", value)?.to_ne_bytes().to_vec()),
        Err(_) => Err(PyTypeError::new_err(format!(
            "value must be an int or a bytes-like object, not {}",
            type_name(value)
        ))),
    }
}

/// `{subflow: {(level, optname): value, ...}, ...}`
pub fn changes(options: &Bound<'_, PyAny>) -> PyResult<Vec<Change>> {
    let wrong =
        || PyTypeError::new_err("options must be a mapping {subflow: {(level, optname): value, ...}, ...}");
    let mut changes = Vec::new();
    for item in options.cast::<PyMapping>().map_err(|_| wrong())?.items()?.iter() {
        let (of, of_subflow): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let of = subflow(&of)?.get();
        for item in of_subflow.cast::<PyMapping>().map_err(|_| wrong())?.items()?.iter() {
            let (key, new): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let key = key.cast::<PyTuple>().map_err(|_| wrong())?;
            if key.len() != 2 {
                return Err(wrong());
            }
            let option = option(&key.get_item(0)?, &key.get_item(1)?)?;
            let change = Change { subflow: of.data.clone(), option, value: value(&new)? };
            change.check().map_err(|error| to_py(key.py(), error))?;
            changes.push(change);
        }
    }
    Ok(changes)
}
