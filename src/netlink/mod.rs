//! Requests by netlink, and their replies: one socket to send them on. [`codec`] has the bytes.

pub mod broker;
pub mod codec;
pub mod diag;
pub mod links;
pub mod pm;
pub mod pool;
pub mod route;

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

pub use crate::netlink::codec::Failure;
use crate::netlink::codec::{messages, push_request, Message, Prepared};
use crate::sys;

/// A buffer for one datagram. ENOMEM where there is no memory: an allocation this large is the first to fail.
pub fn receive_buffer() -> io::Result<Vec<u8>> {
    const SIZE: usize = 64 * 1024;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(SIZE).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    buffer.resize(SIZE, 0);
    Ok(buffer)
}

/// Asks for room for so many bytes that wait to be read; the kernel may give less (net.core.rmem_max).
pub fn ask_for_room(socket: &socket2::Socket, bytes: i32) {
    // The first needs CAP_NET_ADMIN in the initial user namespace.
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        if sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_SOCKET, option, bytes).is_ok() {
            return;
        }
    }
}

/// Joins a multicast group.
pub fn join(socket: &socket2::Socket, group: u32) -> io::Result<()> {
    sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
}

/// Leaves one.
pub fn leave(socket: &socket2::Socket, group: u32) -> io::Result<()> {
    sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, group as i32)
}

/// A netlink socket for requests. The kernel answers within sendmsg, so replies are there when it returns.
#[derive(Debug)]
pub struct Channel {
    socket: socket2::Socket,
    sequence: u32,
    /// What is sent, and what comes back.
    requests: Vec<u8>,
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
        // A reply that the kernel could not queue never comes: an error is better than waiting for ever.
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Channel { socket, sequence: 0, requests: Vec::new(), buffer: receive_buffer()? })
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
        payloads: impl ExactSizeIterator<Item = P>,
        mut on_reply: impl FnMut(usize, std::result::Result<&[u8], Failure>),
    ) -> io::Result<()> {
        let (first, count) = (self.sequence.wrapping_add(1), payloads.len());
        self.requests.clear();
        for payload in payloads {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = NLM_F_REQUEST | flags;
            push_request(&mut self.requests, message_type, flags, self.sequence, payload.as_ref());
        }
        self.socket.send(&self.requests)?;
        let mut missing = count;
        while missing > 0 {
            let length = (&self.socket).read(&mut self.buffer)?;
            for message in messages(&self.buffer[..length]) {
                let index = message.sequence().wrapping_sub(first) as usize;
                if index >= count {
                    continue; // the late reply to a request that was given up
                }
                // A second message for one request is not waited for.
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

    /// Sends requests that were encoded once, in one system call, and takes a reply to each; `on_reply` gets the payload
    /// or the failure with the request's own sequence number. After an error no reply is left in the socket.
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

    /// Discards replies that nobody waits for any more.
    fn drain(&mut self) {
        if self.socket.set_nonblocking(true).is_ok() {
            while (&self.socket).read(&mut self.buffer).is_ok() {}
            let _ = self.socket.set_nonblocking(false);
        }
    }

    /// Sends one request and returns the payload of its reply.
    pub fn request(&mut self, message_type: u16, payload: &[u8]) -> std::result::Result<Vec<u8>, Failure> {
        let mut reply = Ok(Vec::new());
        self.exchange(message_type, 0, [payload].into_iter(), |_, result| {
            reply = result.map(<[u8]>::to_vec)
        })?;
        reply
    }

    /// Sends one command that returns nothing and waits for its acknowledgement.
    pub fn command(&mut self, message_type: u16, payload: &[u8]) -> std::result::Result<(), Failure> {
        let mut reply = Ok(());
        self.exchange(message_type, NLM_F_ACK, [payload].into_iter(), |_, result| reply = result.map(drop))?;
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
    fn a_request_that_is_answered_twice_is_answered() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut bytes = Vec::new();
        for payload in [b"one", b"two"] {
            push_request(&mut bytes, 20, 0, 1, payload);
        }
        theirs.send(&bytes).unwrap();
        let socket = socket2::Socket::from(OwnedFd::from(ours));
        let mut channel = Channel { socket, sequence: 0, requests: Vec::new(), buffer: vec![0; 1024] };
        let mut replies = Vec::new();
        let on_reply = |_, reply: std::result::Result<&[u8], _>| replies.push(reply.map(<[u8]>::to_vec));
        channel.exchange(20, 0, [b"ask"].into_iter(), on_reply).unwrap();
        assert_eq!(replies, [Ok(b"one".to_vec()), Ok(b"two".to_vec())]);
    }
}
