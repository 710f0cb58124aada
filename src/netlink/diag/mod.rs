//! Look-ups by inet_diag: of subflows by their ends, of connections by their tokens, dumps of both, and SOCK_DESTROY.
//! Only [`read_info`] waits for a connection's lock, because it alone asks the connection itself for INET_DIAG_INFO; of
//! a subflow that takes the subflow's lock. Only SOCK_DESTROY needs CAP_NET_ADMIN. [`codec`] has the bytes.

pub mod codec;
mod untold;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::abi::bytes;
use crate::abi::mptcp_info::Info;
use crate::abi::tcp_info::TcpInfo;
use crate::abi::uapi::{diag, tcp_state};
use crate::error::Error;
use crate::netlink::diag::codec::{
    decode, decode_attributes, decode_info, encode_attributes_request, encode_dump,
    encode_dump_of_all_families, encode_mptcp, encode_request, is_multipath, INFO,
};
pub use crate::netlink::diag::codec::{Attributes, Entry, Tuple, Ulp};
use crate::netlink::{Channel, Failure};

/// Look-ups sent in one message: their replies have to fit into the socket's receive buffer.
const BATCH: usize = 64;

/// inet_diag failed as a whole.
pub fn failed(failure: Failure) -> Error {
    Error::os(failure.errno, format!("inet_diag: {}", failure.describe()))
}

/// Looks the socket options of one subflow up, by its exact four-tuple and its cookie; `None` if it is gone.
pub fn look_up_attributes(
    channel: &mut Channel,
    tuple: &Tuple,
    cookie: u64,
) -> Result<Option<Attributes>, Failure> {
    match channel.request(diag::SOCK_DIAG_BY_FAMILY, &encode_attributes_request(tuple, cookie)) {
        Ok(payload) => {
            let mut told = decode_attributes(&payload);
            untold::fill(channel, told.iter_mut().map(|told| &mut told.entry))?;
            Ok(told)
        }
        // ESTALE: another socket has the four-tuple now.
        Err(failure) if [libc::ENOENT, libc::ESTALE].contains(&failure.errno) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Looks subflows up by their exact four-tuples. One that does not exist, or whose tuple belongs to a listener
/// or to a socket in TIME_WAIT, is `None`. Kernels before 6.15 report the MPTCP part only with CAP_NET_ADMIN: without it,
/// and without a broker, the entries lack that part.
pub fn look_up(channel: &mut Channel, tuples: &[Tuple]) -> Result<Vec<Option<Entry>>, Failure> {
    let mut entries = look_up_all(
        channel,
        tuples,
        |tuple| encode_request(tuple, diag::NOCOOKIE),
        |tuple, payload| {
            decode(payload).filter(|entry| is_connection(entry) && entry.tuple.same_endpoints(tuple))
        },
    )?;
    untold::fill(channel, entries.iter_mut().flatten())?;
    Ok(entries)
}

fn is_connection(entry: &Entry) -> bool {
    ![tcp_state::LISTEN, tcp_state::TIME_WAIT].contains(&entry.state)
}

/// What makes sockets with these four-tuples and cookies subflows; `None` for one that is no subflow, or gone. Waits for
/// the lock of each, of plain TCP sockets too.
pub fn look_up_ulps(channel: &mut Channel, asked: &[(Tuple, u64)]) -> Result<Vec<Option<Ulp>>, Failure> {
    look_up_all(
        channel,
        asked,
        |(tuple, _)| encode_request(tuple, diag::NOCOOKIE),
        |(_, cookie), payload| decode(payload).filter(|entry| entry.cookie == *cookie)?.subflow,
    )
}

/// The same of what is a subflow, with its `tcp_info`.
pub fn look_up_with_info(
    channel: &mut Channel,
    tuples: &[Tuple],
) -> Result<Vec<Option<(Entry, TcpInfo)>>, Failure> {
    let mut found = look_up_all(
        channel,
        tuples,
        |tuple| encode_request(tuple, diag::NOCOOKIE),
        |tuple, payload| {
            decode(payload)
                .filter(|entry| is_connection(entry) && entry.tuple.same_endpoints(tuple))
                .map(|entry| (entry, TcpInfo::decode(decode_info(payload))))
        },
    )?;
    untold::fill(channel, found.iter_mut().flatten().map(|(entry, _)| entry))?;
    for found in &mut found {
        *found = found.take().filter(|(entry, _)| entry.subflow.is_some());
    }
    Ok(found)
}

/// Looks connections up by their tokens, without their locks; one that does not exist is `None`.
pub fn look_up_tokens(channel: &mut Channel, tokens: &[u32]) -> Result<Vec<Option<Entry>>, Failure> {
    look_up_all(channel, tokens, |token| encode_mptcp(libc::AF_INET, *token, 0), |_, payload| decode(payload))
}

/// Sends one look-up an item, in batches. What does not exist is `None`.
fn look_up_all<T, P: AsRef<[u8]>, R: Clone>(
    channel: &mut Channel,
    items: &[T],
    encode: impl Fn(&T) -> P,
    decode: impl Fn(&T, &[u8]) -> Option<R>,
) -> Result<Vec<Option<R>>, Failure> {
    let mut entries = Vec::with_capacity(items.len());
    let mut failed = None;
    for batch in items.chunks(BATCH) {
        let start = entries.len();
        entries.resize(start + batch.len(), None);
        let requests = batch.iter().map(&encode);
        channel.exchange(diag::SOCK_DIAG_BY_FAMILY, 0, requests, |index, reply| match reply {
            Ok(payload) => entries[start + index] = decode(&batch[index], payload),
            Err(failure) if failure.errno == libc::ENOENT => {}
            Err(failure) => failed = Some(failure),
        })?;
    }
    match failed {
        None => Ok(entries),
        Some(failure) => Err(failure),
    }
}

/// Every TCP socket of the namespace that may be a subflow, with the bytes of its `tcp_info`. Waits for the lock of each in
/// turn, those of other programs too.
pub fn dump_sockets(channel: &mut Channel, on_socket: impl FnMut(Entry, &[u8])) -> Result<(), Failure> {
    let mut passing = Passing::new(on_socket);
    channel
        .dump(diag::TCPDIAG_GETSOCK, &encode_dump_of_all_families(INFO), |payload| passing.pass(payload))?;
    passing.end(channel)
}

/// Passes sockets on, those last of which the kernel may have kept back what makes them subflows.
struct Passing<F> {
    on_socket: F,
    may_be_untold: bool,
    entries: Vec<Entry>,
    infos: Vec<Vec<u8>>,
}

impl<F: FnMut(Entry, &[u8])> Passing<F> {
    fn new(on_socket: F) -> Passing<F> {
        Passing { on_socket, may_be_untold: untold::may_be(), entries: Vec::new(), infos: Vec::new() }
    }

    fn pass(&mut self, payload: &[u8]) {
        let Some(entry) = decode(payload) else { return };
        let info = decode_info(payload);
        if self.may_be_untold && entry.subflow.is_none() {
            self.entries.push(entry);
            self.infos.push(info.to_vec());
        } else {
            (self.on_socket)(entry, info);
        }
    }

    fn end(mut self, channel: &Channel) -> Result<(), Failure> {
        untold::fill(channel, self.entries.iter_mut())?;
        for (entry, info) in self.entries.into_iter().zip(&self.infos) {
            (self.on_socket)(entry, info);
        }
        Ok(())
    }
}

/// Every subflow of the namespace, of all connections. Waits for the locks of subflows only, which nobody holds for long. A
/// program can hold the lock of a plain TCP socket for as long as it likes, by a sender that is stuck in a page fault.
///
/// The kernel reports what makes a TCP socket a subflow under that socket's lock. So only those are asked that share the
/// inode of a connection, or that have none, as before accept(). Subflows of a connection that its owner has closed keep
/// its inode while the connection itself has none: theirs is that of its initial subflow, which has the same ends. Where
/// that is closed too, every socket is asked.
pub fn dump(channel: &mut Channel, mut on_subflow: impl FnMut(Entry, TcpInfo)) -> Result<(), Failure> {
    let mut inodes = HashSet::from([0]);
    let mut closed = Vec::new();
    let on_socket = |entry: Entry, info: &[u8]| {
        if entry.subflow.is_some() {
            on_subflow(entry, TcpInfo::decode(info));
        }
    };
    match dump_connections(channel, |entry| {
        if entry.inode == 0 {
            closed.push(entry.tuple.endpoints());
        }
        inodes.insert(entry.inode);
    }) {
        Ok(()) => {}
        // The kernel has no inet_diag for connections.
        Err(failure) if failure.errno == libc::ENOENT => return dump_sockets(channel, on_socket),
        Err(failure) => return Err(failure),
    }
    let mut candidates = Vec::new();
    channel.dump(diag::TCPDIAG_GETSOCK, &encode_dump_of_all_families(0), |payload| {
        candidates.extend(decode(payload));
    })?;
    if !closed.is_empty() {
        let by_ends: HashMap<_, u32> =
            candidates.iter().map(|entry| (entry.tuple.endpoints(), entry.inode)).collect();
        let initial: Option<Vec<u32>> = closed.iter().map(|ends| by_ends.get(ends).copied()).collect();
        match initial {
            Some(initial) => inodes.extend(initial),
            None => inodes.extend(candidates.iter().map(|entry| entry.inode)),
        }
    }
    candidates.retain(|entry| inodes.contains(&entry.inode));
    let mut failed = None;
    let mut passing = Passing::new(on_socket);
    for batch in candidates.chunks(BATCH) {
        let requests = batch.iter().map(|entry| encode_request(&entry.tuple, entry.cookie));
        channel.exchange(diag::SOCK_DIAG_BY_FAMILY, 0, requests, |_, reply| match reply {
            Ok(payload) => passing.pass(payload),
            // It has ended, or another socket has its four-tuple now.
            Err(failure) if [libc::ENOENT, libc::ESTALE].contains(&failure.errno) => {}
            Err(failure) => failed = Some(failure),
        })?;
    }
    failed.map_or(Ok(()), Err)?;
    passing.end(channel)
}

/// The local ends of every Multipath TCP listener of the namespace.
pub fn dump_listeners(channel: &mut Channel, mut on_listener: impl FnMut(SocketAddr)) -> Result<(), Failure> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = encode_dump(family as u8);
        bytes::put(&mut request, 4, &(1u32 << tcp_state::LISTEN).to_ne_bytes());
        channel.dump(diag::SOCK_DIAG_BY_FAMILY, &request, |payload| {
            if let Some(entry) = decode(payload).filter(|_| is_multipath(payload)) {
                on_listener(entry.tuple.local);
            }
        })?;
    }
    Ok(())
}

/// `struct mptcp_info` of the connection with this token; `None` if there is no such connection. Waits for that
/// connection's lock.
pub fn read_info(channel: &mut Channel, token: u32) -> Result<Option<Info>, Failure> {
    match channel.request(diag::SOCK_DIAG_BY_FAMILY, &encode_mptcp(libc::AF_INET, token, INFO)) {
        Ok(payload) => match decode_info(&payload) {
            [] => Err(Failure { errno: libc::EBADMSG, text: None }),
            info => Ok(Some(Info::decode(info))),
        },
        Err(failure) if failure.errno == libc::ENOENT => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Every connection of the namespace, without its lock, and without its token, which needs the lock. ENOENT
/// where the kernel has no inet_diag for connections.
pub fn dump_connections(channel: &mut Channel, mut on_entry: impl FnMut(Entry)) -> Result<(), Failure> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = encode_mptcp(family, 0, 0);
        channel.dump(diag::SOCK_DIAG_BY_FAMILY, &request, |payload| {
            if let Some(entry) = decode(payload) {
                on_entry(entry);
            }
        })?;
    }
    Ok(())
}

/// An error where the kernel hides subflows, so that none seem to exist: before 6.15 it does without CAP_NET_ADMIN. The
/// sign is an established subflow between the ends of one of these connections.
pub fn check_told(channel: &mut Channel, connections: &[Entry]) -> Result<(), Error> {
    let tuples: Vec<Tuple> = connections.iter().map(|connection| connection.tuple).collect();
    let found = look_up(channel, &tuples).map_err(failed)?;
    let untold = |(connection, subflow): (&Entry, Option<Entry>)| {
        subflow.is_some_and(|entry| {
            entry.inode == connection.inode
                && entry.state == tcp_state::ESTABLISHED
                && entry.subflow.is_none()
        })
    };
    if connections.iter().zip(found).any(untold) {
        return Err(Error::permission(format!(
            "reading subflows needs CAP_NET_ADMIN in the user namespace that owns the network namespace: before Linux \
             6.15 the kernel reports them to nobody else{}",
            untold::advice(channel)
        )));
    }
    Ok(())
}

/// The same where no subflow of any connection was found. Cannot be told without inet_diag for connections.
pub fn check_tells(channel: &mut Channel) -> Result<(), Error> {
    let mut some = Vec::new();
    let listed = dump_connections(channel, |entry| {
        if some.len() < BATCH {
            some.push(entry);
        }
    });
    listed.map_or(Ok(()), |()| check_told(channel, &some))
}

/// The listener that would take a connection from anywhere to `local`: whether it is one of Multipath TCP.
pub fn listener(channel: &mut Channel, local: SocketAddr, interface: u32) -> Result<Option<bool>, Failure> {
    let tuple = Tuple { local, remote: nobody(local), interface };
    match channel.request(diag::SOCK_DIAG_BY_FAMILY, &encode_request(&tuple, diag::NOCOOKIE)) {
        Ok(payload) => {
            let listens = decode(&payload).is_some_and(|entry| entry.state == tcp_state::LISTEN);
            Ok(listens.then(|| is_multipath(&payload)))
        }
        Err(failure) if failure.errno == libc::ENOENT => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The user whose listener takes connections from anywhere to `local`.
pub fn owner_of_listener(channel: &mut Channel, local: SocketAddr) -> Result<Option<u32>, Failure> {
    let tuple = Tuple { local, remote: nobody(local), interface: 0 };
    match channel.request(diag::SOCK_DIAG_BY_FAMILY, &encode_request(&tuple, diag::NOCOOKIE)) {
        Ok(payload) => {
            let listener = decode(&payload).filter(|entry| entry.state == tcp_state::LISTEN);
            Ok(listener.map(|entry| entry.uid))
        }
        Err(failure) if failure.errno == libc::ENOENT => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The unspecified address of the same family, which no connection comes from.
fn nobody(local: SocketAddr) -> SocketAddr {
    let ip = match local.ip() {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    SocketAddr::new(ip, 0)
}

/// SOCK_DESTROY, as `ss -K`: aborts exactly the socket with this cookie. Needs CAP_NET_ADMIN.
pub fn destroy(channel: &mut Channel, tuple: &Tuple, cookie: u64) -> Result<(), Failure> {
    channel.command(diag::SOCK_DESTROY, &encode_request(tuple, cookie))
}
