//! Framing of netlink: the messages of a datagram, the attributes of a message. Input: a datagram.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mptcp::netlink::codec::{attributes, find, messages, push_attribute, push_nested, Message};

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
    let mut bytes = Vec::new();
    for (kind, value) in &read {
        push_attribute(&mut bytes, *kind, value);
    }
    assert_eq!(attributes(&bytes).collect::<Vec<_>>(), read);
    if let Some((kind, value)) = read.first() {
        assert_eq!(find(&bytes, *kind), Some(*value));
    }
    // An attribute's length is a u16, its head included.
    if bytes.len() <= usize::from(u16::MAX) - 4 {
        let mut outer = Vec::new();
        push_nested(&mut outer, 1, |outer| outer.extend_from_slice(&bytes));
        assert_eq!(find(&outer, 1), Some(&bytes[..]));
    }
});
