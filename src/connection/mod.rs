//! What can be asked of one connection, and how it is read through its descriptor. [`crate::connection::by_token`] reads one
//! of which there is no descriptor.

pub mod announce;
pub mod by_token;
pub mod open;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::abi::full_info::{self, FullInfo, Reading};
use crate::abi::mptcp_info::{self, Info};
use crate::abi::tcp_info::{self, TcpInfo};
use crate::abi::uapi::{self, subflow_data, subflow_info, tcp_state};
use crate::error::{Error, Result};
use crate::events::reader::Reader;
use crate::namespace::known::Shared;
use crate::namespace::Namespace;
use crate::netlink::diag::{self, Entry, Tuple};
use crate::netlink::pm;
use crate::netlink::route;
use crate::sys;
use crate::sys::lock::lock;

/// How often subflows are read at most, until each has its id.
const READINGS: usize = 10;

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

/// A connection as this process reaches it. What is done with one needs no more than this of it.
pub trait Connection: Sync {
    fn namespace(&self) -> Result<Arc<Namespace>>;

    /// What this process knows of the connection, found by the token that it has now.
    fn shared(&self) -> Result<Arc<Shared>>;

    /// Its own local and remote end.
    fn ends(&self) -> Result<(SocketAddr, SocketAddr)>;

    /// Reading its subflows takes a dump of all connections', which costs the more the more there are.
    fn reads_by_dump(&self) -> bool {
        false
    }

    /// Its token, and its subflows; closed ones may be among them.
    fn read_with_closed(&self) -> Result<(u32, Vec<Reading>)>;

    /// A snapshot of every subflow but closed ones, oldest first.
    fn subflows(&self) -> Result<Vec<Subflow>>;
}

/// A connection through a descriptor of it.
#[derive(Debug, Clone, Copy)]
pub struct ByDescriptor<'a> {
    pub handle: &'a Handle,
    pub fd: RawFd,
}

impl Connection for ByDescriptor<'_> {
    fn namespace(&self) -> Result<Arc<Namespace>> {
        self.handle.namespace(self.fd)
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        let token = read_info(self.fd)?.token();
        if token == 0 {
            return Err(not_connected());
        }
        Ok(self.handle.shared(&*self.namespace()?, token))
    }

    fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        let remote = sys::peer_address(self.fd).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTCONN) => not_connected(),
            _ => Error::call("getpeername", &error),
        })?;
        let local = sys::local_address(self.fd).map_err(|error| Error::call("getsockname", &error))?;
        Ok((local, remote))
    }

    fn read_with_closed(&self) -> Result<(u32, Vec<Reading>)> {
        read_with_closed(self.fd).map(|read| (read.info.token(), read.subflows))
    }

    fn subflows(&self) -> Result<Vec<Subflow>> {
        self.handle.subflows(self.fd)
    }
}

fn not_connected() -> Error {
    Error::os(libc::ENOTCONN, "the socket is not connected: it has no token yet")
}

/// The path manager that a connection latched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathManager {
    Kernel,
    Userspace,
}

impl PathManager {
    /// As in the sysctl net.mptcp.path_manager.
    pub fn name(self) -> &'static str {
        match self {
            PathManager::Kernel => "kernel",
            PathManager::Userspace => "userspace",
        }
    }
}

/// Which subflow is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Id(u32),
    Endpoints { local: SocketAddr, remote: SocketAddr },
}

/// True for a connection, or a socket, that is Multipath TCP and has not fallen back.
pub fn is_multipath(fd: RawFd) -> Result<bool> {
    match sys::getsockopt_i32(fd, libc::IPPROTO_TCP, uapi::TCP_IS_MPTCP) {
        Ok(value) => return Ok(value != 0),
        Err(error) => match error.raw_os_error() {
            // Before 6.10, or not a TCP socket at all.
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => {}
            _ => return Err(Error::call("getsockopt(TCP_IS_MPTCP)", &error)),
        },
    }
    match read_info(fd) {
        Ok(_) => Ok(true),
        Err(Error::NotMultipath { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// MPTCP_INFO.
pub fn read_info(fd: RawFd) -> Result<Info> {
    let mut reply = [0; mptcp_info::SIZE];
    match sys::getsockopt(fd, uapi::SOL_MPTCP, uapi::MPTCP_INFO, &mut reply) {
        Ok(length) => Ok(Info::decode(&reply[..length])),
        Err(error) => Err(not_multipath("getsockopt(MPTCP_INFO)", &error)),
    }
}

/// After a fallback the kernel answers EOPNOTSUPP for IPv4 and ENOPROTOOPT for IPv6.
fn not_multipath(call: &str, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT) => Error::NotMultipath {
            message: format!(
                "the connection is not Multipath TCP: a plain TCP socket, or it fell back since the peer or the path \
                 does not support it ({call})"
            ),
        },
        _ => Error::call(call, error),
    }
}

/// MPTCP_FULL_INFO: everything in one reading, of any number of subflows.
pub fn read_full_info(fd: RawFd) -> std::io::Result<FullInfo> {
    let mut room = 8;
    loop {
        let mut header = [0; uapi::full_info::MPTCP_INFO + mptcp_info::SIZE];
        let mut subflows = vec![0; room * subflow_info::SIZE];
        let mut tcp_infos = vec![0; room * tcp_info::SIZE];
        let length =
            sys::getsockopt_full_info(fd, &mut header, &mut subflows, &mut tcp_infos, tcp_info::SIZE)?;
        let Some(reply) =
            full_info::decode_full_info(&header[..length], &subflows, &tcp_infos, tcp_info::SIZE)
        else {
            return Err(std::io::Error::from_raw_os_error(libc::EBADMSG));
        };
        if reply.total <= room {
            return Ok(reply);
        }
        room = reply.total + 8;
    }
}

/// The same from MPTCP_SUBFLOW_ADDRS and MPTCP_TCPINFO, for kernels before 6.5. The two are separate readings:
/// they are repeated until the addresses before and after agree, so that each tcp_info has its own addresses.
/// EAGAIN if they never do.
pub fn read_by_parts(fd: RawFd) -> std::io::Result<FullInfo> {
    const ADDRS: usize = 2 * uapi::SOCKADDR_STORAGE;
    let array = |name, element_size: usize, room: usize| {
        let mut buffer = vec![0; subflow_data::SIZE + room * element_size];
        let (head, _) = buffer.split_at_mut(subflow_data::SIZE);
        full_info::encode_subflow_data(head, element_size);
        sys::getsockopt(fd, uapi::SOL_MPTCP, name, &mut buffer).map(|length| {
            buffer.truncate(length);
            buffer
        })
    };
    let bad_message = || std::io::Error::from_raw_os_error(libc::EBADMSG);
    let mut room = 8;
    for _ in 0..1000 {
        let addrs = array(uapi::MPTCP_SUBFLOW_ADDRS, ADDRS, room)?;
        let tcp_infos = array(uapi::MPTCP_TCPINFO, tcp_info::SIZE, room)?;
        let again = array(uapi::MPTCP_SUBFLOW_ADDRS, ADDRS, room)?;
        let (total, addrs_read) = full_info::decode_subflow_data(&addrs, ADDRS).ok_or_else(bad_message)?;
        let (_, infos_read) =
            full_info::decode_subflow_data(&tcp_infos, tcp_info::SIZE).ok_or_else(bad_message)?;
        if total > room {
            room = total + 8;
            continue;
        }
        if addrs != again || infos_read.len() != addrs_read.len() {
            continue;
        }
        let info = read_info(fd).map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
        let subflows = addrs_read.iter().zip(&infos_read).filter_map(|(element, tcp_info)| {
            let (local, remote) = full_info::decode_subflow_addrs(element)?;
            Some(Reading { id: None, local, remote, tcp_info: TcpInfo::decode(tcp_info) })
        });
        return Ok(FullInfo { info, total, subflows: subflows.collect() });
    }
    Err(std::io::Error::from_raw_os_error(libc::EAGAIN))
}

/// The subflows of a connection. What else the kernel lists is left out: a closed initial subflow, which stays in
/// its list, and the TCP socket of one that listens.
pub fn read(fd: RawFd) -> Result<FullInfo> {
    let mut read = read_with_closed(fd)?;
    read.subflows.retain(|r| ![tcp_state::CLOSE, tcp_state::LISTEN].contains(&r.tcp_info.state()));
    Ok(read)
}

/// All that the kernel lists, by the best call that it has.
pub fn read_with_closed(fd: RawFd) -> Result<FullInfo> {
    static NO_FULL_INFO: AtomicBool = AtomicBool::new(false);
    let read = if NO_FULL_INFO.load(Ordering::Relaxed) {
        read_by_parts(fd)
    } else {
        match read_full_info(fd) {
            // Before 6.5, or fallen back: the older calls tell which.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let by_parts = read_by_parts(fd);
                if by_parts.is_ok() {
                    NO_FULL_INFO.store(true, Ordering::Relaxed);
                }
                by_parts
            }
            result => result,
        }
    };
    read.map_err(|error| not_multipath("getsockopt(MPTCP_FULL_INFO)", &error))
}

/// One descriptor of a connection: its namespace, found when it is first needed, and what is held for it.
#[derive(Debug, Default)]
pub struct Handle {
    namespace: Mutex<Option<Arc<Namespace>>>,
    shared: Mutex<Option<Arc<Shared>>>,
    events: Mutex<Option<Arc<Reader>>>,
}

impl Handle {
    /// The namespace of the socket; found anew after a fork.
    pub fn namespace(&self, fd: RawFd) -> Result<Arc<Namespace>> {
        let mut namespace = lock(&self.namespace);
        if let Some(found) = namespace.as_ref().filter(|found| found.is_ours()) {
            return Ok(Arc::clone(found));
        }
        let found = Namespace::of_socket(fd)?;
        *namespace = Some(Arc::clone(&found));
        Ok(found)
    }

    /// What this process knows of the connection with this token.
    pub fn shared(&self, namespace: &Namespace, token: u32) -> Arc<Shared> {
        let mut shared = lock(&self.shared);
        match shared.as_ref().filter(|shared| shared.token == token) {
            Some(shared) => Arc::clone(shared),
            None => Arc::clone(shared.insert(namespace.connection(token))),
        }
    }

    /// The path manager that the connection latched, from the connection itself.
    pub fn path_manager(&self, fd: RawFd) -> Result<PathManager> {
        let info = read_info(fd)?;
        if info.token() == 0 {
            return Err(not_connected());
        }
        let namespace = self.namespace(fd)?;
        latched(&namespace, info.token())
    }

    /// Holds the event subscription of the socket's namespace for as long as this handle lives, if joins of its
    /// connections depend on it. `latched` is the path manager where the caller knows it.
    pub fn hold_events(&self, fd: RawFd, latched: Option<PathManager>) -> Result<()> {
        let userspace = match latched.map_or_else(|| self.path_manager(fd), Ok) {
            Ok(path_manager) => path_manager == PathManager::Userspace,
            // Not connected: what it will latch, or has latched, is the namespace's choice.
            Err(error) if error.errno() == libc::ENOTCONN => {
                self.namespace(fd)?.path_manager()? == PathManager::Userspace.name()
            }
            Err(error) => return Err(error),
        };
        if userspace {
            let reader = self.namespace(fd)?.reader()?;
            *lock(&self.events) = Some(reader);
        }
        Ok(())
    }

    /// Lets go of the subscription and of the namespace: the socket is closed.
    pub fn release(&self) {
        *lock(&self.events) = None;
        *lock(&self.shared) = None;
        *lock(&self.namespace) = None;
    }

    /// A snapshot of every subflow but closed ones, oldest first. Before 6.5 the ids are ours, and one that was gone when
    /// inet_diag was asked has none: the next reading is without it.
    pub fn subflows(&self, fd: RawFd) -> Result<Vec<Subflow>> {
        for _ in 1..READINGS {
            let subflows = self.snapshot(fd)?;
            if subflows.iter().all(|subflow| subflow.id.is_some()) {
                return Ok(subflows);
            }
        }
        self.snapshot(fd)
    }

    fn snapshot(&self, fd: RawFd) -> Result<Vec<Subflow>> {
        let read = read(fd)?;
        if read.subflows.is_empty() {
            return Ok(Vec::new());
        }
        let namespace = self.namespace(fd)?;
        let shared = self.shared(&namespace, read.info.token());
        let entries = entries(&namespace, &shared, &read.subflows)?;
        let ids = match read.subflows.first() {
            Some(Reading { id: Some(_), .. }) => read.subflows.iter().map(|reading| reading.id).collect(),
            _ => shared.ordinals(&entries),
        };
        Ok(read
            .subflows
            .into_iter()
            .zip(entries)
            .zip(ids)
            .map(|((reading, entry), id)| Subflow::new(shared.token, id, reading, entry))
            .collect())
    }
}

/// The live subflow that is meant.
fn find(connection: &dyn Connection, which: Which) -> Result<(Subflow, usize)> {
    let subflows = connection.subflows()?;
    let is_meant = |subflow: &&Subflow| match which {
        Which::Id(id) => subflow.id == Some(id),
        Which::Endpoints { local, remote } => subflow.local == local && subflow.remote == remote,
    };
    let subflow = subflows.iter().find(is_meant).cloned().ok_or_else(|| gone(which))?;
    Ok((subflow, subflows.len()))
}

fn gone(which: Which) -> Error {
    let name = match which {
        Which::Id(id) => format!("no subflow {id}"),
        Which::Endpoints { local, remote } => format!("no subflow {local} -> {remote}"),
    };
    Error::subflow(libc::ENOTCONN, format!("the connection has {name}: it is closed already"))
}

/// Closes one subflow: SUBFLOW_DESTROY under the userspace path manager, SOCK_DESTROY under another.
/// Needs CAP_NET_ADMIN.
pub fn close_subflow(connection: &dyn Connection, which: Which, force: bool) -> Result<()> {
    let (subflow, live) = find(connection, which)?;
    let namespace = connection.namespace()?;
    let ends = (pm::Address::new(subflow.local), pm::Address::new(subflow.remote));
    match namespace.pm.command(&pm::encode_destroy(subflow.token, &ends.0, &ends.1))? {
        Ok(()) => return Ok(()),
        Err(failure) => match failure.errno {
            libc::ESRCH => return Err(gone(which)),
            libc::EINVAL => {} // not under the userspace path manager
            libc::EPERM => return Err(needs_net_admin("closing a subflow")),
            errno => return Err(Error::subflow(errno, format!("SUBFLOW_DESTROY: {}", failure.describe()))),
        },
    }
    if live == 1 && !force {
        return Err(Error::PathManager {
            message:
                "this is the last subflow, and under the in-kernel path manager nothing could open another: \
                      pass force=True to close it all the same, or close the socket"
                    .to_owned(),
        });
    }
    destroy(&namespace, &subflow, which)
}

/// Closes one subflow by a reset, whatever the path manager: SOCK_DESTROY. Needs CAP_NET_ADMIN.
pub fn reset_subflow(connection: &dyn Connection, which: Which) -> Result<()> {
    let (subflow, _) = find(connection, which)?;
    destroy(&*connection.namespace()?, &subflow, which)
}

fn destroy(namespace: &Namespace, subflow: &Subflow, which: Which) -> Result<()> {
    let entry = subflow.entry.ok_or_else(|| gone(which))?;
    let destroyed = diag::destroy(&mut lock(&namespace.diag), &entry.tuple, entry.cookie);
    destroyed.map_err(|failure| match failure.errno {
        libc::ENOENT => gone(which),
        libc::EPERM => needs_net_admin("closing a subflow"),
        libc::EOPNOTSUPP => Error::unsupported(
            "this kernel has no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY), which resets subflows and closes them under \
             the in-kernel path manager",
        ),
        errno => Error::subflow(errno, format!("SOCK_DESTROY: {}", failure.describe())),
    })
}

/// Changes one subflow's priority by MP_PRIO. Needs CAP_NET_ADMIN and the userspace path manager.
pub fn set_backup(connection: &dyn Connection, which: Which, backup: bool) -> Result<()> {
    let (subflow, _) = find(connection, which)?;
    let namespace = connection.namespace()?;
    let flags = if backup { uapi::pm::FLAG_BACKUP } else { 0 };
    let local = pm::Address { flags, ..pm::Address::new(subflow.local) };
    let remote = pm::Address::new(subflow.remote);
    let Err(failure) = namespace.pm.command(&pm::encode_set_flags(subflow.token, &local, &remote))? else {
        return Ok(());
    };
    match failure.errno {
        libc::EPERM => Err(needs_net_admin("changing a subflow's priority")),
        // Not under the userspace path manager, or no such subflow.
        libc::EINVAL => {
            explain_einval(&namespace, subflow.token, subflow.local.ip(), 0)?;
            find(connection, which)?;
            Err(Error::subflow(libc::EINVAL, format!("SET_FLAGS: {}", failure.describe())))
        }
        errno => Err(Error::subflow(errno, format!("SET_FLAGS: {}", failure.describe()))),
    }
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

fn under_kernel_path_manager() -> Error {
    Error::PathManager {
        message:
            "the connection is under the in-kernel path manager, which alone changes its subflows and addresses: \
                  create the socket with path_manager=\"userspace\", or accept it within \
                  use_path_manager(\"userspace\")"
                .to_owned(),
    }
}

/// Errors that hide behind EINVAL, which the kernel says to nearly everything.
pub fn explain_einval(namespace: &Namespace, token: u32, local: IpAddr, interface: u32) -> Result<()> {
    if latched_of_token(namespace, token)? == PathManager::Kernel {
        return Err(under_kernel_path_manager());
    }
    let route = route::look_up(&mut lock(&namespace.route), local.to_canonical(), interface);
    match route {
        Ok(route) if route.is_local => Ok(()),
        _ => Err(not_local(local)),
    }
}

/// Which path manager a connection latched. Nothing says so directly: a command that names a subflow which cannot
/// exist fails with ESRCH under the userspace path manager and with EINVAL under any other, and changes nothing.
pub fn latched(namespace: &Namespace, token: u32) -> Result<PathManager> {
    match latched_of_token(namespace, token) {
        Err(error) if error.errno() == libc::EPERM => {
            // Without privilege: GET_ADDR minds the token since 6.10, and refuses one that is not under the userspace
            // path manager as it refuses 0, which is nobody's.
            let tells = |token| namespace.pm.local_addresses(token).map(|addresses| addresses.is_ok());
            match (tells(token)?, tells(0)?) {
                (_, true) => Err(error),
                (true, false) => Ok(PathManager::Userspace),
                (false, false) if has_ended(namespace, token)? => Err(ended(token)),
                (false, false) => Ok(PathManager::Kernel),
            }
        }
        result => result,
    }
}

/// The part of `latched` that needs CAP_NET_ADMIN and works on every kernel.
pub fn latched_of_token(namespace: &Namespace, token: u32) -> Result<PathManager> {
    let nobody = pm::Address::new(SocketAddr::from(([127, 0, 0, 1], 1)));
    match namespace.pm.command(&pm::encode_destroy(token, &nobody, &nobody))?.map_err(|failure| failure.errno)
    {
        // What it says of a token that is nobody's any more, too.
        Err(libc::EINVAL) if has_ended(namespace, token)? => Err(ended(token)),
        Err(libc::EINVAL) => Ok(PathManager::Kernel),
        Err(libc::EPERM) => Err(needs_net_admin("telling a connection's path manager on this kernel")),
        _ => Ok(PathManager::Userspace),
    }
}

/// Whether no connection has this token. False where inet_diag knows no connections and nobody tells.
fn has_ended(namespace: &Namespace, token: u32) -> Result<bool> {
    let mut channel = lock(&namespace.diag);
    let found = diag::look_up_tokens(&mut channel, &[token]).map_err(diag::failed)?.pop().flatten();
    Ok(found.is_none() && diag::dump_connections(&mut channel, |_| {}).is_ok())
}

pub fn ended(token: u32) -> Error {
    Error::os(libc::ENOTCONN, format!("the connection with token {token} has ended"))
}

/// The inet_diag entries of subflows, by exact look-ups. One that is bound to an interface which we do not know
/// is found in a dump, and remembered.
fn entries(namespace: &Namespace, shared: &Shared, readings: &[Reading]) -> Result<Vec<Option<Entry>>> {
    let tuples: Vec<Tuple> = {
        let mut interfaces = lock(&shared.interfaces);
        if interfaces.len() > readings.len() {
            interfaces.retain(|ends, _| readings.iter().any(|r| (r.local, r.remote) == *ends));
        }
        let interface = |r: &Reading| interfaces.get(&(r.local, r.remote)).copied().unwrap_or(0);
        readings.iter().map(|r| Tuple { local: r.local, remote: r.remote, interface: interface(r) }).collect()
    };
    let mut channel = lock(&namespace.diag);
    let mut entries = diag::look_up(&mut channel, &tuples).map_err(diag::failed)?;
    // The same tuple may by now belong to another connection; where the kernel tells no token, its cookie is not ours
    // in the next snapshot.
    let is_ours = |entry: &Entry| entry.subflow.is_none_or(|subflow| subflow.token == shared.token);
    for entry in &mut entries {
        *entry = entry.filter(is_ours);
    }
    if entries.iter().any(Option::is_none) {
        diag::dump(&mut channel, |entry, _| {
            if is_ours(&entry) {
                let found = tuples.iter().position(|tuple| tuple.same_endpoints(&entry.tuple));
                if let Some(index) = found.filter(|index| entries[*index].is_none()) {
                    let reading = &readings[index];
                    lock(&shared.interfaces).insert((reading.local, reading.remote), entry.tuple.interface);
                    entries[index] = Some(entry);
                }
            }
        })
        .map_err(diag::failed)?;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    /// A fully established connection over loopback; `None` where the kernel has no Multipath TCP.
    fn loopback() -> Option<(Socket, Socket)> {
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

    #[test]
    fn the_older_calls_tell_the_same_as_full_info() {
        let Some((client, server)) = loopback() else {
            eprintln!("skipped: no Multipath TCP here");
            return;
        };
        for socket in [&client, &server] {
            let by_parts = read_by_parts(socket.as_raw_fd()).unwrap();
            let Ok(full) = read_full_info(socket.as_raw_fd()) else {
                eprintln!("skipped: MPTCP_FULL_INFO needs Linux 6.5");
                return;
            };
            assert_eq!(full.total, 1);
            assert_eq!(by_parts.total, 1);
            assert_eq!(by_parts.info.token(), full.info.token());
            let (a, b) = (&by_parts.subflows[0], &full.subflows[0]);
            assert_eq!((a.local, a.remote), (b.local, b.remote));
            assert_eq!((a.id, b.id), (None, Some(1)));
            let rtt = |reading: &Reading| tcp_info::field::rtt.read(reading.tcp_info.bytes());
            assert_eq!(rtt(a), rtt(b));
            assert_eq!(a.tcp_info.bytes().len(), b.tcp_info.bytes().len());
        }
    }

    #[test]
    fn the_path_manager_of_a_connection_that_has_ended_is_not_told() {
        let Some((client, server)) = loopback() else {
            eprintln!("skipped: no Multipath TCP here");
            return;
        };
        let namespace = Namespace::current().unwrap();
        let token = read_info(client.as_raw_fd()).unwrap().token();
        let before = latched(&namespace, token);
        if matches!(&before, Err(error) if error.errno() == libc::EPERM) {
            eprintln!("skipped: this kernel tells the path manager to the privileged only");
            return;
        }
        assert!(before.is_ok());
        // The connection is gone at once.
        client.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop((client, server));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while latched(&namespace, token) == before {
            assert!(std::time::Instant::now() < deadline, "still told");
            std::thread::yield_now();
        }
        assert_eq!(latched(&namespace, token), Err(ended(token)));
    }

    #[test]
    fn plain_tcp_is_told() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert_eq!(is_multipath(socket.as_raw_fd()), Ok(false));
        assert!(matches!(read_info(socket.as_raw_fd()), Err(Error::NotMultipath { .. })));
        assert!(matches!(read(socket.as_raw_fd()), Err(Error::NotMultipath { .. })));
    }
}
