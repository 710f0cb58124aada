//! The protocol of the broker: what a caller sends, and what a broker answers. Input: a message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::netlink::broker::codec;
use mptcp::netlink::pm::codec::Command;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = codec::decode_request(data) {
        let payload = request.payload;
        if let Some(command) = Command::decode(payload) {
            assert_eq!(Command::decode(&command.encode()), Some(command));
        }
        if let Some((tuple, cookie)) = codec::decode_destroy(payload) {
            assert_eq!(codec::decode_destroy(&codec::encode_destroy(&tuple, cookie)), Some((tuple, cookie)));
        }
        if let Some(subflows) = codec::decode_subflows(payload) {
            assert!(subflows.len() <= codec::MAX_SUBFLOWS);
            assert_eq!(codec::decode_subflows(&codec::encode_subflows(&subflows)), Some(subflows));
        }
        if let Some(options) = codec::decode_options(payload) {
            assert!(options.len() <= codec::MAX_OPTIONS);
            assert_eq!(codec::decode_options(&codec::encode_options(&options)), Some(options));
        }
    }
    if let Some((_, Ok(payload))) = codec::decode_reply(data) {
        let _ = (codec::decode_hello(payload), codec::decode_use(payload));
        if let Some(told) = codec::decode_subflow_results(payload) {
            assert!(told.len() <= data.len());
        }
        if let Some(results) = codec::decode_option_results(payload) {
            assert!(results.len() <= data.len());
        }
    }
});
