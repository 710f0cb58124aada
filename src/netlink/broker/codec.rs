//! The protocol of the broker as bytes: docs/broker.md describes it. Numbers are in the host's byte order; a message is
//! one datagram of a SOCK_SEQPACKET socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::abi::bytes;
use crate::netlink::diag::codec::{Tuple, Ulp};

/// Where the broker listens, unless the environment variable says otherwise.
pub const PATH: &str = "/run/mptcp/broker.sock";
pub const PATH_VARIABLE: &str = "MPTCP_BROKER";

pub const VERSION: u16 = 1;

/// How long new sockets of the namespace latch another path manager for one caller's, from the reply to HOLD on, unless
/// RELEASE comes before.
pub const HOLD: Duration = Duration::from_millis(1);

/// How long HOLD waits for its turn, where this user, or all of them, hold more often than they may.
pub const TURN: Duration = Duration::from_secs(5);

/// How long either side looks for the other's message without sleeping.
pub const AWAKE: Duration = Duration::from_micros(200);

/// The longest message of either side.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The longest value of a socket option.
pub const MAX_VALUE: usize = 128;

/// How many options one request may have.
pub const MAX_OPTIONS: usize = 256;

/// How many subflows one request may ask about.
pub const MAX_SUBFLOWS: usize = 256;

const HEADER: usize = 16;
const REPLY: u16 = 0x8000;
const REFUSED: u32 = 1;
const END: usize = 20;
const TUPLE: usize = 2 * END + 4;
const SUBFLOW: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Which namespace the broker serves, and what it allows the caller.
    Hello = 1,
    /// A command of `mptcp_pm`, as the kernel takes it: `struct genlmsghdr` and attributes.
    Command = 2,
    /// SOCK_DESTROY of a subflow.
    Destroy = 3,
    /// From the reply on, the broker sends events, and takes nothing more.
    Events = 4,
    /// The path manager of the namespace is changed for a moment, from the reply on.
    Hold = 5,
    /// The end of that.
    Release = 6,
    /// Socket options on subflows.
    Options = 7,
    /// The path manager of the namespace is changed for as long as the rules allow, from the reply on.
    Use = 8,
    /// What makes TCP sockets subflows: since Linux 6.15 the kernel tells it everybody.
    Subflows = 9,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Hello,
        Kind::Command,
        Kind::Destroy,
        Kind::Events,
        Kind::Hold,
        Kind::Release,
        Kind::Options,
        Kind::Use,
        Kind::Subflows,
    ];

    fn of(number: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// Why a request failed: the kernel's errno and sentence, or the broker's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub errno: i32,
    /// The broker refused it: nothing was asked of the kernel.
    pub refused: bool,
    pub text: String,
}

/// A request's head and what follows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub kind: Kind,
    pub sequence: u32,
    pub payload: &'a [u8],
}

fn message(kind: u16, sequence: u32, errno: i32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(VERSION.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(errno.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

pub fn encode_request(kind: Kind, sequence: u32, payload: &[u8]) -> Vec<u8> {
    message(kind as u16, sequence, 0, 0, payload)
}

/// What a request says, or why it cannot be served: EPROTONOSUPPORT of another version, EOPNOTSUPP of a kind that a later
/// version of this library may have, else EBADMSG.
pub fn decode_request(bytes: &[u8]) -> Result<Request<'_>, i32> {
    let (Some(version), Some(kind), Some(sequence), Some(payload)) =
        (bytes::u16(bytes, 0), bytes::u16(bytes, 2), bytes::u32(bytes, 4), bytes.get(HEADER..))
    else {
        return Err(libc::EBADMSG);
    };
    if version != VERSION {
        return Err(libc::EPROTONOSUPPORT);
    }
    Ok(Request { kind: Kind::of(kind).ok_or(libc::EOPNOTSUPP)?, sequence, payload })
}

/// The reply to a request, in which `number` and `sequence` are the request's own, known or not.
pub fn encode_reply(number: u16, sequence: u32, result: Result<&[u8], &Denial>) -> Vec<u8> {
    match result {
        Ok(payload) => message(number | REPLY, sequence, 0, 0, payload),
        Err(denial) => {
            let flags = if denial.refused { REFUSED } else { 0 };
            message(number | REPLY, sequence, denial.errno, flags, denial.text.as_bytes())
        }
    }
}

/// A reply's sequence number, and its payload or why the request failed; `None` for what is not a reply.
pub fn decode_reply(bytes: &[u8]) -> Option<(u32, Result<&[u8], Denial>)> {
    let (kind, sequence) = (bytes::u16(bytes, 2)?, bytes::u32(bytes, 4)?);
    let (errno, flags) = (bytes::u32(bytes, 8)? as i32, bytes::u32(bytes, 12)?);
    let payload = bytes.get(HEADER..)?;
    if kind & REPLY == 0 {
        return None;
    }
    let result = match errno {
        0 => Ok(payload),
        errno => Err(Denial {
            errno,
            refused: flags & REFUSED != 0,
            text: String::from_utf8_lossy(payload).into_owned(),
        }),
    };
    Some((sequence, result))
}

/// The reply to HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// SO_NETNS_COOKIE of the namespace that the broker serves.
    pub namespace: u64,
    /// Bits of [`allows`].
    pub allows: u32,
}

/// What a broker may allow a caller.
pub mod allows {
    /// Connections of the caller's own uid, without a descriptor.
    pub const OWN: u32 = 1;
    /// The path manager of a new socket.
    pub const HOLD: u32 = 2;
    /// Socket options on one subflow.
    pub const OPTIONS: u32 = 4;
    /// The path manager of the namespace, for some time.
    pub const USE: u32 = 8;
}

pub fn encode_hello(hello: Hello) -> Vec<u8> {
    let mut bytes = hello.namespace.to_ne_bytes().to_vec();
    bytes.extend(hello.allows.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

pub fn decode_hello(payload: &[u8]) -> Option<Hello> {
    Some(Hello { namespace: bytes::u64(payload, 0)?, allows: bytes::u32(payload, 8)? })
}

/// The reply to USE: for how long.
pub fn encode_use(longest: Duration) -> Vec<u8> {
    u32::try_from(longest.as_millis()).unwrap_or(u32::MAX).to_ne_bytes().to_vec()
}

pub fn decode_use(payload: &[u8]) -> Option<Duration> {
    bytes::u32(payload, 0).map(|milliseconds| Duration::from_millis(milliseconds.into()))
}

/// A family, a port and 16 bytes of address, of which IPv4 takes 4.
fn push_end(bytes: &mut Vec<u8>, end: SocketAddr) {
    let (family, mut address) = (if end.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, [0; 16]);
    match end.ip() {
        IpAddr::V4(v4) => bytes::put(&mut address, 0, &v4.octets()),
        IpAddr::V6(v6) => address = v6.octets(),
    }
    bytes.extend((family as u16).to_ne_bytes());
    bytes.extend(end.port().to_ne_bytes());
    bytes.extend(address);
}

fn end(bytes: &[u8], at: usize) -> Option<SocketAddr> {
    let ip = match i32::from(bytes::u16(bytes, at)?) {
        libc::AF_INET => IpAddr::V4(bytes::ipv4(bytes, at + 4)?),
        libc::AF_INET6 => IpAddr::V6(bytes::ipv6(bytes, at + 4)?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, bytes::u16(bytes, at + 2)?))
}

fn push_tuple(bytes: &mut Vec<u8>, tuple: &Tuple) {
    push_end(bytes, tuple.local);
    push_end(bytes, tuple.remote);
    bytes.extend(tuple.interface.to_ne_bytes());
}

fn tuple(bytes: &[u8], at: usize) -> Option<Tuple> {
    let (local, remote) = (end(bytes, at)?, end(bytes, at + END)?);
    Some(Tuple { local, remote, interface: bytes::u32(bytes, at + 2 * END)? })
}

/// A subflow, by its cookie and where it is found.
pub fn encode_destroy(tuple: &Tuple, cookie: u64) -> Vec<u8> {
    let mut bytes = cookie.to_ne_bytes().to_vec();
    push_tuple(&mut bytes, tuple);
    bytes
}

pub fn decode_destroy(payload: &[u8]) -> Option<(Tuple, u64)> {
    Some((tuple(payload, 8)?, bytes::u64(payload, 0)?))
}

/// TCP sockets that may be subflows, each as in DESTROY.
pub fn encode_subflows(asked: &[(Tuple, u64)]) -> Vec<u8> {
    asked.iter().flat_map(|(tuple, cookie)| encode_destroy(tuple, *cookie)).collect()
}

/// The sockets; `None` if they are malformed or too many.
pub fn decode_subflows(payload: &[u8]) -> Option<Vec<(Tuple, u64)>> {
    let asked = payload.chunks(8 + TUPLE);
    if asked.len() > MAX_SUBFLOWS {
        return None;
    }
    asked.map(decode_destroy).collect()
}

/// `None` for what is no subflow, or gone.
pub fn encode_subflow_results(results: &[Option<Ulp>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(results.len() * SUBFLOW);
    for result in results {
        let ulp = result.unwrap_or(Ulp { token: 0, local_id: 0, remote_id: 0, flags: 0 });
        for word in [u32::from(result.is_some()), ulp.token, ulp.flags] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([ulp.local_id, ulp.remote_id, 0, 0]);
    }
    bytes
}

pub fn decode_subflow_results(payload: &[u8]) -> Option<Vec<Option<Ulp>>> {
    let result = |bytes: &[u8]| {
        let ulp = Ulp {
            token: bytes::u32(bytes, 4)?,
            flags: bytes::u32(bytes, 8)?,
            local_id: *bytes.get(12)?,
            remote_id: *bytes.get(13)?,
        };
        Some(Some(ulp).filter(|_| bytes::u32(bytes, 0) == Some(1)))
    };
    payload.chunks(SUBFLOW).map(result).collect()
}

/// One option of one subflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionRequest {
    pub tuple: Tuple,
    pub cookie: u64,
    pub level: i32,
    pub name: i32,
    /// Absent: it is read.
    pub value: Option<Vec<u8>>,
    /// How many bytes to read.
    pub room: usize,
}

pub fn encode_options(requests: &[OptionRequest]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        let value = request.value.as_deref().unwrap_or_default();
        let length = if request.value.is_some() { value.len() } else { request.room };
        bytes.extend(request.cookie.to_ne_bytes());
        push_tuple(&mut bytes, &request.tuple);
        for word in
            [request.level as u32, request.name as u32, u32::from(request.value.is_some()), length as u32]
        {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(value);
    }
    bytes
}

/// The requests; `None` if they are malformed, too many or too long.
pub fn decode_options(mut payload: &[u8]) -> Option<Vec<OptionRequest>> {
    const FIXED: usize = 8 + TUPLE + 16;
    let mut requests = Vec::new();
    while !payload.is_empty() {
        let word = |index: usize| bytes::u32(payload, 8 + TUPLE + 4 * index);
        let (sets, length) = (word(2)?, word(3)? as usize);
        let is_set = sets == 1;
        if sets > 1 || length == 0 || length > MAX_VALUE || requests.len() == MAX_OPTIONS {
            return None;
        }
        let end = if is_set { FIXED + length } else { FIXED };
        requests.push(OptionRequest {
            cookie: bytes::u64(payload, 0)?,
            tuple: tuple(payload, 8)?,
            level: word(0)? as i32,
            name: word(1)? as i32,
            value: if is_set { Some(payload.get(FIXED..end)?.to_vec()) } else { None },
            room: length,
        });
        payload = payload.get(end..)?;
    }
    Some(requests)
}

/// What became of one option: the value read, empty after a set; or an errno, 0 for a subflow that is gone.
pub type OptionResult = Result<Vec<u8>, i32>;

pub fn encode_option_results(results: &[OptionResult]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for result in results {
        let (status, errno, value) = match result {
            Ok(value) => (0u32, 0, value.as_slice()),
            Err(errno) => (1, *errno, [].as_slice()),
        };
        bytes.extend(status.to_ne_bytes());
        bytes.extend(errno.to_ne_bytes());
        bytes.extend((value.len() as u32).to_ne_bytes());
        bytes.extend(value);
    }
    bytes
}

pub fn decode_option_results(mut payload: &[u8]) -> Option<Vec<OptionResult>> {
    let mut results = Vec::new();
    while !payload.is_empty() {
        let (status, errno) = (bytes::u32(payload, 0)?, bytes::u32(payload, 4)? as i32);
        let end = 12usize.checked_add(bytes::u32(payload, 8)? as usize)?;
        let value = payload.get(12..end)?.to_vec();
        results.push(if status == 0 { Ok(value) } else { Err(errno) });
        payload = payload.get(end..)?;
    }
    Some(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple() -> Tuple {
        let (local, remote) = ("10.0.1.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap());
        Tuple { local, remote, interface: 3 }
    }

    #[test]
    fn requests_and_replies_read_back() {
        let bytes = encode_request(Kind::Hold, 7, b"userspace");
        let request = Request { kind: Kind::Hold, sequence: 7, payload: b"userspace" };
        assert_eq!(decode_request(&bytes), Ok(request));
        assert_eq!(decode_reply(&bytes), None);
        for length in 0..HEADER {
            assert_eq!(decode_request(&bytes[..length]), Err(libc::EBADMSG));
        }
        let mut other = bytes.clone();
        bytes::put(&mut other, 0, &2u16.to_ne_bytes());
        assert_eq!(decode_request(&other), Err(libc::EPROTONOSUPPORT));
        bytes::put(&mut other, 0, &[1, 0, 99, 0]);
        assert_eq!(decode_request(&other), Err(libc::EOPNOTSUPP));
        let denial = Denial { errno: libc::EACCES, refused: true, text: "no".to_owned() };
        let reply = encode_reply(Kind::Hold as u16, 7, Err(&denial));
        assert_eq!(decode_reply(&reply), Some((7, Err(denial))));
        assert_eq!(decode_reply(&encode_reply(5, 8, Ok(b"x"))), Some((8, Ok(&b"x"[..]))));
        let hello = Hello { namespace: 1 << 40, allows: allows::OWN };
        assert_eq!(decode_hello(&encode_hello(hello)), Some(hello));
        let longest = Duration::from_millis(30_500);
        assert_eq!((decode_use(&encode_use(longest)), decode_use(&[1])), (Some(longest), None));
    }

    #[test]
    fn subflows_and_what_makes_them_so_read_back() {
        let bytes = encode_subflows(&[(tuple(), 9), (tuple(), 10)]);
        assert_eq!(decode_subflows(&bytes), Some(vec![(tuple(), 9), (tuple(), 10)]));
        assert_eq!(decode_subflows(&bytes[1..]), None);
        assert_eq!(decode_subflows(&encode_subflows(&[(tuple(), 9); MAX_SUBFLOWS + 1])), None);
        let ulp = Ulp { token: 7, local_id: 1, remote_id: 2, flags: 0x80 };
        let bytes = encode_subflow_results(&[None, Some(ulp)]);
        assert_eq!(decode_subflow_results(&bytes), Some(vec![None, Some(ulp)]));
        assert_eq!(decode_subflow_results(&bytes[..20]), None);
    }

    #[test]
    fn options_and_what_became_of_them_read_back() {
        assert_eq!(decode_destroy(&encode_destroy(&tuple(), 9)), Some((tuple(), 9)));
        let request = |value: Option<Vec<u8>>, room| OptionRequest {
            tuple: tuple(),
            cookie: 9,
            level: 6,
            name: -13,
            value,
            room,
        };
        let requests = [request(Some(b"reno".to_vec()), 4), request(None, 4)];
        let bytes = encode_options(&requests);
        assert_eq!(decode_options(&bytes).as_deref(), Some(&requests[..]));
        for length in 1..bytes.len() {
            let _ = decode_options(&bytes[..length]);
        }
        assert_eq!(decode_options(&encode_options(&[request(None, MAX_VALUE + 1)])), None);
        let many = vec![request(None, 4); MAX_OPTIONS + 1];
        assert_eq!(decode_options(&encode_options(&many)), None);
        let results = [Ok(b"x".to_vec()), Err(libc::EPERM), Err(0), Ok(Vec::new())];
        assert_eq!(decode_option_results(&encode_option_results(&results)).as_deref(), Some(&results[..]));
    }
}
