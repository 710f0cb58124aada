//! Netlink requests and replies: framing by `netlink-packet-core`, and one socket to send them on.

pub mod diag;
pub mod pm;
pub mod route;

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, Emitable, NetlinkBuffer, NetlinkHeader, NLMSG_DONE, NLMSG_ERROR, NLM_F_ACK, NLM_F_ACK_TLVS,
    NLM_F_CAPPED, NLM_F_DUMP, NLM_F_REQUEST,
};

use crate::{abi::bytes, sys};

const HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A request that the kernel refused, with the sentence of its extended acknowledgement where there is one.
/// The sentence is for people: it changes between kernels, and nothing may be decided by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub errno: i32,
    pub text: Option<String>,
}

impl Failure {
    pub fn describe(&self) -> String {
        let name = crate::error::describe(self.errno);
        match &self.text {
            Some(text) => format!("{name} (kernel: {text})"),
            None => name,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure { errno: error.raw_os_error().unwrap_or(libc::EIO), text: None }
    }
}

/// One attribute.
pub fn attribute(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

/// One attribute that holds others.
pub fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, emit(attributes))
}

/// The bytes of attributes.
pub fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The attributes in `bytes` as (type, value); ends at the first malformed one. The crate's iterator would take
/// 0.3 us more a reply.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(bytes::u16(bytes, 0)?);
        let kind = bytes::u16(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Appends a request to `bytes`.
fn push_request(bytes: &mut Vec<u8>, message_type: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let mut header = NetlinkHeader::default();
    header.length = (HEADER + payload.len()) as u32;
    header.message_type = message_type;
    header.flags = flags;
    header.sequence_number = sequence;
    let start = bytes.len();
    bytes.resize(start + HEADER, 0);
    header.emit(&mut bytes[start..]);
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// One message of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Data { sequence: u32, message_type: u16, payload: &'a [u8] },
    Done { sequence: u32 },
    Ack { sequence: u32 },
    Failed { sequence: u32, failure: Failure },
}

impl Message<'_> {
    fn sequence(&self) -> u32 {
        match self {
            Message::Data { sequence, .. }
            | Message::Done { sequence }
            | Message::Ack { sequence }
            | Message::Failed { sequence, .. } => *sequence,
        }
    }
}

/// The messages of one datagram; ends at the first malformed one.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (length, message) = first_message(datagram)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn first_message(datagram: &[u8]) -> Option<(usize, Message<'_>)> {
    // The end of the datagram, for which the crate would format an error message: 0.3 us.
    if datagram.len() < HEADER {
        return None;
    }
    let buffer = NetlinkBuffer::new_checked(datagram).ok()?;
    let (sequence, flags, length) = (buffer.sequence_number(), buffer.flags(), buffer.length() as usize);
    let payload = datagram.get(HEADER..length)?;
    let message = match buffer.message_type() {
        NLMSG_DONE => match bytes::u32(payload, 0).map(|code| code as i32) {
            // A dump that failed on its way says so in its last message.
            Some(code) if code < 0 => {
                Message::Failed { sequence, failure: Failure { errno: errno(code), text: None } }
            }
            _ => Message::Done { sequence },
        },
        NLMSG_ERROR => match bytes::u32(payload, 0)? as i32 {
            0 => Message::Ack { sequence },
            code => {
                let text = extended_ack(flags, payload);
                Message::Failed { sequence, failure: Failure { errno: errno(code), text } }
            }
        },
        message_type => Message::Data { sequence, message_type, payload },
    };
    Some((length, message))
}

/// The errno in a code of the kernel's, which is its negative; EBADMSG for what is no such code.
fn errno(code: i32) -> i32 {
    code.checked_neg().filter(|errno| *errno > 0).unwrap_or(libc::EBADMSG)
}

/// The sentence in an error message, which follows the request's header or the whole request.
fn extended_ack(flags: u16, payload: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let echoed = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        (bytes::u32(payload, 4)? as usize).next_multiple_of(4)
    };
    let text = find(payload.get(4usize.checked_add(echoed)?..)?, NLMSGERR_ATTR_MSG)?;
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Requests that are sent more than once, each of which the kernel answers with exactly one message.
#[derive(Debug, Default)]
pub struct Prepared {
    bytes: Vec<u8>,
    count: usize,
}

impl Prepared {
    pub fn push(&mut self, message_type: u16, sequence: u32, payload: &[u8]) {
        push_request(&mut self.bytes, message_type, NLM_F_REQUEST, sequence, payload);
        self.count += 1;
    }
}

/// Room for one datagram. ENOMEM where there is none: what is this large is the first that memory does not suffice for.
pub fn receive_buffer() -> io::Result<Vec<u8>> {
    const SIZE: usize = 64 * 1024;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(SIZE).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    buffer.resize(SIZE, 0);
    Ok(buffer)
}

/// A netlink socket for requests. The kernel answers within sendmsg, so replies are there when it returns.
#[derive(Debug)]
pub struct Channel {
    socket: socket2::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Takes a new netlink socket.
    pub fn new(socket: OwnedFd) -> io::Result<Channel> {
        let socket = socket2::Socket::from(socket);
        sys::bind_netlink(socket.as_raw_fd())?;
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_NETLINK, option, 1)?;
        }
        // A reply that the kernel could not queue never comes: rather an error than a wait without end.
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Channel { socket, sequence: 0, buffer: receive_buffer()? })
    }

    pub fn fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends requests in one system call; `on_reply` gets each one's index and the payload or the failure.
    /// Every request must be one that the kernel answers with exactly one message.
    pub fn exchange<P: AsRef<[u8]>>(
        &mut self,
        message_type: u16,
        flags: u16,
        payloads: &[P],
        mut on_reply: impl FnMut(usize, std::result::Result<&[u8], Failure>),
    ) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(payloads.iter().map(|p| HEADER + p.as_ref().len() + 4).sum());
        for payload in payloads {
            self.sequence = self.sequence.wrapping_add(1);
            push_request(&mut bytes, message_type, NLM_F_REQUEST | flags, self.sequence, payload.as_ref());
        }
        self.socket.send(&bytes)?;
        let mut missing = payloads.len();
        while missing > 0 {
            let length = (&self.socket).read(&mut self.buffer)?;
            for message in messages(&self.buffer[..length]) {
                let index = message.sequence().wrapping_sub(first) as usize;
                if index >= payloads.len() {
                    continue; // the late reply to a request that was given up
                }
                // A second message for one request is none that we wait for.
                missing = missing.saturating_sub(1);
                match message {
                    Message::Data { payload, .. } => on_reply(index, Ok(payload)),
                    Message::Ack { .. } | Message::Done { .. } => on_reply(index, Ok(&[])),
                    Message::Failed { failure, .. } => on_reply(index, Err(failure)),
                }
            }
        }
        Ok(())
    }

    /// Sends requests that were made once, in one system call, and takes a reply to each; `on_reply` gets the payload
    /// or the failure with the request's own sequence number. After an error nothing of it is left in the socket.
    pub fn exchange_prepared(
        &mut self,
        requests: &Prepared,
        mut on_reply: impl FnMut(u32, std::result::Result<&[u8], Failure>),
    ) -> io::Result<()> {
        self.socket.send(&requests.bytes)?;
        let mut missing = requests.count;
        while missing > 0 {
            let length = match (&self.socket).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) => {
                    self.drain();
                    return Err(error);
                }
            };
            for message in messages(&self.buffer[..length]) {
                missing = missing.saturating_sub(1);
                match message {
                    Message::Data { sequence, payload, .. } => on_reply(sequence, Ok(payload)),
                    Message::Failed { sequence, failure } => on_reply(sequence, Err(failure)),
                    Message::Ack { sequence } | Message::Done { sequence } => on_reply(sequence, Ok(&[])),
                }
            }
        }
        Ok(())
    }

    /// Reads what nobody waits for any more.
    fn drain(&mut self) {
        if self.socket.set_nonblocking(true).is_ok() {
            while (&self.socket).read(&mut self.buffer).is_ok() {}
            let _ = self.socket.set_nonblocking(false);
        }
    }

    /// Sends one request and returns the payload of its reply.
    pub fn request(&mut self, message_type: u16, payload: &[u8]) -> std::result::Result<Vec<u8>, Failure> {
        let mut reply = Ok(Vec::new());
        self.exchange(message_type, 0, &[payload], |_, result| reply = result.map(<[u8]>::to_vec))?;
        reply
    }

    /// Sends one command that returns nothing and waits for its acknowledgement.
    pub fn command(&mut self, message_type: u16, payload: &[u8]) -> std::result::Result<(), Failure> {
        let mut reply = Ok(());
        self.exchange(message_type, NLM_F_ACK, &[payload], |_, result| reply = result.map(drop))?;
        reply
    }

    /// Sends a dump request; `on_message` gets each payload.
    pub fn dump(
        &mut self,
        message_type: u16,
        payload: &[u8],
        mut on_message: impl FnMut(&[u8]),
    ) -> std::result::Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        push_request(&mut bytes, message_type, NLM_F_REQUEST | NLM_F_DUMP, self.sequence, payload);
        self.socket.send(&bytes).map_err(Failure::from)?;
        loop {
            let length = (&self.socket).read(&mut self.buffer)?;
            for message in messages(&self.buffer[..length]) {
                if message.sequence() != self.sequence {
                    continue;
                }
                match message {
                    Message::Data { payload, .. } => on_message(payload),
                    Message::Done { .. } | Message::Ack { .. } => return Ok(()),
                    Message::Failed { failure, .. } => return Err(failure),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_back_as_messages() {
        let mut bytes = Vec::new();
        push_request(&mut bytes, 20, NLM_F_REQUEST, 1, b"abc");
        push_request(&mut bytes, 21, NLM_F_REQUEST, 2, b"");
        assert_eq!(bytes.len(), 20 + 16);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read[0], Message::Data { sequence: 1, message_type: 20, payload: b"abc" });
        assert_eq!(read[1], Message::Data { sequence: 2, message_type: 21, payload: b"" });
        for length in 0..bytes.len() {
            let _ = messages(&bytes[..length]).count();
        }
    }

    #[test]
    fn nested_attributes_read_back() {
        let bytes = emit(&[attribute(4, &7u32.to_ne_bytes()), nested(1, &[attribute(2, &[9])])]);
        assert_eq!(find(&bytes, 4), Some(&7u32.to_ne_bytes()[..]));
        assert_eq!(find(&bytes, 1).and_then(|inner| find(inner, 2)), Some(&[9u8][..]));
        assert_eq!(find(&bytes, 3), None);
    }

    #[test]
    fn an_error_carries_the_kernels_sentence() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend([0u8; 16]);
        payload.extend(emit(&[attribute(NLMSGERR_ATTR_MSG, b"userspace PM not selected\0")]));
        let mut bytes = Vec::new();
        push_request(&mut bytes, NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, 5, &payload);
        let Some(Message::Failed { sequence: 5, failure }) = messages(&bytes).next() else {
            panic!("not a failure")
        };
        assert_eq!(failure.errno, libc::EINVAL);
        assert_eq!(failure.describe(), "Invalid argument (kernel: userspace PM not selected)");
        for length in 0..bytes.len() {
            let _ = messages(&bytes[..length]).count();
        }
    }

    #[test]
    fn a_code_that_is_no_errno_is_a_bad_message() {
        for (message_type, code) in
            [(NLMSG_ERROR, 1), (NLMSG_ERROR, i32::MAX), (NLMSG_ERROR, i32::MIN), (NLMSG_DONE, i32::MIN)]
        {
            let mut bytes = Vec::new();
            push_request(&mut bytes, message_type, 0, 5, &code.to_ne_bytes());
            let failure = Failure { errno: libc::EBADMSG, text: None };
            assert_eq!(messages(&bytes).next(), Some(Message::Failed { sequence: 5, failure }), "{code}");
        }
    }

    #[test]
    fn a_request_that_is_answered_twice_is_answered() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut bytes = Vec::new();
        for payload in [b"one", b"two"] {
            push_request(&mut bytes, 20, 0, 1, payload);
        }
        theirs.send(&bytes).unwrap();
        let socket = socket2::Socket::from(OwnedFd::from(ours));
        let mut channel = Channel { socket, sequence: 0, buffer: vec![0; 1024] };
        let mut replies = Vec::new();
        channel.exchange(20, 0, &[b"ask"], |_, reply| replies.push(reply.map(<[u8]>::to_vec))).unwrap();
        assert_eq!(replies, [Ok(b"one".to_vec()), Ok(b"two".to_vec())]);
    }
}
