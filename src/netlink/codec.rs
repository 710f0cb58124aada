//! Netlink messages and attributes as bytes: written into one buffer, and read in place.

use std::io;

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST};

use crate::abi::bytes;

pub const HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A request that the kernel refused, with the sentence of its extended acknowledgement where there is one.
/// The sentence is for people: it differs between kernels, so no code may depend on it.
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

/// Appends an attribute.
pub fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len();
    bytes.extend_from_slice(&(length as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(&[0; 3][..length.next_multiple_of(4) - length]);
}

/// Appends an attribute that holds those that `push` appends.
pub fn push_nested(bytes: &mut Vec<u8>, kind: u16, push: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    push_attribute(bytes, kind | NLA_F_NESTED, &[]);
    push(bytes);
    let length = bytes.len() - start;
    bytes::put(bytes, start, &(length as u16).to_ne_bytes());
}

/// The attributes in `bytes` as (type, value); ends at the first malformed one.
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
pub fn push_request(bytes: &mut Vec<u8>, message_type: u16, flags: u16, sequence: u32, payload: &[u8]) {
    bytes.extend_from_slice(&((HEADER + payload.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&message_type.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]); // the port: the socket's own
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
    pub fn sequence(&self) -> u32 {
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
    let length = bytes::u32(datagram, 0)? as usize;
    let (message_type, flags) = (bytes::u16(datagram, 4)?, bytes::u16(datagram, 6)?);
    let sequence = bytes::u32(datagram, 8)?;
    let payload = datagram.get(HEADER..length)?;
    let message = match message_type {
        NLMSG_DONE => match bytes::u32(payload, 0).map(|code| code as i32) {
            // A dump that failed half-way has the error in its last message.
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

/// The errno in a code from the kernel, which is its negative; EBADMSG for anything else.
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
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
}

impl Prepared {
    pub fn push(&mut self, message_type: u16, sequence: u32, payload: &[u8]) {
        push_request(&mut self.bytes, message_type, NLM_F_REQUEST, sequence, payload);
        self.count += 1;
    }
}

/// Attributes as tests write them.
#[cfg(test)]
pub mod written {
    use super::{push_attribute, push_nested};

    /// One attribute.
    pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, kind, value);
        bytes
    }

    /// One attribute that holds others.
    pub fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_nested(&mut bytes, kind, |bytes| bytes.extend(attributes.concat()));
        bytes
    }

    /// The bytes of attributes.
    pub fn emit(attributes: &[Vec<u8>]) -> Vec<u8> {
        attributes.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::written::{attribute, emit, nested};
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
}
