//! The structures of the enhanced socket API, in the three layouts. Pure.

use std::net::SocketAddr;

use super::Layout;
use crate::address::{decode_sockaddr, encode_sockaddr, SOCKADDR_IN, SOCKADDR_IN6};
use crate::error::{Error, Result};
use crate::uapi::enhanced_api as uapi;
use crate::wire;

/// `struct mptcp_sub_status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubStatus {
    pub id: u8,
    /// Joined by MP_JOIN.
    pub slave_sk: bool,
    /// The peer confirmed Multipath TCP on this subflow.
    pub fully_established: bool,
    /// In the connection's list.
    pub attached: bool,
    /// Backup by our choice.
    pub low_prio: bool,
    /// Joined by us, and the peer's fourth ACK is still missing.
    pub pre_established: bool,
}

/// `struct mptcp_sub_tuple`. `prio` is 0, or 1 for a backup; the kernel's layout has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubTuple {
    pub id: u8,
    pub prio: u8,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// How a subflow is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Shutdown,
    Reset,
}

/// `struct mptcp_sub_getsockopt` and `struct mptcp_sub_setsockopt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubSockopt {
    pub id: u8,
    pub level: i32,
    pub optname: i32,
    /// An address in the caller's memory.
    pub optval: u64,
    /// For getsockopt an address too.
    pub optlen: u64,
}

fn short(structure: &str, size: usize, length: usize) -> Error {
    Error::os(libc::EINVAL, format!("{structure} has {size} bytes here, and the buffer only {length}"))
}

/// `struct mptcp_sub_ids`. There are no more than 255, as ids are u8.
pub fn encode_sub_ids(layout: Layout, subflows: &[SubStatus]) -> Vec<u8> {
    let mut bytes = vec![subflows.len() as u8, 0];
    for subflow in subflows {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = match layout {
            Layout::Draft => flag(subflow.low_prio, uapi::DRAFT_LOW_PRIO),
            Layout::Kernel | Layout::Header => {
                flag(subflow.slave_sk, uapi::SLAVE_SK)
                    | flag(subflow.fully_established, uapi::FULLY_ESTABLISHED)
                    | flag(subflow.attached, uapi::ATTACHED)
                    | flag(subflow.low_prio, uapi::LOW_PRIO)
                    | flag(subflow.pre_established, uapi::PRE_ESTABLISHED)
            }
        };
        bytes.extend([subflow.id, flags]);
    }
    bytes
}

pub fn close_sub_id_size(layout: Layout) -> usize {
    match layout {
        Layout::Kernel => 1,
        Layout::Draft | Layout::Header => uapi::CLOSE_SUB_ID_SIZE,
    }
}

/// `struct mptcp_close_sub_id`. No half of a subflow can be closed alone: every SHUT_* closes it.
pub fn decode_close_sub_id(layout: Layout, bytes: &[u8]) -> Result<(u8, How)> {
    let size = close_sub_id_size(layout);
    let bytes = bytes.get(..size).ok_or_else(|| short("struct mptcp_close_sub_id", size, bytes.len()))?;
    let how = wire::u32(bytes, uapi::HOW).map_or(libc::SHUT_RDWR, |how| how as i32);
    match (how, layout) {
        (uapi::MPTCP_RST, _) => Ok((bytes[0], How::Reset)),
        (libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR, _) => Ok((bytes[0], How::Shutdown)),
        // Programs of the kernel's interface know no `how` and leave it as it was in memory.
        (_, Layout::Header) => Ok((bytes[0], How::Shutdown)),
        _ => Err(Error::os(libc::EINVAL, format!("how is {how}: neither SHUT_* nor MPTCP_RST"))),
    }
}

/// Where the addresses begin: right behind one another, whatever their family.
fn addrs(layout: Layout) -> usize {
    match layout {
        Layout::Kernel => uapi::ADDRS_KERNEL,
        Layout::Draft => uapi::ADDRS_DRAFT,
        Layout::Header => uapi::ADDRS_HEADER,
    }
}

/// The size of `struct mptcp_sub_tuple` with its two addresses.
pub fn sub_tuple_size(layout: Layout, ipv4: bool) -> usize {
    addrs(layout) + 2 * if ipv4 { SOCKADDR_IN } else { SOCKADDR_IN6 }
}

pub fn encode_sub_tuple(layout: Layout, tuple: &SubTuple) -> Vec<u8> {
    let mut bytes = vec![0; addrs(layout)];
    bytes[0] = tuple.id;
    if layout != Layout::Kernel {
        bytes[uapi::PRIO] = tuple.prio;
    }
    bytes.extend(encode_sockaddr(tuple.local));
    bytes.extend(encode_sockaddr(tuple.remote));
    bytes
}

/// The same out of a buffer of `length` bytes, of which `bytes` is what was read. In the kernel's layout the length is
/// exact; there it keeps other layouts out.
pub fn decode_sub_tuple(layout: Layout, bytes: &[u8], length: usize) -> Result<SubTuple> {
    let at = addrs(layout);
    let short = |ipv4| short("struct mptcp_sub_tuple", sub_tuple_size(layout, ipv4), length);
    let family = wire::u16(bytes, at).map(i32::from).ok_or_else(|| short(true))?;
    let ipv4 = match family {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return Err(unknown_family("local", family)),
    };
    let size = sub_tuple_size(layout, ipv4);
    if bytes.len() < size {
        return Err(short(ipv4));
    }
    if layout == Layout::Kernel && length != size {
        let message =
            format!("struct mptcp_sub_tuple has exactly {size} bytes here, and the buffer {length}");
        return Err(Error::os(libc::EINVAL, message));
    }
    let second = at + (size - at) / 2;
    match wire::u16(bytes, second).map(i32::from) {
        Some(remote) if remote == family => {}
        remote => return Err(unknown_family("remote", remote.unwrap_or_default())),
    }
    let address = |at: usize| decode_sockaddr(&bytes[at..]).ok_or_else(|| short(ipv4));
    Ok(SubTuple {
        id: bytes[0],
        prio: if layout == Layout::Kernel { 0 } else { bytes[uapi::PRIO] },
        local: address(at)?,
        remote: address(second)?,
    })
}

fn unknown_family(end: &str, family: i32) -> Error {
    let message = format!("the {end} address has family {family}: both are to be AF_INET, or both AF_INET6");
    Error::os(libc::EAFNOSUPPORT, message)
}

/// `struct mptcp_sub_getsockopt`.
pub fn decode_sub_getsockopt(bytes: &[u8]) -> Result<SubSockopt> {
    decode_sub_sockopt("struct mptcp_sub_getsockopt", bytes)
}

/// `struct mptcp_sub_setsockopt`, in which `optlen` is an unsigned int.
pub fn decode_sub_setsockopt(bytes: &[u8]) -> Result<SubSockopt> {
    let request = decode_sub_sockopt("struct mptcp_sub_setsockopt", bytes)?;
    Ok(SubSockopt { optlen: wire::u32(bytes, uapi::OPTLEN).map_or(0, u64::from), ..request })
}

fn decode_sub_sockopt(structure: &str, bytes: &[u8]) -> Result<SubSockopt> {
    let size = uapi::SOCKOPT_SIZE;
    let bytes = bytes.get(..size).ok_or_else(|| short(structure, size, bytes.len()))?;
    let int = |at| wire::u32(bytes, at).unwrap_or_default() as i32;
    let pointer = |at| wire::u64(bytes, at).unwrap_or_default();
    Ok(SubSockopt {
        id: bytes[0],
        level: int(uapi::LEVEL),
        optname: int(uapi::OPTNAME),
        optval: pointer(uapi::OPTVAL),
        optlen: pointer(uapi::OPTLEN),
    })
}
