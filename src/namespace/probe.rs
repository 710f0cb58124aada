//! Which interfaces the kernel has in the calling thread's network namespace, tried one at a time, so that a missing one
//! does not hide the others.

use std::os::fd::RawFd;

use crate::abi::uapi;
use crate::error::{Error, Result};
use crate::netlink::pm::codec::encode_destroy_nothing;
use crate::netlink::pm::PmSocket;
use crate::netlink::pool::Pool;
use crate::netlink::Channel;
use crate::sys;

fn path_manager_socket() -> Result<PmSocket> {
    let failed = |error| Error::call("socket(AF_NETLINK)", &error);
    let [socket] = sys::open_here(&[super::NETLINK]);
    let first = Channel::new(socket.map_err(failed)?).map_err(failed)?;
    let open = || {
        let [socket] = sys::open_here(&[super::NETLINK]);
        socket
    };
    Ok(PmSocket::new(Pool::new(first, Box::new(open)), None))
}

/// The generic netlink family `mptcp_pm`. No privilege.
pub fn path_manager_family() -> Result<()> {
    path_manager_socket()?.family().map(drop)
}

/// The privilege for the commands of `mptcp_pm`, and that the kernel has them (Linux 5.19). Nothing is changed.
pub fn path_manager_commands() -> Result<()> {
    match path_manager_socket()?.command(&encode_destroy_nothing())? {
        Err(failure) if [libc::EPERM, libc::EOPNOTSUPP].contains(&failure.errno) => {
            Err(Error::os(failure.errno, format!("SUBFLOW_DESTROY: {}", failure.describe())))
        }
        // It names no subflow, and the kernel checks the privilege first.
        _ => Ok(()),
    }
}

/// TCP_IS_MPTCP on a TCP socket (Linux 6.10). No privilege.
pub fn tcp_is_mptcp(fd: RawFd) -> Result<()> {
    sys::getsockopt_i32(fd, libc::IPPROTO_TCP, uapi::TCP_IS_MPTCP)
        .map(drop)
        .map_err(|error| Error::call("getsockopt(TCP_IS_MPTCP)", &error))
}
