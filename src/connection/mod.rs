//! What can be asked of one connection, however this process reaches it: by a descriptor ([`by_descriptor`]) or, without
//! one, by its token ([`by_token`]).

pub mod acceptance;
pub mod addresses;
pub mod announce;
pub mod attach;
pub mod by_descriptor;
pub mod by_token;
pub mod close;
pub mod open;
pub mod path_manager;
pub mod priority;
pub mod withdraw;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::abi::address;
use crate::abi::full_info::Reading;
use crate::abi::mptcp_info::Info;
use crate::abi::tcp_info::TcpInfo;
use crate::error::{Error, Result};
use crate::events::event::Event;
use crate::events::Events;
use crate::namespace::known::Known;
use crate::namespace::path_manager::PathManager;
use crate::namespace::Namespace;
use crate::netlink::diag::{self, Entry};

/// A snapshot of one subflow. `entry` is a second reading, by inet_diag: absent if the subflow was gone by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subflow {
    pub token: u32,
    /// The kernel's subflow id; before 6.5 our own count. Absent where neither is known.
    pub id: Option<u32>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub tcp_info: TcpInfo,
    pub entry: Option<Entry>,
}

impl Subflow {
    pub fn new(token: u32, id: Option<u32>, reading: Reading, entry: Option<Entry>) -> Subflow {
        Subflow {
            token,
            id,
            // inet_diag knows the interface of a link-local address.
            local: entry.map_or(reading.local, |entry| entry.tuple.local),
            remote: entry.map_or(reading.remote, |entry| entry.tuple.remote),
            tcp_info: reading.tcp_info,
            entry,
        }
    }
}

/// A connection as this process reaches it. Every operation on one needs no more than this of it.
pub trait Connection: fmt::Debug + Send + Sync {
    fn namespace(&self) -> Result<Arc<Namespace>>;

    /// What this process knows of the connection, found by the token that it has now.
    fn known(&self) -> Result<Arc<Known>>;

    /// What was found last of the connection, without a system call. It may have another token by now, which a reading
    /// tells.
    fn known_before(&self) -> Option<Arc<Known>> {
        None
    }

    /// Its own local and remote end.
    fn ends(&self) -> Result<(SocketAddr, SocketAddr)>;

    /// `struct mptcp_info`. Waits for the connection's lock.
    fn info(&self) -> Result<Info>;

    /// The path manager that the connection latched, asked of the connection itself.
    fn path_manager(&self) -> Result<PathManager>;

    /// Reading its subflows takes a dump of all connections' subflows, whose cost grows with their number.
    fn reads_by_dump(&self) -> bool {
        false
    }

    /// Its token, and its subflows; closed ones may be among them.
    fn read_with_closed(&self) -> Result<(u32, Vec<Reading>)>;

    /// A snapshot of every subflow but closed ones, oldest first.
    fn subflows(&self) -> Result<Vec<Subflow>>;
}

/// Which subflow is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Id(u32),
    Endpoints { local: SocketAddr, remote: SocketAddr },
}

impl Which {
    /// A subflow by its id, if it can be one.
    pub fn of_id(id: i64) -> Result<Which> {
        let wrong = |_| Error::value(format!("a subflow id must be from 0 to {}, not {id}", u32::MAX));
        u32::try_from(id).map(Which::Id).map_err(wrong)
    }

    /// A subflow by its own ends.
    pub fn at(local: SocketAddr, remote: SocketAddr) -> Result<Which> {
        if local.port() == 0 || remote.port() == 0 {
            return Err(Error::value("a subflow is named by both of its ends, each with its port"));
        }
        Ok(Which::Endpoints { local, remote })
    }

    /// The subflow of a snapshot, which must be of this connection.
    pub fn of(connection: &dyn Connection, subflow: &Subflow) -> Result<Which> {
        check_is_of(connection, [subflow])?;
        Ok(Which::Endpoints { local: subflow.local, remote: subflow.remote })
    }
}

/// An error unless the subflows are of this connection.
pub fn check_is_of<'a>(
    connection: &dyn Connection,
    subflows: impl IntoIterator<Item = &'a Subflow>,
) -> Result<()> {
    let token = connection.known()?.token;
    if subflows.into_iter().any(|subflow| subflow.token != token) {
        return Err(Error::value("the subflow belongs to another connection"));
    }
    Ok(())
}

/// Whether the peer denies further subflows to its initial address and port (the C bit, RFC 8684, section 3.1); absent if
/// this process did not hear the connection begin, and for what is not one.
pub fn deny_join_initial(connection: &dyn Connection) -> Result<Option<bool>> {
    let token = connection.known()?.token;
    Ok(connection.namespace()?.deny_join_initial(token))
}

/// Who a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub token: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The peer opened it. Absent if its initial subflow, which tells it, is gone.
    pub server_side: Option<bool>,
}

pub fn identity(connection: &dyn Connection) -> Result<Identity> {
    let subflows = connection.subflows()?;
    let initial = subflows.iter().filter_map(|s| s.entry?.subflow).find(|subflow| subflow.initial());
    let (local, remote) = connection.ends()?;
    let server_side = initial.map(|initial| !initial.opened_here());
    Ok(Identity { token: connection.known()?.token, local, remote, server_side })
}

/// What events told of its subflows and addresses; absent while nobody of this process listens.
pub fn history(connection: &dyn Connection) -> Result<Option<Vec<Event>>> {
    let token = connection.known()?.token;
    Ok(connection.namespace()?.history(token))
}

/// The events of one connection. It must still be there after subscribing, or its token may be another's.
pub fn events(connection: &dyn Connection) -> Result<Events> {
    let events = connection.namespace()?.events(Some(connection.known()?.token))?;
    connection.known()?;
    Ok(events)
}

/// Waits for the connection's lock on a socket that nobody else waits for. A command of `mptcp_pm` waits for it with a
/// mutex of the kernel that all such commands of the host take, so one that would have to wait is better not sent.
fn wait_for_lock(connection: &dyn Connection) {
    // Through a descriptor its subflows have just been read, which waits for the lock.
    if connection.reads_by_dump() {
        let _ = connection.info();
    }
}

/// The same for a connection of which nothing else is looked up. Not where the kernel itself had the lock just now: a look
/// then tells no more, since a sender may take the lock after it just as well.
fn wait_for_lock_of(namespace: &Namespace, known: &Known) {
    if !known.was_just_locked() {
        let _ = namespace.diag_of_connections.with(|channel| diag::read_info(channel, known.token));
    }
}

/// The live subflow that is meant.
fn find(connection: &dyn Connection, which: Which) -> Result<(Subflow, usize)> {
    let subflows = connection.subflows()?;
    let is_meant = |subflow: &&Subflow| match which {
        Which::Id(id) => subflow.id == Some(id),
        Which::Endpoints { local, remote } => {
            let ends = [subflow.local, subflow.remote, local, remote].map(address::unmapped);
            ends[..2] == ends[2..]
        }
    };
    let subflow = subflows.iter().find(is_meant).cloned().ok_or_else(|| gone(which))?;
    Ok((subflow, subflows.len()))
}

fn gone(which: Which) -> Error {
    let name = match which {
        Which::Id(id) => format!("no subflow {id}"),
        Which::Endpoints { local, remote } => format!("no subflow {local} -> {remote}"),
    };
    Error::subflow(libc::ENOTCONN, format!("the connection has {name}: it is already closed"))
}

/// The address id of a subflow's local end, where this kernel tells it.
fn local_id(subflow: &Subflow) -> Option<u8> {
    subflow.entry?.subflow.map(|subflow| subflow.local_id)
}

/// The local addresses of subflows, and their ids.
fn live_ids(subflows: &[Subflow]) -> Vec<(IpAddr, u8)> {
    subflows.iter().filter_map(|s| Some((s.local.ip().to_canonical(), local_id(s)?))).collect()
}

pub fn needs_net_admin(what: &str) -> Error {
    Error::permission(format!(
        "{what} needs CAP_NET_ADMIN in the user namespace that owns the connection's network namespace"
    ))
}

pub fn not_fully_established() -> Error {
    Error::subflow(
        libc::ENOTCONN,
        "the connection is not fully established: exchange a byte in each direction first",
    )
}

pub fn not_local(ip: IpAddr) -> Error {
    Error::subflow(
        libc::EADDRNOTAVAIL,
        format!("{ip} is not an address of the connection's network namespace"),
    )
}

pub fn ended(token: u32) -> Error {
    Error::os(libc::ENOTCONN, format!("the connection with token {token} has ended"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::io::{Read, Write};

    /// A fully established connection over loopback; `None` where the kernel has no Multipath TCP.
    pub fn loopback() -> Option<(Socket, Socket)> {
        let new = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
        let listener = new().ok()?;
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let client = new().unwrap();
        client.connect(&listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for (mut one, mut other) in [(&client, &server), (&server, &client)] {
            one.write_all(b"x").unwrap();
            other.read_exact(&mut [0]).unwrap();
        }
        Some((client, server))
    }
}
