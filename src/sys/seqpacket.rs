//! Sockets of the type SOCK_SEQPACKET in the file system: messages, with at most one descriptor each, and who is at the
//! other end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::abi::bytes;
use crate::sys;

/// How many groups of a peer are read at most. The kernel allows 65,536.
const GROUPS: usize = 65_536;

/// A message that was received.
#[derive(Debug)]
pub struct Received {
    /// 0: the other end has been closed.
    pub length: usize,
    pub descriptors: Vec<OwnedFd>,
    /// There were more descriptors than there was room for, or a longer message.
    pub is_cut: bool,
}

/// Who called connect(), or socketpair().
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// In our PID namespace; 0 if it has none there.
    pub process: i32,
    /// The effective ones, as our user namespace sees them; those that it does not have are its overflow ids.
    pub uid: u32,
    pub gid: u32,
    /// The supplementary ones.
    pub groups: Vec<u32>,
}

/// Connects to a socket of the file system.
pub fn connect(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.cloexec(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Sends one message, with a descriptor or without.
pub fn send(socket: &Socket, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(descriptor) = descriptor else {
        return socket.send_with_flags(message, libc::MSG_NOSIGNAL).map(drop);
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message. A signal is the error Interrupted.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    let is_cut = message.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
    Ok(Received { length: message.bytes, descriptors, is_cut })
}

/// Who is at the other end (SO_PEERCRED, SO_PEERGROUPS).
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut credentials = [0; 12];
    sys::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, &mut credentials)?;
    let word = |offset| bytes::u32(&credentials, offset).unwrap_or(u32::MAX);
    let mut groups = vec![0; 64];
    let groups = loop {
        match sys::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, &mut groups) {
            Ok(length) => break &groups[..length],
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < 4 * GROUPS => {
                groups.resize(groups.len() * 4, 0);
            }
            Err(error) => return Err(error),
        }
    };
    Ok(Peer {
        process: word(0) as i32,
        uid: word(4),
        gid: word(8),
        groups: groups.chunks_exact(4).filter_map(|group| bytes::u32(group, 0)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_keep_their_bounds_and_tell_what_was_cut() {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        send(&one, b"first", None).unwrap();
        one.send(b"second").unwrap();
        let mut buffer = [0; 5];
        let received = receive(other.as_fd(), &mut buffer).unwrap();
        assert_eq!((received.length, received.is_cut, &buffer), (5, false, b"first"));
        assert!(receive(other.as_fd(), &mut buffer).unwrap().is_cut);
        send(&one, b"with", Some(one.as_fd())).unwrap();
        let received = receive(other.as_fd(), &mut buffer).unwrap();
        assert_eq!((received.length, received.is_cut, received.descriptors.len()), (4, false, 1));
        drop((one, received));
        assert_eq!(receive(other.as_fd(), &mut buffer).unwrap().length, 0);
    }

    #[test]
    fn the_peer_is_this_process() {
        let (one, _other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let peer = peer(one.as_fd()).unwrap();
        assert_eq!(peer.process, std::process::id() as i32);
    }
}
