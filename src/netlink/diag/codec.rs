//! inet_diag as bytes: `<linux/inet_diag.h>`, `<linux/sock_diag.h>`.

use std::net::{IpAddr, SocketAddr};

use crate::abi::address;
use crate::abi::bytes;
use crate::abi::uapi::{diag, tcp_state, ulp};
use crate::netlink::codec::{attributes, find, push_attribute};

/// The bit of idiag_ext that asks for INET_DIAG_INFO.
pub const INFO: u8 = 1 << (diag::INET_DIAG_INFO - 1);

/// idiag_states: all but those in which a socket is not a subflow, or not yet.
const CONNECTED: u32 = !(1 << tcp_state::TIME_WAIT
    | 1 << tcp_state::CLOSE
    | 1 << tcp_state::LISTEN
    | 1 << tcp_state::NEW_SYN_RECV);

/// The four-tuple of a subflow, and the interface that it is bound to or 0: the kernel's exact look-up does not
/// find a bound socket without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub interface: u32,
}

impl Tuple {
    /// The same four-tuple, whatever the interface and the scope, and whether IPv4 is written as IPv6 or not: the kernel
    /// finds a subflow by either form.
    pub fn same_endpoints(&self, other: &Tuple) -> bool {
        self.endpoints() == other.endpoints()
    }

    /// What [`Tuple::same_endpoints`] compares.
    pub fn endpoints(&self) -> [(IpAddr, u16); 2] {
        [&self.local, &self.remote].map(|end| (end.ip().to_canonical(), end.port()))
    }
}

/// The inet_diag entry of one socket: a subflow, or a connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub tuple: Tuple,
    pub state: u8,
    pub cookie: u64,
    pub uid: u32,
    /// 0 until the socket is accepted.
    pub inode: u32,
    /// The socket's cgroup, version 2, by its number.
    pub cgroup: Option<u64>,
    /// Absent for a socket that is not a subflow.
    pub subflow: Option<Ulp>,
}

impl Entry {
    /// Of a socket of which only the ends and the cookie are known.
    pub fn of_ends(tuple: Tuple, cookie: u64) -> Entry {
        Entry { tuple, state: 0, cookie, uid: 0, inode: 0, cgroup: None, subflow: None }
    }

    /// A subflow that was closed while its connection continues: it has no owner any more, and waits for the other end's
    /// last segments. Meaningless for a connection that has no owner itself.
    pub fn is_orphan(&self) -> bool {
        self.inode == 0 && tcp_state::FIN_SENT.contains(&self.state)
    }
}

/// The MPTCP part, INET_ULP_INFO_MPTCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulp {
    pub token: u32,
    pub local_id: u8,
    pub remote_id: u8,
    pub flags: u32,
}

impl Ulp {
    /// One of a subflow that the peer has accepted, as tests make it: the initial one, or one that this side joined.
    pub fn made(token: u32, ids: (u8, u8), is_initial: bool, backup: bool, peer_backup: bool) -> Ulp {
        let began = if is_initial { ulp::FLAG_MCAP_LOC } else { ulp::FLAG_JOIN_LOC };
        let when = |holds, flag| if holds { flag } else { 0 };
        let priority = when(backup, ulp::FLAG_BKUP_LOC) | when(peer_backup, ulp::FLAG_BKUP_REM);
        let flags = began | priority | ulp::FLAG_FULLY_ESTABLISHED | ulp::FLAG_CONNECTED;
        Ulp { token, local_id: ids.0, remote_id: ids.1, flags }
    }

    /// The subflow that MP_CAPABLE opened; the others joined.
    pub fn initial(&self) -> bool {
        self.flags & (ulp::FLAG_JOIN_LOC | ulp::FLAG_JOIN_REM) == 0
    }

    /// A subflow that this side joined.
    pub fn joined_here(&self) -> bool {
        self.flags & ulp::FLAG_JOIN_LOC != 0
    }

    /// The initial subflow of a connection that we opened.
    pub fn opened_here(&self) -> bool {
        self.flags & ulp::FLAG_MCAP_LOC != 0
    }

    /// The initial subflow of a connection that fell back to TCP at its handshake: answered without MP_CAPABLE.
    pub fn fell_back(&self) -> bool {
        let met = ulp::FLAG_CONNECTED | ulp::FLAG_MCAP_REM;
        self.initial() && self.flags & met == ulp::FLAG_CONNECTED
    }

    /// Backup, as set by this side.
    pub fn backup(&self) -> bool {
        self.flags & ulp::FLAG_BKUP_LOC != 0
    }

    /// Backup, as requested by the peer.
    pub fn peer_backup(&self) -> bool {
        self.flags & ulp::FLAG_BKUP_REM != 0
    }

    /// Nobody can refuse the subflow any more: initial, opened by the peer, or accepted by it.
    pub fn accepted(&self) -> bool {
        self.flags & ulp::FLAG_JOIN_LOC == 0 || self.fully_established()
    }

    /// The peer has accepted the subflow: for one that joins, by the fourth ACK.
    pub fn fully_established(&self) -> bool {
        self.flags & ulp::FLAG_FULLY_ESTABLISHED != 0
    }
}

/// `struct inet_diag_req_v2` for one TCP socket.
pub fn encode_request(tuple: &Tuple, cookie: u64) -> [u8; diag::REQUEST_SIZE] {
    let mut bytes = encode_dump(address::family(tuple.local.ip()));
    bytes::put(&mut bytes, 8, &tuple.local.port().to_be_bytes());
    bytes::put(&mut bytes, 10, &tuple.remote.port().to_be_bytes());
    for (at, ip) in [(12, tuple.local.ip()), (28, tuple.remote.ip())] {
        match ip {
            IpAddr::V4(v4) => bytes::put(&mut bytes, at, &v4.octets()),
            IpAddr::V6(v6) => bytes::put(&mut bytes, at, &v6.octets()),
        }
    }
    bytes::put(&mut bytes, 44, &tuple.interface.to_ne_bytes());
    bytes::put(&mut bytes, 48, &cookie.to_ne_bytes());
    bytes
}

/// The same, asking for everything that [`decode_attributes`] reads.
pub fn encode_attributes_request(tuple: &Tuple, cookie: u64) -> [u8; diag::REQUEST_SIZE] {
    let mut bytes = encode_request(tuple, cookie);
    let asked = [
        diag::INET_DIAG_INFO,
        diag::INET_DIAG_VEGASINFO,
        diag::INET_DIAG_CONG,
        diag::INET_DIAG_TOS,
        diag::INET_DIAG_TCLASS,
        diag::INET_DIAG_SKMEMINFO,
    ];
    bytes[2] = asked.iter().fold(0, |bits, attribute| bits | 1 << (attribute - 1));
    bytes
}

/// `struct inet_diag_req_v2` for all TCP sockets of a family that may be subflows.
pub fn encode_dump(family: u8) -> [u8; diag::REQUEST_SIZE] {
    let mut bytes = [0; diag::REQUEST_SIZE];
    bytes[0] = family;
    bytes[1] = libc::IPPROTO_TCP as u8;
    // The kernel adds INET_DIAG_ULP_INFO only where tcp_info is asked for too: it has no bit of its own here.
    bytes[2] = INFO;
    bytes::put(&mut bytes, 4, &CONNECTED.to_ne_bytes());
    bytes
}

/// `struct inet_diag_req`, whose dump goes through the kernel's table once for IPv4 and IPv6 together. That takes half
/// the time, since the table has as many places as the host could have sockets.
pub fn encode_dump_of_all_families(extensions: u8) -> [u8; diag::OLD_REQUEST_SIZE] {
    let mut bytes = [0; diag::OLD_REQUEST_SIZE];
    bytes[3] = extensions;
    bytes::put(&mut bytes, 52, &CONNECTED.to_ne_bytes());
    bytes
}

/// `struct inet_diag_req_v2` for the connections of the namespace: the one with this token, or, as a dump, all of a
/// family, which a look-up by token ignores.
pub fn encode_mptcp(family: i32, token: u32, extensions: u8) -> Vec<u8> {
    let mut bytes = vec![0; diag::REQUEST_SIZE];
    bytes[0] = family as u8;
    bytes[1] = diag::IPPROTO_RAW;
    bytes[2] = extensions;
    bytes::put(&mut bytes, 4, &CONNECTED.to_ne_bytes());
    bytes::put(&mut bytes, 48, &token.to_ne_bytes());
    push_attribute(&mut bytes, diag::INET_DIAG_REQ_PROTOCOL, &libc::IPPROTO_MPTCP.to_ne_bytes());
    bytes
}

/// Decodes `struct inet_diag_msg` and the attributes behind it.
pub fn decode(payload: &[u8]) -> Option<Entry> {
    let interface = bytes::u32(payload, 40)?;
    let ip = |at| match i32::from(payload[0]) {
        libc::AF_INET => bytes::ipv4(payload, at).map(IpAddr::V4),
        libc::AF_INET6 => bytes::ipv6(payload, at).map(IpAddr::V6),
        _ => None,
    };
    let tuple = Tuple {
        local: address::with_scope(SocketAddr::new(ip(8)?, bytes::be16(payload, 4)?), interface),
        remote: address::with_scope(SocketAddr::new(ip(24)?, bytes::be16(payload, 6)?), interface),
        interface,
    };
    let attributes = payload.get(diag::MESSAGE_SIZE..)?;
    Some(Entry {
        tuple,
        state: bytes::u8(payload, 1)?,
        cookie: bytes::u64(payload, 44)?,
        uid: bytes::u32(payload, 64)?,
        inode: bytes::u32(payload, 68)?,
        cgroup: find(attributes, diag::INET_DIAG_CGROUP_ID).and_then(|id| bytes::u64(id, 0)),
        subflow: find(attributes, diag::INET_DIAG_ULP_INFO)
            .and_then(|info| find(info, diag::INET_ULP_INFO_MPTCP))
            .and_then(decode_ulp),
    })
}

/// The structure behind INET_DIAG_INFO: `tcp_info` of a subflow, `mptcp_info` of a connection. Empty if there is none.
pub fn decode_info(payload: &[u8]) -> &[u8] {
    payload
        .get(diag::MESSAGE_SIZE..)
        .and_then(|attributes| find(attributes, diag::INET_DIAG_INFO))
        .unwrap_or_default()
}

/// An entry and, as bytes, its `tcp_info`, which is empty for a socket in TIME_WAIT.
pub fn decode_with_info(payload: &[u8]) -> Option<(Entry, &[u8])> {
    decode(payload).map(|entry| (entry, decode_info(payload)))
}

/// The socket is a subflow or the TCP socket of a Multipath TCP listener.
pub fn is_multipath(payload: &[u8]) -> bool {
    let attributes = payload.get(diag::MESSAGE_SIZE..).unwrap_or_default();
    let name =
        find(attributes, diag::INET_DIAG_ULP_INFO).and_then(|info| find(info, diag::INET_ULP_INFO_NAME));
    name.is_some_and(|name| name.split(|byte| *byte == 0).next() == Some(b"mptcp"))
}

fn decode_ulp(bytes: &[u8]) -> Option<Ulp> {
    let (mut token, mut local_id, mut remote_id, mut flags) = (None, 0, 0, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            ulp::ATTR_TOKEN_LOC => token = bytes::u32(value, 0),
            ulp::ATTR_ID_LOC => local_id = bytes::u8(value, 0)?,
            ulp::ATTR_ID_REM => remote_id = bytes::u8(value, 0)?,
            ulp::ATTR_FLAGS => flags = bytes::u32(value, 0)?,
            _ => {}
        }
    }
    Some(Ulp { token: token?, local_id, remote_id, flags })
}

/// The socket options of one subflow that inet_diag reports, each value as getsockopt returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    pub entry: Entry,
    /// `struct tcp_info`, as long as this kernel has it.
    pub tcp_info: Vec<u8>,
    /// Empty where the congestion control reports nothing.
    pub cc_info: Vec<u8>,
    /// Without its NUL.
    pub congestion: Vec<u8>,
    pub tos: Option<u8>,
    /// Of IPv6 sockets.
    pub tclass: Option<u8>,
    /// SK_MEMINFO_*.
    pub meminfo: Vec<u8>,
    /// Only reported to processes with CAP_NET_ADMIN in the user namespace that owns the network namespace.
    pub mark: Option<u32>,
}

/// Decodes a reply to [`encode_attributes_request`].
pub fn decode_attributes(payload: &[u8]) -> Option<Attributes> {
    let mut read = Attributes {
        entry: decode(payload)?,
        tcp_info: Vec::new(),
        cc_info: Vec::new(),
        congestion: Vec::new(),
        tos: None,
        tclass: None,
        meminfo: Vec::new(),
        mark: None,
    };
    for (kind, value) in attributes(payload.get(diag::MESSAGE_SIZE..)?) {
        match kind {
            diag::INET_DIAG_INFO => read.tcp_info = value.to_vec(),
            diag::INET_DIAG_VEGASINFO | diag::INET_DIAG_DCTCPINFO | diag::INET_DIAG_BBRINFO => {
                read.cc_info = value.to_vec();
            }
            diag::INET_DIAG_CONG => {
                read.congestion = value.iter().copied().take_while(|byte| *byte != 0).collect();
            }
            diag::INET_DIAG_TOS => read.tos = bytes::u8(value, 0),
            diag::INET_DIAG_TCLASS => read.tclass = bytes::u8(value, 0),
            diag::INET_DIAG_SKMEMINFO => read.meminfo = value.to_vec(),
            diag::INET_DIAG_MARK => read.mark = bytes::u32(value, 0),
            _ => {}
        }
    }
    Some(read)
}

/// The cookie of the socket that a reply, or a notice of SKNLGRP_INET_TCP_DESTROY, speaks of.
pub fn cookie(payload: &[u8]) -> Option<u64> {
    bytes::u64(payload, 44)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::mptcp_info::Info;
    use crate::abi::tcp_info::TcpInfo;
    use crate::netlink::codec::written::{attribute, emit, nested};

    fn reply() -> Vec<u8> {
        let mut bytes = vec![0; diag::MESSAGE_SIZE];
        bytes[0] = 2;
        bytes[1] = 1;
        bytes[4..6].copy_from_slice(&12345u16.to_be_bytes());
        bytes[6..8].copy_from_slice(&5000u16.to_be_bytes());
        bytes[8..12].copy_from_slice(&[10, 0, 2, 1]);
        bytes[24..28].copy_from_slice(&[10, 0, 2, 2]);
        bytes[44..52].copy_from_slice(&77u64.to_ne_bytes());
        let mptcp = nested(
            diag::INET_ULP_INFO_MPTCP,
            &[
                attribute(ulp::ATTR_TOKEN_LOC, &9u32.to_ne_bytes()),
                attribute(ulp::ATTR_ID_LOC, &[3]),
                attribute(ulp::ATTR_FLAGS, &(ulp::FLAG_JOIN_LOC | ulp::FLAG_BKUP_LOC).to_ne_bytes()),
            ],
        );
        let name = attribute(diag::INET_ULP_INFO_NAME, b"mptcp\0");
        bytes.extend(emit(&[
            attribute(diag::INET_DIAG_CGROUP_ID, &4242u64.to_ne_bytes()),
            attribute(diag::INET_DIAG_INFO, &[1; 300]),
            nested(diag::INET_DIAG_ULP_INFO, &[name, mptcp]),
        ]));
        bytes
    }

    #[test]
    fn a_subflow_decodes() {
        let entry = decode(&reply()).unwrap();
        assert_eq!(entry.tuple.local, "10.0.2.1:12345".parse().unwrap());
        assert_eq!(entry.tuple.remote, "10.0.2.2:5000".parse().unwrap());
        assert_eq!((entry.cookie, entry.cgroup), (77, Some(4242)));
        let subflow = entry.subflow.unwrap();
        assert_eq!((subflow.token, subflow.local_id, subflow.remote_id), (9, 3, 0));
        assert!(subflow.backup() && !subflow.peer_backup());
        assert!(!subflow.initial() && !subflow.fully_established());
    }

    #[test]
    fn option_values_decode() {
        let mut bytes = reply();
        bytes.extend(emit(&[
            attribute(diag::INET_DIAG_CONG, b"reno\0"),
            attribute(diag::INET_DIAG_TOS, &[16]),
            attribute(diag::INET_DIAG_SKMEMINFO, &[7; 36]),
            attribute(diag::INET_DIAG_BBRINFO, &[1; 20]),
            attribute(diag::INET_DIAG_MARK, &42u32.to_ne_bytes()),
            attribute(999, b"of a newer kernel"),
        ]));
        let read = decode_attributes(&bytes).unwrap();
        assert_eq!(read.entry.cookie, 77);
        assert_eq!(read.congestion, b"reno");
        assert_eq!((read.tos, read.tclass, read.mark), (Some(16), None, Some(42)));
        assert_eq!((read.meminfo.len(), read.cc_info.len(), read.tcp_info.len()), (36, 20, 300));
        for length in 0..bytes.len() {
            let _ = decode_attributes(&bytes[..length]);
        }
    }

    #[test]
    fn cut_replies_never_panic() {
        let reply = reply();
        assert!(is_multipath(&reply));
        assert_eq!(decode_info(&reply), [1; 300]);
        for length in 0..reply.len() {
            if let Some(entry) = decode(&reply[..length]) {
                assert!(entry.subflow.is_none_or(|s| s.token == 9));
                assert!(entry.cgroup.is_none_or(|cgroup| cgroup == 4242));
            }
            let info = decode_info(&reply[..length]);
            assert!(info.is_empty() || info.len() == 300, "a cut structure is none");
            is_multipath(&reply[..length]);
        }
    }

    #[test]
    fn a_structure_of_a_newer_kernel_is_cut_to_what_is_known() {
        assert_eq!(TcpInfo::decode(decode_info(&reply())).state(), 1);
        assert_eq!(Info::decode(decode_info(&reply())).token(), 0x0101_0101);
        assert_eq!(Info::decode(decode_info(&[])).token(), 0);
    }

    #[test]
    fn a_fallback_at_the_handshake_is_told_from_one_on_its_way() {
        let with = |flags| Ulp { token: 1, local_id: 0, remote_id: 0, flags };
        assert!(!with(ulp::FLAG_MCAP_LOC).fell_back());
        assert!(with(ulp::FLAG_MCAP_LOC | ulp::FLAG_CONNECTED).fell_back());
        assert!(!with(ulp::FLAG_MCAP_LOC | ulp::FLAG_MCAP_REM | ulp::FLAG_CONNECTED).fell_back());
        assert!(!with(ulp::FLAG_JOIN_LOC | ulp::FLAG_CONNECTED).fell_back());
    }

    #[test]
    fn a_request_by_token_has_the_kernels_layout() {
        let bytes = encode_mptcp(libc::AF_INET, 0x0403_0201, INFO);
        assert_eq!(bytes[..4], [2, 255, 2, 0]);
        assert_eq!(bytes::u32(&bytes, 48), Some(0x0403_0201));
        assert_eq!(bytes::u32(&bytes, 52), Some(0));
        assert_eq!(find(&bytes[56..], 3), Some(&262u32.to_ne_bytes()[..]));
        assert_eq!(bytes::u32(&encode_dump(2), 4).map(|states| states & (1 << tcp_state::LISTEN)), Some(0));
    }

    #[test]
    fn a_request_has_the_kernels_layout() {
        let tuple = Tuple {
            local: "[fd00::1]:1".parse().unwrap(),
            remote: "[fd00::2]:65535".parse().unwrap(),
            interface: 7,
        };
        let bytes = encode_request(&tuple, diag::NOCOOKIE);
        assert_eq!(bytes[..4], [10, 6, 2, 0]);
        assert_eq!(bytes[8..12], [0, 1, 255, 255]);
        assert_eq!((bytes[12], bytes[27], bytes[43]), (0xfd, 1, 2));
        assert_eq!(bytes::u32(&bytes, 44), Some(7));
        assert_eq!(bytes[48..], [255; 8]);
        // One bit an attribute, from 1: INFO to SKMEMINFO.
        assert_eq!(encode_attributes_request(&tuple, 5)[2], 0b111_1110);
    }
}
