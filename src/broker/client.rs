//! One connection to the broker: its requests, one after the other, on a thread of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::checks::{self, refusal, refused_by_kernel, trouble, Checks};
use super::quotas::Place;
use super::rules::Allowed;
use super::Broker;
use crate::abi::bytes;
use crate::abi::tcp_info::TcpInfo;
use crate::namespace::path_manager::PathManager;
use crate::netlink::broker::codec::{self, allows, Denial, Hello, Kind, Request};
use crate::netlink::diag::{self, Entry, Tuple};
use crate::netlink::pm::codec::Command;
use crate::netlink::{Channel, Failure};
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::seqpacket::{self, Peer, Received};
use crate::sys::wait;

/// How long to wait for the lock that others change the path manager under.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long a reply may wait for a caller who does not read.
const UNREAD: Duration = Duration::from_secs(5);

/// What an id is seen as that our user namespace does not have (kernel.overflowuid, which nobody changes).
const OVERFLOW_UID: u32 = 65_534;

/// Of every user namespace but one that was made with all ids: `/proc/PID/uid_map`.
fn uid_map(process: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/uid_map")).ok()?;
    Some(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

/// Whether a caller's user ids mean what they mean here. A process of another user namespace has other ids than those
/// that it sees, and one that ours does not know has the overflow id, as many have.
fn is_of_our_user_namespace(peer: &Peer) -> bool {
    let ours = uid_map("self");
    let has_all_ids = ours.as_deref() == Some("0 0 4294967295");
    ours.is_some() && uid_map(&peer.process.to_string()) == ours && (has_all_ids || peer.uid != OVERFLOW_UID)
}

pub struct Client {
    broker: Arc<Broker>,
    socket: Socket,
    peer: Peer,
    allowed: Allowed,
    place: Place,
    /// Requests by the uid alone.
    by_uid: bool,
}

/// What is to be done after a request.
enum Then {
    Reply(Vec<u8>),
    /// The reply was sent.
    Replied,
    /// It is an event stream from now on.
    Stream,
}

impl Client {
    pub fn new(broker: Arc<Broker>, socket: Socket, peer: Peer, allowed: Allowed, place: Place) -> Client {
        let by_uid = allowed.own && peer.uid != 0 && is_of_our_user_namespace(&peer);
        Client { broker, socket, peer, allowed, place, by_uid }
    }

    /// One more descriptor of its socket.
    pub fn duplicate(&self) -> io::Result<Socket> {
        self.socket.try_clone()
    }

    /// Serves until the caller closes the connection, or misuses it.
    pub fn serve(self) {
        let mut buffer = vec![0; codec::MAX_MESSAGE];
        let _ = self.socket.set_write_timeout(Some(UNREAD));
        loop {
            let received = match seqpacket::receive(self.socket.as_fd(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
                Ok(received) if received.length == 0 => return,
                Ok(received) => received,
            };
            let message = &buffer[..received.length];
            let number = bytes::u16(message, 2).unwrap_or(0);
            let sequence = bytes::u32(message, 4).unwrap_or(0);
            let answer = self.answer(message, &received);
            // close() may block (SO_LINGER, a file of FUSE), here it holds up nobody but the caller himself.
            drop(received.descriptors);
            let sent = match answer {
                Ok(Then::Reply(payload)) => self.reply(number, sequence, Ok(&payload)),
                Err(denial) => self.reply(number, sequence, Err(&denial)),
                Ok(Then::Replied) => Ok(()),
                Ok(Then::Stream) => {
                    let reply = codec::encode_reply(number, sequence, Ok(&[]));
                    return self.broker.streams.add(self.peer.uid, self.socket, self.place, &reply);
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn reply(&self, number: u16, sequence: u32, result: Result<&[u8], &Denial>) -> io::Result<()> {
        let bytes = codec::encode_reply(number, sequence, result);
        self.socket.send_with_flags(&bytes, libc::MSG_NOSIGNAL).map(drop)
    }

    fn answer(&self, message: &[u8], received: &Received) -> Result<Then, Denial> {
        if received.is_cut {
            return Err(refusal("a message must have at most 64 KiB and one descriptor"));
        }
        let request = codec::decode_request(message).map_err(|errno| Denial {
            errno,
            refused: true,
            text: match errno {
                libc::EPROTONOSUPPORT => {
                    format!("this broker speaks version {} of the protocol only", codec::VERSION)
                }
                libc::EOPNOTSUPP => "the broker does not know this request, because it is older than the program: restart it with the \
                                     program's version of mptcp"
                    .to_owned(),
                _ => "malformed request".to_owned(),
            },
        })?;
        let descriptor = match received.descriptors.as_slice() {
            [] => None,
            [one] => Some(one),
            _ => return Err(refusal("a message must have at most one descriptor")),
        };
        match request.kind {
            Kind::Hello => Ok(Then::Reply(codec::encode_hello(self.hello()))),
            Kind::Command => self.command(request.payload, descriptor),
            Kind::Destroy => self.destroy(request.payload, descriptor),
            Kind::Events => self.by_uid.then_some(Then::Stream).ok_or_else(|| self.needs_descriptor()),
            Kind::Hold => self.hold(&request),
            Kind::Release => Err(refusal("there is nothing to release")),
            Kind::Options => self.options(request.payload, descriptor),
            Kind::Use => self.use_path_manager(&request),
            Kind::Subflows => self.subflows(request.payload),
        }
    }

    fn hello(&self) -> Hello {
        let bit = |is_allowed, bit| if is_allowed { bit } else { 0 };
        Hello {
            namespace: self.broker.namespace.cookie,
            allows: bit(self.by_uid, allows::OWN)
                | bit(self.allowed.hold, allows::HOLD)
                | bit(self.allowed.options, allows::OPTIONS)
                | bit(!self.allowed.longest_use.is_zero(), allows::USE),
        }
    }

    fn needs_descriptor(&self) -> Denial {
        refusal(if self.peer.uid == 0 {
            "connections of root are never changed by their uid alone: send a descriptor of the connection"
        } else if self.allowed.own {
            "the caller's user ids are those of another user namespace: send a descriptor of the connection"
        } else {
            "its rules want a descriptor of the connection as proof that it is the caller's, which a Socket has and a \
             Connection by its token has not"
        })
    }

    /// The connection with a token, if it is the caller's to change; `None` if there is none.
    fn connection(&self, token: u32, descriptor: Option<&OwnedFd>) -> Result<Option<Entry>, Denial> {
        if let Some(descriptor) = descriptor {
            self.check_descriptor(token, descriptor)?;
        } else if !self.by_uid {
            return Err(self.needs_descriptor());
        }
        let Some(connection) = checks::connection(&self.broker.namespace, token)? else { return Ok(None) };
        let uid = super::streams::uid_of(&mut lock(&self.broker.namespace.diag), &connection);
        match uid {
            Some(uid) if uid == self.peer.uid && (uid != 0 || descriptor.is_some()) => Ok(Some(connection)),
            Some(_) if descriptor.is_some() && self.allowed.others => Ok(Some(connection)),
            Some(uid) => Err(refusal(format!("the connection is of uid {uid}"))),
            None => Ok(None),
        }
    }

    /// That it is of the connection with this token, by the socket's cookie, which is never used again. The connection's
    /// lock is not waited for: neither these options nor inet_diag take it.
    fn check_descriptor(&self, token: u32, descriptor: &OwnedFd) -> Result<(), Denial> {
        let fd = descriptor.as_raw_fd();
        // Of what is not a socket nothing else is asked: the answer to fstat() may be another user's, who need not give it.
        if !sys::getsockopt_i32(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)
            .is_ok_and(|protocol| protocol == libc::IPPROTO_MPTCP)
        {
            return Err(refusal("the descriptor is not that of a Multipath TCP socket"));
        }
        if !self.broker.namespace.has_socket(fd) {
            return Err(refusal("the socket belongs to another network namespace"));
        }
        let connection = checks::connection(&self.broker.namespace, token)?;
        let mut cookie = [0; 8];
        let length = sys::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie);
        let length =
            length.map_err(|error| trouble(error.raw_os_error().unwrap_or(libc::EIO), "SO_COOKIE"))?;
        if length == cookie.len()
            && connection.is_some_and(|entry| entry.cookie == u64::from_ne_bytes(cookie))
        {
            return Ok(());
        }
        Err(refusal("the descriptor is of another connection"))
    }

    fn command(&self, payload: &[u8], descriptor: Option<&OwnedFd>) -> Result<Then, Denial> {
        let Some(command) = Command::decode(payload) else {
            return Err(refusal("it is not a command that changes one connection"));
        };
        let token = command.token();
        let Some(connection) = self.connection(token, descriptor)? else {
            return Err(Denial {
                errno: libc::EINVAL,
                refused: false,
                text: format!("there is no connection with token {token}"),
            });
        };
        let checks = Checks {
            namespace: &self.broker.namespace,
            allowed: &self.allowed,
            ports: &self.broker.ports,
            connection,
            announced: &self.broker.streams.announced(token),
        };
        let command = checks.check(command).inspect_err(|denial| self.log(&command, Err(denial)))?;
        let mut is_new = false;
        match &command {
            Command::Create { .. }
                if !self.broker.quotas.open(self.peer.uid, self.allowed.opens_per_second) =>
            {
                return Err(refusal(format!(
                    "a user may open {} subflows a second",
                    self.allowed.opens_per_second
                )));
            }
            Command::Announce { address, .. } => {
                let most = self.allowed.announced;
                let announced = self.broker.quotas.announce(token, address.id, most);
                is_new = announced.ok_or_else(|| {
                    refusal(format!("a user may announce {most} addresses on a connection"))
                })?;
            }
            _ => {}
        }
        // It waits for the connection's lock, on this caller's own thread.
        let answer = self.broker.namespace.pm.command(&command.encode());
        self.broker.streams.pass_on();
        let answer = answer.map_err(|error| trouble(error.errno(), error.to_string()));
        let answer = answer.and_then(|answer| answer.map_err(refused_by_kernel));
        // What the kernel refused has changed nothing; the library asks it so for a connection's path manager.
        match &command {
            Command::Remove { id, .. } if answer.is_ok() => self.broker.quotas.withdraw(token, *id),
            Command::Announce { address, .. } if answer.is_err() && is_new => {
                self.broker.quotas.withdraw(token, address.id);
            }
            _ => {}
        }
        if answer.is_ok() {
            self.log(&command, Ok(()));
        }
        answer.map(|()| Then::Reply(Vec::new()))
    }

    /// One line for each change, for the journal.
    fn log(&self, what: &dyn std::fmt::Display, result: Result<(), &Denial>) {
        let Peer { process, uid, .. } = self.peer;
        let Some(unsaid) = self.broker.quotas.line(uid) else { return };
        let outcome = match result {
            Ok(()) => "done".to_owned(),
            Err(denial) if denial.refused => denial.text.clone(),
            Err(denial) => format!("the kernel refuses it: {}", crate::error::describe(denial.errno)),
        };
        let more = if unsaid == 0 { String::new() } else { format!(" ({unsaid} lines before it not shown)") };
        let line = format!("uid {uid} process {process}: {what}: {outcome}{more}\n");
        let mut stderr = io::stderr().lock();
        // A pipe that nobody reads is full some day, and would hold everybody up.
        if matches!(wait::ready([], stderr.as_raw_fd(), Some(Duration::ZERO)), Ok(([], true))) {
            let _ = io::Write::write_all(&mut stderr, line.as_bytes());
        } else {
            self.broker.quotas.not_logged(uid, unsaid + 1);
        }
    }

    /// A subflow of a connection that is the caller's to change; `None` if it is gone.
    fn subflow(
        &self,
        tuple: &Tuple,
        cookie: u64,
        descriptor: Option<&OwnedFd>,
    ) -> Result<Option<Entry>, Denial> {
        let found: Vec<Option<(Entry, TcpInfo)>> =
            self.waiting(|channel| diag::look_up_with_info(channel, &[*tuple]))?;
        let Some((entry, _)) = found.into_iter().next().flatten().filter(|(entry, _)| entry.cookie == cookie)
        else {
            return Ok(None);
        };
        let Some(token) = entry.subflow.map(|subflow| subflow.token) else { return Ok(None) };
        Ok(self.connection(token, descriptor)?.map(|_| entry))
    }

    fn destroy(&self, payload: &[u8], descriptor: Option<&OwnedFd>) -> Result<Then, Denial> {
        let (tuple, cookie) = codec::decode_destroy(payload).ok_or_else(malformed)?;
        let gone = || Denial { errno: libc::ENOENT, refused: false, text: String::new() };
        let entry = self.subflow(&tuple, cookie, descriptor)?.ok_or_else(gone)?;
        let destroyed = diag::destroy(&mut lock(&self.broker.namespace.diag), &entry.tuple, cookie);
        self.broker.streams.pass_on();
        let answer = destroyed.map_err(refused_by_kernel);
        self.log(&format!("SOCK_DESTROY {} -> {}", tuple.local, tuple.remote), answer.as_ref().map(drop));
        answer.map(|()| Then::Reply(Vec::new()))
    }

    /// Whoever has not CAP_NET_ADMIN is told it by the kernel itself since Linux 6.15, of all connections.
    fn subflows(&self, payload: &[u8]) -> Result<Then, Denial> {
        let asked = codec::decode_subflows(payload).ok_or_else(malformed)?;
        let found = self.waiting(|channel| diag::look_up_ulps(channel, &asked))?;
        Ok(Then::Reply(codec::encode_subflow_results(&found)))
    }

    /// A look-up by four-tuple, which may be that of any TCP socket: its owner may hold its lock, but then nobody else waits.
    fn waiting<T>(&self, look_up: impl FnOnce(&mut Channel) -> Result<T, Failure>) -> Result<T, Denial> {
        let found = self
            .broker
            .namespace
            .diag_of_connections
            .with(look_up)
            .map_err(Failure::from)
            .and_then(|found| found);
        found.map_err(|failure| trouble(failure.errno, failure.describe()))
    }

    fn options(&self, payload: &[u8], descriptor: Option<&OwnedFd>) -> Result<Then, Denial> {
        if !self.allowed.options {
            return Err(refusal("its rules do not allow socket options on one subflow"));
        }
        let requests = codec::decode_options(payload).ok_or_else(malformed)?;
        let (mut there, mut results) = (Vec::new(), vec![Err(0); requests.len()]);
        for (position, request) in requests.iter().enumerate() {
            if self.subflow(&request.tuple, request.cookie, descriptor)?.is_some() {
                there.push(position);
            }
        }
        let served: Vec<_> = there.iter().map(|position| requests[*position].clone()).collect();
        let served = self.broker.limits.serve(&served);
        let served = served.map_err(|error| trouble(error.errno(), error.to_string()))?;
        for (position, result) in there.into_iter().zip(served) {
            let request = &requests[position];
            if request.value.is_some() {
                let option =
                    crate::options::table::SocketOption { level: request.level, number: request.name };
                let denial = result.as_ref().err().map(|errno| Denial {
                    errno: *errno,
                    refused: false,
                    text: String::new(),
                });
                let what =
                    format!("setsockopt({option}) {} -> {}", request.tuple.local, request.tuple.remote);
                self.log(&what, denial.as_ref().map_or(Ok(()), Err));
            }
            results[position] = result;
        }
        Ok(Then::Reply(codec::encode_option_results(&results)))
    }

    /// Meanwhile the caller makes a socket of his own, with his own rights.
    fn hold(&self, request: &Request<'_>) -> Result<Then, Denial> {
        let name = String::from_utf8_lossy(request.payload);
        let Some(name) = PathManager::of_name(&name) else { return Err(malformed()) };
        if !self.allowed.hold {
            return Err(refusal("its rules do not allow choosing a socket's path manager"));
        }
        self.wait_for_turn()?;
        let held = self.broker.hold(name, PATIENCE);
        let held = held.map_err(|error| trouble(error.errno(), error.to_string()))?;
        // Not for as long as a caller likes who reads no replies.
        let reply = codec::encode_reply(Kind::Hold as u16, request.sequence, Ok(&[]));
        let sent = self.socket.send_with_flags(&reply, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        let end = Instant::now() + codec::HOLD;
        let in_time = sent.is_ok()
            && (wait::soon_readable(self.socket.as_raw_fd(), codec::AWAKE) || self.is_answered_before(end));
        drop(held);
        sent.map_err(|_| malformed())?;
        self.released(in_time, "the socket was not created in time")
    }

    /// Until this user may hold the path manager once more.
    fn wait_for_turn(&self) -> Result<(), Denial> {
        let (uid, rate) = (self.peer.uid, self.allowed.holds_per_second);
        let end = Instant::now() + codec::TURN;
        let mut is_first = false;
        while let Err(wait) = self.broker.quotas.hold(uid, rate, &mut is_first) {
            let next = Instant::now() + wait;
            // The caller gives it up, by its end or by another message.
            if next > end || self.is_answered_before(next) {
                self.broker.quotas.leave(uid, is_first);
                let text = format!(
                    "a user may choose the path manager of {rate} sockets a second, and all users together of 50"
                );
                return Err(Denial { errno: libc::EAGAIN, ..refusal(text) });
            }
        }
        Ok(())
    }

    /// Others' new sockets latch it too, which is why only rules allow it.
    fn use_path_manager(&self, request: &Request<'_>) -> Result<Then, Denial> {
        let name = String::from_utf8_lossy(request.payload);
        let Some(name) = PathManager::of_name(&name) else { return Err(malformed()) };
        let longest = self.allowed.longest_use;
        if longest.is_zero() {
            return Err(refusal("its rules do not allow choosing the path manager of the namespace (hold)"));
        }
        let used = self.broker.use_path_manager(name, PATIENCE);
        let used = used.map_err(|error| trouble(error.errno(), error.to_string()))?;
        let used = used.ok_or_else(|| {
            let text = "another path manager is in use by somebody whom its rules allow that";
            Denial { errno: libc::EBUSY, ..refusal(text) }
        })?;
        let what = format!("net.mptcp.path_manager {} for {} s", name.name(), longest.as_secs());
        self.log(&what, Ok(()));
        let sent = self.reply(Kind::Use as u16, request.sequence, Ok(&codec::encode_use(longest)));
        let in_time = sent.is_ok() && self.is_answered_before(Instant::now() + longest);
        drop(used);
        self.log(&format!("net.mptcp.path_manager {} no longer", name.name()), Ok(()));
        sent.map_err(|_| malformed())?;
        self.released(in_time, "it had lasted for as long as the rules allow")
    }

    /// Takes RELEASE, which has come or comes late.
    fn released(&self, in_time: bool, late: &str) -> Result<Then, Denial> {
        let mut buffer = [0; 64];
        let received = seqpacket::receive(self.socket.as_fd(), &mut buffer).map_err(|_| malformed())?;
        let release = codec::decode_request(&buffer[..received.length]).map_err(|_| malformed())?;
        if release.kind != Kind::Release {
            return Err(malformed());
        }
        let late = Denial { errno: libc::ETIMEDOUT, refused: true, text: late.to_owned() };
        let result = if in_time { Ok(&[][..]) } else { Err(&late) };
        let _ = self.reply(Kind::Release as u16, release.sequence, result);
        Ok(Then::Replied)
    }

    fn is_answered_before(&self, end: Instant) -> bool {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match wait::readable([self.socket.as_raw_fd()], Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                ready => return matches!(ready, Ok([true])),
            }
        }
    }
}

fn malformed() -> Denial {
    Denial { errno: libc::EBADMSG, refused: true, text: "malformed request".to_owned() }
}

/// Tells somebody who may not come in why.
pub fn turn_away(socket: &Socket, why: &Denial) {
    let bytes = codec::encode_reply(Kind::Hello as u16, 1, Err(why));
    let _ = socket.send_with_flags(&bytes, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_of_our_user_namespace() {
        let peer = |process| Peer { process, uid: 1, gid: 1, groups: vec![] };
        assert!(is_of_our_user_namespace(&peer(std::process::id() as i32)));
        assert!(!is_of_our_user_namespace(&peer(0)) && !is_of_our_user_namespace(&peer(i32::MAX)));
    }
}
