//! The events of the namespace, passed on to the users whose connections they are of.
//!
//! One thread reads them, or whoever must have had them passed on. The subscription also has the kernel accept joins under
//! the userspace path manager.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netlink_packet_core::NLMSG_OVERRUN;
use socket2::Socket;

use super::quotas::{Place, Quotas};
use crate::abi::uapi::tcp_state;
use crate::error::{Error, Result};
use crate::events::event::{self, Event, Kind};
use crate::netlink::codec::{messages, push_request, Message};
use crate::netlink::diag::{self, Entry};
use crate::netlink::{receive_buffer, Channel};
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::wait;

/// How often streams are looked after while no event comes.
const ROUND: Duration = Duration::from_secs(1);

/// How many connections are known at least before the ended ones are looked for.
const ROOM: usize = 512;

/// How many addresses of a peer are remembered for each connection.
const ADDRESSES: usize = 64;

/// One who listens.
#[derive(Debug)]
struct Stream {
    uid: u32,
    socket: Socket,
    /// Its queue was full: it is told when there is room.
    has_lost: bool,
    _place: Place,
}

impl Stream {
    /// False if nobody reads it any more.
    fn send(&mut self, message: &[u8]) -> bool {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if self.has_lost {
            let mut overrun = Vec::new();
            push_request(&mut overrun, NLMSG_OVERRUN, 0, 0, &[]);
            match self.socket.send_with_flags(&overrun, flags) {
                Ok(_) => self.has_lost = false,
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
        if message.is_empty() {
            return true;
        }
        match self.socket.send_with_flags(message, flags) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.has_lost = true;
                true
            }
            Err(_) => false,
        }
    }

    /// It has been closed, or its reader has sent something, which nobody asked for.
    fn is_over(&self) -> bool {
        !matches!(wait::readable([self.socket.as_raw_fd()], Some(Duration::ZERO)), Ok([false]))
    }
}

/// What is known of a connection.
#[derive(Debug, Default)]
struct Known {
    uid: Option<u32>,
    announced: Vec<SocketAddr>,
}

/// What events are read from, and asked with. Whoever holds the lock reads.
#[derive(Debug)]
struct Source {
    events: Socket,
    requests: Channel,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Streams {
    source: Mutex<Source>,
    streams: Mutex<Vec<Stream>>,
    connections: Mutex<HashMap<u32, Known>>,
    /// How many connections are known before those are left out whose end no event has told.
    room: AtomicUsize,
    quotas: Arc<Quotas>,
}

impl Streams {
    /// Takes a subscription to the events of the namespace, and a socket of inet_diag.
    pub fn new(events: Socket, requests: Channel, quotas: Arc<Quotas>) -> Result<Streams> {
        let buffer = receive_buffer().map_err(|error| Error::call("reading events", &error))?;
        Ok(Streams {
            source: Mutex::new(Source { events, requests, buffer }),
            streams: Mutex::default(),
            connections: Mutex::default(),
            room: AtomicUsize::new(ROOM),
            quotas,
        })
    }

    /// Passes on the events of a user from now on, after `reply`. Those of before are not his to hear.
    pub fn add(&self, uid: u32, socket: Socket, place: Place, reply: &[u8]) {
        let mut source = lock(&self.source);
        self.read(&mut source);
        let mut stream = Stream { uid, socket, has_lost: false, _place: place };
        if stream.send(reply) {
            lock(&self.streams).push(stream);
        }
    }

    /// Passes on what has happened until now: a caller finds the events of what he did when he has its reply, as the
    /// kernel's own callers do.
    pub fn pass_on(&self) {
        self.read(&mut lock(&self.source));
    }

    /// The addresses that the peer of a connection has announced.
    pub fn announced(&self, token: u32) -> Vec<SocketAddr> {
        lock(&self.connections).get(&token).map_or_else(Vec::new, |known| known.announced.clone())
    }

    /// The thread: until `stop` is readable.
    pub fn run(&self, stop: RawFd) -> Result<()> {
        let events = lock(&self.source).events.as_raw_fd();
        let mut round = Instant::now() + ROUND;
        loop {
            let left = round.saturating_duration_since(Instant::now());
            match wait::readable([stop, events], Some(left)) {
                Ok([true, _]) => return Ok(()),
                Ok([_, true]) => self.pass_on(),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::call("poll", &error)),
            }
            if Instant::now() >= round {
                lock(&self.streams).retain_mut(|stream| !stream.is_over() && stream.send(&[]));
                round = Instant::now() + ROUND;
            }
        }
    }

    fn read(&self, source: &mut Source) {
        let Source { events, requests, buffer } = source;
        loop {
            match std::io::Read::read(&mut &*events, buffer) {
                Ok(length) => {
                    for message in messages(&buffer[..length]) {
                        if let Message::Data { message_type, payload, .. } = message {
                            self.take(message_type, payload, requests);
                        }
                    }
                }
                // The kernel dropped some, of whomever.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    lock(&self.streams).iter_mut().for_each(|stream| stream.has_lost = true);
                    self.read_back(requests);
                    lock(&self.streams).retain_mut(|stream| stream.send(&[]));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn take(&self, message_type: u16, payload: &[u8], requests: &mut Channel) {
        let Some(event) = event::decode(payload, sys::monotonic_ns(), |_| None) else { return };
        let noted = self.note(&event, requests);
        self.make_room(requests);
        let Some(uid) = noted else { return };
        let mut message = Vec::new();
        push_request(&mut message, message_type, 0, 0, payload);
        lock(&self.streams).retain_mut(|stream| stream.uid != uid || stream.send(&message));
        if let (Kind::Closed, Some(token)) = (event.kind, event.token) {
            lock(&self.connections).remove(&token);
            self.quotas.forget(token);
        }
    }

    /// Remembers what an event says; whose it is.
    fn note(&self, event: &Event, requests: &mut Channel) -> Option<u32> {
        let Some(token) = event.token else {
            return owner_of_listener(requests, event.local?);
        };
        let mut connections = lock(&self.connections);
        if event.kind == Kind::Created {
            // An earlier connection may have had the token.
            connections.remove(&token);
        }
        let known = connections.entry(token).or_default();
        match (event.kind, event.remote) {
            (Kind::Announced, Some(address)) if known.announced.len() < ADDRESSES => {
                known.announced.push(address);
            }
            _ => {}
        }
        if known.uid.is_none() {
            known.uid = owner(requests, token);
        }
        known.uid
    }

    /// A connection that is aborted ends without an event.
    fn make_room(&self, requests: &mut Channel) {
        if lock(&self.connections).len() < self.room.load(Ordering::Relaxed) {
            return;
        }
        self.read_back(requests);
        self.room.store(ROOM.max(2 * lock(&self.connections).len()), Ordering::Relaxed);
    }

    /// After a loss: what has ended meanwhile is forgotten.
    fn read_back(&self, requests: &mut Channel) {
        let mut connections = lock(&self.connections);
        let tokens: Vec<u32> = connections.keys().copied().collect();
        if let Ok(found) = diag::look_up_tokens(requests, &tokens) {
            for (token, _) in tokens.iter().zip(found).filter(|(_, found)| found.is_none()) {
                connections.remove(token);
            }
            self.quotas.keep(|token| connections.contains_key(&token));
        }
    }
}

/// Whose connection has this token. One that was not accepted yet is its listener's owner's.
fn owner(requests: &mut Channel, token: u32) -> Option<u32> {
    let entry = diag::look_up_tokens(requests, &[token]).ok()?.pop().flatten()?;
    uid_of(requests, &entry)
}

/// The user whose connection this is. One that its owner has closed, and that still sends what is left, may have no uid any
/// more: whoever listens on its port by now is not its owner.
pub fn uid_of(requests: &mut Channel, connection: &Entry) -> Option<u32> {
    if connection.inode != 0 || connection.uid != 0 {
        return Some(connection.uid);
    }
    if connection.is_orphan() || connection.state == tcp_state::CLOSE {
        return None;
    }
    owner_of_listener(requests, connection.tuple.local)
}

fn owner_of_listener(requests: &mut Channel, local: SocketAddr) -> Option<u32> {
    diag::owner_of_listener(requests, local).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{open_here, Wanted};

    fn channel() -> Channel {
        let (family, kind, protocol) = (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG);
        let [socket] = open_here(&[Wanted::Socket { family, kind, protocol }]);
        Channel::new(socket.unwrap()).unwrap()
    }

    #[test]
    fn connections_whose_end_nobody_told_are_forgotten() {
        let (events, _other) = Socket::pair(socket2::Domain::UNIX, socket2::Type::DGRAM, None).unwrap();
        let streams = Streams::new(events, channel(), Arc::new(Quotas::new())).unwrap();
        let mut requests = channel();
        for token in 1..5000 {
            let announced = Event {
                token: Some(token),
                remote: Some("10.0.0.1:1".parse().unwrap()),
                ..Event::new(Kind::Announced, 0)
            };
            streams.note(&announced, &mut requests);
            streams.make_room(&mut requests);
            assert!(streams.quotas.announce(token, 1, 1).is_some());
        }
        assert!(lock(&streams.connections).len() <= ROOM, "none of them exists");
        assert!(streams.quotas.announce(1, 2, 1).is_some(), "what it had announced is forgotten too");
    }

    #[test]
    fn whoever_listens_on_the_port_of_a_closed_connection_does_not_own_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tuple = diag::Tuple {
            local: listener.local_addr().unwrap(),
            remote: "127.0.0.1:9".parse().unwrap(),
            interface: 0,
        };
        let in_state = |state| Entry { state, ..Entry::of_ends(tuple, 1) };
        let mut requests = channel();
        let owner = uid_of(&mut requests, &in_state(tcp_state::ESTABLISHED));
        assert_eq!(owner, Some(crate::sys::credentials::Owner::current().uid), "it was not accepted yet");
        for state in tcp_state::FIN_SENT {
            assert_eq!(uid_of(&mut requests, &in_state(state)), None);
        }
    }
}
