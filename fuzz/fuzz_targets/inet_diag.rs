//! inet_diag: replies of sock_diag, and the socket options that are read from them. Input: a datagram of netlink.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::abi::bytes;
use mptcp::abi::fields::Field;
use mptcp::abi::mptcp_info::{self, Info};
use mptcp::abi::tcp_info::{self, TcpInfo};
use mptcp::abi::uapi::diag::{NOCOOKIE, REQUEST_SIZE};
use mptcp::netlink::diag;
use mptcp::netlink::codec::{messages, Message};
use mptcp::options::table::{self, ReadBy};

const SOURCES: [ReadBy; 14] = [
    ReadBy::TcpInfo,
    ReadBy::CongestionControl,
    ReadBy::CongestionControlInfo,
    ReadBy::SegmentSize,
    ReadBy::MaxPacingRate,
    ReadBy::SendBuffer,
    ReadBy::ReceiveBuffer,
    ReadBy::MemInfo,
    ReadBy::Interface,
    ReadBy::Cookie,
    ReadBy::Tos,
    ReadBy::TrafficClass,
    ReadBy::Mark,
    ReadBy::Bpf,
];

fn decode(payload: &[u8]) {
    let told = diag::codec::decode_info(payload);
    assert!(told.len() <= payload.len());
    let read = |fields: &[Field], bytes: &[u8]| fields.iter().filter_map(|field| field.read(bytes)).count();
    read(mptcp_info::FIELDS, Info::decode(told).bytes());
    read(tcp_info::FIELDS, TcpInfo::decode(told).bytes());
    let _ = diag::codec::is_multipath(payload);

    let entry = diag::codec::decode(payload);
    let attributes = diag::codec::decode_attributes(payload);
    assert_eq!(attributes.as_ref().map(|attributes| attributes.entry), entry);
    let (Some(entry), Some(attributes)) = (entry, attributes) else { return };
    let _ = entry.is_orphan();
    if let Some(ulp) = entry.subflow {
        let _ = (ulp.initial(), ulp.opened_here(), ulp.fell_back(), ulp.fully_established());
        let _ = (ulp.backup(), ulp.peer_backup());
    }
    assert!(entry.tuple.same_endpoints(&entry.tuple));

    for source in SOURCES {
        for room in [0, 1, 4, 8, 16, 1000] {
            match table::value(source, &attributes, room) {
                Some(Ok(value)) => assert!(value.len() <= room, "{source:?}"),
                Some(Err(errno)) => assert!(errno > 0, "{source:?}"),
                None => {}
            }
        }
    }

    // The request for what was told asks for the same socket.
    let request = diag::codec::encode_request(&entry.tuple, NOCOOKIE);
    assert_eq!(request.len(), REQUEST_SIZE);
    assert_eq!(bytes::be16(&request, 8), Some(entry.tuple.local.port()));
    assert_eq!(bytes::be16(&request, 10), Some(entry.tuple.remote.port()));
    assert_eq!(request[0], payload[0]);
    let length = if entry.tuple.local.is_ipv4() { 4 } else { 16 };
    assert_eq!(request[12..12 + length], payload[8..8 + length]);
    assert_eq!(request[28..28 + length], payload[24..24 + length]);
    assert_eq!(request[44..48], payload[40..44]);
}

fuzz_target!(|data: &[u8]| {
    decode(data);
    for message in messages(data) {
        if let Message::Data { payload, .. } = message {
            decode(payload);
        }
    }
});
