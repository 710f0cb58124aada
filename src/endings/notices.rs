//! What inet_diag says of TCP sockets as they die (SKNLGRP_INET_TCP_DESTROY): their last `tcp_info`. No privilege.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::abi::uapi;
use crate::error::{Error, Result};
use crate::netlink::codec::{messages, Message};
use crate::netlink::diag::{self, Entry};
use crate::netlink::{self, receive_buffer};
use crate::sys;

/// What the kernel is asked to keep for us, as far as net.core.rmem_max lets it.
const ROOM: usize = 4 << 20;

/// A subscription to the notices of one network namespace.
#[derive(Debug)]
pub struct Notices {
    socket: socket2::Socket,
    buffer: Vec<u8>,
}

impl Notices {
    pub fn new(socket: OwnedFd) -> Result<Notices> {
        let failed = |error: io::Error| Error::call("subscribing to notifications of inet_diag", &error);
        let socket = socket2::Socket::from(socket);
        sys::bind_netlink(socket.as_raw_fd()).map_err(failed)?;
        let groups = [uapi::diag::SKNLGRP_INET_TCP_DESTROY, uapi::diag::SKNLGRP_INET6_TCP_DESTROY];
        for group in groups {
            netlink::join(&socket, group).map_err(failed)?;
        }
        // More than the host's limit takes privilege: what cannot be had is done without.
        let _ = sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM as i32);
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Notices { socket, buffer: receive_buffer().map_err(failed)? })
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads all that there are; `on_socket` gets each socket and its last `tcp_info`. False if some were lost.
    pub fn read(&mut self, mut on_socket: impl FnMut(Entry, &[u8])) -> Result<bool> {
        let mut complete = true;
        loop {
            match (&self.socket).read(&mut self.buffer) {
                Ok(length) => {
                    for message in messages(&self.buffer[..length]) {
                        if let Message::Data { payload, .. } = message {
                            if let Some((entry, info)) = diag::codec::decode_with_info(payload) {
                                on_socket(entry, info);
                            }
                        }
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOBUFS) => complete = false,
                    _ if error.kind() == io::ErrorKind::Interrupted => {}
                    _ if error.kind() == io::ErrorKind::WouldBlock => return Ok(complete),
                    _ => return Err(Error::call("reading notifications of inet_diag", &error)),
                },
            }
        }
    }
}
