//! Bytes of MPTCP_FULL_INFO, or of MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS, to readings of subflows.

use std::net::SocketAddr;

use crate::abi::address::decode_sockaddr;
use crate::abi::bytes;
use crate::abi::mptcp_info::Info;
use crate::abi::tcp_info::TcpInfo;
use crate::abi::uapi::{full_info, subflow_data, subflow_info, SOCKADDR_STORAGE};

/// One subflow as the getsockopt tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The kernel's subflow id; absent before 6.5.
    pub id: Option<u32>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub tcp_info: TcpInfo,
}

/// A reply to MPTCP_FULL_INFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullInfo {
    pub info: Info,
    /// How many subflows the connection has, which may be more than were read.
    pub total: usize,
    pub subflows: Vec<Reading>,
}

/// Decodes MPTCP_FULL_INFO: `header` as long as the kernel made it, and the two arrays.
/// `None` if the header is too short to count the subflows. An element of a family that we do not know is left out.
pub fn decode_full_info(
    header: &[u8],
    subflows: &[u8],
    tcp_infos: &[u8],
    tcp_info_size: usize,
) -> Option<FullInfo> {
    // Where the kernel's tcp_info is shorter than the room for it, its elements lie that much closer.
    let stride = stride(bytes::u32(header, full_info::SIZE_TCPINFO_KERNEL)?, tcp_info_size)?;
    let total = bytes::u32(header, full_info::NUM_SUBFLOWS)? as usize;
    let info = Info::decode(header.get(full_info::MPTCP_INFO..).unwrap_or_default());
    let subflows = subflows
        .chunks_exact(subflow_info::SIZE)
        .zip(tcp_infos.chunks_exact(stride))
        .take(total)
        .filter_map(|(element, tcp_info)| {
            Some(Reading {
                id: bytes::u32(element, subflow_info::ID),
                local: decode_sockaddr(&element[subflow_info::LOCAL..])?,
                remote: decode_sockaddr(&element[subflow_info::REMOTE..])?,
                tcp_info: TcpInfo::decode(tcp_info),
            })
        })
        .collect();
    Some(FullInfo { info, total, subflows })
}

/// The distance between elements in a reply: the kernel's size or the caller's, whichever is smaller.
fn stride(kernel_size: u32, user_size: usize) -> Option<usize> {
    Some((kernel_size as usize).min(user_size)).filter(|stride| *stride > 0)
}

/// Writes the head that MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS want in front of their array.
pub fn encode_subflow_data(buffer: &mut [u8], element_size: usize) {
    buffer.fill(0);
    bytes::put(buffer, subflow_data::SIZE_SUBFLOW_DATA, &(subflow_data::SIZE as u32).to_ne_bytes());
    bytes::put(buffer, subflow_data::SIZE_USER, &(element_size as u32).to_ne_bytes());
}

/// The count of subflows and the elements in a reply of MPTCP_TCPINFO or MPTCP_SUBFLOW_ADDRS.
pub fn decode_subflow_data(reply: &[u8], element_size: usize) -> Option<(usize, Vec<&[u8]>)> {
    let total = bytes::u32(reply, subflow_data::NUM_SUBFLOWS)? as usize;
    let stride = stride(bytes::u32(reply, subflow_data::SIZE_KERNEL)?, element_size)?;
    let array = reply.get(subflow_data::SIZE..)?;
    Some((total, array.chunks_exact(stride).take(total).collect()))
}

/// One element of MPTCP_SUBFLOW_ADDRS: local and remote address.
pub fn decode_subflow_addrs(element: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    Some((decode_sockaddr(element)?, decode_sockaddr(element.get(SOCKADDR_STORAGE..)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockaddr(last: u8, port: u16) -> Vec<u8> {
        let mut bytes = vec![0; SOCKADDR_STORAGE];
        bytes[0] = 2;
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&[10, 0, 1, last]);
        bytes
    }

    fn element(id: u8) -> Vec<u8> {
        let mut bytes = vec![id, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(sockaddr(1, 40000));
        bytes.extend(sockaddr(2, 5000));
        bytes
    }

    #[test]
    fn full_info_decodes_and_counts_what_did_not_fit() {
        let mut header = vec![0; 136];
        header[0] = 232;
        header[16] = 3;
        header[52..56].copy_from_slice(&9u32.to_ne_bytes());
        let subflows = [element(1), element(2)].concat();
        // This kernel's tcp_info has 232 bytes: in room for 280 each, the second begins at 232.
        let tcp_infos = [vec![1; 232], vec![4; 232], vec![0; 96]].concat();
        let reply = decode_full_info(&header, &subflows, &tcp_infos, 280).unwrap();
        assert_eq!((reply.total, reply.subflows.len(), reply.info.token()), (3, 2, 9));
        let second = &reply.subflows[1];
        assert_eq!(second.id, Some(2));
        assert_eq!(second.local, "10.0.1.1:40000".parse().unwrap());
        assert_eq!(second.remote, "10.0.1.2:5000".parse().unwrap());
        assert_eq!(second.tcp_info.bytes(), [4; 232], "as long as the kernel's own structure");
    }

    #[test]
    fn cut_replies_never_panic() {
        let mut header = vec![255; 136];
        let _ = decode_full_info(&header, &[], &[], 280);
        header[..4].fill(0);
        assert_eq!(decode_full_info(&header, &[], &[], 280), None, "a size of 0");
        header[0] = 200;
        let subflows = element(1);
        for length in 0..header.len() {
            let _ = decode_full_info(&header[..length], &subflows, &[0; 280], 280);
        }
        for length in 0..subflows.len() {
            assert!(decode_full_info(&header, &subflows[..length], &[0; 280], 280)
                .unwrap()
                .subflows
                .is_empty());
            let _ = decode_subflow_data(&subflows[..length], 256);
            let _ = decode_subflow_addrs(&subflows[..length]);
        }
    }

    #[test]
    fn subflow_data_decodes() {
        let mut reply = vec![0; 16];
        encode_subflow_data(&mut reply, 256);
        assert_eq!((reply[0], bytes::u32(&reply, 12)), (16, Some(256)));
        reply[4] = 1;
        reply[8..12].copy_from_slice(&256u32.to_ne_bytes());
        reply.extend([sockaddr(1, 40000), sockaddr(2, 5000)].concat());
        let (total, elements) = decode_subflow_data(&reply, 256).unwrap();
        assert_eq!((total, elements.len()), (1, 1));
        assert_eq!(
            decode_subflow_data(&reply, 300).unwrap().1,
            elements,
            "the kernel's elements are smaller"
        );
        assert_eq!(decode_subflow_addrs(elements[0]).unwrap().1, "10.0.1.2:5000".parse().unwrap());
    }
}
