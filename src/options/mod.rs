//! Socket options on one subflow. Upstream has no call that reaches one: inet_diag tells some options to everybody, and
//! the BPF program of [`crate::options::bpf`] reaches the rest.
//!
//! A subflow is known by its socket's cookie, which is never used again. That it is one of the connection is checked
//! by the token in its inet_diag entry right before anything is done to it.

pub mod bpf;
pub mod table;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crate::connection::{check_is_of, Connection, Subflow};
use crate::error::{describe, Error, Result};
use crate::namespace::Namespace;
use crate::netlink::broker::codec::OptionRequest;
use crate::netlink::broker::{self, Broker};
use crate::netlink::diag::{self, Attributes, Entry};
use crate::netlink::Channel;
use crate::options::bpf::program::MAX_VALUE;
use crate::options::bpf::{Action, Request, Visit};
use crate::options::table::{ReadBy, SocketOption, SO_RCVLOWAT, TCP_CONGESTION};
use crate::sys::lock::lock;
use crate::sys::{self, Wanted};

/// One option to set on one subflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub subflow: Subflow,
    pub option: SocketOption,
    pub value: Vec<u8>,
}

impl Change {
    /// What can be refused before any system call.
    pub fn check(&self) -> Result<()> {
        match self.value.len() {
            1..=MAX_VALUE => Ok(()),
            length => Err(Error::value(format!(
                "{}: the value must have 1 to {MAX_VALUE} bytes, not {length}",
                self.option
            ))),
        }
    }
}

/// Reads an option into a buffer of `room` bytes, as getsockopt would on the subflow's own socket.
pub fn get(
    connection: &dyn Connection,
    subflow: &Subflow,
    option: SocketOption,
    room: usize,
) -> Result<Vec<u8>> {
    let namespace = namespace_of(connection, &[subflow])?;
    let refused = |errno| failure(&format!("getsockopt({option})"), subflow, errno, "");
    let read_by = option.read_by();
    if read_by != ReadBy::Bpf {
        let told = attributes(&namespace, subflow)?.ok_or_else(|| refused(libc::ENOTCONN))?;
        if let Some(value) = table::value(read_by, &told, room) {
            return value.map_err(refused);
        }
    }
    if live(&namespace, &[subflow])?.is_empty() {
        return Err(refused(libc::ENOTCONN));
    }
    // The helper takes no other length for an integer, and tells nothing but integers that inet_diag does not.
    let outcomes = serve(&namespace, &[subflow], &[request(subflow, option, Action::Get(4))])?;
    match outcomes.into_iter().next() {
        Some(Visit::Done(mut value)) => {
            value.truncate(room);
            Ok(value)
        }
        Some(Visit::Refused(errno)) => Err(refused(errno)),
        Some(Visit::NotMet) | None => Err(refused(libc::ENOTCONN)),
    }
}

/// Sets options, each subflow's in the order given, in one visit of the subflows. Not atomic: where one is refused the
/// others are set all the same, and the error says which.
pub fn set(connection: &dyn Connection, changes: &[Change]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let subflows: Vec<&Subflow> = changes.iter().map(|change| &change.subflow).collect();
    let namespace = namespace_of(connection, &subflows)?;
    let nothing = if changes.len() > 1 { "; nothing was applied" } else { "" };
    if let Some(change) = changes.iter().find(|change| change.option == SO_RCVLOWAT) {
        // As newer kernels do. Older ones take the subflow's socket for the whole connection there.
        return Err(failure(&change.call(), &change.subflow, libc::EINVAL, nothing));
    }
    let live = live(&namespace, &subflows)?;
    if let Some(change) = changes.iter().find(|change| !live.contains(&cookie(&change.subflow))) {
        return Err(failure(&change.call(), &change.subflow, libc::ENOTCONN, nothing));
    }
    let requests: Vec<Request> = changes
        .iter()
        .map(|change| request(&change.subflow, change.option, Action::Set(change.value.clone())))
        .collect();
    let outcomes = serve(&namespace, &subflows, &requests)?;
    refusal(changes, &outcomes).map_or(Ok(()), Err)
}

/// Refuses where options cannot be set on the subflows of a namespace: loads the program, and visits the sockets for a
/// cookie that none has.
pub fn probe(namespace: &Namespace) -> Result<()> {
    let action = Action::Get(size_of::<i32>());
    let nobody = Request { cookie: u64::MAX, level: libc::SOL_SOCKET, name: libc::SO_RCVBUF, action };
    bpf::serve(&[nobody], namespace.elsewhere()?).map(drop)
}

/// The namespace of the socket, whose connection must be that of the subflows.
fn namespace_of(connection: &dyn Connection, subflows: &[&Subflow]) -> Result<Arc<Namespace>> {
    check_is_of(connection, subflows.iter().copied())?;
    connection.namespace()
}

/// The cookie that the subflow was read with. One that was gone by then has none, and 0 is nobody's.
fn cookie(subflow: &Subflow) -> u64 {
    subflow.entry.map_or(0, |entry| entry.cookie)
}

fn request(subflow: &Subflow, option: SocketOption, action: Action) -> Request {
    Request { cookie: cookie(subflow), level: option.level, name: option.number, action }
}

fn is_same(entry: &Entry, subflow: &Subflow) -> bool {
    let is_of_connection = match entry.subflow {
        Some(found) => found.token == subflow.token,
        // A closed one; or before Linux 6.15, which without CAP_NET_ADMIN has never told.
        None => subflow.entry.is_some_and(|before| before.subflow.is_none()),
    };
    entry.cookie == cookie(subflow) && is_of_connection && !entry.is_orphan()
}

/// What inet_diag tells of a subflow's options; `None` if it is gone.
fn attributes(namespace: &Namespace, subflow: &Subflow) -> Result<Option<Attributes>> {
    let mut channel = lock(&namespace.diag);
    let Some(entry) = subflow.entry else { return Ok(None) };
    let look_up = |channel: &mut Channel, entry: &Entry| {
        diag::look_up_attributes(channel, &entry.tuple, entry.cookie)
            .map(|told| told.filter(|told| is_same(&told.entry, subflow)))
            .map_err(diag::failed)
    };
    if let Some(told) = look_up(&mut channel, &entry)? {
        return Ok(Some(told));
    }
    // Gone, or bound to another interface by now, which an exact look-up has to name.
    match dump(&mut channel, &[subflow])?.first() {
        Some(entry) => look_up(&mut channel, entry),
        None => Ok(None),
    }
}

/// The cookies of those of the subflows that are there, by exact look-ups.
fn live(namespace: &Namespace, subflows: &[&Subflow]) -> Result<HashSet<u64>> {
    let mut seen = HashSet::new();
    let mut wanted: Vec<(&Subflow, Entry)> = Vec::new();
    for subflow in subflows {
        if let Some(entry) = subflow.entry.filter(|entry| seen.insert(entry.cookie)) {
            wanted.push((subflow, entry));
        }
    }
    let tuples: Vec<diag::Tuple> = wanted.iter().map(|(_, entry)| entry.tuple).collect();
    let mut channel = lock(&namespace.diag);
    let found = diag::look_up(&mut channel, &tuples).map_err(diag::failed)?;
    let mut cookies = HashSet::new();
    let mut missing = Vec::new();
    for ((subflow, entry), found) in wanted.into_iter().zip(found) {
        if found.is_some_and(|found| is_same(&found, subflow)) {
            cookies.insert(entry.cookie);
        } else {
            missing.push(subflow);
        }
    }
    if !missing.is_empty() {
        cookies.extend(dump(&mut channel, &missing)?.iter().map(|entry| entry.cookie));
    }
    Ok(cookies)
}

/// The entries of those of the subflows that are there, whatever interface they are bound to.
fn dump(channel: &mut Channel, subflows: &[&Subflow]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    diag::dump(channel, |entry, _| {
        if subflows.iter().any(|subflow| is_same(&entry, subflow)) {
            entries.push(entry);
        }
    })
    .map_err(diag::failed)?;
    Ok(entries)
}

/// Serves requests by BPF, with what a single visit of the sockets cannot give.
fn serve(namespace: &Namespace, subflows: &[&Subflow], requests: &[Request]) -> Result<Vec<Visit>> {
    let elsewhere = namespace.elsewhere()?;
    // Being refused takes milliseconds, for the kernel's types are read first.
    static REFUSED: AtomicBool = AtomicBool::new(false);
    let find_broker = || broker::of(namespace.cookie);
    if let Some(broker) = REFUSED.load(Ordering::Relaxed).then(find_broker).flatten() {
        return serve_by(&broker, subflows, requests);
    }
    let mut outcomes = match bpf::serve(requests, elsewhere) {
        Err(error) if error.errno() == libc::EPERM => {
            REFUSED.store(true, Ordering::Relaxed);
            return serve_by(&*find_broker().ok_or(error)?, subflows, requests);
        }
        outcomes => outcomes?,
    };
    let not_met = |outcome: &Visit| *outcome == Visit::NotMet;
    if outcomes.iter().any(not_met) {
        // The visit walks a table that changes meanwhile and may pass a socket by: once more for those that live.
        let live = live(namespace, subflows)?;
        let again = positions(&outcomes, |position, outcome| {
            not_met(outcome) && live.contains(&requests[position].cookie)
        });
        repeat(requests, &again, elsewhere, &mut outcomes)?;
    }
    // Called by BPF, the kernel loads no module for a congestion control that it does not have yet.
    let missing = positions(&outcomes, |position, outcome| {
        *outcome == Visit::Refused(libc::ENOENT) && congestion_control(&requests[position]).is_some()
    });
    if !missing.is_empty() {
        missing.iter().filter_map(|&position| congestion_control(&requests[position])).for_each(load_module);
        repeat(requests, &missing, elsewhere, &mut outcomes)?;
    }
    Ok(outcomes)
}

/// Has the broker serve requests, which does all that [`serve`] does.
fn serve_by(broker: &Broker, subflows: &[&Subflow], requests: &[Request]) -> Result<Vec<Visit>> {
    let tuples: HashMap<u64, diag::Tuple> = subflows
        .iter()
        .filter_map(|subflow| subflow.entry.map(|entry| (entry.cookie, entry.tuple)))
        .collect();
    let mut outcomes = vec![Visit::NotMet; requests.len()];
    let known = |(position, request): (usize, &Request)| {
        let (value, room) = match &request.action {
            Action::Get(room) => (None, *room),
            Action::Set(value) => (Some(value.clone()), value.len()),
        };
        let tuple = *tuples.get(&request.cookie)?;
        let (cookie, level, name) = (request.cookie, request.level, request.name);
        Some((position, OptionRequest { tuple, cookie, level, name, value, room }))
    };
    let (positions, asked): (Vec<_>, Vec<_>) = requests.iter().enumerate().filter_map(known).unzip();
    for (position, result) in
        positions.into_iter().zip(broker.options(&asked, subflows.first().map(|subflow| subflow.token))?)
    {
        outcomes[position] = match result {
            Ok(value) => Visit::Done(value),
            Err(0) => Visit::NotMet,
            Err(errno) => Visit::Refused(errno),
        };
    }
    Ok(outcomes)
}

fn positions(outcomes: &[Visit], wanted: impl Fn(usize, &Visit) -> bool) -> Vec<usize> {
    (0..outcomes.len()).filter(|&position| wanted(position, &outcomes[position])).collect()
}

fn repeat(
    requests: &[Request],
    positions: &[usize],
    elsewhere: Option<BorrowedFd<'_>>,
    outcomes: &mut [Visit],
) -> Result<()> {
    if positions.is_empty() {
        return Ok(());
    }
    let again: Vec<Request> = positions.iter().map(|&position| requests[position].clone()).collect();
    for (&position, outcome) in positions.iter().zip(bpf::serve(&again, elsewhere)?) {
        outcomes[position] = outcome;
    }
    Ok(())
}

/// The name that a request wants to set TCP_CONGESTION to.
fn congestion_control(request: &Request) -> Option<&[u8]> {
    match &request.action {
        Action::Set(name)
            if (request.level, request.name) == (TCP_CONGESTION.level, TCP_CONGESTION.number) =>
        {
            Some(name)
        }
        _ => None,
    }
}

/// Lets the kernel load the module of a congestion control, which it does for a setsockopt on any TCP socket, in any
/// network namespace, of who has CAP_NET_ADMIN in the initial user namespace. Whether it did shows when it is set.
fn load_module(name: &[u8]) {
    let [socket] =
        sys::open_here(&[Wanted::Socket { family: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0 }]);
    if let Ok(socket) = socket {
        let _ = sys::setsockopt(socket.as_raw_fd(), TCP_CONGESTION.level, TCP_CONGESTION.number, name);
    }
}

impl Change {
    fn call(&self) -> String {
        format!("setsockopt({})", self.option)
    }
}

/// "subflow 2 (10.0.2.1:12345 -> 10.0.2.2:5000)"
fn name(subflow: &Subflow) -> String {
    let id = subflow.id.map_or_else(String::new, |id| format!(" {id}"));
    format!("subflow{id} ({} -> {})", subflow.local, subflow.remote)
}

fn failure(call: &str, subflow: &Subflow, errno: i32, others: &str) -> Error {
    let cause = match errno {
        libc::ENOTCONN => "the subflow is closed".to_owned(),
        errno => describe(errno),
    };
    Error::subflow(errno, format!("{call} on {}: {cause}{others}", name(subflow)))
}

/// The error of the first change that was not made, with what became of the others.
fn refusal(changes: &[Change], outcomes: &[Visit]) -> Option<Error> {
    let done = |outcome: &Visit| matches!(outcome, Visit::Done(_));
    let first = outcomes.iter().position(|outcome| !done(outcome))?;
    let errno = match outcomes[first] {
        Visit::Refused(errno) => errno,
        _ => libc::ENOTCONN,
    };
    let list = |applied: bool| -> String {
        let others = (0..changes.len()).filter(|&i| i != first && done(&outcomes[i]) == applied);
        let others: Vec<String> =
            others.map(|i| format!("{} on {}", changes[i].option, name(&changes[i].subflow))).collect();
        others.join(", ")
    };
    let others = match (list(true), list(false)) {
        (applied, refused) if applied.is_empty() && refused.is_empty() => String::new(),
        (applied, refused) if refused.is_empty() => format!("; applied: {applied}"),
        (applied, refused) if applied.is_empty() => format!("; nothing was applied; also refused: {refused}"),
        (applied, refused) => format!("; applied: {applied}; also refused: {refused}"),
    };
    Some(failure(&changes[first].call(), &changes[first].subflow, errno, &others))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::tcp_info::TcpInfo;

    fn change(id: u32, option: SocketOption) -> Change {
        let subflow = Subflow {
            token: 1,
            id: Some(id),
            local: "10.0.1.1:1".parse().unwrap(),
            remote: "10.0.1.2:2".parse().unwrap(),
            tcp_info: TcpInfo::decode(&[]),
            entry: None,
        };
        Change { subflow, option, value: vec![0; 4] }
    }

    const MARK: SocketOption = SocketOption { level: libc::SOL_SOCKET, number: libc::SO_MARK };

    #[test]
    fn the_error_is_the_first_and_tells_of_the_others() {
        let changes = [change(1, MARK), change(2, TCP_CONGESTION), change(3, MARK)];
        let done = || Visit::Done(vec![]);
        let text = |outcomes: &[Visit]| refusal(&changes, outcomes).map(|e| (e.errno(), e.to_string()));
        assert_eq!(text(&[done(), done(), done()]), None);
        let ends = "(10.0.1.1:1 -> 10.0.1.2:2)";
        assert_eq!(
            text(&[done(), Visit::Refused(libc::ENOENT), Visit::NotMet]),
            Some((
                libc::ENOENT,
                format!(
                    "setsockopt(TCP_CONGESTION) on subflow 2 {ends}: No such file or directory; applied: SO_MARK on \
                     subflow 1 {ends}; also refused: SO_MARK on subflow 3 {ends}"
                )
            ))
        );
        let (errno, message) = text(&[Visit::NotMet, done(), done()]).unwrap();
        assert_eq!(errno, libc::ENOTCONN);
        assert!(message.contains("is closed; applied: TCP_CONGESTION on subflow 2"), "{message}");
    }

    #[test]
    fn a_value_has_a_length() {
        let of = |length| Change { value: vec![0; length], ..change(1, MARK) }.check();
        assert!(of(1).is_ok() && of(MAX_VALUE).is_ok());
        assert!(matches!(of(0), Err(Error::Value { .. })));
        assert!(matches!(of(MAX_VALUE + 1), Err(Error::Value { .. })));
    }
}
