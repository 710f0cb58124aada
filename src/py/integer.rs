//! Integers as Python gives them. The core says which are in range.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt};

use super::errors::to_py;
use crate::error::Result;

/// An int that is not a bool; one too large for i64 is out of every range that the core has.
pub fn integer(value: &Bound<'_, PyAny>) -> Option<i64> {
    if value.is_instance_of::<PyBool>() || !value.is_instance_of::<PyInt>() {
        return None;
    }
    Some(value.extract().unwrap_or_else(|_| if value.lt(0).unwrap_or(false) { i64::MIN } else { i64::MAX }))
}

/// An int that the core takes for what it is.
pub fn ranged<T>(name: &str, value: &Bound<'_, PyAny>, check: fn(i64) -> Result<T>) -> PyResult<T> {
    let number = integer(value).ok_or_else(|| not_an_int(name, value))?;
    check(number).map_err(|error| to_py(value.py(), error))
}

/// The same of an argument that may be None.
pub fn optional<T>(
    name: &str,
    value: Option<&Bound<'_, PyAny>>,
    check: fn(i64) -> Result<T>,
) -> PyResult<Option<T>> {
    value.map(|value| ranged(name, value, check)).transpose()
}

/// A C int.
pub fn int(name: &str, value: &Bound<'_, PyAny>) -> PyResult<i32> {
    let index = index(name, value)?;
    index.extract().map_err(|_| {
        PyValueError::new_err(format!("{name} must be in the range of a C int, not {}", printed(&index)))
    })
}

/// An int from 0 on.
pub fn whole<T: TryFrom<u64>>(name: &str, value: &Bound<'_, PyAny>) -> PyResult<T> {
    let number = index(name, value)?.extract::<u64>().ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| {
        let most = u64::MAX >> (64 - 8 * size_of::<T>());
        PyValueError::new_err(format!("{name} must be from 0 to {most}"))
    })
}

/// An integer of any size, by __index__: extracting a number at once would refuse a large one by OverflowError.
fn index<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    value.call_method0("__index__").map_err(|_| not_an_int(name, value))
}

fn not_an_int(name: &str, value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{name} must be an int, not {}", type_name(value)))
}

pub fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "such an object".to_owned(), |name| name.to_string())
}

/// An int, which Python refuses to print from some thousands of digits on.
fn printed(int: &Bound<'_, PyAny>) -> String {
    int.str().map_or_else(|_| "one of thousands of digits".to_owned(), |text| text.to_string())
}
