//! `mptcp broker`, and which one there is.

use std::sync::Mutex;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::errors::to_py;
use crate::broker::rules::{Allowed, Network, Rule, Rules};
use crate::broker::{self, Settings};
use crate::namespace::Namespace;
use crate::netlink::broker::codec::allows;
use crate::netlink::broker::{of, path, Use};
use crate::sys;
use crate::sys::lock::lock;

/// A rule as a dictionary; its keys are those of the file of rules.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct RuleArguments {
    uids: Vec<u32>,
    gids: Vec<u32>,
    allow: bool,
    own: bool,
    others: bool,
    path_manager: bool,
    options: bool,
    remotes: Vec<String>,
    locals: Vec<String>,
    interfaces: Vec<String>,
    clients: usize,
    opens_per_second: u32,
    holds_per_second: u32,
    hold: u32,
    announced: usize,
}

fn networks(texts: &[String]) -> PyResult<Vec<Network>> {
    let wrong = |text: &String| {
        PyValueError::new_err(format!("an address or a network such as 10.0.0.0/8 is needed, not {text:?}"))
    };
    texts.iter().map(|text| Network::parse(text).ok_or_else(|| wrong(text))).collect()
}

impl RuleArguments {
    fn parsed(self) -> PyResult<Rule> {
        let allowed = Allowed {
            own: self.own,
            others: self.others,
            hold: self.path_manager,
            options: self.options,
            remotes: networks(&self.remotes)?,
            locals: networks(&self.locals)?,
            interfaces: self.interfaces,
            clients: self.clients,
            opens_per_second: self.opens_per_second,
            holds_per_second: self.holds_per_second,
            longest_use: Duration::from_secs(self.hold.into()),
            announced: self.announced,
        };
        Ok(Rule { uids: self.uids, gids: self.gids, allowed: self.allow.then_some(allowed) })
    }
}

fn rules(arguments: Vec<RuleArguments>) -> PyResult<Rules> {
    arguments.into_iter().map(RuleArguments::parsed).collect::<PyResult<_>>().map(Rules)
}

/// Serves on a listening socket until `stop` is readable, as the user `uid` if there is one, and without rights that this does
/// not take. `ready` gets one byte once it serves.
#[pyfunction]
#[pyo3(signature = (listener, stop, journal, ready, arguments, uid))]
pub fn serve_broker(
    py: Python<'_>,
    listener: i32,
    stop: i32,
    journal: i32,
    ready: i32,
    arguments: Vec<RuleArguments>,
    uid: Option<u32>,
) -> PyResult<()> {
    let ours = sys::pidfd_open(std::process::id() as i32)?;
    let duplicate = |fd| sys::pidfd_getfd(&ours, fd);
    let (listener, journal) = (duplicate(listener)?.into(), duplicate(journal)?.into());
    let ready = duplicate(ready)?.into();
    let settings = Settings { listener, stop, journal, ready, rules: rules(arguments)?, uid };
    py.detach(|| broker::serve(&settings)).map_err(|error| to_py(py, error))
}

/// The broker of the calling thread's network namespace: its path and what it allows this process now; `None` without
/// one.
#[pyfunction]
pub fn find_broker(py: Python<'_>) -> PyResult<Option<(String, Vec<&'static str>)>> {
    let found = py.detach(|| Namespace::current().map(|namespace| of(namespace.cookie)));
    let Some(broker) = found.map_err(|error| to_py(py, error))? else { return Ok(None) };
    if py.detach(|| broker.greet()).is_err() {
        return Ok(None);
    }
    let named = [
        (allows::OWN, "own"),
        (allows::HOLD, "path_manager"),
        (allows::OPTIONS, "options"),
        (allows::USE, "hold"),
    ];
    let allowed = named.into_iter().filter(|(bit, _)| broker.allows(*bit)).map(|(_, name)| name);
    Ok(Some((path().to_string_lossy().into_owned(), allowed.collect())))
}

/// The path manager of the calling thread's network namespace, kept by its broker.
#[pyclass(frozen, module = "mptcp._core")]
pub struct BrokeredPathManager(Mutex<Option<Use>>);

#[pymethods]
impl BrokeredPathManager {
    /// Has it put back.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        let taken = lock(&self.0).take();
        taken.map_or(Ok(()), |kept| py.detach(|| kept.end())).map_err(|error| to_py(py, error))
    }
}

/// Has the broker set the path manager that new sockets of the namespace latch; `None` without one.
#[pyfunction]
pub fn use_path_manager(py: Python<'_>, name: &str) -> PyResult<Option<BrokeredPathManager>> {
    let used = py.detach(|| {
        let broker = of(Namespace::current()?.cookie);
        broker.map(|broker| broker.use_path_manager(name)).transpose()
    });
    let used = used.map_err(|error| to_py(py, error))?;
    Ok(used.map(|used| BrokeredPathManager(Mutex::new(Some(used)))))
}
