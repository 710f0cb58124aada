//! The links of a lab, for `mptcp.lab`.

use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::errors::to_py;
use super::integer::whole;
use super::timeout::Timeout;
use crate::emulation::emulator::Emulator;
use crate::emulation::limits::{Limits, Loss, Pace, Queue, QueueLimit, Wanted};
use crate::emulation::links::Statistics;
use crate::emulation::trace::Trace;

#[pyclass(frozen, module = "mptcp._core")]
pub struct LinkTrace(Arc<Trace>);

#[pymethods]
impl LinkTrace {
    #[new]
    fn new(py: Python<'_>, data: &[u8]) -> PyResult<LinkTrace> {
        let parsed = py.detach(|| Trace::parse(data));
        parsed.map(|trace| LinkTrace(Arc::new(trace))).map_err(|error| to_py(py, error))
    }

    #[getter]
    fn opportunities(&self) -> u64 {
        self.0.opportunities()
    }

    #[getter]
    fn duration_ms(&self) -> u64 {
        self.0.period_ms()
    }

    #[getter]
    fn rate(&self) -> f64 {
        self.0.rate()
    }
}

#[pyclass(frozen, module = "mptcp._core")]
pub struct LinkLimits(Limits);

#[pymethods]
impl LinkLimits {
    #[new]
    #[pyo3(signature = (*, rate=None, trace=None, queue=None, aqm=None, loss=None, delay=None, jitter=None, reorder=false))]
    #[expect(clippy::too_many_arguments, reason = "each has its name")]
    fn new(
        py: Python<'_>,
        rate: Option<&Bound<'_, PyAny>>,
        trace: Option<&Bound<'_, LinkTrace>>,
        queue: Option<&Bound<'_, PyTuple>>,
        aqm: Option<&Bound<'_, PyAny>>,
        loss: Option<&Bound<'_, PyAny>>,
        delay: Option<&Bound<'_, PyAny>>,
        jitter: Option<&Bound<'_, PyAny>>,
        reorder: bool,
    ) -> PyResult<LinkLimits> {
        let rate = rate.map(|rate| whole("rate", rate)).transpose()?;
        let trace = trace.map(|trace| Arc::clone(&trace.get().0));
        let pace = Pace::of(rate, trace).map_err(|error| to_py(py, error))?;
        let nanoseconds =
            |name, value: Option<&Bound<'_, PyAny>>| value.map_or(Ok(0), |value| whole(name, value));
        let wanted = Wanted {
            pace,
            queue: queue.map(queue_of).transpose()?,
            codel: aqm.map(codel_of).transpose()?.unwrap_or(false),
            loss: loss.map(loss_of).transpose()?,
            delay: nanoseconds("delay", delay)?,
            jitter: nanoseconds("jitter", jitter)?,
            reorder,
        };
        Limits::new(wanted).map(LinkLimits).map_err(|error| to_py(py, error))
    }

    #[getter]
    fn unlimited(&self) -> bool {
        self.0.is_unlimited()
    }

    #[getter]
    fn queue_bytes(&self) -> Option<u64> {
        match self.0.queue()? {
            QueueLimit::Bytes(bytes) => Some(bytes),
            QueueLimit::Packets(_) => None,
        }
    }

    #[getter]
    fn gso_max_segs(&self) -> u64 {
        self.0.gso_max_segs()
    }
}

fn queue_of(queue: &Bound<'_, PyTuple>) -> PyResult<Queue> {
    let wrong = || PyValueError::new_err("queue must be (\"bytes\", n), (\"packets\", n) or (\"ns\", n)");
    let (unit, size): (String, Bound<'_, PyAny>) = queue.extract().map_err(|_| wrong())?;
    let size = whole("queue", &size)?;
    match unit.as_str() {
        "bytes" => Ok(Queue::Bytes(size)),
        "packets" => Ok(Queue::Packets(size)),
        "ns" => Ok(Queue::Time(size)),
        _ => Err(wrong()),
    }
}

fn codel_of(aqm: &Bound<'_, PyAny>) -> PyResult<bool> {
    match aqm.extract::<&str>() {
        Ok("codel") => Ok(true),
        _ => Err(PyValueError::new_err("aqm must be \"codel\" or None")),
    }
}

fn loss_of(loss: &Bound<'_, PyAny>) -> PyResult<Loss> {
    if let Ok(loss) = loss.extract() {
        return Ok(Loss::Bernoulli(loss));
    }
    let wrong = || PyTypeError::new_err("loss must be a number, or the four of Gilbert and Elliott");
    let (to_bad, to_good, in_bad, in_good) = loss.extract().map_err(|_| wrong())?;
    Ok(Loss::GilbertElliott { to_bad, to_good, in_bad, in_good })
}

#[pyclass(frozen, module = "mptcp._core")]
pub struct LinkEmulator(Emulator);

#[pymethods]
impl LinkEmulator {
    #[new]
    #[pyo3(signature = (*, seed))]
    fn new(py: Python<'_>, seed: &Bound<'_, PyAny>) -> PyResult<LinkEmulator> {
        let seed = whole("seed", seed)?;
        py.detach(|| Emulator::start(seed)).map(LinkEmulator).map_err(|error| to_py(py, error))
    }

    fn add(
        &self,
        py: Python<'_>,
        link: &Bound<'_, PyAny>,
        a: &Bound<'_, PyAny>,
        b: &Bound<'_, PyAny>,
        a_to_b: &Bound<'_, LinkLimits>,
        b_to_a: &Bound<'_, LinkLimits>,
    ) -> PyResult<()> {
        let (link, interfaces) = (whole("link", link)?, [whole("a", a)?, whole("b", b)?]);
        let limits = [a_to_b, b_to_a].map(|limits| limits.get().0.clone());
        py.detach(|| self.0.add(link, interfaces, limits)).map_err(|error| to_py(py, error))
    }

    fn set(
        &self,
        py: Python<'_>,
        link: &Bound<'_, PyAny>,
        a_to_b: &Bound<'_, LinkLimits>,
        b_to_a: &Bound<'_, LinkLimits>,
    ) -> PyResult<()> {
        let link = whole("link", link)?;
        let limits = [a_to_b, b_to_a].map(|limits| limits.get().0.clone());
        py.detach(|| self.0.set(link, limits)).map_err(|error| to_py(py, error))
    }

    fn attach(&self, py: Python<'_>, link: &Bound<'_, PyAny>, a_to_b: bool, b_to_a: bool) -> PyResult<()> {
        let link = whole("link", link)?;
        py.detach(|| self.0.attach(link, [a_to_b, b_to_a])).map_err(|error| to_py(py, error))
    }

    fn wait_passed(
        &self,
        py: Python<'_>,
        link: &Bound<'_, PyAny>,
        direction: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let (link, direction) = (whole("link", link)?, whole::<u64>("direction", direction)? as usize);
        let deadline = Timeout::extract(timeout)?.deadline();
        py.detach(|| self.0.wait_passed(link, direction, deadline)).map_err(|error| to_py(py, error))
    }

    fn cut(&self, py: Python<'_>, link: &Bound<'_, PyAny>) -> PyResult<()> {
        let link = whole("link", link)?;
        py.detach(|| self.0.cut(link)).map_err(|error| to_py(py, error))
    }

    fn remove(&self, py: Python<'_>, link: &Bound<'_, PyAny>) -> PyResult<()> {
        let link = whole("link", link)?;
        py.detach(|| self.0.remove(link)).map_err(|error| to_py(py, error))
    }

    fn stats<'py>(
        &self,
        py: Python<'py>,
        link: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        let link = whole("link", link)?;
        let [from_a, from_b] = py.detach(|| self.0.statistics(link)).map_err(|error| to_py(py, error))?;
        Ok((statistics(py, &from_a)?, statistics(py, &from_b)?))
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.0.status()).map_err(|error| to_py(py, error))?;
        let fields = PyDict::new(py);
        fields.set_item("overruns", status.overruns)?;
        fields.set_item("refused", status.refused)?;
        fields.set_item("blocked", status.blocked)?;
        fields.set_item("real_time", status.real_time)?;
        fields.set_item("cpu_ns", status.cpu_ns)?;
        fields.set_item("wakeups", status.wakeups)?;
        Ok(fields)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

fn statistics<'py>(py: Python<'py>, statistics: &Statistics) -> PyResult<Bound<'py, PyDict>> {
    let counts = statistics.counts;
    let fields = [
        ("frames", counts.frames),
        ("bytes", counts.bytes),
        ("dropped", counts.dropped),
        ("lost", counts.lost),
        ("cut", counts.cut),
        ("failed", counts.failed),
        ("refused", counts.refused),
        ("late", counts.late),
        ("taken", counts.taken),
        ("waiting_frames", statistics.waiting.0),
        ("waiting_bytes", statistics.waiting.1),
        ("flying_frames", statistics.flying.0),
        ("flying_bytes", statistics.flying.1),
        ("late_p50_ns", statistics.late_p50_ns),
        ("late_p99_ns", statistics.late_p99_ns),
        ("late_max_ns", statistics.late_max_ns),
    ];
    let dict = PyDict::new(py);
    for (name, value) in fields {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
