//! The buffers of the enhanced socket API, in its layouts, and the ids it gives. Input: a buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::abi::bytes;
use mptcp::enhanced_api::codec::{self, SubStatus};
use mptcp::enhanced_api::{Call, Layout};
use mptcp::namespace::sub_ids::SubIds;

/// No two live subflows have the same id, and a live one keeps its own.
fn ids(data: &[u8]) {
    let mut ids = SubIds::default();
    let mut before: Vec<(u64, Option<u8>)> = Vec::new();
    for live in data.chunks(16) {
        let mut cookies: Vec<u64> = live.iter().map(|cookie| u64::from(*cookie)).collect();
        cookies.sort_unstable();
        cookies.dedup();
        let now: Vec<_> = cookies.iter().copied().zip(ids.assign(&cookies)).collect();
        for (at, (cookie, id)) in now.iter().enumerate() {
            assert!(id.is_some_and(|id| id > 0));
            assert!(now[..at].iter().all(|(_, other)| other != id));
            assert!(before.iter().all(|(other, old)| other != cookie || old == id));
        }
        before = now;
    }
}

fuzz_target!(|data: &[u8]| {
    for layout in [Layout::Kernel, Layout::Draft, Layout::Header] {
        let _ = codec::decode_close_sub_id(layout, data);
        for length in [data.len(), 33, 57] {
            if let Ok(tuple) = codec::decode_sub_tuple(layout, data, length) {
                let bytes = codec::encode_sub_tuple(layout, &tuple);
                assert_eq!(bytes.len(), codec::sub_tuple_size(layout, tuple.local.is_ipv4()));
                assert_eq!(codec::decode_sub_tuple(layout, &bytes, bytes.len()).ok(), Some(tuple));
            }
        }
        let statuses: Vec<SubStatus> =
            data.iter().map(|id| SubStatus { id: *id, ..SubStatus::default() }).collect();
        let listed = &statuses[..statuses.len().min(255)];
        assert_eq!(codec::encode_sub_ids(layout, listed).len(), 2 + 2 * listed.len());
        if let Some(call) = bytes::u32(data, 0).and_then(|optname| Call::of(optname as i32, layout)) {
            assert!(call.input_size() <= 64);
        }
    }
    let (get, set) = (codec::decode_sub_getsockopt(data), codec::decode_sub_setsockopt(data));
    assert_eq!(get.is_ok(), set.is_ok());
    ids(&data[..data.len().min(2048)]);
});
