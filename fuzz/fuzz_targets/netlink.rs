//! Framing of netlink: the messages of a datagram, the attributes of a message. Input: a datagram.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::netlink::codec::{attribute, attributes, emit, find, messages, nested, Message};

fuzz_target!(|data: &[u8]| {
    let inside = |part: &[u8]| {
        let (whole, part) = (data.as_ptr_range(), part.as_ptr_range());
        assert!(whole.start <= part.start && part.end <= whole.end);
    };
    let mut size = 0;
    for message in messages(data) {
        size += 16;
        match message {
            Message::Data { payload, .. } => {
                size += payload.len();
                inside(payload);
                attributes(payload).for_each(|(_, value)| inside(value));
            }
            // Callers compare it with errno and print it.
            Message::Failed { failure, .. } => {
                assert!(failure.errno > 0, "errno {}", failure.errno);
                assert!(!failure.describe().is_empty());
            }
            Message::Ack { .. } | Message::Done { .. } => {}
        }
    }
    assert!(size <= data.len());

    let read: Vec<_> = attributes(data).collect();
    assert!(read.iter().map(|(_, value)| 4 + value.len()).sum::<usize>() <= data.len());
    let written: Vec<_> = read.iter().map(|(kind, value)| attribute(*kind, value)).collect();
    let bytes = emit(&written);
    assert_eq!(attributes(&bytes).collect::<Vec<_>>(), read);
    if let Some((kind, value)) = read.first() {
        assert_eq!(find(&bytes, *kind), Some(*value));
    }
    // An attribute's length is a u16, its head included.
    if bytes.len() <= usize::from(u16::MAX) - 4 {
        let outer = emit(&[nested(1, &written)]);
        assert_eq!(find(&outer, 1), Some(&bytes[..]));
    }
});
