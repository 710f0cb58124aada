//! rtnetlink: replies of RTM_GETROUTE, links and addresses. Input: a datagram of netlink.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::abi::uapi::rtnetlink::{RTA_DST, RTMSG_SIZE, RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};
use mptcp::netlink::{links, route};
use mptcp::netlink::codec::{find, messages, Message};

fn decode(message_type: u16, payload: &[u8]) {
    if let Some(links::codec::LinkChange::Link { name, .. }) = links::codec::decode(message_type, payload) {
        assert!(!name.contains('\0'));
    }
    let Some(source) = route::codec::decode(payload).and_then(|route| route.source) else { return };
    let request = route::codec::encode(source, None, 1);
    let octets = match source {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    assert_eq!(find(&request[RTMSG_SIZE..], RTA_DST), Some(&octets[..]));
}

fuzz_target!(|data: &[u8]| {
    for message_type in [RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR] {
        decode(message_type, data);
    }
    for message in messages(data) {
        if let Message::Data { message_type, payload, .. } = message {
            decode(message_type, payload);
        }
    }
});
