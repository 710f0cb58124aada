//! The broker of a network namespace, which sends what needs CAP_NET_ADMIN for a program that has none. It listens on a
//! socket of the file system; [`codec`] has the bytes.

pub mod codec;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::error::{Error, Result};
use crate::netlink::broker::codec::{Denial, Hello, Kind, OptionRequest, OptionResult};
use crate::netlink::diag::codec::{Tuple, Ulp};
use crate::netlink::pm::codec::Command;
use crate::netlink::Failure;
use crate::sys;
use crate::sys::credentials::Owner;
use crate::sys::lock::{lock, PerProcess};
use crate::sys::seqpacket;
use crate::sys::wait;

/// How many connections are kept for the next requests.
const KEPT: usize = 2;

/// For how long a socket is made anew because the broker had put the path manager back before it was there.
const PATIENCE: Duration = Duration::from_secs(5);

/// The brokers in use, by the cookie of their namespace.
static BROKERS: PerProcess<HashMap<u64, Arc<Broker>>> = PerProcess::new();

/// The broker of one network namespace.
#[derive(Debug)]
pub struct Broker {
    path: PathBuf,
    namespace: u64,
    /// Bits of [`codec::allows`], as it said last: rules may change when it is restarted.
    allows: AtomicU32,
    idle: Mutex<Vec<Connection>>,
}

/// One connection to it, for one request at a time.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    /// The user whose rights it has: the one that it was made by (SO_PEERCRED).
    uid: u32,
    sequence: u32,
    /// For replies.
    buffer: Vec<u8>,
}

/// The path manager of the namespace is another for as long as this lives, or as the broker's rules allow.
#[derive(Debug)]
pub struct Use {
    connection: Connection,
    longest: Duration,
}

/// Descriptors by which this process can prove that connections are its own, by namespace and token. Their owners take
/// them away by setting them to -1.
#[derive(Debug, Default)]
struct Proofs {
    descriptors: HashMap<(u64, u32), Weak<AtomicI32>>,
    /// How many there may be before those of connections that have ended are left out.
    room: usize,
}

static PROOFS: PerProcess<Proofs> = PerProcess::new();

/// Remembers a descriptor of a connection, for brokers that want one.
pub fn remember(namespace: u64, token: u32, descriptor: &Arc<AtomicI32>) {
    let Proofs { descriptors, room } = &mut *PROOFS.lock();
    if descriptors.len() >= *room {
        descriptors
            .retain(|_, known| known.upgrade().is_some_and(|known| known.load(Ordering::Relaxed) >= 0));
        *room = 64.max(2 * descriptors.len());
    }
    descriptors.insert((namespace, token), Arc::downgrade(descriptor));
}

/// A duplicate, which stays that of the connection until it has been sent.
fn proof(namespace: u64, token: u32) -> Option<OwnedFd> {
    let known = PROOFS.lock().descriptors.get(&(namespace, token)).and_then(Weak::upgrade)?;
    sys::descriptor::duplicate(known.load(Ordering::Relaxed)).ok()
}

/// What became of a request: its payload, or why it was denied.
type Answer = std::result::Result<Vec<u8>, Denial>;

/// Where a broker would listen.
pub fn path() -> PathBuf {
    std::env::var_os(codec::PATH_VARIABLE).map_or_else(|| PathBuf::from(codec::PATH), PathBuf::from)
}

/// The broker of the network namespace with this cookie, if one listens and serves that one.
pub fn of(namespace: u64) -> Option<Arc<Broker>> {
    let path = path();
    if let Some(known) = BROKERS.lock().get(&namespace) {
        if known.path == path {
            return Some(Arc::clone(known));
        }
    }
    let broker = Arc::new(Broker::find(&path).ok().filter(|found| found.namespace == namespace)?);
    BROKERS.lock().insert(namespace, Arc::clone(&broker));
    Some(broker)
}

impl Broker {
    /// The one that listens at a path. Fails where none does.
    pub fn find(path: &Path) -> io::Result<Broker> {
        let mut connection = Connection::new(path)?;
        let hello = connection.greet()?.map_err(|denial| io::Error::from_raw_os_error(denial.errno))?;
        Ok(Broker {
            path: path.to_owned(),
            namespace: hello.namespace,
            allows: AtomicU32::new(hello.allows),
            idle: Mutex::new(vec![connection]),
        })
    }

    /// Whether it allows this process what a bit of [`codec::allows`] stands for.
    pub fn allows(&self, bit: u32) -> bool {
        self.allows.load(Ordering::Relaxed) & bit != 0
    }

    /// Asks it once more what it allows. Fails where it does not listen any more.
    pub fn greet(&self) -> Result<()> {
        let mut connection = self.connection()?;
        let hello = match connection.greet() {
            Err(error) if is_gone(&error) => {
                lock(&self.idle).clear();
                connection = self.connection()?;
                connection.greet()
            }
            hello => hello,
        };
        let hello = hello.map_err(|error| failed(&error))?.map_err(denied)?;
        self.allows.store(hello.allows, Ordering::Relaxed);
        self.keep(connection);
        Ok(())
    }

    /// A command of `mptcp_pm`, as [`crate::netlink::pm::PmSocket::command`].
    pub fn command(&self, payload: &[u8]) -> Result<std::result::Result<(), Failure>> {
        let token = Command::decode(payload).map(|command| command.token());
        self.acknowledged(Kind::Command, payload, token)
    }

    /// SOCK_DESTROY, of a subflow of the connection with this token.
    pub fn destroy(
        &self,
        tuple: &Tuple,
        cookie: u64,
        token: u32,
    ) -> Result<std::result::Result<(), Failure>> {
        self.acknowledged(Kind::Destroy, &codec::encode_destroy(tuple, cookie), Some(token))
    }

    /// Socket options on subflows of the connection with this token; what became of each.
    pub fn options(&self, requests: &[OptionRequest], token: Option<u32>) -> Result<Vec<OptionResult>> {
        let mut results = Vec::with_capacity(requests.len());
        for batch in requests.chunks(codec::MAX_OPTIONS) {
            let payload = self.ask(Kind::Options, &codec::encode_options(batch), token)?.map_err(denied)?;
            let told = codec::decode_option_results(&payload).filter(|told| told.len() == batch.len());
            results.extend(told.ok_or_else(malformed)?);
        }
        Ok(results)
    }

    /// What makes TCP sockets subflows, by their four-tuples and cookies; `None` for one that is no subflow, or gone. An
    /// older broker does not tell it: [`Error::Unsupported`].
    pub fn subflows(&self, asked: &[(Tuple, u64)]) -> Result<Vec<Option<Ulp>>> {
        let mut results = Vec::with_capacity(asked.len());
        for batch in asked.chunks(codec::MAX_SUBFLOWS) {
            let payload = self.ask(Kind::Subflows, &codec::encode_subflows(batch), None)?.map_err(denied)?;
            let told = codec::decode_subflow_results(&payload).filter(|told| told.len() == batch.len());
            results.extend(told.ok_or_else(malformed)?);
        }
        Ok(results)
    }

    /// A socket on which events of the caller's connections come, as netlink messages of the kernel.
    pub fn events(&self) -> io::Result<Socket> {
        let mut connection = Connection::new(&self.path)?;
        match connection.ask(Kind::Events, &[], None)? {
            Ok(_) => {
                connection.socket.set_nonblocking(true)?;
                Ok(connection.socket)
            }
            Err(denial) => Err(io::Error::from_raw_os_error(denial.errno)),
        }
    }

    /// What `make` returns, called while new sockets of the namespace latch the path manager of this name.
    pub fn hold<T>(&self, name: &str, mut make: impl FnMut() -> Result<T>) -> Result<T> {
        let mut connection = self.live_connection()?;
        let ask = |connection: &mut Connection, kind, payload: &[u8]| {
            connection.ask_awake(kind, payload).map_err(|error| failed(&error))
        };
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let asked = Instant::now();
            // The answer waits for its turn where this user, or all of them, hold more often than they may.
            match ask(&mut connection, Kind::Hold, name.as_bytes())? {
                Ok(_) => {}
                Err(denial) if denial.errno == libc::EAGAIN => {
                    return Err(Error::os(libc::EBUSY, denial.text));
                }
                Err(denial) => return Err(denied(denial)),
            }
            let made = make();
            // The broker has put nothing back before it had held it for so long.
            let was_in_time = asked.elapsed() < codec::HOLD;
            let released = ask(&mut connection, Kind::Release, &[])?;
            match released {
                Ok(_) => {
                    self.keep(connection);
                    return made;
                }
                Err(denial) if denial.errno == libc::ETIMEDOUT && was_in_time => {
                    self.keep(connection);
                    return made;
                }
                // This process was not scheduled in time: what it made has latched who knows what.
                Err(denial) if denial.errno == libc::ETIMEDOUT => {}
                Err(denial) => return Err(denied(denial)),
            }
        }
        Err(Error::os(
            libc::EBUSY,
            "the broker had to put net.mptcp.path_manager back before the socket was created: the machine is too busy, \
             try again",
        ))
    }

    /// Has new sockets of the namespace latch the path manager of this name, until what this returns is dropped.
    pub fn use_path_manager(&self, name: &str) -> Result<Use> {
        let mut connection = self.live_connection()?;
        let answer = connection.ask(Kind::Use, name.as_bytes(), None).map_err(|error| failed(&error))?;
        let longest = codec::decode_use(&answer.map_err(denied)?).ok_or_else(malformed)?;
        Ok(Use { connection, longest })
    }

    fn acknowledged(
        &self,
        kind: Kind,
        payload: &[u8],
        token: Option<u32>,
    ) -> Result<std::result::Result<(), Failure>> {
        match self.ask(kind, payload, token)? {
            Ok(_) => Ok(Ok(())),
            Err(denial) if denial.refused => Err(denied(denial)),
            Err(Denial { errno, text, .. }) => {
                Ok(Err(Failure { errno, text: Some(text).filter(|text| !text.is_empty()) }))
            }
        }
    }

    /// Asks something about the connection with this token.
    fn ask(&self, kind: Kind, payload: &[u8], token: Option<u32>) -> Result<Answer> {
        let mut connection = self.connection()?;
        let answer = match connection.ask(kind, payload, self.proof(token)) {
            // It has been restarted since: this one was never heard.
            Err(error) if is_gone(&error) => {
                lock(&self.idle).clear();
                connection = self.connection()?;
                connection.ask(kind, payload, self.proof(token))
            }
            answer => answer,
        };
        let answer = answer.map_err(|error| failed(&error))?;
        self.keep(connection);
        Ok(answer)
    }

    /// A descriptor of the connection with this token, where the caller's uid proves nothing to this broker.
    fn proof(&self, token: Option<u32>) -> Option<OwnedFd> {
        token.filter(|_| !self.allows(codec::allows::OWN)).and_then(|token| proof(self.namespace, token))
    }

    /// An idle connection, which the broker may have closed since, or a new one, at which it says again what it allows.
    fn connection(&self) -> Result<Connection> {
        let uid = Owner::current().uid;
        while let Some(idle) = lock(&self.idle).pop() {
            if idle.uid == uid {
                return Ok(idle);
            }
        }
        let mut connection = Connection::new(&self.path).map_err(|error| failed(&error))?;
        let hello = connection.greet().map_err(|error| failed(&error))?.map_err(denied)?;
        if hello.namespace != self.namespace {
            let text = format!("the broker at {} serves another network namespace now", self.path.display());
            return Err(Error::os(libc::ENXIO, text));
        }
        self.allows.store(hello.allows, Ordering::Relaxed);
        Ok(connection)
    }

    /// The same, but not one that the broker has closed.
    fn live_connection(&self) -> Result<Connection> {
        let connection = self.connection()?;
        let is_quiet = wait::readable([connection.socket.as_raw_fd()], Some(Duration::ZERO));
        if matches!(is_quiet, Ok([false])) {
            return Ok(connection);
        }
        lock(&self.idle).clear();
        self.connection()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT {
            idle.push(connection);
        }
    }
}

impl Connection {
    fn new(path: &Path) -> io::Result<Connection> {
        let (uid, buffer) = (Owner::current().uid, vec![0; codec::MAX_MESSAGE]);
        Ok(Connection { socket: seqpacket::connect(path)?, uid, sequence: 0, buffer })
    }

    /// Asks what it allows. Whom it allows nothing it tells so and closes the connection, before HELLO or after.
    fn greet(&mut self) -> io::Result<std::result::Result<Hello, Denial>> {
        let mut answer = self.ask(Kind::Hello, &[], None);
        if answer
            .as_ref()
            .is_err_and(|error| is_gone(error) || error.kind() == io::ErrorKind::ConnectionReset)
        {
            answer = self.receive().map_err(|_| io::Error::from_raw_os_error(libc::EPIPE));
        }
        let answer = answer?;
        let malformed = || io::Error::from_raw_os_error(libc::EPROTO);
        match answer {
            Ok(payload) => codec::decode_hello(&payload).map(Ok).ok_or_else(malformed),
            Err(denial) => Ok(Err(denial)),
        }
    }

    /// EPIPE: the request was not sent.
    fn ask(&mut self, kind: Kind, payload: &[u8], proof: Option<OwnedFd>) -> io::Result<Answer> {
        self.send(kind, payload, proof)?;
        self.receive()
    }

    /// The same where the answer is expected at once.
    fn ask_awake(&mut self, kind: Kind, payload: &[u8]) -> io::Result<Answer> {
        self.send(kind, payload, None)?;
        wait::soon_readable(self.socket.as_raw_fd(), codec::AWAKE);
        self.receive()
    }

    fn send(&mut self, kind: Kind, payload: &[u8], proof: Option<OwnedFd>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = codec::encode_request(kind, self.sequence, payload);
        let sent = seqpacket::send(&self.socket, &request, proof.as_ref().map(AsFd::as_fd));
        sent.map_err(|error| match error.raw_os_error() {
            Some(libc::ECONNRESET) => io::Error::from_raw_os_error(libc::EPIPE),
            _ => error,
        })
    }

    /// The answer to the last request.
    fn receive(&mut self) -> io::Result<Answer> {
        loop {
            let received = match seqpacket::receive(self.socket.as_fd(), &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            if received.length == 0 {
                return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
            }
            if let Some((sequence, answer)) = codec::decode_reply(&self.buffer[..received.length]) {
                if sequence == self.sequence {
                    return Ok(answer.map(<[u8]>::to_vec));
                }
            }
        }
    }
}

impl Use {
    /// Ends it. ETIMEDOUT where the broker had ended it before.
    pub fn end(mut self) -> Result<()> {
        match self.connection.ask(Kind::Release, &[], None) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(denial)) if denial.errno == libc::ETIMEDOUT => Err(Error::os(
                libc::ETIMEDOUT,
                format!(
                    "the broker put net.mptcp.path_manager back after {} s, which is as long as its rules allow",
                    self.longest.as_secs_f64()
                ),
            )),
            Ok(Err(denial)) => Err(denied(denial)),
            Err(_) => Err(Error::os(
                libc::ECONNRESET,
                "the broker ended, and net.mptcp.path_manager was put back when it did",
            )),
        }
    }
}

/// The broker has closed the connection, before it heard the request.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

fn denied(denial: Denial) -> Error {
    match denial.errno {
        // The first brokers answered EBADMSG; what this library sends is well-formed.
        libc::EOPNOTSUPP | libc::EBADMSG if denial.refused => Error::unsupported(
            "the broker does not know this request, because it is older than this program's mptcp: restart it with the same              version (systemctl restart mptcp-broker)",
        ),
        libc::EPROTONOSUPPORT if denial.refused => Error::unsupported(format!(
            "{}, and this program's mptcp version {}: run both with the same version of mptcp",
            denial.text,
            codec::VERSION
        )),
        errno => Error::os(errno, denial.text),
    }
}

fn failed(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ECONNRESET) => Error::os(
            libc::ECONNRESET,
            "the broker ended while it served the request, which it may have done or not: look at subflows()",
        ),
        _ => Error::call("connecting to the broker (mptcp broker)", error),
    }
}

fn malformed() -> Error {
    Error::os(libc::EPROTO, "the broker answered with a malformed message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, SockAddr, Type};

    /// A broker that answers HELLO, and each other request with this denial.
    fn denying(path: &Path, denial: Denial) -> std::thread::JoinHandle<()> {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        listener.bind(&SockAddr::unix(path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let mut buffer = vec![0; codec::MAX_MESSAGE];
            loop {
                let length = seqpacket::receive(socket.as_fd(), &mut buffer).unwrap().length;
                if length == 0 {
                    return;
                }
                let request = codec::decode_request(&buffer[..length]).unwrap();
                let hello = codec::encode_hello(Hello { namespace: 1, allows: codec::allows::OWN });
                let result = if request.kind == Kind::Hello { Ok(&hello[..]) } else { Err(&denial) };
                socket.send(&codec::encode_reply(request.kind as u16, request.sequence, result)).unwrap();
            }
        })
    }

    #[test]
    fn of_an_older_broker_it_is_said_what_to_do() {
        let folder = std::env::temp_dir().join(format!("mptcp-older-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("broker.sock");
        for (errno, words) in
            [(libc::EBADMSG, "older"), (libc::EOPNOTSUPP, "older"), (libc::EPROTONOSUPPORT, "same version")]
        {
            let serving = denying(&path, Denial { errno, refused: true, text: "no".to_owned() });
            let broker = Broker::find(&path).unwrap();
            let ends = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
            let tuple = Tuple { local: ends.0, remote: ends.1, interface: 0 };
            let error = broker.subflows(&[(tuple, 1)]).unwrap_err();
            assert!(
                matches!(error, Error::Unsupported { .. }) && error.to_string().contains(words),
                "{error}"
            );
            drop(broker);
            serving.join().unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::remove_dir(&folder).unwrap();
    }
}
