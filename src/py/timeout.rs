//! Timeouts as Python gives them: a number of seconds, or None.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// How long a call may wait. `None` is for ever.
#[derive(Clone, Copy)]
pub struct Timeout(Option<f64>);

impl Timeout {
    /// Refuses what is no number from 0 on; an int that no float can hold is a wrong value like any other.
    pub fn extract(value: &Bound<'_, PyAny>) -> PyResult<Timeout> {
        let wrong = || PyValueError::new_err("timeout must be a number of seconds >= 0, or None");
        match value.extract::<Option<f64>>() {
            Ok(Some(seconds)) if seconds.is_nan() || seconds < 0.0 => Err(wrong()),
            Ok(seconds) => Ok(Timeout(seconds)),
            Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => Err(wrong()),
            Err(error) => Err(error),
        }
    }

    pub fn is_zero(self) -> bool {
        self.0 == Some(0.0)
    }

    /// Counted from now. None for a time that no clock can reach.
    pub fn deadline(self) -> Option<Instant> {
        self.0.and_then(|seconds| Instant::now().checked_add(Duration::try_from_secs_f64(seconds).ok()?))
    }
}
