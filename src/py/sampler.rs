//! A recording, for the Python class `mptcp.Recorder`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::address::to_tuple;
use super::by_token::ByToken;
use super::errors::to_py;
use super::events::Event;
use super::rows;
use crate::error::Error;
use crate::namespace::Namespace;
use crate::sampler::{self, ConnectionRow, Cost, Method, Sample, Settings, Source, Surroundings, Trial};
use crate::sys;

/// What is recorded, before it is: a descriptor, a connection, or a whole network namespace.
#[derive(FromPyObject)]
pub(super) enum Wanted {
    Descriptor(i32),
    Connection(Py<ByToken>),
}

/// A native recording that runs from its making to stop().
#[pyclass(frozen, module = "mptcp._core")]
pub struct Sampler(sampler::Sampler);

#[pymethods]
impl Sampler {
    /// `sources` are descriptors and ByTokens, None the calling thread's network namespace or that of `fd`.
    #[new]
    #[pyo3(signature = (sources, fd, interval, connection_interval, method, room))]
    fn new(
        py: Python<'_>,
        sources: Option<Vec<Wanted>>,
        fd: Option<i32>,
        interval: f64,
        connection_interval: f64,
        method: &str,
        room: usize,
    ) -> PyResult<Sampler> {
        rows::prepare(py)?;
        let method = Method::of_name(method).map_err(|error| to_py(py, error))?;
        let seconds = |value| {
            Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(error.to_string()))
        };
        let settings = Settings {
            interval: seconds(interval)?,
            connection_interval: seconds(connection_interval)?,
            method,
            room,
        };
        let start = || {
            let sources = match sources {
                None => vec![Source::Namespace(match fd {
                    Some(fd) => Namespace::of_socket(fd)?,
                    None => Namespace::current()?,
                })],
                Some(wanted) => wanted
                    .into_iter()
                    .map(|wanted| match wanted {
                        Wanted::Descriptor(fd) => Source::descriptor(fd),
                        Wanted::Connection(connection) => Source::of_connection(&connection.get().0),
                    })
                    .collect::<Result<_, Error>>()?,
            };
            sampler::Sampler::start(&sources, settings)
        };
        py.detach(start).map(Sampler).map_err(|error| to_py(py, error))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }

    fn take_samples<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<Sample>>> {
        let taken = py.detach(|| self.0.take_samples()).map_err(|error| to_py(py, error))?;
        Ok(taken.into_pyarray(py))
    }

    fn take_connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<ConnectionRow>>> {
        let taken = py.detach(|| self.0.take_connections()).map_err(|error| to_py(py, error))?;
        Ok(taken.into_pyarray(py))
    }

    /// The events since the last call, in order.
    fn take_events(&self) -> Vec<Event> {
        self.0.take_events().into_iter().map(Event).collect()
    }

    /// Of each subflow that was recorded until now, without the first `start`, its cookie, token, local and remote end.
    #[expect(clippy::type_complexity, reason = "a row of a table")]
    fn ends<'py>(
        &self,
        py: Python<'py>,
        start: usize,
    ) -> PyResult<Vec<(u64, u32, Bound<'py, PyTuple>, Bound<'py, PyTuple>)>> {
        let row = |(cookie, ends): (u64, sampler::SubflowEnds)| {
            Ok((cookie, ends.token, to_tuple(py, ends.local)?, to_tuple(py, ends.remote)?))
        };
        self.0.ends(start).into_iter().map(row).collect()
    }

    /// Of each network namespace its cookie, the recorded tokens or None, and its sysctls.
    #[expect(clippy::type_complexity, reason = "a row of a table")]
    fn surroundings(&self) -> Vec<(u64, Option<BTreeSet<u32>>, BTreeMap<String, String>)> {
        let row = |each: &Surroundings| (each.namespace, each.tokens.clone(), each.sysctls.clone());
        self.0.surroundings.iter().map(row).collect()
    }

    /// How subflows are read now, whether MPTCP_FULL_INFO has waited, and the measurements.
    fn choice<'py>(&self, py: Python<'py>) -> PyResult<(&'static str, bool, Vec<Bound<'py, PyDict>>)> {
        let choice = self.0.choice();
        let cost = |cost: Option<Cost>| {
            let Some(cost) = cost else { return Ok(None) };
            let fields = PyDict::new(py);
            fields.set_item("cpu_ns", cost.cpu_ns)?;
            fields.set_item("subflows", cost.subflows)?;
            fields.set_item("waited", cost.waited)?;
            Ok::<_, PyErr>(Some(fields))
        };
        let trial = |trial: &Trial| {
            let fields = PyDict::new(py);
            fields.set_item("time_ns", trial.time_ns)?;
            fields.set_item("full_info", cost(trial.full_info)?)?;
            fields.set_item("inet_diag", cost(trial.inet_diag)?)?;
            Ok(fields)
        };
        let trials = choice.trials.iter().map(trial).collect::<PyResult<_>>()?;
        Ok((choice.method.name(), choice.waited, trials))
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = self.0.status();
        let fields = PyDict::new(py);
        fields.set_item("missed", status.missed)?;
        fields.set_item("ticks", status.ticks)?;
        fields.set_item("dropped", status.dropped)?;
        fields.set_item("notices_lost", status.notices_lost)?;
        fields.set_item("real_time", status.real_time)?;
        fields.set_item("cpu_ns", status.cpu_ns)?;
        fields.set_item("connections_cpu_ns", status.connections_cpu_ns)?;
        fields.set_item("failure", status.failure.map(|error| error.to_string()))?;
        Ok(fields)
    }
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC, nanoseconds.
#[pyfunction]
pub fn realtime_offset_ns() -> i64 {
    sys::clock::realtime_ns() as i64 - sys::monotonic_ns() as i64
}
