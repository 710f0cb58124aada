//! Captures as rows, for `mptcp.read_trace`.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pyo3::IntoPyObjectExt;

use super::errors::to_py;
use super::rows;
use crate::capture::option::SUBTYPES;
use crate::error::Error;
use crate::traces::row::{Connection, Event, Packet, Subflow, Value};
use crate::traces::Reader;

/// Files of packets that are read together, each until it ends.
#[pyclass(module = "mptcp._core")]
pub struct TraceReader(Reader);

fn open(path: &PathBuf) -> PyResult<(String, Box<dyn Read + Send + Sync>)> {
    let name = path.display().to_string();
    if path.as_os_str() == "-" {
        return Ok(("standard input".to_owned(), Box::new(std::io::stdin())));
    }
    match File::open(path) {
        Ok(file) => Ok((name, Box::new(file))),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let Error::Os { message, .. } = Error::call("open", &error) else { return Err(error.into()) };
            let message = message.trim_start_matches("open: ").to_owned();
            Err(PyOSError::new_err((errno, message, path.clone().into_os_string())))
        }
    }
}

#[pymethods]
impl TraceReader {
    /// Opens the files; "-" is standard input.
    #[new]
    fn new(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<TraceReader> {
        rows::prepare_packets(py)?;
        // Opening a pipe waits for who writes to it.
        let files = py.detach(|| paths.iter().map(open).collect::<PyResult<Vec<_>>>())?;
        Ok(TraceReader(Reader::new(files)))
    }

    /// Reads at most `count` packets; returns whether there may be more. After EINTR it can be called again.
    fn read(&mut self, py: Python<'_>, count: usize) -> PyResult<bool> {
        py.detach(|| self.0.read(count)).map_err(|error| to_py(py, error))
    }

    fn take_packets<'py>(&mut self, py: Python<'py>, all: bool) -> Bound<'py, PyArray1<Packet>> {
        self.0.take_packets(all).into_pyarray(py)
    }

    fn take_events<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<EventRow<'py>>> {
        self.0.take_events().into_iter().map(|event| event_row(py, event)).collect()
    }

    /// The columns of connections, and those of subflows.
    fn tables<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let (connections, subflows) = py.detach(|| self.0.tables());
        Ok((connection_columns(py, &connections)?, subflow_columns(py, &subflows)?))
    }

    fn captures<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let row = |capture: &crate::capture::container::Capture| {
            let fields = PyDict::new(py);
            fields.set_item("path", &capture.path)?;
            fields.set_item("interface", capture.interface.as_deref())?;
            fields.set_item("link_type", capture.link_type)?;
            fields.set_item("frames", capture.frames)?;
            fields.set_item("cut", capture.cut)?;
            fields.set_item("dropped", capture.dropped)?;
            fields.set_item("damage", capture.damage.as_deref())?;
            Ok(fields)
        };
        self.0.captures().iter().map(row).collect()
    }

    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counts, fields, options) = (self.0.counts(), PyDict::new(py), PyDict::new(py));
        for (name, count) in SUBTYPES.into_iter().zip(counts.options) {
            options.set_item(name, count)?;
        }
        fields.set_item("frames", counts.frames)?;
        fields.set_item("segments", counts.segments)?;
        fields.set_item("fragments", counts.fragments)?;
        fields.set_item("cut", counts.cut)?;
        fields.set_item("unknown_link", counts.unknown_link)?;
        fields.set_item("duplicates", counts.duplicates)?;
        fields.set_item("malformed", counts.malformed)?;
        fields.set_item("options", options)?;
        Ok(fields)
    }
}

/// Of an event its kind, time, capture, connection, subflow, direction and details.
pub type EventRow<'py> = (&'static str, i64, usize, usize, usize, usize, Bound<'py, PyDict>);

pub fn event_row(py: Python<'_>, event: Event) -> PyResult<EventRow<'_>> {
    let details = PyDict::new(py);
    for (name, value) in event.details {
        details.set_item(name, to_object(py, value)?)?;
    }
    let Event { kind, time_ns, capture, connection, subflow, direction, .. } = event;
    Ok((kind, time_ns, capture, connection, subflow, direction, details))
}

fn to_object(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyAny>> {
    match value {
        Value::Number(number) => number.into_bound_py_any(py),
        Value::Signed(number) => number.into_bound_py_any(py),
        Value::Flag(flag) => flag.into_bound_py_any(py),
        Value::Address(address) => address.to_string().into_bound_py_any(py),
        Value::Bytes(bytes) => Ok(PyBytes::new(py, &bytes).into_any()),
        Value::Ids(ids) => ids.into_iter().map(u32::from).collect::<Vec<_>>().into_bound_py_any(py),
        Value::Text(text) => text.into_bound_py_any(py),
        Value::Unknown => Ok(py.None().into_bound(py)),
    }
}

/// Sets a column of each field.
macro_rules! columns {
    ($columns:ident, $rows:ident, $($field:ident)*) => {
        $($columns.set_item(stringify!($field), $rows.iter().map(|row| row.$field).collect::<Vec<_>>())?;)*
    };
}

/// Sets a column of each element of fields that are arrays.
macro_rules! pairs_of_columns {
    ($columns:ident, $rows:ident, $($field:ident)*) => {
        $(for side in 0..2 {
            let column = $rows.iter().map(|row| row.$field[side]).collect::<Vec<_>>();
            $columns.set_item(format!("{}_{side}", stringify!($field)), column)?;
        })*
    };
}

pub fn connection_columns<'py>(py: Python<'py>, rows: &[Connection]) -> PyResult<Bound<'py, PyDict>> {
    let columns = PyDict::new(py);
    columns!(columns, rows, token peer_token version complete checksum fallback start_ns end_ns subflows);
    pairs_of_columns!(columns, rows, idsn bytes reinjected data_acked missing data_fin_ns);
    Ok(columns)
}

pub fn subflow_columns<'py>(py: Python<'py>, rows: &[Subflow]) -> PyResult<Bound<'py, PyDict>> {
    let columns = PyDict::new(py);
    columns!(columns, rows, token connection initial initiator complete syn_ns synack_ns ack_ns end_ns);
    columns!(columns, rows, reset_ns reset_reason);
    pairs_of_columns!(columns, rows, port address_id backup capture received fin_ns);
    pairs_of_columns!(columns, rows, segments bytes retransmitted reinjected unmapped missing);
    pairs_of_columns!(columns, rows, checksums checksum_errors hmacs hmac_errors);
    for side in 0..2 {
        let column = rows.iter().map(|row| row.address[side].to_string()).collect::<Vec<_>>();
        columns.set_item(format!("address_{side}"), column)?;
    }
    Ok(columns)
}
