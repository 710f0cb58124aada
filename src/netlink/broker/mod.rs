//! The broker of a network namespace, which sends what needs CAP_NET_ADMIN for a program that has none. It listens on a
//! socket of the file system; [`codec`] has the bytes.

pub mod codec;
pub mod seqpacket;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::error::{Error, Result};
use crate::netlink::broker::codec::{Denial, Hello, Kind, OptionRequest, OptionResult};
use crate::netlink::diag::codec::Tuple;
use crate::netlink::Failure;
use crate::sys::lock::{lock, PerProcess};

/// How many connections are kept for the next requests.
const KEPT: usize = 2;

/// How often a socket is made anew because the broker had put the path manager back before it was there.
const TRIES: usize = 10;

/// How long to wait for a turn where this user, or all of them, make more sockets a second than the broker lets them.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// The brokers in use, by the cookie of their namespace.
static BROKERS: PerProcess<HashMap<u64, Arc<Broker>>> = PerProcess::new();

/// The broker of one network namespace.
#[derive(Debug)]
pub struct Broker {
    path: PathBuf,
    pub hello: Hello,
    idle: Mutex<Vec<Connection>>,
}

/// One connection to it, for one request at a time.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    sequence: u32,
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
    let broker = Arc::new(Broker::find(&path).ok().filter(|found| found.hello.namespace == namespace)?);
    BROKERS.lock().insert(namespace, Arc::clone(&broker));
    Some(broker)
}

impl Broker {
    /// The one that listens at a path. Fails where none does.
    pub fn find(path: &Path) -> io::Result<Broker> {
        let mut connection = Connection::new(path)?;
        let answer = connection.ask(Kind::Hello, &[])?;
        let hello = answer.ok().and_then(|payload| codec::decode_hello(&payload));
        let hello = hello.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))?;
        Ok(Broker { path: path.to_owned(), hello, idle: Mutex::new(vec![connection]) })
    }

    /// A command of `mptcp_pm`, as [`crate::netlink::pm::PmSocket::command`].
    pub fn command(&self, payload: &[u8]) -> Result<std::result::Result<(), Failure>> {
        self.acknowledged(Kind::Command, payload)
    }

    /// SOCK_DESTROY.
    pub fn destroy(&self, tuple: &Tuple, cookie: u64) -> Result<std::result::Result<(), Failure>> {
        self.acknowledged(Kind::Destroy, &codec::encode_destroy(tuple, cookie))
    }

    /// Socket options on subflows; what became of each.
    pub fn options(&self, requests: &[OptionRequest]) -> Result<Vec<OptionResult>> {
        let mut results = Vec::with_capacity(requests.len());
        for batch in requests.chunks(codec::MAX_OPTIONS) {
            let payload = self.ask(Kind::Options, &codec::encode_options(batch))?.map_err(denied)?;
            let told = codec::decode_option_results(&payload).filter(|told| told.len() == batch.len());
            results.extend(told.ok_or_else(malformed)?);
        }
        Ok(results)
    }

    /// A socket on which events of the caller's connections come, as netlink messages of the kernel.
    pub fn events(&self) -> io::Result<Socket> {
        let mut connection = Connection::new(&self.path)?;
        match connection.ask(Kind::Events, &[])? {
            Ok(_) => {
                connection.socket.set_nonblocking(true)?;
                Ok(connection.socket)
            }
            Err(denial) => Err(io::Error::from_raw_os_error(denial.errno)),
        }
    }

    /// What `make` returns, called while new sockets of the namespace latch the path manager of this name.
    pub fn hold<T>(&self, name: &str, mut make: impl FnMut() -> Result<T>) -> Result<T> {
        let mut connection = self.connection().map_err(|error| failed(&error))?;
        let ask = |connection: &mut Connection, kind, payload: &[u8]| {
            connection.ask(kind, payload).map_err(|error| failed(&error))
        };
        let end = Instant::now() + PATIENCE;
        for _ in 0..TRIES {
            loop {
                match ask(&mut connection, Kind::Hold, name.as_bytes())? {
                    Ok(_) => break,
                    Err(denial) if denial.errno == libc::EAGAIN && Instant::now() < end => {
                        std::thread::sleep(PAUSE);
                    }
                    Err(denial) if denial.errno == libc::EAGAIN => {
                        return Err(Error::os(libc::EBUSY, denial.text));
                    }
                    Err(denial) => return Err(denied(denial)),
                }
            }
            let made = make();
            let released = ask(&mut connection, Kind::Release, &[])?;
            match released {
                Ok(_) => {
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

    fn acknowledged(&self, kind: Kind, payload: &[u8]) -> Result<std::result::Result<(), Failure>> {
        match self.ask(kind, payload)? {
            Ok(_) => Ok(Ok(())),
            Err(denial) if denial.refused => Err(denied(denial)),
            Err(Denial { errno, text, .. }) => {
                Ok(Err(Failure { errno, text: Some(text).filter(|text| !text.is_empty()) }))
            }
        }
    }

    fn ask(&self, kind: Kind, payload: &[u8]) -> Result<Answer> {
        let mut connection = self.connection().map_err(|error| failed(&error))?;
        let answer = match connection.ask(kind, payload) {
            // It has been restarted since: this one was never heard.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                lock(&self.idle).clear();
                connection = Connection::new(&self.path).map_err(|error| failed(&error))?;
                connection.ask(kind, payload)
            }
            answer => answer,
        };
        let answer = answer.map_err(|error| failed(&error))?;
        self.keep(connection);
        Ok(answer)
    }

    fn connection(&self) -> io::Result<Connection> {
        let idle = lock(&self.idle).pop();
        idle.map_or_else(|| Connection::new(&self.path), Ok)
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
        Ok(Connection { socket: seqpacket::connect(path)?, sequence: 0 })
    }

    fn ask(&mut self, kind: Kind, payload: &[u8]) -> io::Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = codec::encode_request(kind, self.sequence, payload);
        self.socket.send_with_flags(&request, libc::MSG_NOSIGNAL)?;
        let mut buffer = vec![0; codec::MAX_MESSAGE];
        loop {
            let received = match seqpacket::receive(self.socket.as_fd(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            if received.length == 0 {
                return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
            }
            if let Some((sequence, answer)) = codec::decode_reply(&buffer[..received.length]) {
                if sequence == self.sequence {
                    return Ok(answer.map(<[u8]>::to_vec));
                }
            }
        }
    }
}

fn denied(denial: Denial) -> Error {
    Error::os(denial.errno, denial.text)
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
