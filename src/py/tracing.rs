//! Tracepoints as rows, for the Python class `mptcp.Tracer`.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::to_py;
use super::rows;
use super::sampler::Wanted;
use super::trace::{connection_columns, event_row, subflow_columns, EventRow};
use crate::error::Error;
use crate::traces::row::Packet;
use crate::tracing::record::ACK_COLUMNS;
use crate::tracing::{Source, Tracer};

/// Sets one column of a dict from rows.
macro_rules! column {
    ($columns:ident, $rows:ident, $name:expr, $value:expr) => {
        $columns.set_item($name, $rows.iter().map($value).collect::<Vec<_>>().into_pyarray($columns.py()))?
    };
}

/// Where each row belongs.
macro_rules! place_columns {
    ($columns:ident, $rows:ident) => {
        column!($columns, $rows, "time_ns", |row| row.time_ns);
        column!($columns, $rows, "connection", |row| row.connection);
        column!($columns, $rows, "subflow", |row| row.subflow);
        column!($columns, $rows, "direction", |row| row.direction);
    };
}

/// A trace of tracepoints that runs from its making to stop().
#[pyclass(frozen, module = "mptcp._core")]
pub struct SegmentTracer(Tracer);

#[pymethods]
impl SegmentTracer {
    /// `sources` are descriptors and ByTokens, None the calling thread's network namespace.
    #[new]
    fn new(py: Python<'_>, sources: Option<Vec<Wanted>>, keeps: bool) -> PyResult<SegmentTracer> {
        rows::prepare_packets(py)?;
        let start = || {
            let sources = match sources {
                None => vec![Source::here()?],
                Some(wanted) => wanted
                    .into_iter()
                    .map(|wanted| match wanted {
                        Wanted::Descriptor(fd) => Source::descriptor(fd),
                        Wanted::Connection(connection) => Source::of_connection(&connection.get().0),
                    })
                    .collect::<Result<_, Error>>()?,
            };
            Tracer::start(&sources, keeps)
        };
        py.detach(start).map(SegmentTracer).map_err(|error| to_py(py, error))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }

    /// The packets until now that were not taken.
    fn packets<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<Packet>> {
        py.detach(|| self.0.read(|builder| builder.packets())).into_pyarray(py)
    }

    fn take_packets<'py>(&self, py: Python<'py>, all: bool) -> Bound<'py, PyArray1<Packet>> {
        py.detach(|| self.0.read(|builder| builder.take_packets(all))).into_pyarray(py)
    }

    /// Of each event its kind, time, capture, connection, subflow, direction and details.
    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<EventRow<'py>>> {
        // They stay: whoever asks again gets them all.
        let events = py.detach(|| self.0.read(|builder| builder.events().to_vec()));
        events.into_iter().map(|event| event_row(py, event)).collect()
    }

    /// The columns of connections, and those of subflows.
    fn tables<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let (connections, subflows) = py.detach(|| self.0.read(|builder| builder.tables()));
        Ok((connection_columns(py, &connections)?, subflow_columns(py, &subflows)?))
    }

    /// The columns of what arrived.
    fn acks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let rows = py.detach(|| self.0.read(|builder| builder.acks().to_vec()));
        let columns = PyDict::new(py);
        place_columns!(columns, rows);
        for (number, name) in ACK_COLUMNS.into_iter().enumerate() {
            column!(columns, rows, name, |row| row.columns[number]);
        }
        Ok(columns)
    }

    /// The columns of what the scheduler looked at.
    fn candidates<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let rows = py.detach(|| self.0.read(|builder| builder.choices().to_vec()));
        let columns = PyDict::new(py);
        place_columns!(columns, rows);
        column!(columns, rows, "chosen", |row| row.chosen);
        column!(columns, rows, "backup", |row| row.candidate.backup);
        column!(columns, rows, "stale", |row| row.candidate.stale);
        column!(columns, rows, "avg_pacing_rate", |row| row.candidate.avg_pacing_rate);
        column!(columns, rows, "pacing_rate", |row| row.candidate.pacing_rate);
        column!(columns, rows, "wmem_queued", |row| row.candidate.wmem_queued);
        column!(columns, rows, "snd_wnd", |row| row.candidate.snd_wnd);
        column!(columns, rows, "snd_cwnd", |row| row.candidate.snd_cwnd);
        column!(columns, rows, "srtt_us", |row| row.candidate.srtt_us);
        column!(columns, rows, "packets_out", |row| row.candidate.packets_out);
        Ok(columns)
    }

    /// Records for which the ring had no room, and data whose subflow could not be told.
    fn lost(&self) -> (u64, u64) {
        (self.0.lost(), self.0.unknown())
    }
}
