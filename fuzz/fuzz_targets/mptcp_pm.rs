//! The path managers' generic netlink: events, addresses, the family's own description. Input: a datagram of netlink.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::events::event;
use mptcp::netlink::pm;
use mptcp::netlink::codec::{messages, Message};

fn decode(payload: &[u8]) {
    if let Some(event) = event::decode(payload, 7, |index| Some(index.to_string().into())) {
        assert_eq!(event.time_ns, 7);
    }
    let _ = pm::codec::decode_family(payload);
    if let Some(address) = pm::codec::decode_get_addr(payload) {
        for command in [
            pm::codec::encode_announce(9, &address),
            pm::codec::encode_create(9, &address, &address),
            pm::endpoints::encode_add(&address),
        ] {
            assert_eq!(pm::codec::decode_get_addr(&command), Some(address));
        }
    }
    if let Some(limits) = pm::endpoints::decode_limits(payload) {
        let command = pm::endpoints::encode_set_limits(Some(limits.subflows), Some(limits.add_addr_accepted));
        assert_eq!(pm::endpoints::decode_limits(&command), Some(limits));
    }
}

fuzz_target!(|data: &[u8]| {
    decode(data);
    for message in messages(data) {
        if let Message::Data { payload, .. } = message {
            decode(payload);
        }
    }
});
