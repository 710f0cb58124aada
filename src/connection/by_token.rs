//! Connections of which this process has no descriptor: listed and read by inet_diag, without a connection's lock
//! and without keeping one open.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::abi::fields::Field;
use crate::abi::full_info::Reading;
use crate::abi::mptcp_info::{self, Info};
use crate::abi::tcp_info::{self, TcpInfo};
use crate::abi::uapi::{self, tcp_state};
use crate::connection::acceptance;
use crate::connection::path_manager::latched;
use crate::connection::{ended, wait_for_lock, Connection, Subflow};
use crate::error::{Cause, Error, Result};
use crate::namespace::known::Known;
use crate::namespace::path_manager::PathManager;
use crate::namespace::Namespace;
use crate::netlink::diag::{self, Entry};
use crate::netlink::{Channel, Failure};
use crate::sys::lock::lock;

/// A connection as it was when it was listed, and the way to it now.
#[derive(Debug, Clone)]
pub struct ByToken {
    namespace: Arc<Namespace>,
    known: Arc<Known>,
    /// The connection itself. Its cookie tells it from a later one with the same token.
    pub entry: Entry,
    /// The peer opened it. Absent if its initial subflow was gone by then.
    pub server_side: Option<bool>,
}

/// What is known of a connection from its subflows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    initial: Option<Entry>,
    at_least: Duration,
}

impl Seen {
    fn add(&mut self, entry: Entry, tcp_info: &TcpInfo) {
        if entry.subflow.is_some_and(|subflow| subflow.initial()) {
            self.initial = Some(entry);
        }
        self.at_least = self.at_least.max(at_least(tcp_info));
    }

    fn initial(&self) -> Option<diag::Ulp> {
        self.initial.and_then(|entry| entry.subflow)
    }
}

/// The least age of a subflow. The kernel does not keep when it was created, but some durations and times since events.
fn at_least(tcp_info: &TcpInfo) -> Duration {
    // Before the handshake is over the kernel counts these times from boot.
    if [tcp_state::SYN_SENT, tcp_state::SYN_RECV].contains(&tcp_info.state()) {
        return Duration::ZERO;
    }
    let read = |field: Field| field.read(tcp_info.bytes()).unwrap_or(0);
    let since = read(tcp_info::field::last_data_sent).max(read(tcp_info::field::last_ack_recv));
    Duration::from_millis(since).max(Duration::from_micros(read(tcp_info::field::busy_time)))
}

/// The connections of a namespace, or the one with a token. Takes no connection's lock.
///
/// Tokens come from the subflows: a connection that has none at the moment is found by its token only. One that fell
/// back at its handshake is left out.
pub fn list(namespace: &Arc<Namespace>, token: Option<u32>) -> Result<Vec<ByToken>> {
    let found = match token {
        None => find_all(&mut lock(&namespace.diag))?,
        Some(token) => find_one(&mut lock(&namespace.diag), token)?.into_iter().collect(),
    };
    let connection = |(token, entry, seen): (u32, Entry, Seen)| {
        let known = namespace.connection(token);
        known.is_as_old_as(seen.at_least);
        let server_side = seen.initial().map(|initial| !initial.opened_here());
        ByToken { namespace: Arc::clone(namespace), known, entry, server_side }
    };
    let is_multipath = |(_, _, seen): &(u32, Entry, Seen)| !seen.initial().is_some_and(|i| i.fell_back());
    let mut connections: Vec<_> = found.into_iter().filter(is_multipath).map(connection).collect();
    connections.sort_unstable_by_key(|connection| connection.entry.cookie);
    Ok(connections)
}

/// The subflows of connections of one namespace, by one dump for all; `None` for one that has ended or fallen back.
pub fn subflows_of(connections: &[&ByToken]) -> Result<Vec<Option<Vec<Subflow>>>> {
    let Some(first) = connections.first() else { return Ok(Vec::new()) };
    let tokens: Vec<u32> = connections.iter().map(|connection| connection.token()).collect();
    let mut subflows: HashMap<u32, Vec<(Entry, TcpInfo)>> =
        tokens.iter().map(|token| (*token, Vec::new())).collect();
    let mut channel = lock(&first.ours()?.diag);
    diag::dump(&mut channel, |entry, tcp_info| {
        if let Some(found) = entry.subflow.and_then(|subflow| subflows.get_mut(&subflow.token)) {
            found.push((entry, tcp_info));
        }
    })
    .map_err(diag::failed)?;
    // Afterwards, so that what was read is of the connection and not of a later one with its token.
    let now = diag::look_up_tokens(&mut channel, &tokens).map_err(diag::failed)?;
    if subflows.values().all(Vec::is_empty) {
        diag::check_told(&mut channel, &now.iter().flatten().copied().collect::<Vec<_>>())?;
    }
    drop(channel);
    let live = connections.iter().zip(now).map(|(connection, entry)| {
        let found = subflows.remove(&connection.token())?;
        entry.filter(|entry| entry.cookie == connection.entry.cookie)?;
        Some(connection.ordered(connection.still_multipath(found).ok()?))
    });
    Ok(live.collect())
}

/// Subflows of connections of one namespace by their four-tuples, whatever the number of others; `None` for one that
/// is not there or closed.
pub fn subflows_at(asked: &[(&ByToken, SocketAddr, SocketAddr)]) -> Result<Vec<Option<Subflow>>> {
    let Some((first, ..)) = asked.first() else { return Ok(Vec::new()) };
    let tuples: Vec<_> =
        asked.iter().map(|(of, local, remote)| (of.token(), of.known.tuple(*local, *remote))).collect();
    let read = acceptance::look(first.ours()?, &tuples)?;
    let subflow = |((of, ..), read): (&(&ByToken, _, _), Option<(Entry, TcpInfo)>)| {
        let (entry, tcp_info) = read.filter(|(entry, _)| !entry.is_orphan())?;
        Some(of.subflow(entry, tcp_info))
    };
    Ok(asked.iter().zip(read).map(subflow).collect())
}

/// Two dumps: of the subflows, which have tokens, and of the connections, without their locks and so without tokens.
/// A connection has the ends and the inode of its initial subflow; one whose initial subflow is gone is looked up.
fn find_all(channel: &mut Channel) -> Result<Vec<(u32, Entry, Seen)>> {
    let mut by_token: HashMap<u32, Seen> = HashMap::new();
    diag::dump(channel, |entry, tcp_info| {
        if let Some(subflow) = entry.subflow {
            by_token.entry(subflow.token).or_default().add(entry, &tcp_info);
        }
    })
    .map_err(diag::failed)?;
    let key = |entry: &Entry| (entry.tuple.local, entry.tuple.remote, entry.inode);
    let mut by_key: HashMap<_, Option<Entry>> = HashMap::with_capacity(by_token.len());
    diag::dump_connections(channel, |entry| {
        by_key.entry(key(&entry)).and_modify(|other| *other = None).or_insert(Some(entry));
    })
    .map_err(connections_failed)?;
    if by_token.is_empty() {
        diag::check_tells(channel)?;
    }
    let (mut found, mut missing) = (Vec::with_capacity(by_token.len()), Vec::new());
    for (token, seen) in by_token {
        match seen.initial.and_then(|initial| by_key.get(&key(&initial)).copied().flatten()) {
            Some(entry) => found.push((token, entry, seen)),
            None => missing.push((token, seen)),
        }
    }
    let tokens: Vec<u32> = missing.iter().map(|(token, _)| *token).collect();
    let entries = diag::look_up_tokens(channel, &tokens).map_err(diag::failed)?;
    let looked_up = missing.into_iter().zip(entries);
    found.extend(looked_up.filter_map(|((token, seen), entry)| Some((token, entry?, seen))));
    Ok(found)
}

fn find_one(channel: &mut Channel, token: u32) -> Result<Option<(u32, Entry, Seen)>> {
    let Some(entry) = diag::look_up_tokens(channel, &[token]).map_err(diag::failed)?.pop().flatten() else {
        // Where inet_diag does not know connections, each look-up is ENOENT too.
        diag::dump_connections(channel, |_| {}).map_err(connections_failed)?;
        return Ok(None);
    };
    let mut seen = Seen::default();
    match diag::look_up_with_info(channel, &[entry.tuple]).map_err(diag::failed)?.pop().flatten() {
        Some((initial, tcp_info)) if initial.subflow.is_some_and(|subflow| subflow.token == token) => {
            seen.add(initial, &tcp_info);
        }
        _ => {}
    }
    Ok(Some((token, entry, seen)))
}

fn connections_failed(failure: Failure) -> Error {
    match failure.errno {
        libc::ENOENT => Error::unsupported(
            "this kernel has no inet_diag for connections (CONFIG_INET_MPTCP_DIAG, Linux 5.9)",
        ),
        _ => diag::failed(failure),
    }
}

impl ByToken {
    pub fn token(&self) -> u32 {
        self.known.token
    }

    /// Whether this is its own local or remote port.
    pub fn has_port(&self, port: u16) -> bool {
        let tuple = self.entry.tuple;
        port == tuple.local.port() || port == tuple.remote.port()
    }

    /// The least age of the connection.
    pub fn age(&self) -> Duration {
        self.known.age()
    }

    /// The netlink sockets, unless they are those of the process that this one was forked from.
    fn ours(&self) -> Result<&Arc<Namespace>> {
        if self.namespace.is_ours() {
            return Ok(&self.namespace);
        }
        Err(Error::os(libc::EBADF, "the connection was listed by the process that this one was forked from")
            .because(Cause::OtherProcess))
    }

    /// What this process has of its namespace and knows of it, unless it was listed by the process that this one was forked
    /// from. Looks nothing up.
    pub fn shared(&self) -> Result<(&Arc<Namespace>, &Arc<Known>)> {
        Ok((self.ours()?, &self.known))
    }

    /// The kernel had the connection's lock at this time.
    pub fn was_locked(&self, time_ns: u64) {
        self.known.was_locked(time_ns);
    }

    /// The state that the connection has now; `None` once it has ended.
    pub fn state_now(&self) -> Result<Option<u8>> {
        Ok(self.look_up()?.map(|entry| entry.state))
    }

    /// The connection itself now, and not a later one with its token.
    fn look_up(&self) -> Result<Option<Entry>> {
        let entries = diag::look_up_tokens(&mut lock(&self.ours()?.diag), &[self.token()]);
        let entry = entries.map_err(diag::failed)?.pop().flatten();
        Ok(entry.filter(|entry| entry.cookie == self.entry.cookie))
    }

    /// The connection itself, if it is still there.
    fn now(&self) -> Result<Entry> {
        self.look_up()?.ok_or_else(|| self.ended())
    }

    fn ended(&self) -> Error {
        ended(self.token())
    }

    fn fell_back(&self) -> Error {
        Error::NotMultipath {
            message: "the connection is not Multipath TCP: it fell back to TCP because the peer or the path does not support \
                      Multipath TCP"
                .to_owned(),
        }
    }

    /// Its subflows, in no order.
    fn dump(&self) -> Result<Vec<(Entry, TcpInfo)>> {
        self.now()?;
        let mut subflows = Vec::new();
        diag::dump(&mut lock(&self.namespace.diag), |entry, tcp_info| {
            if entry.subflow.is_some_and(|subflow| subflow.token == self.token()) {
                subflows.push((entry, tcp_info));
            }
        })
        .map_err(diag::failed)?;
        if subflows.is_empty() {
            diag::check_told(&mut lock(&self.namespace.diag), &[self.entry])?;
        }
        self.still_multipath(subflows)
    }

    /// Its subflows as read, or an error if they show that it fell back. Remembers their interfaces. Closed ones are left
    /// out, except those of a connection without an owner, which still sends its data on them.
    fn still_multipath(&self, mut subflows: Vec<(Entry, TcpInfo)>) -> Result<Vec<(Entry, TcpInfo)>> {
        let owned = subflows.iter().any(|(entry, _)| entry.inode != 0);
        subflows.retain(|(entry, _)| !(owned && entry.is_orphan()));
        if subflows.iter().any(|(entry, _)| entry.subflow.is_some_and(|subflow| subflow.fell_back())) {
            return Err(self.fell_back());
        }
        let mut interfaces = lock(&self.known.interfaces);
        for (entry, _) in subflows.iter().filter(|(entry, _)| entry.tuple.interface != 0) {
            interfaces.insert((entry.tuple.local, entry.tuple.remote), entry.tuple.interface);
        }
        Ok(subflows)
    }

    /// Oldest first as far as this process saw them appear: inet_diag knows neither ids nor times.
    fn ordered(&self, mut subflows: Vec<(Entry, TcpInfo)>) -> Vec<Subflow> {
        subflows.sort_unstable_by_key(|(entry, _)| {
            (entry.subflow.is_some_and(|subflow| !subflow.initial()), entry.cookie)
        });
        let entries: Vec<Option<Entry>> = subflows.iter().map(|(entry, _)| Some(*entry)).collect();
        let mut ordered: Vec<_> = self.known.ordinals(&entries).into_iter().zip(subflows).collect();
        ordered.sort_by_key(|(ordinal, _)| *ordinal);
        ordered.into_iter().map(|(_, (entry, tcp_info))| self.subflow(entry, tcp_info)).collect()
    }

    fn subflow(&self, entry: Entry, tcp_info: TcpInfo) -> Subflow {
        Subflow {
            token: self.token(),
            id: None,
            local: entry.tuple.local,
            remote: entry.tuple.remote,
            tcp_info,
            entry: Some(entry),
        }
    }
}

impl Connection for ByToken {
    fn namespace(&self) -> Result<Arc<Namespace>> {
        self.ours().cloned()
    }

    fn known(&self) -> Result<Arc<Known>> {
        self.now().map(|_| Arc::clone(&self.known))
    }

    fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        self.now().map(|entry| (entry.tuple.local, entry.tuple.remote))
    }

    fn path_manager(&self) -> Result<PathManager> {
        self.now()?;
        wait_for_lock(self);
        latched(&self.namespace, self.token())
    }

    fn info(&self) -> Result<Info> {
        self.now()?;
        let read = self.namespace.diag_of_connections.with(|channel| diag::read_info(channel, self.token()));
        let info = read.map_err(|error| Error::call("socket(AF_NETLINK)", &error))?;
        let info = info.map_err(diag::failed)?.ok_or_else(|| self.ended())?;
        let flags = mptcp_info::field::flags.read(info.bytes()).unwrap_or(0);
        if flags & u64::from(uapi::MPTCP_INFO_FLAG_FALLBACK) != 0 {
            return Err(self.fell_back());
        }
        Ok(info)
    }

    fn reads_by_dump(&self) -> bool {
        true
    }

    fn read_with_closed(&self) -> Result<(u32, Vec<Reading>)> {
        let reading = |(entry, tcp_info): (Entry, TcpInfo)| Reading {
            id: None,
            local: entry.tuple.local,
            remote: entry.tuple.remote,
            tcp_info,
        };
        Ok((self.token(), self.dump()?.into_iter().map(reading).collect()))
    }

    fn subflows(&self) -> Result<Vec<Subflow>> {
        Ok(self.ordered(self.dump()?))
    }
}
