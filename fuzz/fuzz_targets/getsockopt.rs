//! Replies of getsockopt: MPTCP_INFO, TCP_INFO, MPTCP_FULL_INFO, MPTCP_TCPINFO, MPTCP_SUBFLOW_ADDRS.
//!
//! Input: the length of the header of MPTCP_FULL_INFO, the number of elements of its first array and the size of one of
//! the second (u16), then the three of them. The other replies are the same bytes without these first four.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::abi::address::{decode_sockaddr, encode_sockaddr};
use mptcp::abi::bytes;
use mptcp::abi::fields::Field;
use mptcp::abi::full_info::{decode_full_info, decode_subflow_addrs, decode_subflow_data};
use mptcp::abi::mptcp_info::{self, Info};
use mptcp::abi::tcp_info::{self, TcpInfo};
use mptcp::abi::uapi::subflow_info;

/// What a shorter structure has, the longer one has too, and the same.
fn fields_agree(fields: &[Field], bytes: &[u8], shorter: &[u8]) {
    for field in fields {
        if let Some(value) = field.read(shorter) {
            assert_eq!(field.read(bytes), Some(value), "{}", field.name);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let (Some(cut), Some(count), Some(size)) = (bytes::u8(data, 0), bytes::u8(data, 1), bytes::u16(data, 2))
    else {
        return;
    };
    let rest = &data[4..];
    let (header, arrays) = rest.split_at(usize::from(cut).min(rest.len()));
    let (subflows, tcp_infos) = arrays.split_at((usize::from(count) * subflow_info::SIZE).min(arrays.len()));
    if let Some(reply) = decode_full_info(header, subflows, tcp_infos, size.into()) {
        assert!(reply.subflows.len() <= reply.total.min(usize::from(count)));
        for reading in &reply.subflows {
            assert!(reading.tcp_info.bytes().len() <= usize::from(size).min(tcp_info::SIZE));
            let _ = reading.tcp_info.state_name();
        }
        let _ = reply.info.token();
    }

    if let Some((total, elements)) = decode_subflow_data(rest, size.into()) {
        assert!(elements.len() <= total);
        assert!(elements.concat().len() <= rest.len());
        for element in elements {
            let _ = decode_subflow_addrs(element);
        }
    }

    let info = Info::decode(rest);
    assert_eq!(info.bytes(), &rest[..rest.len().min(mptcp_info::SIZE)]);
    fields_agree(mptcp_info::FIELDS, info.bytes(), &rest[..usize::from(cut).min(rest.len())]);
    let tcp_info = TcpInfo::decode(rest);
    assert_eq!(tcp_info.bytes(), &rest[..rest.len().min(tcp_info::SIZE)]);
    fields_agree(tcp_info::FIELDS, tcp_info.bytes(), &rest[..usize::from(cut).min(rest.len())]);

    if let Some(address) = decode_sockaddr(rest) {
        assert_eq!(decode_sockaddr(&encode_sockaddr(address)), Some(address));
    }
});
