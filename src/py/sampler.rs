//! A recording, for the Python class `mptcp.Recorder`.

use std::time::Duration;

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::address::to_tuple;
use super::connection::ByToken;
use super::errors::to_py;
use super::events::Event;
use crate::error::Error;
use crate::namespace::Namespace;
use crate::sampler::{self, ConnectionRow, Method, Sample, Settings, Source};
use crate::sys;

/// What is recorded, before it is: a descriptor, a connection, or a whole network namespace.
#[derive(FromPyObject)]
enum Wanted {
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
    #[pyo3(signature = (sources, fd, interval, connection_interval, full_info, room))]
    fn new(
        py: Python<'_>,
        sources: Option<Vec<Wanted>>,
        fd: Option<i32>,
        interval: f64,
        connection_interval: f64,
        full_info: bool,
        room: usize,
    ) -> PyResult<Sampler> {
        let settings = Settings {
            interval: Duration::from_secs_f64(interval),
            connection_interval: Duration::from_secs_f64(connection_interval),
            method: if full_info { Method::FullInfo } else { Method::InetDiag },
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
                        Wanted::Connection(connection) => connection.get().0.source(),
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

    fn take_samples<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<Sample>> {
        self.0.take_samples().into_pyarray(py)
    }

    fn take_connections<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<ConnectionRow>> {
        self.0.take_connections().into_pyarray(py)
    }

    /// The events since the last call, in order.
    fn take_events(&self) -> Vec<Event> {
        self.0.take_events().into_iter().map(Event).collect()
    }

    /// Of each subflow that was recorded until now its cookie, token, local and remote end.
    #[expect(clippy::type_complexity, reason = "a row of a table")]
    fn ends<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Vec<(u64, u32, Bound<'py, PyTuple>, Bound<'py, PyTuple>)>> {
        let row = |(cookie, ends): (u64, sampler::Ends)| {
            Ok((cookie, ends.token, to_tuple(py, ends.local)?, to_tuple(py, ends.remote)?))
        };
        self.0.ends().into_iter().map(row).collect()
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
