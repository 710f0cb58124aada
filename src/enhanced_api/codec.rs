//! The structures of the enhanced socket API, in the three layouts. Pure.

use std::net::SocketAddr;

use super::Layout;
use crate::abi::address::{decode_sockaddr, encode_sockaddr, SOCKADDR_IN, SOCKADDR_IN6};
use crate::abi::bytes;
use crate::abi::uapi::enhanced_api as uapi;
use crate::error::{Error, Result};

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
    Error::os(
        libc::EINVAL,
        format!("the buffer must have at least {size} bytes for {structure}, not {length}"),
    )
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
    let how = bytes::u32(bytes, uapi::HOW).map_or(libc::SHUT_RDWR, |how| how as i32);
    match (how, layout) {
        (uapi::MPTCP_RST, _) => Ok((bytes[0], How::Reset)),
        (libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR, _) => Ok((bytes[0], How::Shutdown)),
        // Programs of the kernel's interface know no `how` and leave it as it was in memory.
        (_, Layout::Header) => Ok((bytes[0], How::Shutdown)),
        _ => Err(Error::os(
            libc::EINVAL,
            format!("how must be SHUT_RD, SHUT_WR, SHUT_RDWR or MPTCP_RST, not {how}"),
        )),
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
/// exact; there it keeps other layouts out. An address whose family is 0 has the other's; where both are 0 the length
/// tells, which is all that the kernel of 2016 looked at.
pub fn decode_sub_tuple(layout: Layout, bytes: &[u8], length: usize) -> Result<SubTuple> {
    let at = addrs(layout);
    let short = |ipv4| short("struct mptcp_sub_tuple", sub_tuple_size(layout, ipv4), length);
    let family_at = |at| bytes::u16(bytes, at).map(i32::from);
    let ipv4 = match family_at(at).ok_or_else(|| short(true))? {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        libc::AF_UNSPEC => {
            family_at(at + SOCKADDR_IN) == Some(libc::AF_INET) || length < sub_tuple_size(layout, false)
        }
        family => return Err(unknown_family("local", family)),
    };
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    let size = sub_tuple_size(layout, ipv4);
    if bytes.len() < size {
        return Err(short(ipv4));
    }
    if layout == Layout::Kernel && length != size {
        let message =
            format!("the buffer must have exactly {size} bytes for struct mptcp_sub_tuple, not {length}");
        return Err(Error::os(libc::EINVAL, message));
    }
    let second = at + (size - at) / 2;
    match family_at(second).unwrap_or_default() {
        libc::AF_UNSPEC => {}
        remote if remote == family => {}
        remote => return Err(unknown_family("remote", remote)),
    }
    let address = |at: usize| {
        let mut address = bytes[at..at + (size - addrs(layout)) / 2].to_vec();
        bytes::put(&mut address, 0, &(family as u16).to_ne_bytes());
        decode_sockaddr(&address).ok_or_else(|| short(ipv4))
    };
    Ok(SubTuple {
        id: bytes[0],
        prio: if layout == Layout::Kernel { 0 } else { bytes[uapi::PRIO] },
        local: address(at)?,
        remote: address(second)?,
    })
}

fn unknown_family(end: &str, family: i32) -> Error {
    let message =
        format!("both addresses must be AF_INET, or both AF_INET6: the {end} address has family {family}");
    Error::os(libc::EAFNOSUPPORT, message)
}

/// `struct mptcp_sub_getsockopt`.
pub fn decode_sub_getsockopt(bytes: &[u8]) -> Result<SubSockopt> {
    decode_sub_sockopt("struct mptcp_sub_getsockopt", bytes)
}

/// `struct mptcp_sub_setsockopt`, in which `optlen` is an unsigned int.
pub fn decode_sub_setsockopt(bytes: &[u8]) -> Result<SubSockopt> {
    let request = decode_sub_sockopt("struct mptcp_sub_setsockopt", bytes)?;
    Ok(SubSockopt { optlen: bytes::u32(bytes, uapi::OPTLEN).map_or(0, u64::from), ..request })
}

fn decode_sub_sockopt(structure: &str, bytes: &[u8]) -> Result<SubSockopt> {
    let size = uapi::SOCKOPT_SIZE;
    let bytes = bytes.get(..size).ok_or_else(|| short(structure, size, bytes.len()))?;
    let int = |at| bytes::u32(bytes, at).unwrap_or_default() as i32;
    let pointer = |at| bytes::u64(bytes, at).unwrap_or_default();
    Ok(SubSockopt {
        id: bytes[0],
        level: int(uapi::LEVEL),
        optname: int(uapi::OPTNAME),
        optval: pointer(uapi::OPTVAL),
        optlen: pointer(uapi::OPTLEN),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddrV6};

    const LAYOUTS: [Layout; 3] = [Layout::Kernel, Layout::Draft, Layout::Header];

    /// Bytes that a C compiler laid out.
    fn captured(name: &str) -> Vec<u8> {
        let lines = include_str!("../../tests/data/enhanced_api.txt").lines();
        let hex = lines.filter_map(|line| line.split_once(" = ")).find(|(other, _)| *other == name);
        let digits = hex.unwrap_or_else(|| panic!("{name} is not in the file")).1.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn name(layout: Layout) -> &'static str {
        match layout {
            Layout::Kernel => "kernel",
            Layout::Draft => "draft",
            Layout::Header => "header",
        }
    }

    #[test]
    fn structures_are_those_of_the_compiler() {
        let newest = SubStatus {
            id: 7,
            slave_sk: true,
            fully_established: false,
            attached: true,
            low_prio: true,
            pre_established: true,
        };
        let oldest = SubStatus { id: 1, fully_established: true, attached: true, ..SubStatus::default() };
        let v6 = SocketAddrV6::new("fe80::2".parse().unwrap(), 1234, 0x12345, 3);
        for layout in LAYOUTS {
            let of = |rest: &str| captured(&format!("{} {rest}", name(layout)));
            assert_eq!(encode_sub_ids(layout, &[newest, oldest]), of("sub_ids"));
            let prio = (layout != Layout::Kernel).into();
            let ends = [("10.0.0.1:12345", "10.1.0.1:1234".parse().unwrap()), ("[fd00::1]:12345", v6.into())];
            for ((local, remote), family) in ends.into_iter().zip(["ipv4", "ipv6"]) {
                let tuple = SubTuple { id: 7, prio, local: local.parse().unwrap(), remote };
                let bytes = of(&format!("sub_tuple {family}"));
                assert_eq!(encode_sub_tuple(layout, &tuple), bytes);
                assert_eq!(decode_sub_tuple(layout, &bytes, bytes.len()), Ok(tuple));
            }
        }
        let close =
            |layout| decode_close_sub_id(layout, &captured(&format!("{} close_sub_id", name(layout))));
        assert_eq!(close(Layout::Kernel), Ok((7, How::Shutdown)));
        assert_eq!(close(Layout::Draft), Ok((7, How::Shutdown)));
        assert_eq!(close(Layout::Header), Ok((7, How::Reset)));
        let get = decode_sub_getsockopt(&captured("sub_getsockopt")).unwrap();
        let (optval, optlen) = (0x1122_3344_5566, 0x6655_4433_2211);
        assert_eq!(get, SubSockopt { id: 7, level: 6, optname: libc::TCP_INFO, optval, optlen });
        let set = decode_sub_setsockopt(&captured("sub_setsockopt")).unwrap();
        assert_eq!(set, SubSockopt { id: 7, level: 0, optname: libc::IP_TOS, optval, optlen: 4 });
    }

    #[test]
    fn how_a_subflow_is_closed() {
        let of = |layout, how: i32| {
            let mut bytes = vec![7, 0, 0, 0];
            bytes.extend(how.to_ne_bytes());
            decode_close_sub_id(layout, &bytes).map_err(|error| error.errno())
        };
        for how in [libc::SHUT_RD, libc::SHUT_WR, libc::SHUT_RDWR] {
            assert_eq!(of(Layout::Draft, how), Ok((7, How::Shutdown)));
        }
        assert_eq!(of(Layout::Draft, uapi::MPTCP_RST), Ok((7, How::Reset)));
        assert_eq!(of(Layout::Draft, -1), Err(libc::EINVAL));
        assert_eq!(of(Layout::Header, -1), Ok((7, How::Shutdown)), "left out");
        assert_eq!(of(Layout::Kernel, uapi::MPTCP_RST), Ok((7, How::Shutdown)), "not read");
    }

    fn layout() -> impl Strategy<Value = Layout> {
        proptest::sample::select(&LAYOUTS[..])
    }

    fn end(ipv4: bool) -> BoxedStrategy<SocketAddr> {
        if ipv4 {
            (any::<[u8; 4]>(), any::<u16>())
                .prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port))
                .boxed()
        } else {
            (any::<[u8; 16]>(), any::<u16>(), any::<u32>(), any::<u32>())
                .prop_map(|(ip, port, flow, scope)| SocketAddrV6::new(ip.into(), port, flow, scope).into())
                .boxed()
        }
    }

    fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        any::<bool>().prop_flat_map(|ipv4| (end(ipv4), end(ipv4)))
    }

    fn errno<T>(result: Result<T>) -> Option<i32> {
        result.err().map(|error| error.errno())
    }

    proptest! {
        #[test]
        fn a_tuple_comes_back(layout in layout(), (local, remote) in ends(), id: u8, prio: u8, more in 1usize..60) {
            let prio = if layout == Layout::Kernel { 0 } else { prio };
            let tuple = SubTuple { id, prio, local, remote };
            let mut bytes = encode_sub_tuple(layout, &tuple);
            prop_assert_eq!(bytes.len(), sub_tuple_size(layout, local.is_ipv4()));
            prop_assert_eq!(decode_sub_tuple(layout, &bytes, bytes.len()), Ok(tuple));
            for length in 0..bytes.len() {
                prop_assert_eq!(errno(decode_sub_tuple(layout, &bytes[..length], length)), Some(libc::EINVAL));
            }
            bytes.resize(bytes.len() + more, 0);
            let longer = decode_sub_tuple(layout, &bytes, bytes.len());
            match layout {
                Layout::Kernel => prop_assert_eq!(errno(longer), Some(libc::EINVAL)),
                Layout::Draft | Layout::Header => prop_assert_eq!(longer, Ok(tuple)),
            }
        }

        #[test]
        fn a_family_of_0_is_told_by_the_other_or_by_the_length(
            layout in layout(), (local, remote) in ends(), left_out in 1usize..4,
        ) {
            let prio = (layout != Layout::Kernel).into();
            let tuple = SubTuple { id: 7, prio, local, remote };
            let mut bytes = encode_sub_tuple(layout, &tuple);
            let second = addrs(layout) + (bytes.len() - addrs(layout)) / 2;
            for (bit, at) in [(1, addrs(layout)), (2, second)] {
                if left_out & bit != 0 {
                    bytes::put(&mut bytes, at, &[0, 0]);
                }
            }
            prop_assert_eq!(decode_sub_tuple(layout, &bytes, bytes.len()), Ok(tuple));
        }

        #[test]
        fn ids_and_flags_come_back(layout in layout(), subflows in prop::collection::vec(any::<(u8, [bool; 5])>(), 0..=255)) {
            let statuses: Vec<SubStatus> = subflows
                .iter()
                .map(|&(id, [slave_sk, fully_established, attached, low_prio, pre_established])| {
                    SubStatus { id, slave_sk, fully_established, attached, low_prio, pre_established }
                })
                .collect();
            let bytes = encode_sub_ids(layout, &statuses);
            prop_assert_eq!(bytes.len(), 2 + 2 * subflows.len());
            prop_assert_eq!(usize::from(bytes[0]), subflows.len());
            for (element, (id, flags)) in bytes[2..].chunks(2).zip(&subflows) {
                let bit = |position: usize| element[1] >> position & 1 != 0;
                prop_assert_eq!(element[0], *id);
                match layout {
                    Layout::Draft => prop_assert_eq!(element[1], u8::from(flags[3])),
                    _ => prop_assert_eq!(std::array::from_fn::<_, 5, _>(bit), *flags),
                }
            }
        }

        #[test]
        fn a_request_for_an_option_comes_back(id: u8, level: i32, optname: i32, optval: u64, optlen: u64) {
            let mut bytes = vec![0xaa; uapi::SOCKOPT_SIZE];
            bytes[0] = id;
            bytes[4..8].copy_from_slice(&level.to_ne_bytes());
            bytes[8..12].copy_from_slice(&optname.to_ne_bytes());
            bytes[16..24].copy_from_slice(&optval.to_ne_bytes());
            bytes[24..32].copy_from_slice(&optlen.to_ne_bytes());
            let expected = SubSockopt { id, level, optname, optval, optlen };
            prop_assert_eq!(decode_sub_getsockopt(&bytes), Ok(expected));
            let expected = SubSockopt { optlen: optlen & 0xffff_ffff, ..expected };
            prop_assert_eq!(decode_sub_setsockopt(&bytes), Ok(expected));
            for length in 0..bytes.len() {
                prop_assert_eq!(errno(decode_sub_getsockopt(&bytes[..length])), Some(libc::EINVAL));
                prop_assert_eq!(errno(decode_sub_setsockopt(&bytes[..length])), Some(libc::EINVAL));
            }
        }

        #[test]
        fn any_bytes_are_a_request_or_an_error(layout in layout(), bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let known = [None, Some(libc::EINVAL), Some(libc::EAFNOSUPPORT)];
            prop_assert!(known.contains(&errno(decode_sub_tuple(layout, &bytes, bytes.len()))));
            prop_assert!(known.contains(&errno(decode_close_sub_id(layout, &bytes))));
            prop_assert!(known.contains(&errno(decode_sub_getsockopt(&bytes))));
        }

        #[test]
        fn both_ends_are_of_one_family(layout in layout(), local in end(true), remote in end(false)) {
            for (one, other) in [(local, remote), (remote, local)] {
                let tuple = SubTuple { id: 0, prio: 0, local: one, remote: other };
                let mut bytes = encode_sub_tuple(layout, &tuple);
                bytes.resize(sub_tuple_size(layout, one.is_ipv4()), 0);
                let refused = errno(decode_sub_tuple(layout, &bytes, bytes.len()));
                prop_assert_eq!(refused, Some(libc::EAFNOSUPPORT));
            }
        }
    }
}
