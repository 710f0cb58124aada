//! One network namespace: the netlink sockets that this process keeps in it, and its path manager.
//!
//! A socket belongs to the namespace that it was created in, whatever namespace its user is in, and so must the netlink
//! sockets that serve it. They are created once for each namespace and live as long as they are in use.

pub mod address_ids;
pub mod endpoints;
pub mod known;
pub mod path_manager;
pub mod probe;
pub mod scheduler;
pub mod sub_ids;
pub mod sysctls;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::abi::uapi;
use crate::error::{describe, is_shortage, Cause, Error, Result};
use crate::events::event::Event;
use crate::events::reader::Reader;
use crate::events::{Events, Sockets};
use crate::namespace::known::Known;
use crate::netlink::broker::{self, codec::allows};
use crate::netlink::diag::{self, Tuple};
use crate::netlink::links::{self, LinkChange};
use crate::netlink::pm::PmSocket;
use crate::netlink::pool::Pool;
use crate::netlink::route;
use crate::netlink::{Channel, Failure};
use crate::sys::lock::{lock, PerProcess};
use crate::sys::{self, Wanted};

const NETLINK: Wanted =
    Wanted::Socket { family: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_GENERIC };

/// What a namespace needs open in it, in the order of `Namespace::assemble`.
const WANTED: [Wanted; 7] = [
    NETLINK,
    NETLINK,
    Wanted::Socket { family: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_SOCK_DIAG },
    Wanted::Socket { family: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_SOCK_DIAG },
    Wanted::Socket { family: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_ROUTE },
    // The string since 6.15, the number since 5.19.
    Wanted::File(&[c"/proc/sys/net/mptcp/path_manager", c"/proc/sys/net/mptcp/pm_type"]),
    Wanted::File(&[c"/proc/thread-self/ns/net"]),
];

/// How long another thread that reads events is waited for, which a busy machine may keep from running.
const READING: Duration = Duration::from_millis(500);

/// An interface and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// It is set up and has a carrier.
    pub up: bool,
    pub addresses: Vec<IpAddr>,
}

/// The netlink sockets of one namespace.
#[derive(Debug)]
pub struct Namespace {
    /// SO_NETNS_COOKIE: unique on the host until the next boot.
    pub cookie: u64,
    this: Weak<Namespace>,
    process: u32,
    pub diag: Mutex<Channel>,
    /// For requests that wait for a connection's lock, so that no other request waits with them.
    pub diag_of_connections: Pool,
    pub pm: PmSocket,
    pub route: Mutex<Channel>,
    events: Arc<socket2::Socket>,
    reader: Mutex<Weak<Reader>>,
    poller: Mutex<Weak<Reader>>,
    path_manager: io::Result<File>,
    /// flock() on it excludes other processes that change the path manager for a moment, and the mutex our own
    /// threads, which share the open file that a flock belongs to.
    file: Arc<io::Result<File>>,
    changing: Mutex<()>,
    connections: Mutex<HashMap<u32, Weak<Known>>>,
}

/// The namespaces in use, by cookie. A forked child starts with none: the sockets that it inherited are the parent's,
/// whose replies it must not read.
static REGISTRY: PerProcess<HashMap<u64, Weak<Namespace>>> = PerProcess::new();

fn cookie_of(fd: RawFd) -> io::Result<u64> {
    let mut bytes = [0; 8];
    sys::getsockopt(fd, libc::SOL_SOCKET, uapi::SO_NETNS_COOKIE, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// socket() needs no privilege for these: if they are denied, a sandbox does it.
fn no_netlink(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno @ (libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)) => Error::os(
            errno,
            format!(
                "socket(AF_NETLINK) is denied here ({}): the sandbox, the seccomp profile or the systemd unit \
                 (RestrictAddressFamilies=) must allow AF_NETLINK",
                describe(errno)
            ),
        ),
        _ => Error::call("socket(AF_NETLINK)", error),
    }
}

/// The cookie of the calling thread's namespace.
fn current_cookie() -> Result<u64> {
    let [probe] = sys::open_here(&[NETLINK]);
    let probe = probe.map_err(|error| no_netlink(&error))?;
    cookie_of(probe.as_raw_fd()).map_err(no_cookie)
}

/// One more netlink socket of the namespace with this cookie, which `file` is.
fn open_netlink(cookie: u64, file: &io::Result<File>, protocol: i32) -> io::Result<OwnedFd> {
    let wanted = [Wanted::Socket { family: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol }];
    let [here] = sys::open_here(&wanted);
    let here = here?;
    if cookie_of(here.as_raw_fd())? == cookie {
        return Ok(here);
    }
    drop(here);
    let file = file.as_ref().map_err(|error| io::Error::from(error.kind()))?;
    let [there] = sys::open_in_namespace(&file.as_fd().try_clone_to_owned()?, &wanted)?;
    there
}

fn registered(cookie: u64) -> Option<Arc<Namespace>> {
    REGISTRY.lock().get(&cookie)?.upgrade()
}

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Arc<Namespace>> {
        let cookie = current_cookie()?;
        match registered(cookie) {
            Some(namespace) => Ok(namespace),
            None => Namespace::register(cookie, sys::open_here(&WANTED)),
        }
    }

    /// The namespace that a socket belongs to. If it is not the thread's own, a child process enters it for a
    /// moment, which needs CAP_NET_ADMIN and CAP_SYS_ADMIN over it.
    pub fn of_socket(fd: RawFd) -> Result<Arc<Namespace>> {
        let cookie = match cookie_of(fd) {
            Ok(cookie) => cookie,
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => return Err(no_cookie(error)),
            Err(error) => return Err(Error::call("getsockopt(SO_NETNS_COOKIE)", &error)),
        };
        if let Some(namespace) = registered(cookie) {
            return Ok(namespace);
        }
        let here = sys::open_here(&WANTED);
        let is_here = match &here[0] {
            Ok(probe) => cookie_of(probe.as_raw_fd()).map_err(no_cookie)? == cookie,
            Err(_) => true, // `assemble` reports the cause
        };
        if is_here {
            return Namespace::register(cookie, here);
        }
        drop(here);
        let denied = |error: io::Error| {
            match error.raw_os_error() {
            Some(libc::EPERM) => Error::permission(
                "the socket belongs to another network namespace, and entering that one needs CAP_NET_ADMIN and \
                 CAP_SYS_ADMIN over it",
            )
            .because(Cause::OtherNamespace),
            _ => Error::call("entering the socket's network namespace", &error),
        }
        };
        let file = sys::namespace_of_socket(fd).map_err(denied)?;
        Namespace::register(cookie, sys::open_in_namespace(&file, &WANTED).map_err(denied)?)
    }

    /// Whether a socket belongs to it.
    pub fn has_socket(&self, fd: RawFd) -> bool {
        cookie_of(fd).is_ok_and(|cookie| cookie == self.cookie)
    }

    /// The file by which another thread enters this namespace; `None` if the calling thread is inside.
    pub fn elsewhere(&self) -> Result<Option<BorrowedFd<'_>>> {
        let [probe] = sys::open_here(&[NETLINK]);
        let here = probe.and_then(|probe| cookie_of(probe.as_raw_fd()));
        if here.is_ok_and(|cookie| cookie == self.cookie) {
            return Ok(None);
        }
        let failed = |error: &io::Error| Error::call("/proc/thread-self/ns/net", error);
        self.file.as_ref().as_ref().map(|file| Some(file.as_fd())).map_err(failed)
    }

    fn register(cookie: u64, opened: [io::Result<OwnedFd>; 7]) -> Result<Arc<Namespace>> {
        let assembled = Namespace::assemble(cookie, opened)?;
        let fresh = Arc::new_cyclic(|this| Namespace { this: Weak::clone(this), ..assembled });
        let mut namespaces = REGISTRY.lock();
        namespaces.retain(|_, namespace| namespace.strong_count() > 0);
        // Another thread may have been faster; then its sockets are used.
        if let Some(other) = namespaces.get(&cookie).and_then(Weak::upgrade) {
            return Ok(other);
        }
        namespaces.insert(cookie, Arc::downgrade(&fresh));
        Ok(fresh)
    }

    fn assemble(cookie: u64, opened: [io::Result<OwnedFd>; 7]) -> Result<Namespace> {
        let [pm, events, diag, diag_of_connections, route, path_manager, file] = opened;
        // What another try may open must not be missing for as long as this is in use.
        for (opened, what) in
            [(&path_manager, "the sysctl net.mptcp.path_manager"), (&file, "/proc/thread-self/ns/net")]
        {
            if let Some(error) = opened.as_ref().err().filter(|error| is_shortage(error)) {
                return Err(Error::call(&format!("opening {what}"), error));
            }
        }
        let failed = |error| no_netlink(&error);
        let channel =
            |socket: io::Result<OwnedFd>| socket.and_then(Channel::new).map(Mutex::new).map_err(failed);
        let file = Arc::new(file.map(File::from));
        let pool = |socket: io::Result<OwnedFd>, protocol| {
            let first = socket.and_then(Channel::new).map_err(failed)?;
            let file = Arc::clone(&file);
            Ok(Pool::new(first, Box::new(move || open_netlink(cookie, &file, protocol))))
        };
        let events = socket2::Socket::from(events.map_err(failed)?);
        sys::bind_netlink(events.as_raw_fd()).map_err(failed)?;
        events.set_nonblocking(true).map_err(failed)?;
        Ok(Namespace {
            cookie,
            this: Weak::new(),
            process: sys::process::id(),
            diag: channel(diag)?,
            diag_of_connections: pool(diag_of_connections, libc::NETLINK_SOCK_DIAG)?,
            pm: PmSocket::new(pool(pm, libc::NETLINK_GENERIC)?, Some(cookie)),
            route: channel(route)?,
            events: Arc::new(events),
            reader: Mutex::default(),
            poller: Mutex::default(),
            path_manager: path_manager.map(File::from),
            file,
            changing: Mutex::default(),
            connections: Mutex::default(),
        })
    }

    /// Made by this process, not by the one that it was forked from.
    pub fn is_ours(&self) -> bool {
        self.process == sys::process::id()
    }

    /// The subscription to this namespace's events: one for each process, kept while it is held.
    pub fn reader(&self) -> Result<Arc<Reader>> {
        let group = self.pm.family()?.event_group;
        let mut reader = lock(&self.reader);
        if let Some(running) = reader.upgrade() {
            return Ok(running);
        }
        let sockets: Weak<dyn Sockets> = Weak::clone(&self.this) as Weak<Namespace>;
        let started = match Reader::of_netlink(Arc::clone(&self.events), group, Weak::clone(&sockets)) {
            Err(error) if error.errno() == libc::EPERM => match broker::of(self.cookie) {
                // Whose events they are is told by the uid alone.
                Some(broker) if broker.allows(allows::OWN) => Reader::of_broker(broker, sockets)?,
                _ => return Err(error),
            },
            started => started?,
        };
        let started = Arc::new(started);
        *reader = Arc::downgrade(&started);
        Ok(started)
    }

    /// The events that tell what became of a command: the subscription, or, where a broker sends commands of connections
    /// that a descriptor comes with and passes on no events, what polling tells.
    pub fn reader_of_outcomes(&self) -> Result<Arc<Reader>> {
        match self.reader() {
            Err(error) if error.errno() == libc::EPERM && broker::of(self.cookie).is_some() => self.poller(),
            reader => reader,
        }
    }

    /// Whether the peer of a connection denies joins of its initial address, by the event of its begin; absent if this
    /// process did not hear that.
    pub fn deny_join_initial(&self, token: u32) -> Option<bool> {
        let reader = lock(&self.reader).upgrade()?;
        let known = || reader.ends().deny_join_initial(token);
        known().or_else(|| {
            catch_up(&reader);
            known()
        })
    }

    /// What events told of a connection's subflows and addresses; absent while nobody of this process listens.
    pub fn history(&self, token: u32) -> Option<Vec<Event>> {
        let readers = [lock(&self.reader).upgrade(), lock(&self.poller).upgrade()];
        let reader = readers.into_iter().flatten().next()?;
        catch_up(&reader);
        Some(reader.history(token))
    }

    /// The interfaces, whether each is up with a carrier, and their addresses.
    pub fn interfaces(&self) -> Result<Vec<Interface>> {
        let mut found: Vec<(u32, Interface)> = Vec::new();
        let taken = links::dump(&mut lock(&self.route), |change| match change {
            LinkChange::Link { index, name, up } => {
                found.push((index, Interface { name: name.to_string(), up, addresses: Vec::new() }));
            }
            LinkChange::Address { index, ip } => {
                let of_it = found.iter_mut().find(|(known, _)| *known == index);
                if let Some((_, interface)) = of_it {
                    interface.addresses.push(ip);
                }
            }
            LinkChange::LinkGone { .. } | LinkChange::AddressGone { .. } => {}
        });
        taken.map_err(|failure| Error::os(failure.errno, format!("rtnetlink: {}", failure.describe())))?;
        Ok(found.into_iter().map(|(_, interface)| interface).collect())
    }

    /// The same without privilege, by comparing readings.
    pub fn poller(&self) -> Result<Arc<Reader>> {
        let mut poller = lock(&self.poller);
        if let Some(running) = poller.upgrade() {
            return Ok(running);
        }
        let open = || self.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG);
        let failed = |error| no_netlink(&error);
        let notices = socket2::Socket::from(open()?);
        sys::bind_netlink(notices.as_raw_fd()).map_err(failed)?;
        notices.set_nonblocking(true).map_err(failed)?;
        let requests = Channel::new(open()?).map_err(failed)?;
        let started = Arc::new(Reader::of_polling(Arc::new(notices), requests)?);
        *poller = Arc::downgrade(&started);
        Ok(started)
    }

    /// The events of one connection, or of the whole namespace. By netlink if this process may, else by polling.
    pub fn events(self: &Arc<Self>, token: Option<u32>) -> Result<Events> {
        let reader = match self.reader() {
            Err(error) if error.errno() == libc::EPERM => self.poller()?,
            result => result?,
        };
        Events::new(Arc::clone(self) as Arc<dyn Sockets>, reader, token)
    }

    /// Aborts exactly the subflow with this cookie, of the connection with this token: SOCK_DESTROY, by the broker where
    /// the caller lacks the privilege and there is one. A refusal by the kernel is the inner error.
    pub fn destroy(
        &self,
        tuple: &Tuple,
        cookie: u64,
        token: u32,
    ) -> Result<std::result::Result<(), Failure>> {
        match diag::destroy(&mut lock(&self.diag), tuple, cookie) {
            Err(failure) if failure.errno == libc::EPERM => match broker::of(self.cookie) {
                Some(broker) => broker.destroy(tuple, cookie, token),
                None => Ok(Err(failure)),
            },
            answer => Ok(answer),
        }
    }

    /// What this process knows of a connection, shared by all its descriptors.
    pub fn connection(&self, token: u32) -> Arc<Known> {
        let mut connections = lock(&self.connections);
        if let Some(known) = connections.get(&token).and_then(Weak::upgrade) {
            return known;
        }
        // Make room only when the table is about to grow, so that the cost of each connection stays constant.
        if connections.len() == connections.capacity() {
            connections.retain(|_, known| known.strong_count() > 0);
        }
        let known = Arc::new(Known::new(token));
        connections.insert(token, Arc::downgrade(&known));
        known
    }

    /// The index of an interface of this namespace.
    pub fn interface_index(&self, name: &str) -> Result<u32> {
        sys::interface_index(lock(&self.route).fd(), name).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::ENODEV);
            Error::os(errno, format!("interface {name:?}: {}", crate::error::describe(errno)))
        })
    }

    /// The name of an interface of this namespace; for one that is gone "if" and its index, as `ip` writes it.
    pub fn interface_name(&self, index: u32) -> String {
        sys::interface_name(lock(&self.route).fd(), index).unwrap_or_else(|_| format!("if{index}"))
    }

    /// Whether this namespace has an interface of this name, whatever its state.
    pub fn has_interface(&self, name: &str) -> Result<bool> {
        match self.interface_index(name) {
            // EINVAL is a name that no interface can have.
            Err(error) if [libc::ENODEV, libc::EINVAL].contains(&error.errno()) => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// The interface by which this namespace sends from a local address to a remote one; `None` without a route.
    pub fn interface_of_route(&self, local: IpAddr, remote: IpAddr) -> Result<Option<String>> {
        let mut channel = lock(&self.route);
        let Ok(route) = route::look_up_from(&mut channel, local.to_canonical(), remote.to_canonical()) else {
            return Ok(None);
        };
        let name = |index| sys::interface_name(channel.fd(), index);
        let name = route.interface.map(name).transpose();
        name.map_err(|error| Error::call("SIOCGIFNAME", &error))
    }

    /// A new socket in this namespace, whatever the caller's.
    pub fn socket(&self, family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
        if current_cookie()? == self.cookie {
            return new_socket(family, kind, protocol);
        }
        let [there] = self.open(&[Wanted::Socket { family, kind, protocol }])?;
        there.map_err(|error| no_socket(family, protocol, &error))
    }

    /// Opens things in this namespace, whatever the caller's.
    pub fn open<const N: usize>(&self, wanted: &[Wanted; N]) -> Result<[io::Result<OwnedFd>; N]> {
        if current_cookie()? == self.cookie {
            return Ok(sys::open_here(wanted));
        }
        let failed = |error: io::Error| Error::call("entering the connection's network namespace", &error);
        let file = sys::namespace_of_socket(lock(&self.diag).fd()).map_err(failed)?;
        sys::open_in_namespace(&file, wanted).map_err(failed)
    }
}

impl Sockets for Namespace {
    fn diag(&self) -> &Mutex<Channel> {
        &self.diag
    }

    fn new_route_sockets(&self) -> Result<[OwnedFd; 2]> {
        let socket = || self.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        Ok([socket()?, socket()?])
    }

    fn is_ours(&self) -> bool {
        Namespace::is_ours(self)
    }
}

/// Has a reader know what has happened so far, which its thread may not have read yet. Whoever reads meanwhile may wait for
/// a connection's lock, so there is a limit.
fn catch_up(reader: &Reader) {
    let deadline = Instant::now() + READING;
    while !reader.try_catch_up() && Instant::now() < deadline {
        std::thread::yield_now();
    }
}

fn no_cookie(_: io::Error) -> Error {
    Error::unsupported("this kernel has no SO_NETNS_COOKIE (Linux 5.14)")
}

fn new_socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let [socket] = sys::open_here(&[Wanted::Socket { family, kind, protocol }]);
    socket.map_err(|error| no_socket(family, protocol, &error))
}

fn no_socket(family: i32, protocol: i32, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) if protocol == libc::IPPROTO_MPTCP => no_multipath(family, errno),
        _ => Error::call("socket", error),
    }
}

/// Why the kernel refuses a Multipath TCP socket.
fn no_multipath(family: i32, errno: i32) -> Error {
    let (name, option) = match family {
        libc::AF_INET6 => ("AF_INET6", "CONFIG_MPTCP_IPV6"),
        _ => ("AF_INET", "CONFIG_MPTCP"),
    };
    match errno {
        libc::ENOPROTOOPT => {
            Error::unsupported("Multipath TCP is disabled in this network namespace: set net.mptcp.enabled to 1")
        }
        libc::EPROTONOSUPPORT => Error::unsupported(format!(
            "this kernel was built without Multipath TCP for {name} ({option})"
        )),
        // 262 is beyond the protocols that older kernels know.
        libc::EINVAL => Error::unsupported("this kernel does not know Multipath TCP (IPPROTO_MPTCP, Linux 5.6)"),
        libc::EPERM | libc::EACCES => Error::os(
            errno,
            format!(
                "socket({name}, SOCK_STREAM, IPPROTO_MPTCP): Multipath TCP is denied here ({}): a seccomp profile, a \
                 security module (SELinux, AppArmor) or a BPF program of the control group must allow it",
                describe(errno)
            ),
        ),
        _ => Error::call(
            &format!("socket({name}, SOCK_STREAM, IPPROTO_MPTCP) for Multipath TCP"),
            &io::Error::from_raw_os_error(errno),
        ),
    }
}
