//! A connection that this process has a descriptor of, read by getsockopt at SOL_MPTCP.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::Arc;

use crate::abi::full_info::{self, FullInfo, Reading};
use crate::abi::mptcp_info::{self, Info};
use crate::abi::tcp_info::{self, TcpInfo};
use crate::abi::uapi::{self, subflow_data, subflow_info, tcp_state};
use crate::connection::path_manager::latched;
use crate::connection::{Connection, Subflow};
use crate::error::{Error, Result};
use crate::events::reader::Reader;
use crate::namespace::known::Known;
use crate::namespace::path_manager::PathManager;
use crate::namespace::Namespace;
use crate::netlink::broker;
use crate::netlink::diag::{self, Entry, Tuple};
use crate::sys;
use crate::sys::lock::{lock, PerProcess};

/// How often subflows are read at most, until each has its id.
const READINGS: usize = 10;

/// As many subflows as a first reading has room for.
const ROOM: usize = 8;

/// A connection through a descriptor of it, which stays its owner's: what was found by it, and what is held for it.
#[derive(Debug)]
pub struct ByDescriptor {
    /// Shared with what proves to a broker that the connection is ours.
    fd: Arc<AtomicI32>,
    held: PerProcess<Held>,
}

#[derive(Debug, Default)]
struct Held {
    namespace: Option<Arc<Namespace>>,
    known: Option<Arc<Known>>,
    events: Option<Arc<Reader>>,
}

impl Connection for ByDescriptor {
    fn namespace(&self) -> Result<Arc<Namespace>> {
        let mut held = self.held.lock();
        match &held.namespace {
            Some(found) => Ok(Arc::clone(found)),
            None => Ok(Arc::clone(held.namespace.insert(Namespace::of_socket(self.fd())?))),
        }
    }

    fn known(&self) -> Result<Arc<Known>> {
        let token = self.token()?;
        Ok(self.known_by(&*self.namespace()?, token))
    }

    fn known_before(&self) -> Option<Arc<Known>> {
        self.held.lock().known.clone()
    }

    fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        let remote = sys::peer_address(self.fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTCONN) => read_info(self.fd()).map_or_else(|error| error, |info| no_token(&info)),
            _ => Error::call("getpeername", &error),
        })?;
        let local = sys::local_address(self.fd()).map_err(|error| Error::call("getsockname", &error))?;
        Ok((local, remote))
    }

    fn info(&self) -> Result<Info> {
        read_info(self.fd())
    }

    fn path_manager(&self) -> Result<PathManager> {
        let (namespace, token) = (self.namespace()?, self.token()?);
        // Only that: who keeps what is known of the connection also keeps its listeners.
        broker::remember(namespace.cookie, token, &self.fd);
        latched(&namespace, token)
    }

    fn read_with_closed(&self) -> Result<(u32, Vec<Reading>)> {
        read_with_closed(self.fd()).map(|read| (read.info.token(), read.subflows))
    }

    /// Before 6.5 the ids are our own, and a subflow that was gone by the inet_diag look-up has none: the next reading
    /// does not have it.
    fn subflows(&self) -> Result<Vec<Subflow>> {
        for _ in 1..READINGS {
            let subflows = self.snapshot()?;
            if subflows.iter().all(|subflow| subflow.id.is_some()) {
                return Ok(subflows);
            }
        }
        self.snapshot()
    }
}

impl ByDescriptor {
    pub fn new(fd: RawFd) -> ByDescriptor {
        ByDescriptor { fd: Arc::new(AtomicI32::new(fd)), held: PerProcess::new() }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.load(Ordering::Relaxed)
    }

    /// The socket has another descriptor now.
    pub fn attach(&self, fd: RawFd) {
        self.fd.store(fd, Ordering::Relaxed);
    }

    /// The socket is closed, or somebody else's: lets go of the descriptor, the subscription and the namespace.
    pub fn release(&self) {
        self.attach(-1);
        let held = std::mem::take(&mut *self.held.lock());
        drop(held); // the last subscription ends its thread, which takes a moment
    }

    /// Holds the event subscription of the socket's namespace for as long as this lives, if joins of its connections
    /// depend on it. `latched` is the path manager where the caller knows it.
    pub fn hold_events(&self, latched: Option<PathManager>) -> Result<()> {
        let userspace = match latched.map_or_else(|| self.path_manager(), Ok) {
            Ok(path_manager) => path_manager == PathManager::Userspace,
            // Not connected: what it will latch, or has latched, is the namespace's choice.
            Err(error) if error.errno() == libc::ENOTCONN => {
                self.namespace()?.path_manager()? == PathManager::Userspace.name()
            }
            Err(error) => return Err(error),
        };
        if userspace {
            let reader = self.namespace()?.reader()?;
            let before = self.held.lock().events.replace(reader);
            drop(before);
        }
        Ok(())
    }

    fn token(&self) -> Result<u32> {
        let info = read_info(self.fd())?;
        match info.token() {
            0 => Err(no_token(&info)),
            token => Ok(token),
        }
    }

    /// What this process knows of the connection with this token.
    fn known_by(&self, namespace: &Namespace, token: u32) -> Arc<Known> {
        let mut held = self.held.lock();
        match held.known.as_ref().filter(|known| known.token == token) {
            Some(known) => Arc::clone(known),
            None => {
                broker::remember(namespace.cookie, token, &self.fd);
                Arc::clone(held.known.insert(namespace.connection(token)))
            }
        }
    }

    fn snapshot(&self) -> Result<Vec<Subflow>> {
        let read = read(self.fd())?;
        if read.subflows.is_empty() {
            return Ok(Vec::new());
        }
        let namespace = self.namespace()?;
        let known = self.known_by(&namespace, read.info.token());
        let entries = entries(&namespace, &known, &read.subflows)?;
        let ids = match read.subflows.first() {
            Some(Reading { id: Some(_), .. }) => read.subflows.iter().map(|reading| reading.id).collect(),
            _ => known.ordinals(&entries),
        };
        Ok(read
            .subflows
            .into_iter()
            .zip(entries)
            .zip(ids)
            .map(|((reading, entry), id)| Subflow::new(known.token, id, reading, entry))
            .collect())
    }
}

/// Why a socket has no token: it is not connected yet, or not any more.
fn no_token(info: &Info) -> Error {
    let flags = mptcp_info::field::flags.read(info.bytes()).unwrap_or(0);
    let was_connected = flags & u64::from(uapi::MPTCP_INFO_FLAG_REMOTE_KEY_RECEIVED) != 0;
    let message = if was_connected {
        "the connection has ended: the peer aborted it, or it was disconnected here"
    } else {
        "the socket is not connected: it has no token yet"
    };
    Error::os(libc::ENOTCONN, message)
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
                "not Multipath TCP: it is a socket of another protocol, or it fell back to TCP because the peer or \
                 the path does not support Multipath TCP ({call})"
            ),
        },
        _ => Error::call(call, error),
    }
}

/// MPTCP_FULL_INFO: everything in one reading, of any number of subflows.
pub fn read_full_info(fd: RawFd) -> std::io::Result<FullInfo> {
    let mut reply = {
        let (mut subflows, mut tcp_infos) = ([0; ROOM * subflow_info::SIZE], [0; ROOM * tcp_info::SIZE]);
        read_into(fd, &mut subflows, &mut tcp_infos)?
    };
    let mut room = ROOM;
    while reply.total > room {
        room = reply.total + ROOM;
        let (mut subflows, mut tcp_infos) =
            (vec![0; room * subflow_info::SIZE], vec![0; room * tcp_info::SIZE]);
        reply = read_into(fd, &mut subflows, &mut tcp_infos)?;
    }
    Ok(reply)
}

fn read_into(fd: RawFd, subflows: &mut [u8], tcp_infos: &mut [u8]) -> std::io::Result<FullInfo> {
    let mut header = [0; uapi::full_info::MPTCP_INFO + mptcp_info::SIZE];
    let length = sys::getsockopt_full_info(fd, &mut header, subflows, tcp_infos, tcp_info::SIZE)?;
    full_info::decode_full_info(&header[..length], subflows, tcp_infos, tcp_info::SIZE)
        .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBADMSG))
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
    let mut room = ROOM;
    for _ in 0..1000 {
        let addrs = array(uapi::MPTCP_SUBFLOW_ADDRS, ADDRS, room)?;
        let tcp_infos = array(uapi::MPTCP_TCPINFO, tcp_info::SIZE, room)?;
        let again = array(uapi::MPTCP_SUBFLOW_ADDRS, ADDRS, room)?;
        let (total, addrs_read) = full_info::decode_subflow_data(&addrs, ADDRS).ok_or_else(bad_message)?;
        let (_, infos_read) =
            full_info::decode_subflow_data(&tcp_infos, tcp_info::SIZE).ok_or_else(bad_message)?;
        if total > room {
            room = total + ROOM;
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

/// The inet_diag entries of subflows, by exact look-ups. One that is bound to an interface which we do not know
/// is found in a dump, and remembered.
fn entries(namespace: &Namespace, known: &Known, readings: &[Reading]) -> Result<Vec<Option<Entry>>> {
    let tuples: Vec<Tuple> = {
        let mut interfaces = lock(&known.interfaces);
        if interfaces.len() > readings.len() {
            interfaces.retain(|ends, _| readings.iter().any(|r| (r.local, r.remote) == *ends));
        }
        let interface = |r: &Reading| interfaces.get(&(r.local, r.remote)).copied().unwrap_or(0);
        readings.iter().map(|r| Tuple { local: r.local, remote: r.remote, interface: interface(r) }).collect()
    };
    let mut channel = lock(&namespace.diag);
    let mut entries = diag::look_up(&mut channel, &tuples).map_err(diag::failed)?;
    // The same tuple may by now belong to another connection; where the kernel hides the token, its cookie is not ours
    // in the next snapshot.
    let is_ours = |entry: &Entry| entry.subflow.is_none_or(|subflow| subflow.token == known.token);
    for entry in &mut entries {
        *entry = entry.filter(is_ours);
    }
    if entries.iter().any(Option::is_none) {
        diag::dump(&mut channel, |entry, _| {
            if is_ours(&entry) {
                let found = tuples.iter().position(|tuple| tuple.same_endpoints(&entry.tuple));
                if let Some(index) = found.filter(|index| entries[*index].is_none()) {
                    let reading = &readings[index];
                    lock(&known.interfaces).insert((reading.local, reading.remote), entry.tuple.interface);
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
    use crate::connection::tests::loopback;
    use socket2::{Domain, Socket, Type};
    use std::os::fd::AsRawFd;

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
    fn plain_tcp_is_told() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert_eq!(is_multipath(socket.as_raw_fd()), Ok(false));
        assert!(matches!(read_info(socket.as_raw_fd()), Err(Error::NotMultipath { .. })));
        assert!(matches!(read(socket.as_raw_fd()), Err(Error::NotMultipath { .. })));
    }
}
