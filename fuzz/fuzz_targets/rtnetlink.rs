//! Replies of RTM_GETROUTE. Input: a datagram of netlink.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::netlink::{find, messages, Message};
use mptcp::route;
use mptcp::uapi::rtnetlink::{RTA_DST, RTMSG_SIZE};

fn decode(payload: &[u8]) {
    let Some(source) = route::decode(payload).and_then(|route| route.source) else { return };
    let request = route::encode(source, 1);
    let octets = match source {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    assert_eq!(find(&request[RTMSG_SIZE..], RTA_DST), Some(&octets[..]));
}

fuzz_target!(|data: &[u8]| {
    decode(data);
    for message in messages(data) {
        if let Message::Data { payload, .. } = message {
            decode(payload);
        }
    }
});
